"""`mdmt run` of a configuration of kind masks: results, resuming, bad input; drawn pictures."""

import csv
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

import mdmt
from mdmt import cli, config, mask_study, run
from mdmt.errors import BadConfig, BadData, BadInput, Interrupted
from mdmt.preprocess import lungs, negatives
from tests import cudahost
from tests.test_unet import discs

SETTINGS = (
    "image_size=32",
    "backbone=unet_tiny",
    "cv.folds=2",
    "train.epochs=3",
    "train.warmup_epochs=1",
    "train.batch_size=4",
    "train.augment.elastic_alpha=[0, 0]",
)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of discs, of six patients, and their masks."""
    root = tmp_path / "data"
    pictures, masks = discs(10, 40)
    for kind in ("images", "lung_masks"):
        (root / kind).mkdir(parents=True)
    for i in range(10):
        Image.fromarray(pictures[i]).save(root / "images" / f"p{i}.png")
        Image.fromarray(masks[i]).save(root / "lung_masks" / f"p{i}.png")
    Image.fromarray(pictures[0]).save(root / "images" / "extra.png")
    (root / "lung_masks.csv").write_text("image\n" + "".join(f"p{i}\n" for i in range(10)))
    for table, rows in (("prognosis", range(4)), ("severity", range(4, 8))):
        lines = "".join(f"p{i},s{i // 2}\n" for i in rows)
        (root / f"{table}.csv").write_text("image,patient\n" + lines)
    return root


def values_of(root, *more):
    return config.load("lungs", [f"data.root={root}", *SETTINGS, *more])


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_writes_what_it_promises(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["lungs", "--out", str(out), "--set", f"data.root={folder}"]
    assert run.main([*command, *(part for s in SETTINGS for part in ("--set", s))]) == 0
    assert "fold 1 of 2" in (said := capsys.readouterr()).err and "5th percentile" in said.out
    assert "\n  on the CPU" in said.err or "\n  on cuda" in said.err
    results, splits = rows_of(out / "results.csv"), mask_study.read_json(out / "splits.json")
    assert sorted(r["image"] for r in results) == sorted(f"p{i}" for i in range(10))
    patient = {r["image"]: r["patient"] for r in results}
    assert patient["p1"] == "s0" and patient["p9"] == "picture:p9"
    for fold in splits:
        groups = [{patient[n] for n in fold[part]} for part in ("train", "val", "test")]
        assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    for row in results:
        assert row["image"] in splits[int(row["fold"])]["test"]
    whole = rows_of(out / "table.csv")[-1]
    dice = np.array([float(r["dice"]) for r in results])
    assert whole["fold"] == "all" and float(whole["mean"]) == pytest.approx(dice.mean(), abs=1e-4)
    assert float(whole["percentile_5"]) == pytest.approx(np.percentile(dice, 5), abs=1e-4)
    pictures = {r["image"]: r for r in rows_of(out / "pictures.csv")}
    assert len(pictures) == 11 and pictures["extra"]["network"] == "final"
    assert {pictures[r["image"]]["network"] == f"fold-{r['fold']}" for r in results} == {True}
    model = mdmt.Model.load(out / "lungs.safetensors")
    assert model.backbone == "unet_tiny" and model.image_size == (32, 32)
    assert cli.main(["show", str(out)]) == 0
    assert (shown := capsys.readouterr().out.rstrip()) and said.out.startswith(shown)
    assert cli.main(["report", str(out)]) == 2
    assert "is a run of kind masks, of which there is no report" in capsys.readouterr().err
    (out / "results.csv").write_text("fold,image,patient,dice\n0,p0,s0,much\n")
    assert cli.main(["show", str(out)]) == 2
    assert "results.csv: is not as it was written (could not" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_interrupted_run_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch, device):
    if device == "cuda":
        monkeypatch.setitem(sys.modules, "mdmt._cuda", cudahost.module())
    values, how = values_of(folder, "negatives=0.5"), {"device": device, "quiet": True}
    mask_study.run(values, tmp_path / "a", **how)
    steps = []

    def pull(self, key):
        def stop_once(state, loss):
            steps.append(loss)
            if len(steps) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop_once

    monkeypatch.setattr(mask_study.Study, "_progress", pull)
    with pytest.raises(Interrupted, match="goes on from there"):
        mask_study.run(values, tmp_path / "b", **how)
    mask_study.run(values, tmp_path / "b", **how)
    for name in ("results.csv", "pictures.csv", "lungs.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    count = len(steps)
    mask_study.run(values, tmp_path / "b", **how)  # finished: nothing is trained again
    assert len(steps) == count
    stored = tmp_path / "b" / "config.yaml"  # as a version without these keys wrote it
    new = ("  schedule:", "  lr_minimum:", "  lr_warmup_epochs:")
    lines = stored.read_text().splitlines(keepends=True)
    stored.write_text("".join(x for x in lines if not x.startswith(new)))
    assert len(stored.read_text().splitlines()) == len(lines) - 3
    mask_study.run(values, tmp_path / "b", **how)
    assert len(steps) == count
    with pytest.raises(BadInput, match=r"was begun with train.epochs = 3, now it is 4"):
        changed = values_of(folder, "negatives=0.5", "train.epochs=4")
        mask_study.run(changed, tmp_path / "b", **how)


def test_other_data_are_not_mixed_with_what_was_trained(folder, tmp_path):
    out, how = tmp_path / "out", {"quiet": True}
    mask_study.run(values_of(folder), out, **how)
    (out / "data.json").unlink(missing_ok=True)  # of an earlier version
    mask_study.run(values_of(folder), out, **how)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    table = folder / "severity.csv"  # two patients turn out to be one: other folds
    changed = table.read_text(), table.read_text().replace("s3", "s1")
    mask = folder / "lung_masks" / "p1.png"
    other = mask.read_bytes(), (folder / "lung_masks" / "p2.png").read_bytes()
    for path, (was, now) in {table: [t.encode() for t in changed], mask: other}.items():
        path.write_bytes(now)
        with pytest.raises(BadInput, match="was begun with other pictures, masks or patients"):
            mask_study.run(values_of(folder), out, **how)
        path.write_bytes(was)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_signal_while_nothing_is_trained_ends_the_run(folder, tmp_path, monkeypatch):
    def pulled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(mask_study.Study, "screen", pulled)
    command = ["lungs", "--quiet", "--out", str(tmp_path / "out"), "--set", f"data.root={folder}"]
    assert run.main([*command, *(part for s in SETTINGS for part in ("--set", s))]) == 75
    assert not (tmp_path / "out" / "pictures.csv").exists()


def test_bad_input_is_one_sentence(folder, tmp_path, capsys):
    def refused(sentence, *more, error=BadData):
        with pytest.raises(error, match=sentence) as found:
            mask_study.run(values_of(folder, *more), tmp_path / "out", quiet=True)
        assert "\n" not in str(found.value)

    refused("is not a folder", f"data.root={folder}/none")
    refused("data.root is not set", "data.root=null", error=BadConfig)
    refused("backbone: head lungs gives a mask", "backbone=resnet18", error=BadConfig)
    refused("none.csv", "data.table=none.csv", error=BadInput)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "lung_masks" / "p3.png")
    refused("p3.png: is empty")
    Image.fromarray(np.ones((20, 40), np.uint8)).save(folder / "lung_masks" / "p3.png")
    refused("p3.png: is 40 x 20, its picture 40 x 40")
    (folder / "images" / "p3.png").unlink()
    refused("p3.jpg: is missing")
    assert run.main(["lungs", "--dask", "here", "--set", f"data.root={folder}"]) == 2
    assert "--dask" in capsys.readouterr().err
    assert run.main(["lungs", "--workers", "2", "--set", f"data.root={folder}"]) == 2
    assert "--workers 2: a study of kind masks is one process" in capsys.readouterr().err
    assert cli.main(["check", "lungs", "--set", f"data.root={folder}"]) == 2
    assert "kind masks, which only `mdmt run` takes" in capsys.readouterr().err


def test_drawn_pictures_are_of_every_kind_and_depend_on_the_seed_alone():
    pictures, _ = discs(3, 64)
    drawn = negatives.draw(14, pictures, 5)
    assert drawn.shape == (14, 64, 64) and drawn.dtype == np.uint8
    assert np.array_equal(negatives.draw(14, pictures, 5), drawn)
    assert np.array_equal(negatives.draw(9, pictures, 5), drawn[:9])
    assert (negatives.draw(14, pictures, 6) != drawn).any((1, 2)).sum() >= 13
    assert len({d.tobytes() for d in drawn}) == 14
    assert negatives.draw(0, pictures, 5).shape == (0, 64, 64)


def test_network_input_stretches_and_scales():
    picture = np.arange(12.0).reshape(3, 4) * 1000 - 5
    small = lungs.network_input(picture, 8)
    assert small.shape == (8, 8) and small.dtype == np.uint8
    assert small.min() == 0 and small.max() == 255
    turned = lungs.network_input(-picture, 8)
    np.testing.assert_allclose(turned, 255 - small.astype(int), atol=1)
    assert (lungs.network_input(np.full((5, 5), 7.0), 8) == 0).all()


def test_a_mask_that_vanishes_at_the_networks_size_counts_as_empty(folder, tmp_path):
    dot = np.zeros((40, 40), np.uint8)
    dot[3, 3] = 255
    for i in range(10):
        Image.fromarray(dot).save(folder / "lung_masks" / f"p{i}.png")
    (folder / "images" / "p3.png").rename(folder / "images" / "p3.PNG")
    found = mask_study.run(values_of(folder, "train.epochs=1"), tmp_path / "out", quiet=True)
    assert all(np.isfinite(row["mean"]) for row in found)
