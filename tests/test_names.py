"""Two hospitals with one task, who both number their images and patients from 0: nothing of one
may count as the other's."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mdmt import analysis, config, evaluate, run, splits, study
from mdmt.analysis import cohort
from mdmt.checks.pictures import Looks
from mdmt.data.similar import Alike
from mdmt.data.table import Cases
from mdmt.report import make

EACH = 30  # images of a hospital; two of each patient


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    root = tmp_path_factory.mktemp("hospitals")
    rng = np.random.default_rng(0)
    for name, sexes in (("north", "MF"), ("south", "FM")):
        (root / name / "images").mkdir(parents=True)
        lines = ["image,patient,label,sex"]
        for i in range(EACH):
            picture = rng.integers(0, 200, (48, 48), dtype=np.uint8) + np.uint8(40 * (i // 2 % 2))
            Image.fromarray(picture).save(root / name / "images" / f"{i}.png")
            lines.append(f"{i}.png,P{i // 2},{('MILD', 'SEVERE')[i // 2 % 2]},{sexes[i < 20]}")
        (root / name / "t.csv").write_text("\n".join(lines) + "\n")
    return root


def values_of(root, **data):
    sets = [{"name": n, "folder": n, "table": "t.csv", "task": "x"} for n in ("north", "south")]
    raw = {
        "data": {"root": str(root), "crop": "whole", "datasets": sets, **data},
        "tasks": {"x": {"classes": ["MILD", "SEVERE"], "head": {"hidden": []}}},
        "backbones": ["shufflenet_v2_x0_5"],
        "configurations": ["STL-tau1"],
        "cv": {"folds": 2},
        "image_size": 32,
        "train": {"epochs": 1, "warmup_epochs": 0, "patience": 1, "batch_size": 16},
    }
    return config.resolve(raw, "two")


def test_images_and_patients_are_told_apart_from_the_table_to_the_report(hospitals, tmp_path):
    out = tmp_path / "out"
    run.run(values_of(hospitals), out, quiet=True, report=False)
    with open(out / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = {f"{h}/{i}" for h in ("north", "south") for i in range(EACH)}
    assert len(rows) == 2 * EACH and {r["image"] for r in rows} == names
    assert len({r["patient"] for r in rows}) == EACH
    assert all(r["image"].split("/")[0] == r["patient"].split("/")[0] for r in rows)
    outcome = analysis.read(out)  # which holds them against splits.json
    parts = outcome.select(task="x")
    who = {p for part in parts for p in cohort.people(outcome.cohort, part.release, "x",
                                                      part.image, part.patient)}  # fmt: skip
    assert len(who) == EACH
    for part in parts:
        sex = cohort.groups_of(outcome.cohort, "x", part.image, part.center)["sex"]
        for name, level in zip(part.image, sex, strict=True):
            hospital, number = name.split("/")
            assert level == {"north": "MF", "south": "FM"}[hospital][int(number) < 20]
    make(out, resamples=100, figures=False)
    page = (out / "report.html").read_text()
    assert re.search(r"<td[^>]*>60</td>\s*<td[^>]*>30</td>", page)  # tested images, patients


def test_names_that_differ_stay_as_they_are(hospitals):
    values = values_of(hospitals)
    for setting in (True, False):
        values["data"]["same_patients"] = setting
        one, two = study.read_cases(values)
        assert one.image_prefix == "north/" and two.ids(3)[1] == "south/3"
        assert one.patient_prefix == ("" if setting else "north/")
        assert one.take([4]).ids(0) == one.ids(4)
    two.images, two.patients = [f"s{i}" for i in two.images], [f"s{i}" for i in two.patients]
    one.image_prefix = one.patient_prefix = two.image_prefix = two.patient_prefix = ""
    study._tell_apart([one, two], False)
    assert two.ids(3) == ["sP1", "s3", ""] and one.ids(0) == ["P0", "0", ""]


def test_a_third_data_set_may_have_prefixed_names(hospitals):
    one, two = study.read_cases(values_of(hospitals))
    three = study.read_cases(values_of(hospitals))[0]
    three.name, three.image_prefix, three.patient_prefix = "all", "", ""
    three.images = [f"north/{i}" for i in three.images]
    three.patients = [f"north/{i}" for i in three.patients]
    study._tell_apart([one, two, three], False)
    for names in ("named_images", "named_patients"):
        every = [name for c in (one, two, three) for name in set(getattr(c, names))]
        assert len(every) == len(set(every))


def test_names_are_the_same_in_all_releases(hospitals):
    """Only the second release has the same names in both."""
    first, second = (study.read_cases(values_of(hospitals)) for _ in range(2))
    for cases in first:
        cases.image_prefix = cases.patient_prefix = ""
    study._alike_in_all([first, second])
    for one, two in zip(first, second, strict=True):
        assert one.named_images == two.named_images and one.ids(3) == two.ids(3)
        assert one.ids(0)[1] == f"{one.name}/0"


def test_check_names_pictures_with_their_data_set(hospitals):
    looks = Looks(study.read_cases(values_of(hospitals)), [])
    assert looks.name((0, 2)) == "north/2 of patient north/P1"
    assert looks.name((1, 2)) == "south/2 of patient south/P1"


@pytest.mark.parametrize("same_patients", (False, True))
def test_who_is_known_in_one_data_set_is_known_in_all(hospitals, same_patients, tmp_path):
    """A network knows picture 0 of north, P0's, who is in south, too."""
    values = values_of(hospitals, same_patients=same_patients)
    cases = study.read_cases(values)
    store = SimpleNamespace(images=[None] * EACH)
    learnt = cases[0].paths[0]
    known = SimpleNamespace(shown=lambda paths, images: [[p] if p == learnt else [] for p in paths])
    nets = [SimpleNamespace(knows=bool)]
    pairs = [(c, store) for c in cases]
    (_, _, north), (_, _, south) = evaluate.select(tmp_path, pairs, values, known, nets)
    assert north.tolist() == list(range(2, EACH))
    assert south.tolist() == list(range(2 if same_patients else 0, EACH))
    # pictures 1 and 2, P0's and P1's, are one radiograph, of which south has a copy as its P2's
    alike = [same((0, 1), (0, 2)), same((0, 1), (1, 4))]
    (_, _, north), (_, _, south) = evaluate.select(tmp_path, pairs, values, known, nets, alike)
    assert north.tolist() == list(range(6 if same_patients else 4, EACH))
    assert south.tolist() == [i for i in range(4 * same_patients, EACH) if i not in (4, 5)]


