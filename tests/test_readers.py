"""Readers of tables, AIforCOVID and BRIXIA on replicas; the equation (4) counts on real files."""

import csv
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from mdmt import config, splits
from mdmt.data import brixia, images, readers, table, xlsx
from mdmt.errors import BadConfig, BadData
from mdmt.preprocess import build, crop, normalise, picture
from tests import replicas
from tests.dicomfiles import SYNTAXES, write_dicom
from tests.hues import write_png16, write_tiff16
from tests.realdata import COVID_CXR, PUBLISHED, needs_covid_cxr, needs_published

PROGNOSIS = {"classes": ["MILD", "SEVERE"], "labels": None, "thresholds": None}
SEVERITY = {"classes": ["0", "1", "2", "3"], "labels": None, "thresholds": [5, 9, 14]}
LUNG = {**SEVERITY, "thresholds": [1, 4, 7]}
REGION = {**SEVERITY, "thresholds": [1, 2, 3]}


def spec(reader, **changes):
    raw = {
        "tasks": {"t": {"classes": ["a", "b"]}},
        "data": {"datasets": [{"name": "d", "reader": reader, "task": "t", **changes}]},
    }
    return config.resolve(raw, "test")["data"]["datasets"][0]


@pytest.fixture(scope="module")
def afc(tmp_path_factory):
    root = tmp_path_factory.mktemp("afc")
    return root, replicas.make_aiforcovid(root, size=40)


@pytest.fixture(scope="module")
def bx(tmp_path_factory):
    root = tmp_path_factory.mktemp("bx")
    return root, replicas.make_brixia(root, size=40)


# ---- AIforCOVID


@pytest.mark.parametrize("release", [1, 2, 3])
def test_aiforcovid_releases_are_cumulative(afc, release):
    root, truth = afc
    cases = readers.read_cases(spec("aiforcovid"), PROGNOSIS, root, str(release))
    wanted = [t for t in truth if t["release"] <= release and t["label"]]
    assert cases.images == [t["image"] for t in wanted]
    assert cases.patients == cases.images
    assert [cases.classes[i] for i in cases.labels] == [t["label"] for t in wanted]
    assert cases.centers == [t["center"] for t in wanted]
    assert cases.columns["Release"] == [str(t["release"]) for t in wanted]
    assert cases.missing_labels == sum(t["release"] <= release and not t["label"] for t in truth)
    assert all(p.is_file() and p.stem == i for p, i in zip(cases.paths, cases.images))
    assert {p.parent.name for p in cases.paths} == {"imgs", "imgs_r2", "imgs_r3"} - {
        f"imgs_r{r}" for r in range(release + 1, 4)
    }


def test_aiforcovid_keeps_clinical_columns_with_the_case(afc):
    root, truth = afc
    cases = readers.read_cases(spec("aiforcovid"), PROGNOSIS, root, "3")
    assert set(replicas.CLINICAL) <= set(cases.columns)
    assert cases.columns["Age"][:3] == ["30", "31", "32"]
    some = cases.take([3, 0])
    assert some.columns["Age"] == ["33", "30"]
    assert any("are misspelt" in w and "'SEVRE'" in w for w in cases.warnings)
    assert any("name no hospital" in w for w in cases.warnings)
    assert any("have no label" in w for w in cases.warnings)


def afc_table(root, rows, name="AIforCOVID.csv", images=("P_1", "P_2")):
    (root / "imgs").mkdir(exist_ok=True)
    for image in images:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "imgs" / f"{image}.png")
    (root / name).write_text("ImageFile,Hospital,Prognosis,Death\n" + rows)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ("P_1,G,MILD,\n", "hospital 'G'"),
        ("P_1,A,UNKNOWN,\n", "unknown label 'UNKNOWN'"),
        ("P_1,A,MILD,\nP_1.dcm,A,MILD,\n", "two rows"),
        ("P_1,A,MILD,\nP_1.dcm,A,SEVERE,\n", "has Prognosis 'SEVERE', but 'MILD'"),
        ("P_1,A,,\n", "has no labels"),
        ("P_9,A,MILD,\n", "'P_9' of .* is missing"),
        ("../a,A,MILD,\n", "outside"),
    ],
)
def test_aiforcovid_refusals(tmp_path, rows, sentence):
    afc_table(tmp_path, rows)
    with pytest.raises(BadData, match=sentence):
        readers.read_cases(spec("aiforcovid"), PROGNOSIS, tmp_path, "1")


