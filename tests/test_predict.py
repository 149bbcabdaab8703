"""mdmt predict: the networks of a run on further pictures, and never on those they learnt from."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmt import cli
from mdmt import predict as predictor
from mdmt.errors import BadInput
from mdmt.paths import read_json
from mdmt.points import POINTS
from tests.test_run import two_folds


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(out folder, image folder, store) of a tiny run of two folds."""
    top = tmp_path_factory.mktemp("predict é")
    out, data = two_folds(top)
    return out, data / "images", top / "store"


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_networks_that_are_not_there_are_told(finished, tmp_path):
    """Of a run that was stopped, or that did not keep the weights of all."""
    out, images, _ = finished
    one = sorted(images.iterdir())[0]
    assert not [n for n in predictor.predict(out, [one])[1] if "are there" in n]
    part = tmp_path / "out"
    shutil.copytree(out, part)
    done = [p.parent for p in part.glob("runs/*/job.json")
            if "MDMT" in read_json(p)["configurations"]]  # fmt: skip
    (done[0] / "result.json").unlink()
    notes = predictor.predict(part, [one])[1]
    assert notes[0].startswith("1 of 2 networks are there: the run is not finished")
    fold = read_json(done[1] / "job.json")["description"]["fold"]
    assert not [n for n in predictor.predict(part, [one], fold=fold)[1] if "are there" in n]


def test_own_pictures_are_predicted_out_of_fold(finished):
    """As predictions.csv has them, since every other network learnt from them."""
    out, images, _ = finished
    rows, notes = predictor.predict(out, [images])
    tested = {
        (r["image"], r["task"]): r
        for r in rows_of(out / "predictions.csv")
        if r["configuration"] == "MDMT"
    }
    assert len(rows) == 2 * len(list(images.iterdir())) and len(tested) == len(rows) / 2
    found = 0
    for row in rows:
        assert (row["networks"], row["seen"]) == (1, 1)
        known = tested.get((row["image"].rsplit("/")[-1].removesuffix(".png"), row["task"]))
        if known is None:
            continue
        found += 1
        for name, value in known.items():
            if name.startswith("p_") and value:
                assert row[name] == pytest.approx(float(value), abs=1e-6)
        assert row["predicted"] == known["predicted"] and row["sd"] is None
    assert found == len(tested)
    assert len(notes) == 1 and "are the run's own" in notes[0]
    # STL-tau1 has seen none of the other data set's pictures.
    rows, _ = predictor.predict(out, [images], configuration="STL-tau1")
    assert {r["task"] for r in rows} == {"prognosis"}
    assert {(r["networks"], r["seen"]) for r in rows if "severity_" in r["image"]} == {(2, 0)}


