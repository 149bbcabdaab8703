"""Splits: leakage, coverage, stratification, determinism, audit."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from mdmt import config, splits
from mdmt.data.table import Cases
from mdmt.errors import BadInput
from tests.realdata import COVID_CXR, needs_covid_cxr

PARTS = ("train", "val", "test")


@st.composite
def cohorts(draw):
    """Labels, patients, centers of a cohort; every class has at least 12 patients."""
    classes = draw(st.integers(2, 4))
    per_class = draw(st.lists(st.integers(12, 25), min_size=classes, max_size=classes))
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cohorts(), st.integers(2, 6), st.integers(0, 99))
def test_no_patient_in_two_parts_and_each_case_tested_once(cohort, n_splits, seed):
    labels, patients, _ = cohort
    folds = splits.stratified_group_kfold(labels, patients, n_splits, seed)
    assert [f["fold"] for f in folds] == list(range(n_splits))
    tested = np.concatenate([f["test"] for f in folds])
    assert sorted(tested) == list(range(len(labels)))
    for fold in folds:
        check_fold(fold, patients)
        rows = np.concatenate([fold[p] for p in PARTS])
        assert sorted(rows) == list(range(len(labels)))
    cases = {"patient": patients, "image": np.arange(len(labels))}
    found = splits.audit(folds, cases)  # two folds with a validation part can train on little
    assert [f for f in found if f.kind != "small_training"] == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cohorts(), st.integers(0, 99))
def test_leave_one_center_out(cohort, seed):
    labels, patients, centers = cohort
    folds = splits.leave_one_center_out(labels, patients, centers, seed)
    assert [f["center"] for f in folds] == sorted(set(centers))
    for fold in folds:
        check_fold(fold, patients)
        assert set(centers[fold["test"]]) == {fold["center"]}
        assert fold["center"] not in set(centers[np.r_[fold["train"], fold["val"]]])
    tested = np.concatenate([f["test"] for f in folds])
    assert sorted(tested) == list(range(len(labels)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cohorts(), st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter(cohort, seed):
    labels, patients, _ = cohort
    order = np.random.default_rng(seed).permutation(len(labels))
    a = splits.stratified_group_kfold(labels, patients, 3, seed)
    b = splits.stratified_group_kfold(labels[order], patients[order], 3, seed)
    for x, y in zip(a, b, strict=True):
        for p in PARTS:
            assert set(patients[x[p]]) == set(patients[order][y[p]])


def test_known_split_on_every_platform():
    labels = np.array([0, 1] * 12)
    patients = np.array([f"p{i // 2}" if i % 4 < 2 else f"q{i}" for i in range(24)])
    folds = splits.stratified_group_kfold(labels, patients, 3, seed=7)
    text = json.dumps([{p: f[p].tolist() for p in PARTS} for f in folds])
    assert splits.digest(text, 16) == "32b94f90e2c9f2dd"
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