def test_aiforcovid_asks_for_what_is_missing(tmp_path):
    afc_table(tmp_path, "P_1,A,MILD,yes\nP_2,B,SEVERE,yes\n")
    cases = readers.read_cases(spec("aiforcovid"), PROGNOSIS, tmp_path, "1")
    assert any("1 of 2 patients died although" in w for w in cases.warnings)
    with pytest.raises(BadData, match=r"AIforCOVID_r2.xlsx: is missing"):
        readers.read_cases(spec("aiforcovid"), PROGNOSIS, tmp_path, "2")
    with pytest.raises(BadConfig, match="releases 1, 2 and 3"):
        readers.read_cases(spec("aiforcovid"), PROGNOSIS, tmp_path, "r1")
    with pytest.raises(BadData, match="no such folder"):
        readers.read_cases(spec("aiforcovid", folder="x"), PROGNOSIS, tmp_path, "1")


# ---- BRIXIA


def scored(truth, **wanted):
    return [t for t in truth if t["regions"] and all(t[k] == v for k, v in wanted.items())]


def test_brixia(bx):
    root, truth = bx
    cases = readers.read_cases(spec("brixia"), SEVERITY, root)
    wanted = scored(truth)
    assert cases.images == [t["image"] for t in wanted]
    assert all(isinstance(i, str) for i in cases.images)
    assert max(len(i) for i in cases.images) == 20
    assert cases.targets.tolist() == [t["regions"] for t in wanted]
    assert cases.scores.tolist() == [sum(t["regions"]) for t in wanted]
    groups = {"SIEMENS": "SIEMENS", "AGFA": "AGFA", "AGFA-GEVAERT": "AGFA",
              "CARESTREAM HEALTH": "CARESTREAM"}  # fmt: skip
    assert cases.centers == [groups.get(t["manufacturer"], "") for t in wanted]
    assert set(cases.labels.tolist()) == {0, 1, 2, 3}
    for label, total in zip(cases.labels, cases.scores):
        assert label == sum([total >= 5, total >= 9, total >= 14])
    assert cases.missing_labels == 1
    assert any("own patient" in w for w in cases.warnings)
    assert any("without a center" in w for w in cases.warnings)
    assert cases.columns["BrixiaScore"][1] == "".join(map(str, wanted[1]["regions"]))
    assert cases.take([2, 1]).targets.tolist() == [wanted[2]["regions"], wanted[1]["regions"]]


@pytest.mark.parametrize(
    "target, task, part",
    [("right", LUNG, slice(0, 3)), ("left", LUNG, slice(3, 6)), ("D", REGION, slice(3, 4))],
)
def test_brixia_per_lung_and_per_region(bx, target, task, part):
    root, truth = bx
    cases = readers.read_cases(spec("brixia", target=target), task, root)
    totals = [sum(t["regions"][part]) for t in scored(truth)]
    assert cases.scores.tolist() == totals
    assert cases.labels.tolist() == np.digitize(totals, task["thresholds"]).tolist()


def test_brixia_consensus_test_set(bx):
    root, truth = bx
    parts = {
        how: readers.read_cases(spec("brixia", consensus=how), SEVERITY, root).images
        for how in ("keep", "exclude", "only")
    }
    assert parts["only"] == [t["image"] for t in scored(truth, consensus=1)]
    assert parts["exclude"] == [t["image"] for t in scored(truth, consensus=0)]
    assert sorted(parts["only"] + parts["exclude"]) == sorted(parts["keep"])


