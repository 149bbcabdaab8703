"""sensitivity.csv against SciPy, statsmodels and plain statements of the tests, computed anew from
predictions.csv and splits.json; what is left out, and why."""

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as reference

from mdmt import analysis, report
from mdmt.analysis.compare import Matrix
from mdmt.analysis.sensitivity import _averaged, _finished, _mcnemar, _people, _signed_ranks
from mdmt.report import sensitivity as section
from tests import outfolder

try:
    from statsmodels.stats import contingency_tables as contingency
    from statsmodels.stats import multitest
except ImportError:
    contingency = multitest = None

BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "googlenet"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six backbones, two folds of cross-validation and three centers left out."""
    out = tmp_path_factory.mktemp("sensitivity") / "out"
    outfolder.make(out, n=90, backbones=BACKBONES, cv={"folds": 2}, validation=["cv", "loco"],
                   jobs=False)  # fmt: skip
    report.make(out, resamples=200, figures=False, samples=False)
    return out


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def of_place(out, validation, task):
    """{configuration: {backbone: {fold: [rows of predictions.csv]}}}."""
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in rows(out / "predictions.csv"):
        if (r["validation"], r["task"]) == (validation, task):
            found[r["configuration"]][r["backbone"]][r["fold"]].append(r)
    return found


def metric_of(some, metric, classes):
    """A metric of the rows of one fold by scikit-learn."""
    y = [r["label"] for r in some]
    called = [r["predicted"] for r in some]
    p = np.array([[float(r[f"p_{c}"]) for c in classes] for r in some])
    if metric == "accuracy":
        return reference.accuracy_score(y, called)
    if metric == "f1" and len(classes) == 2:
        return reference.f1_score(y, called, pos_label=classes[1])
    if metric == "f1":
        return reference.f1_score(y, called, average="macro")
    if metric == "gmean":
        found = reference.recall_score(y, called, labels=sorted(set(y)), average=None)
        return scipy.stats.gmean(found) if min(found) else 0.0
    if metric == "auc" and len(classes) == 2:
        return reference.roc_auc_score(np.equal(y, classes[1]), p[:, 1])
    if metric == "auc":
        present = [k for k, c in enumerate(classes) if c in y]
        return np.mean([reference.roc_auc_score(np.equal(y, classes[k]), p[:, k]) for k in present])
    truth = np.array([[label == c for c in classes] for label in y])
    return np.mean(np.sum((p - truth) ** 2, 1)) / (2 if len(classes) == 2 else 1)


def table_of(cells, name, metric, classes):
    """(backbones, folds) of a metric."""
    return np.array([[metric_of(some, metric, classes) for _, some in sorted(folds.items())]
                     for folds in cells[name].values()])  # fmt: skip


def by_patient(nets, classes):
    """{patient: (label, fold, mean probabilities over images and networks)}, and how many
    patients have images of different classes."""
    images = defaultdict(list)
    for folds in nets.values():
        for fold, some in folds.items():
            for r in some:
                p = [float(r[f"p_{c}"]) for c in classes]
                images[r["patient"]].append((r["label"], fold, p))
    found = {k: (v[0][0], v[0][1], np.mean([p for *_, p in v], 0))
             for k, v in images.items() if len({label for label, *_ in v}) == 1}  # fmt: skip
    return found, len(images) - len(found)


def plain_delong(cells, other, classes):
    """Difference of areas within folds and its variance, every pair of patients compared."""
    difference, variance = [], []
    folds = sorted({f for folds in cells["MDMT"].values() for f in folds})
    for f in folds:
        psi = 0
        for backbone in cells["MDMT"]:
            for name, sign in (("MDMT", 1), (other, -1)):
                some, _ = by_patient({0: {f: cells[name][backbone][f]}}, classes)
                yes, no = ([float(f"{p[1]:.12g}") for y, _, p in some.values()
                            if (y == classes[1]) == side] for side in (True, False))  # fmt: skip
                better = np.greater.outer(yes, no) + 0.5 * np.equal.outer(yes, no)
                psi = psi + sign * better / len(cells["MDMT"])
        if min(psi.shape) < 2:
            continue
        difference.append(psi.mean())
        variance.append(psi.mean(1).var(ddof=1) / psi.shape[0]
                        + psi.mean(0).var(ddof=1) / psi.shape[1])  # fmt: skip
    return np.mean(difference), np.sum(variance) / len(variance) ** 2


def check(out):
    """Every row of sensitivity.csv that was tested, by other software; returns how many."""
    tasks = analysis.read(out, verify=False).values["tasks"]
    record = json.loads((out / "splits.json").read_text())["validation"]
    found = rows(out / "sensitivity.csv")
    places = dict.fromkeys((r["validation"], r["task"]) for r in found)
    cells = {place: of_place(out, *place) for place in places}
    families = defaultdict(list)
    for r in found:
        if r["n"] == "0":
            assert r["note"] and r["pvalue"] == r["difference"] == r["agrees"] == ""
            continue
        place = (r["validation"], r["task"])
        here, classes = cells[place], tasks[r["task"]]["classes"]
        families[place, r["test"]].append(r)
        difference, p = float(r["difference"]), float(r["pvalue"])
        if r["test"] in ("DeLong", "McNemar"):
            (ours, apart), (theirs, _) = (by_patient(here[c], classes)
                                          for c in ("MDMT", r["against"]))  # fmt: skip
            assert f"{apart} patient" in r["note"] if apart else "left out" not in r["note"]
        if r["test"] == "DeLong":
            want, variance = plain_delong(here, r["against"], classes)
            assert difference == pytest.approx(want)
            assert p == pytest.approx(2 * scipy.stats.norm.sf(abs(want) / variance**0.5))
        elif r["test"] == "McNemar":
            right = np.array([[classes[m[k][2].argmax()] == m[k][0] for m in (ours, theirs)]
                              for k in ours])  # fmt: skip
            table = [[np.sum((right[:, 0] == a) & (right[:, 1] == b)) for b in (1, 0)]
                     for a in (1, 0)]  # fmt: skip
            apart = table[0][1] + table[1][0]
            one, two = table[0][1], table[1][0]
            chi = max(0, abs(one - two) - 1) ** 2 / max(apart, 1)
            want = scipy.stats.chi2.sf(chi, 1)
            if apart < 25:
                want = scipy.stats.binomtest(one, apart).pvalue if apart else 1.0
            assert p == pytest.approx(want)
            if contingency and one != two:  # where statsmodels' correction would overshoot
                want = contingency.mcnemar(table, exact=bool(apart < 25), correction=True)
                assert p == pytest.approx(want.pvalue)
            assert difference == pytest.approx(right[:, 0].mean() - right[:, 1].mean())
            assert r["detail"].startswith(f"{table[0][1]} : {table[1][0]}, ")
            assert int(r["n"]) == len(ours)
        else:
            d = np.subtract(*(table_of(here, c, r["metric"], classes)
                              for c in ("MDMT", r["against"])))  # fmt: skip
            if r["test"] == "Wilcoxon":
                d = d.mean(1) if r["unit"] == "backbones" else d.mean(0)
                # All signs; rounded, as SciPy takes equal differences for unequal otherwise.
                signs = scipy.stats.PermutationMethod(n_resamples=np.inf)
                want = scipy.stats.wilcoxon(np.round(d, 12), method=signs)
                assert float(r["statistic"]) == want.statistic
                assert p == pytest.approx(want.pvalue)
                walsh = [(a + b) / 2 for i, a in enumerate(d) for b in d[i:]]
                assert difference == pytest.approx(np.median(walsh))
            else:
                d = d.mean(0)
                parts = [e["datasets"] for e in record["cv"]]
                name = next(k for k, v in parts[0].items() if set(v["test"]) & {
                    x["image"] for x in next(iter(here["MDMT"].values()))["0"]})  # fmt: skip
                ratio = np.mean([len(q[name]["test"]) / len(q[name]["train"]) for q in parts])
                t = d.mean() / np.sqrt((1 / len(d) + ratio) * d.var(ddof=1))
                assert difference == pytest.approx(d.mean(), abs=1e-7)
                assert p == pytest.approx(2 * scipy.stats.t.sf(abs(t), len(d) - 1), rel=1e-6)
    for family in families.values():
        p = np.array([float(r["pvalue"]) for r in family])
        want = [min(1, max((len(p) - np.sum(p < q)) * q for q in p[p <= one])) for one in p]
        assert [float(r["pvalue_holm"]) for r in family] == pytest.approx(want)
        if multitest:
            assert want == pytest.approx(multitest.multipletests(p, method="holm")[1])
    primary = {(r["validation"], r["task"], r["against"], r["metric"]): r
               for r in rows(out / "comparisons.csv") if r["backbone"] == "mean"}  # fmt: skip
    for r in (r for family in families.values() for r in family):
        beside = primary[tuple(r[k] for k in ("validation", "task", "against", "metric"))]
        assert r["primary_pvalue_holm"] == beside["pvalue_holm"]
        said = [0 if float(p) >= 0.05 else np.sign(float(d)) for p, d in (
            (r["pvalue_holm"], r["difference"]),
            (beside["pvalue_holm"], beside["difference"]))]  # fmt: skip
        assert r["agrees"] == ("yes" if said[0] == said[1] else "no")
    return sum(map(len, families.values()))


def test_every_number_is_that_of_other_software(study):
    assert check(study) > 50
    found = rows(study / "sensitivity.csv")
    tested = {(r["validation"], r["task"], r["test"]) for r in found if r["n"] != "0"}
    assert ("cv", "severity", "DeLong") not in tested and ("loco", "prognosis", "DeLong") in tested
    assert {t for _, _, t in tested} == {"DeLong", "McNemar", "Nadeau-Bengio", "Wilcoxon"}
    assert {r["unit"] for r in found if r["test"] == "Wilcoxon"} == {"backbones"}
    assert all("smallest possible p 0.031" in r["note"] for r in found
               if r["test"] == "Wilcoxon" and r["n"] == "6")  # fmt: skip


def test_the_report_has_one_section_that_says_what_they_are_worth(study):
    page = (study / "report.html").read_text()
    text = page[page.index('<h2 id="sensitivity">') : page.index('<h2 id="calibration">')]
    assert "The bootstrap by patient remains the primary analysis" in text
    for words in ("tested cases as independent", "calls as independent", "differences as normal",
                  "its p-values are too small"):  # fmt: skip
        assert text.count(words) == 1, words
    assert "DeLong: compares areas of two classes, and severity has 4." in text
    assert "come to the conclusion of the primary analysis" in text
    tested = [r for r in rows(study / "sensitivity.csv") if r["n"] != "0"]
    assert len(re.findall(r'<th scope="row">(?:DeLong|McNemar|Nadeau|Wilcoxon)', text)) == len(
        tested
    )


def matrix(y, fold, patient, ours, theirs, **more):
    """A Matrix of one network of two configurations; ours, theirs (cases, K)."""
    n = len(y)
    given = {"image": np.array([f"i{k}" for k in range(n)], object), **more}
    spec = {"classes": [str(k) for k in range(np.shape(ours)[1])], "positive": "1"}
    return Matrix(
        "1", "cv", "t", spec, ["STL", "MDMT"],
        [("net", 0)], np.array(y), np.array(fold), np.array(patient, object), given["image"],
        np.array([""] * n, object),
        {("net", 0, "MDMT"): np.array(ours, float), ("net", 0, "STL"): np.array(theirs, float)},
    )  # fmt: skip


def test_patients_are_the_cases():
    # Patient a: two of three images right, but right on average; b: images of two classes.
    p = [[0.4, 0.6], [0.45, 0.55], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3]]
    other = [[0.6, 0.4]] * 6
    m = matrix([0, 0, 0, 1, 0, 0], [0] * 6, list("aaabbc"), p, other)
    people = _people(m)
    assert people.apart == 1 and len(people.y) == 2
    assert people.note() == (
        "a patient's images averaged; 1 patient with images of different classes left out"
    )
    s = _mcnemar(m, people, "STL")
    assert (s.n, s.pvalue, s.detail) == (2, 1.0, "0 : 0, exact")
    alone = matrix([0, 1, 1], [0] * 3, list("abc"), p[:3], other[:3])
    assert _people(alone).note() == ""
    assert _mcnemar(alone, _people(alone), "STL").detail == "1 : 1, exact"
    mixed = matrix([0, 1], [0, 0], ["a", "a"], p[:2], other[:2])
    assert _mcnemar(mixed, _people(mixed), "STL").note.startswith("every patient has images")


def test_equal_scores_of_unlike_many_images_are_ties():
    p = [[0.9, 0.1]] * 6
    m = matrix([0, 0, 0, 1, 1, 1], [0] * 6, list("abbcdd"), p, p)
    third = matrix([0, 0, 0, 1, 1, 1], [0] * 6, list("aaabcd"), p, p)
    for one in (m, third):
        assert len(set(_averaged(_people(one), np.array(p)[:, 1]).tolist())) == 1
    assert np.mean([0.1] * 3) != 0.1  # what would make them unequal


def test_mcnemar_turns_to_the_chi_squared_form_where_many_differ():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    right = np.eye(2)[y] * 0.8 + 0.1
    ours, theirs = right.copy(), right.copy()
    ours[:9], theirs[9:24] = ours[:9, ::-1], theirs[9:24, ::-1]
    m = matrix(y, np.zeros(100, int), [f"p{k}" for k in range(100)], ours, theirs)
    assert _mcnemar(m, _people(m), "STL").detail == "15 : 9, exact"
    theirs[24] = theirs[24, ::-1]
    m.p["net", 0, "STL"] = theirs
    s = _mcnemar(m, _people(m), "STL")
    assert s.detail == "16 : 9, χ²" and s.statistic == pytest.approx(36 / 25)
    assert s.pvalue == pytest.approx(scipy.stats.chi2.sf(36 / 25, 1))


def test_signed_ranks_over_folds_where_there_are_six():
    rng = np.random.default_rng(2)
    y = np.tile([0, 1], 60)
    fold = np.repeat(np.arange(6), 20)
    names = [f"p{k}" for k in range(120)]
    p = [np.clip(np.c_[1 - y, y] * 0.2 + rng.dirichlet([1, 1], 120), 0, 1) for _ in range(2)]
    p = [q / q.sum(1, keepdims=True) for q in p]
    m = matrix(y, fold, names, *p)
    s = _signed_ranks(m, {}, "STL", "auc")
    d = [np.subtract(*(reference.roc_auc_score(y[fold == f], q[fold == f, 1]) for q in p))
         for f in range(6)]  # fmt: skip
    assert (s.unit, s.n) == ("folds", 6)
    assert s.pvalue == pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue)
    five = matrix(y[:100], fold[:100], names[:100], p[0][:100], p[1][:100])
    s = _signed_ranks(five, {}, "STL", "auc")
    assert s.left_out and "here is 1 backbone and 5 folds" in s.note
    again = matrix(y, fold, names, *p, image=np.array(["one"] * 120, object))
    assert _signed_ranks(again, {}, "STL", "auc").note == "needs folds that share no case"


def test_nested_folds_are_not_taken_for_independent(tmp_path):
    out = outfolder.make(tmp_path / "out", n=80, cv={"folds": 2, "inner": 2},
                         validation=["nested"], jobs=False)  # fmt: skip
    report.make(out, resamples=100, figures=False)
    found = {(r["test"], r["task"]): r for r in rows(out / "sensitivity.csv")}
    assert "patients are tested in several" in found["DeLong", "prognosis"]["note"]
    assert "share no case" in found["Wilcoxon", "prognosis"]["note"]
    assert "folds of a cross-validation" in found["Nadeau-Bengio", "prognosis"]["note"]
    assert int(found["McNemar", "prognosis"]["n"]) > 20  # one call per patient, of all networks
    assert check(out) == 3  # STL-tau1, FT, STL-tau2


def test_folds_of_a_fixed_test_set_are_not_taken_for_independent(tmp_path, monkeypatch):
    """All folds test the same cases, whose chance no spread over folds shows."""
    draw = outfolder.draw_cases

    def marked(*some):
        cases = draw(*some)
        cases.fixed = np.array([outfolder.hash_of(p) % 4 == 0 for p in cases.patients])
        return cases

    monkeypatch.setattr(outfolder, "draw_cases", marked)
    out = outfolder.make(tmp_path / "out", n=120, jobs=False)
    report.make(out, resamples=100, figures=False)
    found = {(r["test"], r["task"]): r for r in rows(out / "sensitivity.csv")}
    assert found["Nadeau-Bengio", "prognosis"]["note"] == "needs folds that share no tested case"
    assert {r["pvalue_nadeau_bengio"] for r in rows(out / "comparisons.csv")} == {""}


def test_agreement_is_told(study):
    outcome = analysis.read(study, verify=False)
    a = analysis.compare(outcome, 100)[0]
    done = [s for s in analysis.sensitivity(outcome, a) if not s.left_out]
    assert done[0].primary is a.find(done[0].against, "auc")
    for p, difference, holm, want in (
        (1e-9, 0.1, 0.9, "DeLong alone establishes a difference: STL-tau1 (AUC)."),
        (0.9, 0.1, 1e-9, "DeLong does not establish what the primary analysis does: STL"),
        (1e-9, -0.1, 1e-9, "DeLong establishes the opposite of the primary analysis: STL"),
    ):
        k = a.comparisons.index(done[0].primary)
        changed = [c._replace(holm=0.5) for c in a.comparisons]
        changed[k] = changed[k]._replace(holm=holm, difference=0.2)
        b = type(a)(**{**vars(a), "comparisons": changed})
        one = done[0]._replace(pvalue=p, estimate=difference)
        told = section.conclusion(_finished([one, done[1]._replace(pvalue=0.8)], b))
        assert told.startswith("1 of 2 tests") and want in told
    assert section.conclusion([done[0]._replace(agrees=True)]).startswith("The one test ")
