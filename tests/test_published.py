"""Published fold files: what they hold, which flaws the audit finds, splits made of them."""

import numpy as np
import pytest

from mdmt import published, splits
from mdmt.data.table import Cases
from mdmt.errors import BadInput
from tests.realdata import PUBLISHED, needs_published

# Kinds and counts of the findings per data set and scheme.
FLAWS = {
    ("AFC", "cv"): {"never_tested": 15},
    ("AFC", "loco"): {"small_training": 1},
    ("AFC_1R", "cv"): {"never_tested": 2},
    ("AFC_1R", "loco"): {},
    ("AFC_twoR", "cv"): {"never_tested": 49},
    ("AFC_twoR", "loco"): {"never_tested": 476},
    ("BX", "cv"): {"never_tested": 125},
    ("BX", "loco"): {"never_tested": 117, "center_mixed": 3},
}


@needs_published
@pytest.mark.parametrize("name, scheme", FLAWS)
def test_the_audit_finds_every_flaw_with_its_count(name, scheme):
    folds = splits.read_published(PUBLISHED / name)[scheme]
    found = splits.audit(folds, folds.cases)
    assert {f.kind: f.count for f in found} == FLAWS[name, scheme]
    for finding in found:
        assert finding.examples
        if finding.kind == "small_training":
            assert finding.examples == ["fold 3: trains on 553, tests on 970 of 1585"]
        if finding.kind == "center_mixed":
            assert "SIEMENS" in finding.examples[0]
            assert "KODAK" in finding.examples[0]


@needs_published
def test_what_the_files_hold():
    both = splits.read_published(PUBLISHED / "AFC")
    assert list(both) == ["cv", "loco"]
    cases = both["cv"].cases
    assert len(cases["image"]) == 1585
    assert [cases["label"].count(x) for x in ("MILD", "SEVERE")] == [839, 746]
    assert [f["center"] for f in both["loco"]] == list("ADEFBC")
    assert set(cases["center"]) == set("ABCDEF")
    assert sum(len(f["test"]) for f in both["cv"]) == 1570
    alone = splits.read_published(PUBLISHED / "AFC" / "5")
    assert [len(f["test"]) for f in alone] == [314] * 5
    brixia = splits.read_published(PUBLISHED / "BX")
    assert brixia["loco"].cases["image"][0] == "5032497707401895"
    assert max(len(i) for i in brixia["cv"].cases["image"]) == 20
    assert brixia["cv"].cases["score"][:2] == ["122123", "230002"]
    sizes = {c: brixia["cv"].cases["center"].count(c) for c in ("SIEMENS", "AGFA", "CARESTREAM")}
    assert sizes == {"SIEMENS": 2197, "AGFA": 576, "CARESTREAM": 1805}
    assert sum(len(f["test"]) for f in brixia["cv"]) == 4570


@needs_published
def test_two_releases_are_not_those_they_are_called():
    """The cross-validation of releases 1 + 2 holds release 3; its leave-one-center-out does not."""
    found = published.differences(splits.read_published(PUBLISHED / "AFC_twoR"))
    assert len(found["cv not loco"]) == 476
    assert all(i.startswith("P_3_") for i in found["cv not loco"])
    assert len(found["loco not cv"]) == 49
    assert published.differences(splits.read_published(PUBLISHED / "BX"))["loco not cv"]


# ---- written files


def write(root, folds, scheme="5", header="img label center", centers=None):
    for number, fold in enumerate(folds):
        for part, rows in fold.items():
            path = root / scheme / str(number) / f"{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in [header, *rows]))
    if centers:
        (root / "centers").write_text(centers)


def fold(train, val, test):
    row = "{0} MILD A".format
    return {"train": map(row, train), "val": map(row, val), "test": map(row, test)}


def cases_of(images, **more):
    count = len(images)
    labels = np.arange(count) % 2
    return Cases("d", "t", ["MILD", "SEVERE"], list(images), list(more.get("patients", images)),
                 list(more.get("centers", [""] * count)), labels, np.full(count, np.nan),
                 [None] * count)  # fmt: skip