def test_the_consensus_test_set_is_the_test_part_of_every_fold(bx):
    root, truth = bx
    one = spec("brixia", consensus="test")
    cases = readers.read_cases(one, SEVERITY, root)
    inside = {t["image"] for t in scored(truth, consensus=1)}
    assert {i for i, f in zip(cases.images, cases.fixed) if f} == inside
    values = {"validation": ["cv"], "cv": {"folds": 3, "seed": 0, "validation": 0.2},
              "data": {"datasets": [one], "release": "1"}}  # fmt: skip
    made = splits.make([cases], values)["cv"]
    assert len(made) == 3
    for fold in made:
        assert {cases.images[r] for r in fold["d"]["test"]} == inside
        assert not inside & {cases.images[r] for p in ("train", "val") for r in fold["d"][p]}
    found = splits.audit([f["d"] for f in made], cases)
    assert {f.kind for f in found} <= {"class_missing"}  # of so few images


def test_both_lungs_of_the_same_images_are_split_together(bx):
    """Two targets of one collection are two data sets; a patient is in one part of both."""
    root, _ = bx
    both = [spec("brixia", name=n, target=n) for n in ("right", "left")]
    half = {**LUNG, "classes": ["less", "more"], "thresholds": [4]}
    cases = [readers.read_cases(s, half, root) for s in both]
    values = {"validation": ["cv", "nested"], "data": {"datasets": both, "release": "1"},
              "cv": {"folds": 2, "seed": 0, "validation": 0.3, "inner": 2}}  # fmt: skip
    for folds in splits.make(cases, values).values():
        for fold in folds:
            for part in ("train", "val", "test"):
                right, left = (
                    {c.images[r] for r in fold[n][part]} for n, c in zip(("right", "left"), cases)
                )
                assert right == left


def test_brixia_other_groups(bx):
    root, truth = bx
    groups = {"Kodak": "CARESTREAM", "CARESTREAM  HEALTH": "CARESTREAM", "SIEMENS": "S"}
    cases = readers.read_cases(spec("brixia", groups=groups), SEVERITY, root)
    assert Counter(cases.centers)["CARESTREAM"] == sum(
        t["manufacturer"] in ("KODAK", "CARESTREAM HEALTH") for t in scored(truth)
    )
    assert set(cases.centers) == {"CARESTREAM", "S", ""}


def test_brixia_keep_and_leave_out(bx, tmp_path):
    root, truth = bx
    names = [t["image"] for t in scored(truth)]
    (tmp_path / "all.txt").write_text("img label\n" + "".join(f"{n} x\n" for n in names[:9]))
    keep = spec("brixia", keep=str(tmp_path / "all.txt"), leave_out=[names[2] + ".dcm"])
    cases = readers.read_cases(keep, SEVERITY, root)
    assert cases.images == [*names[:2], *names[3:9]]
    with pytest.raises(BadConfig, match="leave_out names '12'"):
        readers.read_cases(spec("brixia", leave_out=["12"]), SEVERITY, root)


@pytest.mark.parametrize(
    "row, sentence",
    [
        ("1637535280864081316.dcm;423013;13;0", "not a Brixia score"),
        ("1637535280864081316.dcm;1234567;13;0", "not a Brixia score"),
        ("1637535280864081316.dcm;23013;10;0", "sum to 9, but"),
        ("1,63754E+18;23013;9;0", "spreadsheet has rounded"),
        ("1637535280864081316.dcm;23013;9;2", "ConsensusTestset '2'"),
    ],
)
def test_brixia_refusals(tmp_path, row, sentence):
    (tmp_path / "dicom_clean").mkdir()
    (tmp_path / "metadata_global_v2.csv").write_text(
        "Filename;BrixiaScore;BrixiaScoreGlobal;ConsensusTestset\n" + row + "\n"
    )
    with pytest.raises(BadData, match=sentence):
        readers.read_cases(spec("brixia", consensus="exclude"), SEVERITY, tmp_path)


@pytest.mark.parametrize(
    "text, six", [("0", 0), ("[2]", 2), ("[23013]", 23013), ("023013", 23013), ("333333.0", 333333)]
)
def test_leading_zeros_are_restored(text, six):
    assert brixia.regions(text) == tuple(int(d) for d in f"{six:06d}")


