"""Which of a run's pictures a further one shows, and which networks therefore must not judge it."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mdmt import predict
from mdmt.data.store import Store
from mdmt.known import Known
from tests.test_predict import finished, rows_of  # noqa: F401  (a fixture)
from tests.test_similar import COPIES, back, drawn

SIDE = 96


def stored(folder, whole, prefix):
    """A store of pictures, with their files beside; returns the files."""
    folder.mkdir(parents=True)
    files, entries, pixels = [], [], []
    for k, one in enumerate(whole):
        files.append(folder / f"{prefix}{k}.png")
        one.save(files[-1])
        source = hashlib.sha256(files[-1].read_bytes()).hexdigest()
        entries.append({"source": source, "file": files[-1].name})
        pixels.append(back(one, SIDE))
    entries.insert(1, {"source": "0" * 64, "file": "broken.png", "reason": "is not an image"})
    (folder / "images.u8").write_bytes(np.stack(pixels).tobytes())
    index = {"key": prefix, "settings": {"size": SIDE}, "entries": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trainings without weights, the second of which started from the first: their folders,
    12 pictures (the first learnt from 0 to 3 and 5, was selected on 4; the second learnt from 6
    and 7) and their files; 8 to 11 are of nobody."""
    top = tmp_path_factory.mktemp("known é")
    whole = [Image.fromarray(p) for p in drawn(12, seed=3)]
    files = stored(top / "one", whole[:6], "a") + stored(top / "two", whole[6:], "b")
    parts = {
        "first": ("one", {"train": [0, 1, 2, 3, 5], "val": [4], "test": []}, []),
        "second": ("two", {"train": [0], "val": [1], "test": [2]}, [["first", 1.0]]),
    }
    for name, (store, rows, start) in parts.items():
        folder = top / "runs" / name
        folder.mkdir(parents=True)
        (top / f"{name}.json").write_text(json.dumps(rows))
        given = {"store": str(top / store), "rows": str(top / f"{name}.json")}
        (folder / "inputs.json").write_text(json.dumps({"datasets": {"d": given}}))
        job = {"description": {"init": {"jobs": start}}}
        (folder / "job.json").write_text(json.dumps(job))
    return top / "runs", whole, files


def network(known, folder):
    return predict.Network(folder, {}, {}, known.learnt_from(folder))


def test_a_network_knows_what_it_started_from_knew(trained):
    runs, whole, files = trained
    known = Known()
    first, second = (network(known, runs / n) for n in ("first", "second"))
    assert len(first.seen) == 6 and first.seen < second.seen and len(second.seen) == 8
    shown = known.shown(files, [back(w, SIDE) for w in whole])
    assert [first.knows(s) for s in shown] == [True] * 6 + [False] * 6
    assert [second.knows(s) for s in shown] == [True] * 8 + [False] * 4
    for file, some in zip(files, shown[:8], strict=False):
        assert some[0][1:] == (file.name, 1.0, True) and len(some) == 1


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_known_by_what_they_show(trained, tmp_path, name):
    runs, whole, files = trained
    known = Known()
    first = network(known, runs / "first")
    copies = [COPIES[name](w) for w in whole]
    paths = [tmp_path / f"{k}.png" for k in range(12)]
    for path, copy in zip(paths, copies, strict=True):
        copy.save(path)
    shown = known.shown(paths, [back(c, SIDE) for c in copies])
    assert [first.knows(s) for s in shown] == [True] * 6 + [False] * 6
    for file, some in zip(files[:6], shown, strict=False):
        assert [s.name for s in some] == [file.name] and not some[0].same_file
        assert 0.94 <= some[0].likeness <= 1


def test_known_pictures_may_be_the_smaller_part(trained, tmp_path):
    """The run had a picture cut by 2 %; the further one is whole."""
    runs, whole, _ = trained
    cut = [COPIES["cropped by 2 %"](w) for w in whole[:4]]
    files = stored(tmp_path / "cut", cut, "c")
    known = Known()
    known._places = {
        hashlib.sha256(f.read_bytes()).hexdigest(): (Store(tmp_path / "cut"), k)
        for k, f in enumerate(files)
    }
    shown = known.shown(trained[2][:6], [back(w, SIDE) for w in whole[:6]])
    assert [[s.name for s in some] for some in shown] == [["c0.png"], ["c1.png"], ["c2.png"],
                                                          ["c3.png"], [], []]  # fmt: skip


def test_equal_pixels_alone_where_all_pictures_look_alike(trained, tmp_path):
    runs, whole, _ = trained
    known = Known(equal_only=True)
    first = network(known, runs / "first")
    whole[0].save(tmp_path / "same.png", compress_level=1)
    COPIES["brighter"](whole[1]).save(tmp_path / "other.png")
    paths = [tmp_path / "same.png", tmp_path / "other.png"]
    shown = known.shown(paths, [back(whole[0], SIDE), back(COPIES["brighter"](whole[1]), SIDE)])
    assert shown[0][0][1:] == ("a0.png", 1.0, False) and shown[1] == []
    assert [first.knows(s) for s in shown] == [True, False]


def test_a_run_whose_files_are_gone_knows_nothing(trained, tmp_path):
    known = Known()
    (tmp_path / "inputs.json").write_text('{"datasets": {"d": {"store": "/gone", "rows": "r"}}}')
    assert known.learnt_from(tmp_path) is None
    assert not network(known, tmp_path).knows([SimpleNamespace(source="x")])
    assert known.shown([], []) == []


def test_a_run_that_was_moved_knows_what_it_knew(trained, tmp_path):
    runs, whole, files = trained
    moved = tmp_path / "elsewhere" / "runs"
    shutil.copytree(runs, moved)
    (moved.parent / "inputs").mkdir()
    for name in ("first", "second"):
        given = json.loads((moved / name / "inputs.json").read_text())
        rows = Path(given["datasets"]["d"]["rows"])
        shutil.copy(rows, moved.parent / "inputs" / rows.name)
        given["datasets"]["d"]["rows"] = f"/where/it/was/inputs/{rows.name}"
        (moved / name / "inputs.json").write_text(json.dumps(given))
    known = Known()
    assert known.learnt_from(moved / "second") == Known().learnt_from(runs / "second")
    assert len(known.learnt_from(moved / "first")) == 6


def test_a_saved_again_picture_is_predicted_out_of_fold(finished, tmp_path, capsys):  # noqa: F811
    out, images, _ = finished
    one = sorted(images.iterdir())[0]
    Image.open(one).save(tmp_path / "again.png", compress_level=1)
    assert (tmp_path / "again.png").read_bytes() != one.read_bytes()
    rows, notes = predict.predict(out, [tmp_path / "again.png", one])
    again, own = rows[0], rows[2]
    assert again["networks"] == 1 and again["seen"] == 1
    assert (again["known_as"], again["likeness"]) == (one.name, 1.0)
    assert {k: v for k, v in again.items() if k != "image"} == {
        k: v for k, v in own.items() if k != "image"
    }
    assert "1 of 2 pictures are the run's own" in notes[0]
    assert f"another file (again.png = {one.name}, 1.00)" in notes[1]
    assert f"(known as {one.name})" in predict.text(rows)
    rows, notes = predict.predict(out, [tmp_path / "again.png"], fold=0)
    assert "another file" in notes[0] if rows[0]["seen"] else not notes
