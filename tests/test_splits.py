"""Splits: leakage, coverage, stratification, determinism, audit."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from mdmt import config, splits
from mdmt.data.similar import Alike
from mdmt.data.table import Cases
from mdmt.errors import BadInput
from tests.realdata import COVID_CXR, needs_covid_cxr

PARTS = ("train", "val", "test")


@st.composite
def cohorts(draw):
    """Labels, patients, centers of a cohort; every class has at least 8 patients."""
    classes = draw(st.integers(2, 4))
    per_class = draw(st.lists(st.integers(8, 16), min_size=classes, max_size=classes))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels, patients, centers = [], [], []
    number = 0
    for c, count in enumerate(per_class):
        for _ in range(count):
            images = int(rng.integers(1, 5))
            labels += [c] * images
            patients += [f"p{number}"] * images
            centers += ["ABC"[int(rng.integers(3))]] * images
            number += 1
    order = rng.permutation(len(labels))
    return np.array(labels)[order], np.array(patients)[order], np.array(centers)[order]


def check_fold(fold, patients):
    sets = {p: set(patients[fold[p]]) for p in PARTS}
    assert not sets["train"] & sets["val"]
    assert not sets["train"] & sets["test"]
    assert not sets["val"] & sets["test"]
    assert all(len(fold[p]) for p in PARTS)


def in_tests(folds):
    return sorted(np.concatenate([f["test"] for f in folds]).tolist())


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(cohorts(), st.integers(2, 5), st.integers(0, 99))
def test_properties_of_a_thousand_cohorts(cohort, n_splits, seed):
    """No patient in two parts, every case tested once, every class trained on, no row order."""
    labels, patients, centers = cohort
    rows = list(range(len(labels)))
    folds = splits.stratified_group_kfold(labels, patients, n_splits, seed, centers=centers)
    assert [f["fold"] for f in folds] == list(range(n_splits))
    assert in_tests(folds) == rows
    for fold in folds:
        check_fold(fold, patients)
        assert sorted(np.concatenate([fold[p] for p in PARTS])) == rows
        assert set(labels[fold["train"]]) == set(labels)
    cases = {"patient": patients, "image": np.arange(len(labels)), "label": labels}
    bad = {"patient_overlap", "image_overlap", "row_overlap", "never_tested", "tested_twice"}
    assert not bad & {f.kind for f in splits.audit(folds, cases)}
    order = np.random.default_rng(seed).permutation(len(labels))
    again = splits.stratified_group_kfold(
        labels[order], patients[order], n_splits, seed, centers=centers[order]
    )
    for x, y in zip(folds, again, strict=True):
        for p in PARTS:
            assert set(x[p].tolist()) == set(order[y[p]].tolist())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(cohorts(), st.integers(0, 99))
def test_leave_one_center_out(cohort, seed):
    labels, patients, centers = cohort
    folds = splits.leave_one_center_out(labels, patients, centers, seed)
    assert [f["center"] for f in folds] == sorted(set(centers))
    for fold in folds:
        check_fold(fold, patients)
        assert set(centers[fold["test"]]) == {fold["center"]}
        assert fold["center"] not in set(centers[np.r_[fold["train"], fold["val"]]])
    assert in_tests(folds) == list(range(len(labels)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cohorts(), st.integers(2, 4), st.integers(0, 99), st.sampled_from(["cv", "nested", "loco"]))
def test_a_later_release_moves_nobody(cohort, n_splits, seed, scheme):
    """Whoever is in a part of a fold of an earlier release is in that part of the later one."""
    labels, patients, centers = cohort
    waves = {p: str(1 + i % 3) for i, p in enumerate(sorted(set(patients)))}
    waves = np.array([waves[p] for p in patients])

    def made(rows):
        more = {"waves": waves[rows]}
        if scheme == "loco":
            return splits.leave_one_center_out(
                labels[rows], patients[rows], centers[rows], seed, **more
            )
        more["centers"] = centers[rows]
        if scheme == "nested":
            return splits.nested_kfold(labels[rows], patients[rows], n_splits, 2, seed, **more)
        return splits.stratified_group_kfold(labels[rows], patients[rows], n_splits, seed, **more)

    every = np.arange(len(labels))
    try:
        results = [made(every[waves <= str(k)]) for k in (1, 2, 3)]
    except BadInput:  # the first release alone can be too small
        return
    for k, (before, after) in enumerate(itertools.pairwise(results), start=1):
        early, late = every[waves <= str(k)], every[waves <= str(k + 1)]
        named = {f.get("center", f["fold"]): f for f in after}  # a center may be new
        for x in before:
            y = named[x.get("center", x["fold"])]
            for p in PARTS:
                assert set(early[x[p]]) == set(late[y[p]]) & set(early)


def test_centers_are_balanced_where_patients_suffice():
    """Spread of centers over the test parts, with and without; classes stay as balanced."""
    rng = np.random.default_rng(0)
    spread = {True: [], False: []}
    worst = {True: [], False: []}
    for seed in range(10):
        patients = np.repeat(np.arange(200), rng.integers(1, 4, 200))
        labels = rng.integers(0, 2, 200)[patients]
        centers = np.array(list("AAABBC"))[rng.integers(0, 6, 200)][patients]
        for balanced in (True, False):
            folds = splits.stratified_group_kfold(
                labels, patients, 5, seed, centers=centers if balanced else None
            )
            tests = [f["test"] for f in folds]
            for values, into in ((centers, spread), (labels, worst)):
                shares = np.array([[(values[t] == v).mean() for v in set(values)] for t in tests])
                into[balanced].append(shares.std(0).mean())
    assert np.mean(spread[True]) < 0.5 * np.mean(spread[False])
    assert np.mean(worst[True]) < np.mean(worst[False]) + 0.01


def test_nested_and_fixed_test_sets():
    labels, patients = np.tile([0, 1], 60), np.repeat(np.arange(60), 2)
    folds = splits.nested_kfold(labels, patients, 3, 4)
    assert [(f["fold"], f["outer"], f["inner"]) for f in folds] == [
        (4 * o + i, o, i) for o in range(3) for i in range(4)
    ]
    for outer in range(3):
        own = folds[4 * outer : 4 * outer + 4]
        assert len({tuple(f["test"]) for f in own}) == 1
        rest = np.sort(np.concatenate([f["val"] for f in own]))
        assert np.array_equal(rest, np.setdiff1d(np.arange(120), own[0]["test"]))
    cases = {"patient": patients, "label": labels}
    assert splits.audit(folds, cases) == []
    fixed = np.isin(patients, range(9))
    fixed[0] = False  # the other image of a fixed patient is not trained on
    folds = splits.fixed_test_kfold(labels, patients, fixed, 3)
    for fold in folds:
        check_fold(fold, patients)
        assert np.array_equal(fold["test"], np.flatnonzero(fixed))
    assert sorted(np.concatenate([f["val"] for f in folds])) == list(range(18, 120))
    assert splits.audit(folds, cases) == []
    with pytest.raises(BadInput, match="fixed test set is empty"):
        splits.fixed_test_kfold(labels, patients, fixed & False, 3)


def test_known_split_on_every_platform():
    labels = np.array([0, 1] * 12)
    patients = np.array([f"p{i // 2}" if i % 4 < 2 else f"q{i}" for i in range(24)])
    folds = splits.stratified_group_kfold(labels, patients, 3, seed=7)
    text = json.dumps([{p: f[p].tolist() for p in PARTS} for f in folds])
    assert splits.digest(text, 16) == "32b94f90e2c9f2dd"
    more = {"centers": np.array(list("AABB"))[np.arange(24) % 4], "waves": np.arange(24) // 12}
    for made, wanted in (
        (splits.stratified_group_kfold(labels, patients, 3, seed=7, **more), "dc463870d8297356"),
        (splits.nested_kfold(labels, patients, 3, 2, seed=7), "d8a6a960f50af367"),
        (
            splits.leave_one_center_out(labels, np.arange(24), more["centers"], seed=7),
            "6153f4da38a3cb47",
        ),
    ):
        text = json.dumps([{p: f[p].tolist() for p in PARTS} for f in made])
        assert splits.digest(text, 16) == wanted
    other = splits.stratified_group_kfold(labels, patients, 3, seed=8)
    assert any(not np.array_equal(a["test"], b["test"]) for a, b in zip(folds, other, strict=True))


def test_stratified_as_well_as_scikit_learn():
    """Worst deviation of the folds' class shares, against StratifiedGroupKFold's."""
    rng = np.random.default_rng(0)
    ours_worst, theirs_worst = [], []
    for seed in range(10):
        patients = np.repeat(np.arange(150), rng.integers(1, 5, 150))
        labels = rng.integers(0, 4, 150)[patients]
        share = np.bincount(labels, minlength=4) / len(labels)

        def worst(tests, labels=labels, share=share):
            return max(
                np.abs(np.bincount(labels[t], minlength=4) / len(t) - share).max() for t in tests
            )

        ours = splits.stratified_group_kfold(labels, patients, 5, seed)
        theirs = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        ours_worst.append(worst([f["test"] for f in ours]))
        theirs_worst.append(worst([t for _, t in theirs.split(labels, labels, patients)]))
    assert np.mean(ours_worst) <= 1.2 * np.mean(theirs_worst)


def test_validation_share_and_none():
    labels, patients = np.tile([0, 1], 100), np.arange(200)
    for fold in splits.stratified_group_kfold(labels, patients, 5, validation=0.25):
        assert len(fold["val"]) == 40
        assert labels[fold["val"]].mean() == 0.5
    for fold in splits.stratified_group_kfold(labels, patients, 5, validation=0):
        assert len(fold["val"]) == 0


def test_a_patient_in_two_centers_is_never_in_training_when_tested():
    labels = np.array([0, 0, 1, 1] * 5)
    patients = np.array(["both"] * 2 + [f"p{i}" for i in range(18)])
    centers = np.array(["A", "B"] * 10)
    for fold in splits.leave_one_center_out(labels, patients, centers):
        check_fold(fold, patients)


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: splits.stratified_group_kfold([0, 1, 0], ["a", "b", "b"], 3), "2 patients"),
        (lambda: splits.stratified_group_kfold([0, 1], ["a", "b"], 1), "at least 2"),
        (lambda: splits.stratified_group_kfold([], [], 2), "at least one case"),
        (lambda: splits.stratified_group_kfold([0, 1], ["a"], 2), "one of each"),
        (lambda: splits.stratified_group_kfold([0.0, np.nan], ["a", "b"], 2), "NaN"),
        (lambda: splits.stratified_group_kfold([0, 1], ["a", "b"], 2, validation=1), "below 1"),
        (
            lambda: splits.stratified_group_kfold([0] * 9 + [1], list(range(10)), 5),
            "no case of class '1'",
        ),
        (
            lambda: splits.leave_one_center_out([0, 1, 0, 1], [1, 2, 3, 4], ["A"] * 4),
            "only one center",
        ),
        (
            lambda: splits.leave_one_center_out([0, 1, 0, 1], [1, 2, 3, 4], ["A", "", "B", "B"]),
            "no center",
        ),
        (
            lambda: splits.leave_one_center_out([0, 0, 1, 1] * 3, range(12), list("AABB") * 3),
            "no case of class",
        ),
        (
            lambda: splits.leave_one_center_out([0, 1, 0, 1], [1, 2, 3, 4], ["A", None, "B", "B"]),
            "1 cases have no center",
        ),
        (lambda: splits.stratified_group_kfold([0, 1], ["a", None], 2), "groups holds empty"),
    ],
)
def test_bad_input(call, fragment):
    with pytest.raises(BadInput, match=fragment):
        call()


def clean_folds():
    labels, patients = np.tile([0, 1], 20), np.repeat(np.arange(20), 2)
    return splits.stratified_group_kfold(labels, patients, 4), {
        "patient": patients,
        "image": np.arange(40),
        "label": labels,
        "center": np.array(["A", "B"])[labels],
    }


@pytest.mark.parametrize(
    "spoil, kind",
    [
        (lambda f: f[0].update(train=np.r_[f[0]["train"], f[0]["test"][:1]]), "patient_overlap"),
        (lambda f: f[0].update(train=np.r_[f[0]["train"], f[0]["test"][:1]]), "image_overlap"),
        (lambda f: f[1].update(val=np.r_[f[1]["val"], f[1]["train"][:1]]), "row_overlap"),
        (lambda f: f[2].update(test=f[2]["test"][1:]), "never_tested"),
        (lambda f: f[3].update(test=np.r_[f[3]["test"], f[0]["test"][:1]]), "tested_twice"),
        (lambda f: f[0].update(test=f[0]["test"][:0]), "empty_part"),
        (lambda f: f[0].update(test=np.array([999])), "unknown_row"),
        (lambda f: f[0].update(center="A"), "center_mixed"),
    ],
)
def test_audit_finds(spoil, kind):
    folds, cases = clean_folds()
    assert splits.audit(folds, cases) == []
    spoil(folds)
    found = {f.kind: f for f in splits.audit(folds, cases)}
    assert found[kind].count >= 1
    assert found[kind].examples


def test_record_keeps_images_and_refuses_changes(tmp_path):
    folds, columns = clean_folds()
    cases = Cases(
        "d", "t", ["x", "y"], [f"i{i}" for i in range(40)], columns["patient"], [""] * 40,
        columns["label"], np.zeros(40), [], 0, [],
    )  # fmt: skip
    made = {"cv": [{"d": f} for f in folds]}
    path = tmp_path / "splits.json"
    number = splits.write(path, made, [cases])
    record = splits.read(path)
    assert record["hash"] == number
    assert len(record["validation"]["cv"][0]["datasets"]["d"]["test"]) == 10
    path.write_text(path.read_text().replace('"i3"', '"i4"', 1))
    with pytest.raises(BadInput, match="was changed"):
        splits.read(path)


@needs_covid_cxr
def test_real_data_pairs_folds_and_audits_clean():
    from mdmt.data import table

    values = config.load("covid_cxr", ["validation=[cv, loco]"])
    cases = [
        table.read_cases(d, values["tasks"][d["task"]], COVID_CXR)
        for d in values["data"]["datasets"]
    ]
    made = splits.make(cases, values)
    assert len(made["cv"]) == 5
    centers = [f["prognosis"]["center"] for f in made["loco"]]
    assert centers == ["EastAsia", "Europe", "Hannover", "Italy", "Other"]
    for folds in made.values():
        for i, fold in enumerate(folds):
            assert fold["severity"]["fold"] == i % 5
        for one in cases:
            found = splits.audit([f[one.name] for f in folds], one)
            if "center" in folds[0][one.name]:  # Hannover has two thirds of the images
                assert [f.examples for f in found] == [
                    ["fold 2: trains on 97, tests on 243 of 364"]
                ]
            else:
                assert found == []


def cohort_of(name, task, classes, count, **more):
    """Cases without files; every class has several patients, every patient two images."""
    labels = np.arange(count) // 2 % classes
    return Cases(
        name, task, [str(c) for c in range(classes)], [f"{name}{i}" for i in range(count)],
        [f"{name}p{i // 2}" for i in range(count)], more.get("centers", [""] * count), labels,
        np.full(count, np.nan), [None] * count,
    )  # fmt: skip


def study_values(*names, **more):
    data = {"datasets": [{"name": n} for n in names], "release": "1", **more.pop("data", {})}
    cv = {"folds": 3, "seed": 0, "validation": 0.2, "inner": 2, "centers": True}
    return {"cv": cv, "data": data, "validation": ["cv"], **more}


def six_and_three():
    one = cohort_of("d1", "t1", 2, 144, centers=["ABCDEF"[i // 2 // 2 % 6] for i in range(144)])
    two = cohort_of("d2", "t2", 2, 96, centers=["XYZ"[i // 2 // 2 % 3] for i in range(96)])
    return [one, two]


def test_centers_are_paired_one_by_one_or_all_with_all():
    cases = six_and_three()
    made = splits.make(cases, study_values("d1", "d2", validation=["loco", "loco-all"]))
    pairs = {k: [(f["d1"]["center"], f["d2"]["center"]) for f in v] for k, v in made.items()}
    assert pairs["loco"] == list(zip("ABCDEF", "XYZXYZ", strict=True))
    assert pairs["loco-all"] == [(a, b) for a in "ABCDEF" for b in "XYZ"]
    record = splits.as_record(made, cases)["validation"]["loco-all"]
    assert [e["fold"] for e in record] == list(range(18))
    assert record[4]["datasets"]["d2"]["center"] == "Y"
    # A data set without centers goes through its folds again and again.
    alone = [cases[0], cohort_of("d2", "t2", 2, 96)]
    made = splits.make(alone, study_values("d1", "d2", validation=["loco-all"]))["loco-all"]
    assert [f["d2"]["fold"] for f in made] == [0, 1, 2, 0, 1, 2]


def leaking(fold, cases):
    """Patients who are tested in one of two data sets and trained on in the other."""
    tested, trained = (
        [{c.patients[r] for p in parts for r in fold[c.name][p]} for c in cases]
        for parts in (["test"], PARTS[:2])
    )
    return tested[0] & trained[1] | tested[1] & trained[0]


def test_the_same_patients_in_two_data_sets():
    cases = six_and_three()
    cases[1].patients[:40] = cases[0].patients[:40]
    apart = splits.make(cases, study_values("d1", "d2"))["cv"]
    joint = splits.make(cases, study_values("d1", "d2", data={"same_patients": True}))["cv"]
    assert any(leaking(f, cases) for f in apart)
    assert not any(leaking(f, cases) for f in joint)
    for k, name in enumerate(("d1", "d2")):
        assert in_tests([f[name] for f in joint]) == list(range(len(cases[k])))


@pytest.mark.parametrize("how", ["ids", "files"])
@pytest.mark.parametrize("validation", ["cv", "nested", "loco", "loco-all"])
def test_the_same_patients_whatever_the_pairing(validation, how):
    """Where centers are paired all with all, a fold of one data set meets every fold of the
    other; whoever is tested there must not be trained on here."""
    same = {"same_patients": how == "ids"}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        cases = six_and_three()
        for one in cases:
            one.patients[:] = [f"P{p}" for p in rng.integers(0, 40, len(one))]
            one.centers[:] = ["ABC"[int(p[1:]) % 3] for p in one.patients]
        if how == "files":
            cases[0].paths[3] = cases[1].paths[5] = Path("shared.png")
        made = splits.make(cases, study_values("d1", "d2", validation=[validation], data=same))
        assert len(made[validation]) == {"cv": 3, "nested": 6, "loco": 3, "loco-all": 9}[validation]
        for fold in made[validation]:
            assert not leaking(fold, cases)
            for one in cases:
                check_parts = [fold[one.name][p] for p in PARTS]
                assert len(np.unique(np.concatenate(check_parts))) == sum(map(len, check_parts))


def test_two_patients_who_are_one_in_another_data_set():
    """d1 knows a person under two ids; the radiographs that d2 has of both tell."""
    cases = six_and_three()
    plain = splits.make(cases, study_values("d1", "d2"))["cv"]
    one, two = next(  # first images of patients in different parts
        (a, b) for a in range(0, 40, 2) for b in range(a + 2, 60, 2)
        if any(a in f["d1"]["test"] and b in f["d1"]["train"] for f in plain)
    )  # fmt: skip
    pairs = [alike((0, one), (1, 10)), alike((0, two), (1, 11))]  # of one patient of d2
    made = splits.make(cases, study_values("d1", "d2"), alike=pairs)["cv"]
    for fold, before in zip(made, plain, strict=True):
        assert fold["d1"]["test"].tolist() == before["d1"]["test"].tolist()
        part = {r: p for p in PARTS for r in fold["d1"][p]}
        if "test" in (part.get(one), part.get(two)):
            others = {part.get(r) for r in (one, one + 1, two, two + 1)}
            assert others <= {"test", None}, others
    assert in_tests([f["d1"] for f in made]) == list(range(len(cases[0])))


def test_nobody_is_left_to_train_on():
    """With one patient per center in both data sets, all pairs leave nothing of some class."""
    cases = six_and_three()
    for one in cases:
        one.patients[:] = [f"P{k}{i % 2}" for i, k in enumerate(one.labels)]
        one.centers[:] = ["AB"[int(p[2])] for p in one.patients]
    values = study_values("d1", "d2", validation=["loco-all"], data={"same_patients": True})
    with pytest.raises(BadInput, match="loco-all, fold 1: without the patients who are tested"):
        splits.make(cases, {**values, "cv": {**values["cv"], "validation": 0}})


def alike(one, two, exact=False):
    return Alike(one, two, 1.0 if exact else 0.97, False, exact)


@pytest.mark.parametrize("validation", ["cv", "nested", "loco", "loco-all"])
def test_a_person_of_two_ids_is_left_out_with_both(validation):
    """Two patients of one data set are one person, and one of them is that of the other data set:
    where that one is tested, neither is trained on, and the other way round."""
    for k in range(4, 40, 6):
        cases = six_and_three()
        pairs = [alike((0, 0), (0, k)), alike((0, 1), (1, 10))]
        made = splits.make(cases, study_values("d1", "d2", validation=[validation]), alike=pairs)
        for fold in made[validation]:
            one, two = ({r: p for p in PARTS for r in fold[n][p]} for n in ("d1", "d2"))
            parts = {one.get(r) for r in (0, 1, k, k + 1)} | {two.get(r) for r in (10, 11)}
            assert "test" not in parts or parts <= {"test", None}


def test_near_duplicates_stay_together_or_are_found():
    cases = six_and_three()
    # Of two patients of one data set, and of a patient of each.
    pairs = [alike((0, 0), (0, 2)), alike((0, 4), (1, 10)), alike((0, 0), (0, 1))]
    made = splits.make(cases, study_values("d1", "d2"), alike=pairs)["cv"]
    for fold in made:
        part = {r: p for p in PARTS for r in fold["d1"][p]}
        assert len({part.get(r) for r in range(4)}) == 1  # both images of both patients
        if part.get(4) == "test":  # neither image of the other's patient is trained on
            assert not {10, 11} & set(np.r_[fold["d2"]["train"], fold["d2"]["val"]])
    assert splits.audit_across({"cv": made}, cases, pairs) == []
    assert splits.audit([f["d1"] for f in made], cases[0], splits.alone(pairs, 0)) == []
    plain = splits.make(cases, study_values("d1", "d2"))["cv"]
    split = next(  # two patients whom the plain splits put into different parts
        (a, b) for a in range(0, 20, 2) for b in range(a + 2, 40, 2)
        if any((a in f["d1"]["test"]) != (b in f["d1"]["test"]) for f in plain)
    )  # fmt: skip
    pairs = [alike((0, split[0]), (0, split[1]))]
    report = {"near_duplicates": "report"}
    kept = splits.make(cases, study_values("d1", "d2", data=report), alike=pairs)["cv"]
    found = splits.audit([f["d1"] for f in kept], cases[0], splits.alone(pairs, 0))
    assert [(f.kind, f.count) for f in found] == [("near_duplicate", 1)]
    assert f"d1{split[0]} (" in found[0].examples[0]
    exact = [alike((0, split[0]), (0, split[1]), True)]
    with pytest.raises(BadInput, match="1 pairs of equal pictures in two parts"):
        splits.make(cases, study_values("d1", "d2", data=report), alike=exact)
    across = [alike((0, 0), (1, k)) for k in range(0, 12, 2)]
    ((scheme, finding),) = splits.audit_across({"cv": plain}, cases, across)
    assert (scheme, finding.kind) == ("cv", "near_duplicate")
    assert "of d1 (" in finding.examples[0] and finding.count >= 1