@needs_published
def test_equation_4_on_the_published_scores():
    rows = [r.split(" ") for r in (PUBLISHED / "BX/all.txt").read_text().splitlines()[1:]]
    totals = [brixia.score(brixia.regions(r[2])) for r in rows]
    classes = np.digitize(totals, SEVERITY["thresholds"])
    assert np.bincount(classes).tolist() == [1035, 1385, 1679, 596]


# ---- workbooks


def workbook(path, *rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_workbooks_are_read_as_values(tmp_path):
    path = workbook(tmp_path / "t.xlsx", ["id", "n", "f", "b", None],
                    ["00012", 61, 36.5, True], [None], ["=1+1", 5.0, None, "x"])  # fmt: skip
    header, rows = table.read_table(path)
    assert header == ["id", "n", "f", "b"]
    assert rows[0] == {"id": "00012", "n": "61", "f": "36.5", "b": "TRUE"}
    assert rows[1] == {"id": "", "n": "5", "f": "", "b": "x"}  # a formula without a value


def test_a_rounded_id_is_refused(tmp_path):
    path = workbook(tmp_path / "t.xlsx", ["id"], [1637535280864081316])
    with pytest.raises(BadData, match="keeps only 15 digits"):
        table.read_table(path)


def test_hostile_workbooks(tmp_path, monkeypatch):
    good = workbook(tmp_path / "t.xlsx", ["id"], ["a"])
    parts = {}
    with zipfile.ZipFile(good) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    entity = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'
    with zipfile.ZipFile(tmp_path / "e.xlsx", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, entity + content if "sheet1" in name else content)
    with pytest.raises(BadData, match="declares XML entities"):
        table.read_table(tmp_path / "e.xlsx")
    (tmp_path / "n.xlsx").write_bytes(b"no archive")
    with pytest.raises(BadData, match="not an Excel workbook"):
        table.read_table(tmp_path / "n.xlsx")
    with pytest.raises(BadData, match=r"did you mean 't.xlsx'"):
        table.read_table(tmp_path / "tt.xlsx")
    monkeypatch.setattr(xlsx, "MAX_BYTES", 100)
    with pytest.raises(BadData, match="more than a table needs"):
        table.read_table(good)


def test_missing_is_not_a_class(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "t.csv").write_text("image,patient,label\na,1,NaN\nb,2,MILD\nc,3,#N/A\n")
    one = spec("table", table="t.csv")
    cases = readers.read_cases(one, PROGNOSIS, tmp_path)
    assert (cases.images, cases.missing_labels) == (["b"], 2)
    named = {"classes": ["None", "MILD"], "labels": None, "thresholds": None}
    (tmp_path / "t.csv").write_text("image,patient,label\na,1,None\nb,2,MILD\n")
    assert readers.read_cases(one, named, tmp_path).labels.tolist() == [0, 1]


def test_images_in_subfolders_and_as_dicom(tmp_path):
    inner = tmp_path / "images" / "2020" / "x"
    inner.mkdir(parents=True)
    write_dicom(inner / "12345678901234567890.dcm", np.eye(8, dtype=np.uint8), bits=8)
    write_dicom(tmp_path / "images" / "b.DCM", np.eye(8, dtype=np.uint8), bits=8)
    (tmp_path / "t.csv").write_text(
        "image,patient,label\n12345678901234567890,1,MILD\nb,2,SEVERE\n"
    )
    cases = readers.read_cases(spec("table", table="t.csv"), PROGNOSIS, tmp_path)
    assert [p.name for p in cases.paths] == ["12345678901234567890.dcm", "b.DCM"]
    (tmp_path / "images" / "y").mkdir()
    write_dicom(tmp_path / "images" / "y" / "12345678901234567890.dcm",
                np.eye(8, dtype=np.uint8), bits=8)  # fmt: skip
    with pytest.raises(BadData, match="could be"):
        readers.read_cases(spec("table", table="t.csv"), PROGNOSIS, tmp_path)


@pytest.mark.parametrize(
    "written, file",
    [
        ("a", "a.png"), ("a.png", "a.png"), ("a.png", "a.PNG"), ("a", "x/y/a.tif"),
        ("a.tif", "x/y/a.tif"), ("x/y/a.tif", "x/y/a.tif"), ("x/y/a", "x/y/a.TIFF"),
        ("x\\y\\a.tif", "x/y/a.tif"), ("./x/a.dcm", "x/a.dcm"), ("a", "x/a"), ("a.b", "a.b.jpg"),
    ],
)  # fmt: skip
def test_names_and_paths_of_images(tmp_path, written, file):
    path = tmp_path / "images" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    (tmp_path / "t.csv").write_text(f"image,patient,label\n{written},1,MILD\n")
    cases = readers.read_cases(spec("table", table="t.csv"), PROGNOSIS, tmp_path)
    assert [p.resolve() for p in cases.paths] == [path.resolve()]


def test_a_name_that_two_files_have_is_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / "a.png").write_bytes(b"x")
    table_ = tmp_path / "t.csv"
    one = spec("table", table="t.csv")
    for written in ("a", "a.png"):
        table_.write_text(f"image,patient,label\n{written},1,MILD\n")
        with pytest.raises(BadData, match=r"could be x/a.png or y/a.png"):
            readers.read_cases(one, PROGNOSIS, tmp_path)
    table_.write_text("image,patient,label\ny/a,1,MILD\n")
    assert readers.read_cases(one, PROGNOSIS, tmp_path).paths[0].parent.name == "y"