def values(root, **more):
    return {
        "validation": ["cv"],
        "cv": {"folds": 2, "seed": 0, "validation": 0.2},
        "data": {"datasets": [{"name": "d", "published": str(root) if root else None}]},
        **more,
    }


def test_splits_are_exactly_the_published_folds(tmp_path):
    write(tmp_path, [fold("ab", "c", "de"), fold("de", "c", "ab")])
    made = splits.make([cases_of("xedcba")], values(tmp_path))["cv"]
    images = "xedcba"
    assert ["".join(images[r] for r in f["d"]["train"]) for f in made] == ["ba", "ed"]
    assert ["".join(images[r] for r in f["d"]["val"]) for f in made] == ["c", "c"]
    assert ["".join(images[r] for r in f["d"]["test"]) for f in made] == ["ed", "ba"]


@pytest.mark.parametrize("validation", ("nested", "loco-all"))
def test_schemes_without_published_folds_are_named(tmp_path, validation):
    write(tmp_path, [fold("ab", "c", "de"), fold("de", "c", "ab")])
    with pytest.raises(BadInput, match=f"holds folds of validation cv, not of {validation}; "):
        splits.make([cases_of("abcde")], values(tmp_path, validation=[validation]))
    write(tmp_path, [fold("ab", "c", "de"), fold("de", "c", "ab")], "mine")  # of either
    with pytest.raises(BadInput, match=f"folds of validation cv or loco, not of {validation}; "):
        splits.make([cases_of("abcde")], values(tmp_path / "mine", validation=[validation]))


def test_every_release_has_its_own_published_folds(tmp_path):
    write(tmp_path / "first", [fold("ab", "c", "de"), fold("de", "c", "ab")])
    write(tmp_path / "second", [fold("abe", "c", "d"), fold("de", "c", "ab")])
    given = values(None)
    given["data"]["datasets"][0]["published"] = {
        r: str(tmp_path / f) for r, f in (("1", "first"), ("2", "second"))
    }
    memo, cases = {}, cases_of("abcde")
    tests = [
        ["".join(cases.images[r] for r in f["d"]["test"])
         for f in splits.make([cases], given, memo, release=release)["cv"]]
        for release in ("1", "2")
    ]  # fmt: skip
    assert tests == [["de", "ab"], ["d", "ab"]]
    with pytest.raises(BadInput, match="not of '3'; add it"):
        splits.make([cases], given, memo, release="3")


@needs_published
def test_a_study_on_exactly_the_published_folds():
    """The whole of release 3 and of BRIXIA, without pictures."""
    names = {"AFC": "AFC", "BX": "BX"}
    cases = []
    for name in names:
        known = splits.read_published(PUBLISHED / name)["cv"].cases
        some = cases_of(known["image"][::-1], centers=known["center"][::-1])
        some.name = name
        cases.append(some)
    given = values(None, validation=["cv", "loco"])
    given["data"]["datasets"] = [
        {"name": n, "published": str(PUBLISHED / f)} for n, f in names.items()
    ]
    made = splits.make(cases, given)
    for scheme, folder in (("cv", "5"), ("loco", "loCo")):
        for i, entry in enumerate(made[scheme]):
            for one in cases:
                number = entry[one.name]["fold"]
                for part in ("train", "val", "test"):
                    path = PUBLISHED / one.name / folder / str(number) / f"{part}.txt"
                    lines = path.read_text().splitlines()[1:]
                    wanted = {line.split(" ")[0] for line in lines if line}
                    assert {one.images[r] for r in entry[one.name][part]} == wanted
            assert entry["AFC"]["fold"] == i
    assert [e["BX"]["fold"] for e in made["loco"]] == [0, 1, 2, 0, 1, 2]


def test_published_folds_of_another_data_set_are_refused(tmp_path):
    write(tmp_path, [fold("ab", "c", "de")])
    with pytest.raises(BadInput, match="2 of 5 images are not in the data set"):
        splits.make([cases_of("abc")], values(tmp_path))
    with pytest.raises(BadInput, match="holds no loCo/"):
        splits.make([cases_of("abcde")], values(tmp_path, validation=["loco"]))


