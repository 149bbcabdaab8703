"""Test parts of one class: what they leave undefined is empty and counts in no mean, everywhere."""

import csv
import sys

import numpy as np
import pytest
from sklearn import metrics as reference

from mdmt import analysis, report, stats
from mdmt.analysis.external import together
from mdmt.results import fewer_folds, final_table
from tests import outfolder

compare = sys.modules["mdmt.analysis.compare"]  # of whose name the package has a function

SAID = (
    "F1, G-mean and AUC are means over 2 of 3 folds: test parts of one class leave them undefined."
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three centers left out, one of which has MILD cases alone; and what its report returned."""
    out = tmp_path_factory.mktemp("undefined") / "out"
    outfolder.make(out, n=90, validation=["loco"], one_class=True, jobs=False,
                   backbones=["resnet18", "resnet34"])  # fmt: skip
    return out, report.make(out, resamples=200, figures=False)


def parts(outcome, name):
    """{backbone: parts of a configuration's folds that hold both classes}."""
    found = outcome.select(task="prognosis", configuration=name)
    return {b: [p for p in found if p.backbone == b and len(set(p.y)) == 2]
            for b in ("resnet18", "resnet34")}  # fmt: skip


def test_cells_are_empty_where_nothing_is_defined(study):
    empty = [r for r in rows(study[0] / "results.csv") if r["task"] == "prognosis" and not r["auc"]]
    assert len(empty) == 6 and {r["fold"] for r in empty} == {"0"}
    for r in empty:
        assert r["f1"] == r["f1_macro"] == r["gmean"] == ""
        assert float(r["accuracy"]) > 0 and float(r["f1_weighted"]) > 0


def test_tables_terminal_and_comparisons_leave_out_the_same_folds(study):
    out, made = study
    outcome = analysis.read(out, verify=False)
    f1 = {
        c: [np.mean([reference.f1_score(p.y, p.predicted) for p in some])
            for some in parts(outcome, c).values()]
        for c in ("MDMT", "FT")
    }  # fmt: skip
    assert all(len(some) == 2 for some in parts(outcome, "MDMT").values())
    table = {r["experiment"]: r for r in rows(out / "table1.csv")
             if r["task"] == "prognosis" and r["source"] == "this run"}  # fmt: skip
    assert float(table["MDMT"]["loco_f1"]) == pytest.approx(100 * np.mean(f1["MDMT"]), abs=1e-3)
    found = {(r["backbone"], r["against"], r["metric"]): r
             for r in rows(out / "comparisons.csv") if r["task"] == "prognosis"}  # fmt: skip
    row = found["mean", "FT", "f1"]
    assert float(row["difference"]) == pytest.approx(np.mean(f1["MDMT"]) - np.mean(f1["FT"]))
    assert {m: found["mean", "FT", m]["folds"] for m in ("accuracy", "f1", "gmean", "auc")} == {
        "accuracy": "3", "f1": "2", "gmean": "2", "auc": "2",
    }  # fmt: skip
    told = final_table(analysis.results(outcome), outcome.values)
    line = next(x for x in told.splitlines() if x.startswith("  resnet18") and "MDMT" in x)
    assert f"{100 * f1['MDMT'][0]:.1f} ±" in line
    assert told.count(SAID) == 1
    assert sum(SAID in n for n in made["notes"]) == 1
    assert SAID in (out / "report.html").read_text()
    for name in ("table1", "tableS1"):  # which have no AUC
        assert (
            "LOCO: F1 and G-mean are means over 2 of 3 folds" in (out / f"{name}.html").read_text()
        )


def test_an_interval_is_of_the_folds_that_a_resample_leaves_defined(study):
    outcome = analysis.read(study[0], verify=False)
    a = next(a for a in analysis.compare(outcome, 200) if a.matrix.task == "prognosis")
    m = a.matrix
    both = np.isin(m.fold, [f for f in m.folds if len(set(m.y[m.fold == f])) == 2])
    y, groups, folds = m.y[both], m.patient[both].astype(str), m.fold[both]
    called = [m.p["resnet18", 0, c].argmax(1)[both] for c in ("MDMT", "FT")]
    one = stats.paired_bootstrap(y, *called, "gmean", groups, 200, 0, folds=folds)
    assert a.find("FT", "gmean", "resnet18").difference == pytest.approx(one.difference)


def test_nothing_defined_at_all(study, tmp_path):
    out = outfolder.make(tmp_path / "out", n=90, validation=["loco"], one_class=True, jobs=False)
    path = out / "predictions.csv"
    head, *lines = path.read_text().splitlines()
    kept = [x for x in lines if x.split(",")[2] == "0" and x.split(",")[5] == "prognosis"]
    path.write_text("\n".join([head, *kept]) + "\n")
    made = report.make(out, resamples=100)
    assert any("F1, G-mean and AUC are defined in no fold" in n for n in made["notes"])
    table = next(r for r in rows(out / "table1.csv") if r["source"] == "this run")
    assert table["loco_f1"] == "" and table["loco_accuracy"] != ""
    found = {r["metric"]: r for r in rows(out / "comparisons.csv") if r["against"] == "FT"}
    assert found["gmean"]["difference"] == "" and found["accuracy"]["difference"] != ""


def test_cases_of_one_patient_alone(monkeypatch, tmp_path):
    """A small test part: figures of the cases, and a sentence instead of intervals by patient."""
    out = outfolder.make(tmp_path / "out", n=90, validation=["loco"], jobs=False)
    module = compare
    monkeypatch.setattr(module, "people", lambda *given: np.full(len(given[3]), "p", object))
    made = report.make(out, resamples=100)
    for task in ("prognosis", "severity"):
        assert any(f"{task}, loco: all tested cases are of one" in n for n in made["notes"])
    table = next(r for r in rows(out / "table1.csv") if r["source"] == "this run")
    assert table["loco_accuracy"] != ""
    found = rows(out / "comparisons.csv")
    assert {(r["low"], r["high"], r["pvalue"], r["patients"]) for r in found} == {("", "", "", "1")}
    row = next(r for r in found if r["against"] == "FT" and r["metric"] == "accuracy")
    mean = {c: np.mean([float(r["accuracy"]) for r in rows(out / "results.csv")
                        if r["task"] == row["task"] and r["configuration"] == c])
            for c in ("MDMT", "FT")}  # fmt: skip
    assert float(row["difference"]) == pytest.approx(mean["MDMT"] - mean["FT"], abs=1e-6)
    outcome = analysis.read(out, verify=False)
    m = module.matrix(outcome, *outcome.places[0])
    assert set(together(m, 100).values()) == {None}


@pytest.mark.parametrize("order", [("MDMT", "STL-tau2"), ("STL-tau2", "MDMT")])
def test_correlations_are_compared_over_folds_that_every_network_defines(order):
    """One that says one number in a fold has no correlation there; the other's must not count."""
    rng = np.random.default_rng(0)
    tasks = {"severity": {"head": {"loss": "mse"}}, "prognosis": {"classes": ["MILD", "SEVERE"]}}
    spec = outfolder.values(tasks=tasks)["tasks"]["severity"]
    y, fold = rng.integers(0, 19, 90) * 1.0, np.arange(90) % 3
    said = {c: y + 3 * rng.normal(size=90) for c in order}
    said["STL-tau2"][fold == 2] = np.float32(8.1)
    names = np.array([str(i) for i in range(90)])
    m = compare.Matrix(
        "1", "cv", "severity", spec, list(order), [("resnet18", 0)], y, fold, names, names,
        np.full(90, ""), {("resnet18", 0, c): p[:, None] for c, p in said.items()},
    )  # fmt: skip
    assert compare.defined_folds(m, "pearson") == [0, 1]
    assert len(compare.defined_folds(m, "mae")) == 3
    drawn, at = compare._drawn(m, ("mae", "pearson", "ccc"), 200, 0)
    pair = [at["resnet18", c, "pearson"] for c in ("MDMT", "STL-tau2")]
    each = [[stats.pearson(y[fold == f], said[c][fold == f]) for f in (0, 1)]
            for c in ("MDMT", "STL-tau2")]  # fmt: skip
    found = drawn["pearson"].difference(*pair)
    assert found.difference == pytest.approx(np.mean(each[0]) - np.mean(each[1]))
    assert "Correlations are over 2 of 3 folds" in compare.fewer_folds(m)
    assert drawn["mae"] is drawn["ccc"] and drawn["mae"] is not drawn["pearson"]
    # the table of all metrics, of which the same sentence speaks
    shown = analysis.operating(m, "MDMT")
    assert shown["pearson"] == pytest.approx(np.mean(each[0]))
    assert shown["mae"] == pytest.approx(np.mean(np.abs(y - said["MDMT"])))


def test_the_sentence():
    row = {"fold": 0, "accuracy": 1.0, "f1": 1.0, "gmean": None, "auc": None}
    assert fewer_folds([row, {**row, "fold": 1, "f1": None, "auc": 0.5}]) == (
        "F1 and AUC are means over 1 of 2 folds; G-mean is defined in no fold: "
        "test parts of one class leave them undefined."
    )
    assert fewer_folds([row], ("accuracy", "f1")) == ""