def folder_of_images(root, names):
    (root / "images").mkdir()
    for name in names:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "images" / f"{name}.png")


def test_integers_ordinal_scores_and_several_targets(tmp_path):
    """Whatever a table calls its columns; targets stay with the cases."""
    folder_of_images(tmp_path, "abcd")
    workbook(tmp_path / "t.xlsx", ["Bild", "Fall", "Grad", "Score", "left lung", "right lung"],
             ["a", 1, 2, 0.5, 1, 3.5], ["b", 2, "1.0", 2, None, 2], ["c", 3, 0, "", 1, 1],
             ["d", "4", "01", 9, 2, 0])  # fmt: skip
    columns = {"image": "Bild", "patient": "Fall", "label": "Grad",
               "targets": ["left lung", "right lung"]}  # fmt: skip
    grades = {"classes": ["0", "1", "2"], "labels": None, "thresholds": None}
    cases = readers.read_cases(spec("table", table="t.xlsx", columns=columns), grades, tmp_path)
    assert cases.labels.tolist() == [2, 1, 0, 1]
    assert np.array_equal(cases.targets, [[1, 3.5], [np.nan, 2], [1, 1], [2, 0]], equal_nan=True)
    assert cases.take([3]).targets.tolist() == [[2, 0]]
    assert cases.columns["Score"] == ["0.5", "2", "", "9"]
    assert cases.columns["left lung"][0] == "1"
    scores = spec("table", table="t.xlsx", columns={**columns, "label": "Score"})
    cut = {"classes": ["low", "high", "top"], "labels": None, "thresholds": [1, 9]}
    cases = readers.read_cases(scores, cut, tmp_path)
    assert (cases.images, cases.labels.tolist()) == (["a", "b", "d"], [0, 1, 2])
    named = {**grades, "classes": ["none", "some", "much"],
             "labels": {"0": "none", "1": "some", "2": "much"}}  # fmt: skip
    assert readers.read_cases(
        spec("table", table="t.xlsx", columns=columns), named, tmp_path
    ).labels.tolist() == [2, 1, 0, 1]
    wrong = spec("table", table="t.xlsx", columns={**columns, "targets": ["Left lung"]})
    with pytest.raises(BadData, match=r"no column 'Left lung' \(the targets\); did you mean 'left"):
        readers.read_cases(wrong, grades, tmp_path)