def test_overlapping_splits_are_refused(tmp_path):
    write(tmp_path, [fold("ab", "c", "ad")])
    with pytest.raises(BadInput, match=r"1 patients in two parts of one fold \(fold 0 train/test"):
        splits.make([cases_of("abcd")], values(tmp_path))
    write(tmp_path, [fold("ab", "c", "d")])
    with pytest.raises(BadInput, match="1 patients in two parts"):
        splits.make([cases_of("abcd", patients="pqrp")], values(tmp_path))


def test_centers_are_read_as_text_not_evaluated(tmp_path):
    write(tmp_path, [fold("ab", "c", "d"), fold("d", "c", "ab")], "loCo",
          centers="# a comment\n{0: 'X', 1: __import__('os').abort(), 2: 'Z'}")  # fmt: skip
    found = splits.read_published(tmp_path)["loco"]
    assert [f["center"] for f in found] == ["X", "A"]  # the most frequent one where none is named


@pytest.mark.parametrize(
    "rows, header, sentence",
    [
        (["a MILD A", "a MILD A"], "img label center", "listed twice"),
        (["a MILD A x"], "img label center", "4 cells"),
        (["a MILD A"], "image label", "no header line"),
        (["a BIG [23014] A"], "img label_dim scores center", "has the score"),
    ],
)
def test_damaged_files(tmp_path, rows, header, sentence):
    write(tmp_path, [{"train": rows, "val": [], "test": []}], header=header)
    with pytest.raises(BadInput, match=sentence):
        splits.read_published(tmp_path)


def test_contradicting_files_and_missing_folders(tmp_path):
    write(tmp_path, [{"train": ["a MILD A"], "val": ["b MILD A"], "test": ["c MILD A"]},
                     {"train": ["a SEVERE A"], "val": [], "test": []}])  # fmt: skip
    with pytest.raises(BadInput, match="has label 'SEVERE', but 'MILD'"):
        splits.read_published(tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        splits.read_published(tmp_path / "x")
    (tmp_path / "e").mkdir()
    with pytest.raises(BadInput, match="holds no folds"):
        splits.read_published(tmp_path / "e")


def test_empty_cells(tmp_path):
    write(tmp_path, [{"train": ["a  [3] SIEMENS"], "val": ["b  [100] AGFA"], "test": ["c"]}],
          header="img label_dim scores center")  # fmt: skip
    cases = splits.read_published(tmp_path / "5").cases
    assert cases["score"] == ["000003", "000100", ""]
    assert cases["center"] == ["SIEMENS", "AGFA", ""]
    assert cases["label"] == ["", "", ""]


def test_cases_without_a_center_are_in_no_loco_fold():
    images = [f"i{k}" for k in range(24)]
    centers = ["A", "B", "C", ""] * 6
    cases = cases_of(images, centers=centers)
    cases.labels[:] = np.arange(24) // 4 % 2
    made = splits.make([cases], values(None, validation=["loco"]))["loco"]
    assert len(made) == 3
    for one in made:
        used = np.concatenate([one["d"][p] for p in ("train", "val", "test")])
        assert sorted(centers[r] for r in used) == ["A"] * 6 + ["B"] * 6 + ["C"] * 6
        assert {centers[r] for r in one["d"]["test"]} == {one["d"]["center"]}
    found = {f.kind: f.count for f in splits.audit([f["d"] for f in made], cases)}
    assert found["never_tested"] == 6


def test_balance_and_small_training_are_found():
    labels = np.array(["a", "b"] * 50)
    order = np.argsort(labels, kind="stable")
    halves = [{"fold": 0, "train": order[:30], "val": order[:0], "test": order[30:]}]
    found = {f.kind: f for f in splits.audit(halves, {"patient": range(100), "label": labels})}
    assert found["small_training"].examples == ["fold 0: trains on 30, tests on 70 of 100"]
    assert found["class_balance"].examples[0] == "fold 0: class a is 29% of test, 100% of training"
