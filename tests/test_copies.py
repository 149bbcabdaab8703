"""Trainings that are the same in two places of a study: made once, copied, with the same bits."""

import json
import subprocess

import pytest
from safetensors.numpy import load_file

from mdmt.errors import BadInput
from mdmt.runner import job
from tests import sweeps

ONE = ["--set", "configurations=[STL-tau2]", "--set", "keep_weights=false"]


def run(*arguments):
    line = sweeps.command(*arguments)
    return subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(configuration, out folder of a study with cv and loco, what it said); its second data set
    has no centers."""
    folder = tmp_path_factory.mktemp("copies")
    config = sweeps.write(folder)
    done = run(config, "--out", folder / "out", "--set", "validation=[cv, loco]", *ONE)
    assert done.returncode == 0, done.stderr
    return config, folder / "out", done.stderr


def results(out):
    """{job id: result.json}"""
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "runs").glob("*/result.json")}


def test_a_task_without_centers_is_trained_once_for_cv_and_loco(both, tmp_path):
    config, out, said = both
    found = results(out)
    (copy,) = (n for n in found if found[n].get("copied_from"))
    (source,) = found.keys() - {copy}
    assert found[copy]["copied_from"] == source
    assert "-cv0-" in source and "-loco0-" in copy
    assert "the same training" in said
    runs = out / "runs"
    for name in ("history.csv", "predictions.csv"):
        assert (runs / copy / name).read_bytes() == (runs / source / name).read_bytes()
    # trained by itself in loco, it has the same bits
    alone = tmp_path / "alone"
    done = run(config, "--out", alone, "--set", "validation=[loco]", *ONE[:2])
    assert done.returncode == 0, done.stderr
    (own,) = results(alone).items()
    assert own[0] == copy and "copied_from" not in own[1]
    for key in ("epochs", "best_epoch", "steps", "val_loss", "images"):
        assert own[1][key] == found[copy][key]
    loco = [r for r in sweeps.rows(out / "predictions.csv") if r["validation"] == "loco"]
    assert loco == sweeps.rows(alone / "predictions.csv")
    # its weights, too: as a copy, linked or not
    taken = tmp_path / "taken"
    taken.mkdir()
    assert job._copied(taken, alone / "runs" / copy)["resumed"] == own[1]["images"]
    want = load_file(alone / "runs" / copy / "model.safetensors")
    got = load_file(taken / "model.safetensors")
    assert all(got[k].tobytes() == v.tobytes() for k, v in want.items())
    # a source without weights is told, and nothing is left half
    with pytest.raises(BadInput, match=r"is not finished, and .* is a copy of it"):
        job._copied(taken, runs / source)


def test_a_file_system_without_links_gets_a_copy(both, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("model.safetensors", "history.csv", "predictions.csv"):
        (source / name).write_text(name)
    (source / "result.json").write_text('{"images": 3}')
    monkeypatch.setattr(job.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    folder = tmp_path / "copy"
    folder.mkdir()
    assert job._copied(folder, source) == {"images": 3, "resumed": 3, "copied_from": "source"}
    assert (folder / "model.safetensors").stat().st_ino != (
        source / "model.safetensors"
    ).stat().st_ino
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["model.safetensors", "history.csv", "predictions.csv"]
    )