def test_new_pictures_get_the_mean_over_the_networks(finished, tmp_path, capsys):
    out, _, _ = finished
    rng = np.random.default_rng(0)
    for name in ("ä b.png", "c.PNG"):
        Image.fromarray(rng.integers(0, 255, (50, 70), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    table = tmp_path / "out" / "p.csv"
    assert cli.main(["predict", str(out), str(tmp_path), "--out", str(table)]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "Not a medical device" in said.out and "c.PNG" in said.out
    both = rows_of(table)
    assert [r["image"] for r in both[::2]] == [str(tmp_path / n) for n in ("c.PNG", "ä b.png")]
    single = [predictor.predict(out, [tmp_path], fold=f)[0] for f in (0, 1)]
    for k, row in enumerate(both):
        assert (row["networks"], row["seen"], row["refused"]) == ("2", "0", "")
        given = {c: float(v) for c, v in row.items() if c.startswith("p_") and v}
        assert sum(given.values()) == pytest.approx(1)
        assert row["predicted"] == max(given, key=given.get).removeprefix("p_")
        for name, value in given.items():
            assert value == pytest.approx(np.mean([s[k][name] for s in single]))
        best = [s[k][f"p_{row['predicted']}"] for s in single]
        assert float(row["sd"]) == pytest.approx(np.std(best, ddof=1))


def test_pictures_that_cannot_be_used(finished, tmp_path, capsys):
    out, images, _ = finished
    bad, good, table = tmp_path / "bad.png", next(images.iterdir()), tmp_path / "p.csv"
    bad.write_bytes(b"no image")
    call = ["predict", str(out), str(bad), str(good), "--out", str(table)]
    assert cli.main(call) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mdmt: {bad}: is not an image") and len(said.splitlines()) == 1
    assert not table.exists()
    assert cli.main([*call, "--skip"]) == 0
    first, _, third, _ = rows_of(table)
    assert first["predicted"] == "" and "is not an image" in first["refused"]
    assert third["predicted"] and not third["refused"]


def test_what_is_no_table_of_predictions_is_not_overwritten(finished, tmp_path, capsys):
    """`--out` takes the name that follows it, which may be that of a picture, also by a link."""
    out, images, _ = finished
    picture, link, table = (tmp_path / name for name in ("a.png", "link.csv", "p.csv"))
    shutil.copy(sorted(images.iterdir())[0], picture)
    link.symlink_to(picture.name)
    kept = {p: p.read_bytes() for p in (picture, link, out / "predictions.csv")}
    refused = dict.fromkeys(kept, "is there already and is no table of predictions")
    for to, words in {**refused, tmp_path: "is a folder; give the name of a file"}.items():
        assert cli.main(["predict", str(out), str(picture), "--out", str(to)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"mdmt: --out {to}: {words}") and not said.out
    assert {p: p.read_bytes() for p in kept} == kept and link.is_symlink()
    table.write_bytes(b"")
    for _ in range(2):
        assert cli.main(["predict", str(out), str(picture), "--out", str(table)]) == 0
    assert len(rows_of(table)) == 2


def test_networks_vote_at_their_operating_points(finished, tmp_path, capsys):
    """At each network's own threshold, as operating.csv judges it."""
    out, images, _ = finished
    chosen = {}
    for path in out.glob("runs/*/result.json"):
        job = json.loads((path.parent / "job.json").read_text())
        if "MDMT" in job["configurations"]:
            thresholds = json.loads(path.read_text())["thresholds"]
            chosen[job["description"]["fold"]] = thresholds["prognosis"]
    assert sorted(chosen) == [0, 1]
    rng = np.random.default_rng(3)
    for k in range(6):
        Image.fromarray(rng.integers(0, 255, (60, 60), np.uint8)).save(tmp_path / f"{k}.png")
    given = [tmp_path, images]
    single = [predictor.predict(out, given, fold=f)[0] for f in (0, 1)]
    table = tmp_path / "p.csv"
    assert cli.main(["predict", str(out), *map(str, given), "--out", str(table)]) == 0
    capsys.readouterr()
    rows, counted = rows_of(table), []
    for row, *each in zip(rows, *single, strict=True):
        for point in ("sensitivity", "specificity", "youden"):
            votes = row[f"above_{point}"]
            if row["task"] != "prognosis":
                assert votes == ""
                continue
            mine = [(s["p_SEVERE"], chosen[f][point]) for f, s in enumerate(each)
                    if s["networks"]]  # fmt: skip
            assert int(row["networks"]) == len(mine)
            assert int(votes) == sum(p > t for p, t in mine)
            counted.append((point, int(votes), len(mine)))
    assert {n for _, _, n in counted} == {1, 2} and len({v for _, v, _ in counted}) > 1
    more = {p: sum(v for q, v, _ in counted if q == p) for p in ("sensitivity", "specificity")}
    assert more["sensitivity"] >= more["specificity"]


def test_networks_without_thresholds_do_not_vote():
    """None where one of them could choose none, and no column where none could."""
    two = {"t": {"loss": "ce", "classes": ["a", "b"], "positive": "a"}}
    nets = [predictor.Network(None, {}, two, set(), {"t": dict.fromkeys(POINTS, 0.4)}),
            predictor.Network(None, {}, two, set(), {})]  # fmt: skip
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    assert predictor._votes(p, nets, "t") == dict.fromkeys(f"above_{k}" for k in POINTS)
    assert predictor._votes(p[:1], nets[:1], "t") == {f"above_{k}": 1 for k in POINTS}
    assert predictor._votes(p[1:], nets[1:], "t") == {}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"configuration": "MDTM"}, "did you mean 'MDMT'"),
        ({"fold": 7}, "fold 7: the run has no finished training"),
        ({"images": ["/nowhere"]}, "/nowhere: no such file or folder"),
        ({"out": "/tmp"}, "/tmp: is no out folder"),
    ],
)
def test_what_is_not_there(finished, change, words):
    out, images, _ = finished
    given = {"out": out, "images": [images], **change}
    with pytest.raises(BadInput, match=words):
        predictor.predict(given.pop("out"), given.pop("images"), **given)


def test_what_cannot_be_known_is_said(finished):
    """Without the prepared images nobody knows what a network learnt from."""
    out, images, store = finished
    one = [next(images.iterdir())]
    shutil.move(store, f"{store}-away")
    try:
        rows, notes = predictor.predict(out, one)
    finally:
        shutil.move(f"{store}-away", store)
    assert rows[0]["networks"] == 2 and "not known which" in notes[0]


def test_names_that_no_text_can_hold_and_pipes_do_not_end_a_prediction(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [p.name for p in predictor.find_images([tmp_path])] == ["a.png"]
    named = predictor.text_of(Path(os.fsdecode(b"b\xff.png")))
    assert named == "b\\xff.png" and predictor.text_of(Path("é.png")) == "é.png"