def test_a_fixed_test_set_of_a_table(tmp_path):
    folder_of_images(tmp_path, "abc")
    path = tmp_path / "t.csv"
    path.write_text("image,patient,label,held\na,1,MILD,1\nb,2,MILD,\nc,3,SEVERE,0\n")
    one = spec("table", table="t.csv", columns={"test": "held"})
    assert readers.read_cases(one, PROGNOSIS, tmp_path).fixed.tolist() == [True, False, False]
    path.write_text("image,patient,label,held\na,1,MILD,perhaps\n")
    with pytest.raises(BadData, match="column 'held': 'perhaps' must be 0 or 1"):
        readers.read_cases(one, PROGNOSIS, tmp_path)


# ---- pictures


def test_the_store_of_a_replica_shows_the_pictures(bx):
    root, truth = bx
    cases = readers.read_cases(spec("brixia"), SEVERITY, root)
    settings = picture.settings_of(config.load("demo", ["image_size=32"]))
    grey = list(replicas.pictures(len(truth), 40, 250))
    for i in range(0, len(cases), 3):
        square = crop.squared(crop.whole(grey[i].shape), grey[i].shape, "pad")
        side = crop.cut(normalise.normalise(grey[i]), square)
        wanted = np.asarray(Image.fromarray(side).resize((32, 32), Image.Resampling.BILINEAR))
        found = picture.preprocess(cases.paths[i], settings)
        assert np.abs(found - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("suffix", ["tiff", "gif"])
def test_a_file_of_several_pictures_is_refused(tmp_path, suffix):
    pages = [Image.fromarray(np.full((40, 50), k, np.uint8)) for k in (10, 90)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(BadData, match=f"a.{suffix}: holds 2 pictures; keep the right one"):
        images.read_grey(tmp_path / f"a.{suffix}")


def test_a_smaller_copy_inside_a_tiff_is_no_second_picture(tmp_path):
    full, small = (Image.fromarray(np.full(shape, 7, np.uint8)) for shape in ((40, 50), (4, 5)))
    small.encoderinfo = {"tiffinfo": {images.NEW_SUBFILE_TYPE: 1}}
    full.save(tmp_path / "a.tiff", save_all=True, append_images=[small])
    with Image.open(tmp_path / "a.tiff") as image:
        assert image.n_frames == 2
    assert images.read_grey(tmp_path / "a.tiff").shape == (40, 50)


def write_tiff(path, values, **tags):
    """An uncompressed TIFF of grey values (H, W) with the tags {number: value}."""
    order = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    found = {256: width, 257: height, 258: 8 * values.dtype.itemsize, 259: 1, 262: 1, 273: 0,
             277: 1, 278: height, 279: order.nbytes, 339: kind}  # fmt: skip
    found |= {int(k.removeprefix("t")): v for k, v in tags.items()}
    found[273] = 8 + 2 + 12 * len(found) + 4
    entries = b"".join(struct.pack("<HHII", k, 4, 1, found[k]) for k in sorted(found))
    head = b"II*\0" + struct.pack("<IH", 8, len(found)) + entries + bytes(4)
    path.write_bytes(head + order.tobytes())
    return path


TURNED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
          5: np.transpose, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T,
          8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_lies_on_its_side(tmp_path, kind, orientation):
    values = np.random.default_rng(0).integers(0, 250, (23, 31)).astype(kind)
    path = write_tiff(tmp_path / "a.tif", values, t274=orientation)
    assert np.array_equal(images.read_grey(path), TURNED[orientation](values))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int8", "int16", "int32", "uint32", "float32"])
def test_numbers_of_a_tiff_are_what_they_stand_for(tmp_path, kind):
    values = np.linspace(-100, 100, 23 * 31).reshape(23, 31)
    if kind.startswith("u"):
        values = (values + 100) * (np.iinfo(kind).max / 200.1)
    values = values.astype(kind)
    found = images.read_grey(write_tiff(tmp_path / "a.tif", values))
    np.testing.assert_allclose(found, values, rtol=1e-7)
    if kind in ("uint8", "uint16", "float32"):  # white is 0
        dark = images.read_grey(write_tiff(tmp_path / "b.tif", values, t262=0))
        top = np.iinfo(kind).max if kind != "float32" else values.min() + values.max()
        np.testing.assert_allclose(dark, top - values.astype(np.float64), atol=1e-4)


def test_a_smaller_copy_may_come_first(tmp_path):
    full, small = (Image.fromarray(np.full(shape, 7, np.uint8)) for shape in ((40, 50), (4, 5)))
    full.encoderinfo = {"tiffinfo": {images.NEW_SUBFILE_TYPE: 0}}
    small.save(tmp_path / "a.tiff", save_all=True, append_images=[full],
               tiffinfo={images.NEW_SUBFILE_TYPE: 1})  # fmt: skip
    assert images.read_grey(tmp_path / "a.tiff").shape == (40, 50)


def test_grey_of_sixteen_bits_in_three_channels(tmp_path):
    grey = np.random.default_rng(0).integers(0, 4096, (23, 31), dtype=np.uint16)
    path = write_png16(tmp_path / "a.png", np.stack([grey] * 3, 2))
    assert np.array_equal(images.read_grey(path), grey)
    path = write_tiff16(tmp_path / "a.tif", np.stack([grey] * 3, 2), "<")
    assert np.array_equal(images.read_grey(path), grey)


def test_one_transparent_value_of_sixteen_bits_is_black(tmp_path):
    grey = np.random.default_rng(0).integers(0, 4096, (23, 31), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=int(grey[0, 0]))
    wanted = np.where(grey == grey[0, 0], 0, grey)
    assert np.array_equal(images.read_grey(tmp_path / "a.png"), wanted)


@pytest.mark.parametrize("bits, more", [(8, {}), (8, {"compression": "tiff_lzw"}), (16, {}),
                                        (16, {"compression": "tiff_adobe_deflate"})])  # fmt: skip
def test_tiff(tmp_path, bits, more):
    grey = next(replicas.pictures(1, 60)).astype(np.uint16)
    values = (grey << 8 | grey) if bits == 16 else grey.astype(np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.tiff", **more)
    (tmp_path / "t.csv").write_text("image,patient,label\na,1,MILD\n")
    cases = readers.read_cases(spec("table", table="t.csv"), PROGNOSIS, tmp_path)
    assert np.array_equal(images.read_grey(cases.paths[0]), values)


@needs_covid_cxr
def test_covid_cxr_from_jpeg_and_from_dicom_gives_the_same_store(tmp_path):
    raw = config.load("covid_cxr", ["image_size=64", f"data.store={tmp_path / 'store'}"])
    one, task = raw["data"]["datasets"][0], raw["tasks"]["prognosis"]
    jpeg = readers.read_cases(one, task, COVID_CXR).take(range(0, 364, 5))
    (tmp_path / "images").mkdir()
    for i, (name, path) in enumerate(zip(jpeg.images, jpeg.paths)):
        replicas.store_picture(tmp_path / "images" / f"{name}.dcm",
                               images.read_grey(path).astype(np.uint8), i)  # fmt: skip
    dicom = jpeg.take(range(len(jpeg)))
    dicom.paths = [tmp_path / "images" / f"{name}.dcm" for name in jpeg.images]
    first, _ = build.build(jpeg, raw, progress=False)
    second, _ = build.build(dicom, raw, progress=False)
    assert first.key != second.key
    assert len({i % len(SYNTAXES) for i in range(len(jpeg))}) == len(SYNTAXES)
    assert np.array_equal(first.images, second.images)
    assert raw["data"]["crop"] == "box"
    for a, b in zip(first.entries, second.entries, strict=True):
        assert [a.get(k) for k in ("doubt", "box")] == [b.get(k) for k in ("doubt", "box")]


REPLICA = """
name: replica
data:
  root: {root}
  store: {root}/store
  release: "{release}"
  datasets:
    - {{name: aiforcovid, reader: aiforcovid, folder: afc, task: prognosis}}
    - {{name: brixia, reader: brixia, folder: bx, task: severity}}
tasks:
  prognosis: {{classes: [MILD, SEVERE], positive: SEVERE, head: {{hidden: []}}}}
  severity: {{classes: ["0", "1", "2", "3"], thresholds: [5, 9, 14], head: {{hidden: []}}}}
backbones: [resnet18]
validation: [cv, loco]
cv: {{folds: 2, validation: 0.25}}
folds: [0]
image_size: 32
train: {{epochs: 1, warmup_epochs: 0, batch_size: 16}}
sampler: {{drop_last: true}}
"""


def call(*arguments):
    root = str(Path(__file__).parents[1])
    environment = dict(os.environ, PYTHONPATH=root, MDMT_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(out, name):
    with open(out / name, newline="") as stream:
        return list(csv.DictReader(stream))


def test_replicas_run_from_download_to_results_in_three_releases(tmp_path, afc, bx):
    """Prepare, check, splits and a short training, one command each."""
    for name, folder in (("afc", afc[0]), ("bx", bx[0])):
        (tmp_path / name).symlink_to(folder)
    path = tmp_path / "replica.yaml"
    text = REPLICA.replace('release: "{release}"', "releases: ['1', '2', '3']")
    path.write_text(text.format(root=tmp_path))
    printed = call("mdmt", "prepare", path, "--out", tmp_path / "sheets", "--quiet")
    assert "brixia: 47 images: 47 used" in printed
    printed = call("mdmt", "check", path, "--quick", "--out", tmp_path / "check.html")
    for release in (1, 2, 3):
        count = sum(t["release"] <= release and t["label"] is not None for t in afc[1])
        assert re.search(rf"^aiforcovid \({release}\) +{count} +{count} +6 ", printed, re.M)
    assert "without A, B, C, D, E, F" in printed
    assert "4 of 24 outcomes are misspelt" in " ".join(printed.split())
    printed = call("mdmt", "splits", path, "--out", tmp_path / "splits.json")
    assert "fold 5 F" in printed
    call("mdmt.run", path, "--out", tmp_path / "out", "--quiet", "--no-report",
         "--set", "configurations=[MDMT]", "--set", "validation=[loco]")  # fmt: skip
    assert {(r["release"], r["validation"], r["configuration"], r["task"])
            for r in written(tmp_path / "out", "results.csv")} == {
        (r, "loco", "MDMT", t) for r in "123" for t in ("prognosis", "severity")
    }  # fmt: skip
    tested = {
        r: {p["image"] for p in written(tmp_path / "out", "predictions.csv")
            if (p["release"], p["task"]) == (r, "prognosis")} for r in "123"
    }  # fmt: skip
    assert tested["1"] < tested["2"] < tested["3"]  # center A grows


@needs_published
def test_a_replica_runs_on_exactly_the_published_folds(tmp_path):
    """Every 40th patient and 160th image of the published test parts, with their own ids."""
    patients = replicas.small_published(tmp_path / "folds" / "AFC", "AFC", 40)
    images = replicas.small_published(tmp_path / "folds" / "BX", "BX", 160)
    replicas.make_aiforcovid(tmp_path / "afc", size=40, patients=patients)
    replicas.make_brixia(tmp_path / "bx", size=40, images=images)
    path = tmp_path / "replica.yaml"
    path.write_text(REPLICA.format(root=tmp_path, release=3))
    folds = [
        "--set", f"data.datasets.0.published={tmp_path}/folds/AFC",
        "--set", f"data.datasets.1.published={tmp_path}/folds/BX",
    ]  # fmt: skip
    printed = " ".join(
        call("mdmt", "check", path, "--quick", "--out", tmp_path / "c.html", *folds).split()
    )
    assert "loco, brixia: folds that do not leave exactly one center out" in printed
    call("mdmt.run", path, "--out", tmp_path / "out", "--quiet", "--no-report",
         "--set", "configurations=[MDMT]", "--set", "validation=[cv]", "--set", "folds=[3]",
         *folds)  # fmt: skip
    rows = written(tmp_path / "out", "predictions.csv")
    for task, name in (("prognosis", "AFC"), ("severity", "BX")):
        text = (tmp_path / "folds" / name / "5" / "3" / "test.txt").read_text()
        wanted = {line.split(" ")[0] for line in text.splitlines()[1:]}
        assert wanted
        assert {r["image"] for r in rows if r["task"] == task} == wanted