def people_of(sets, alike=(), same_patients=False):
    """splits.persons of data sets given as (task, patient ids, prefix)."""
    cases = [
        Cases(f"d{n}", task, ["a"], [str(i) for i in range(len(patients))], patients,
              [""] * len(patients), np.zeros(len(patients), np.int64), np.zeros(len(patients)),
              [None] * len(patients), patient_prefix=prefix)
        for n, (task, patients, prefix) in enumerate(sets)
    ]  # fmt: skip
    data = {"same_patients": same_patients, "datasets": [{"name": c.name} for c in cases]}
    return splits.persons(cases, {"data": data}, alike)


def same(one, two):
    return Alike(one, two, 0.97, False, False)


def test_one_person_has_one_name_in_a_task():
    north, south = ("x", ["P0", "P1", "P1"], "north/"), ("x", ["P0", "P2"], "south/")
    assert people_of([north, south]) == [["north/P0", "north/P1", "north/P1"],
                                         ["south/P0", "south/P2"]]  # fmt: skip
    found = people_of([north, south], [same((0, 2), (1, 1))])
    assert found == [["north/P0", "north/P1", "north/P1"], ["south/P0", "north/P1"]]
    plain = [(task, patients, "") for task, patients, _ in (north, south)]
    assert people_of(plain, same_patients=True)[1] == ["P0", "P2"]


def test_two_ids_that_another_task_joins_are_one_person():
    """B's Q is A's P0 and A's P2, who are then the same; each task keeps its own names."""
    sets = [("x", ["P0", "P1", "P2"], ""), ("y", ["Q", "R"], "")]
    found = people_of(sets, [same((0, 0), (1, 0)), same((0, 2), (1, 0))])
    assert found == [["P0", "P1", "P0"], ["Q", "R"]]


def test_cohort_json_names_persons_only_where_ids_do_not(hospitals):
    values = values_of(hospitals)
    cases = study.read_cases(values)
    store = SimpleNamespace(folder=hospitals)
    for alike, joined in (((), False), ([same((0, 0), (1, 29))], True)):
        made = cohort.record([study.Release("1", cases, [store, store], {}, alike)], values)
        assert ["person" in d["cases"] for d in made["datasets"]] == [False, joined]
        assert json.loads(json.dumps(made)) == made
