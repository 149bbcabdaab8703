"""Repeated trainings (several seeds): in the intervals, and what the report says of them."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy.stats import norm, t

from mdmt import analysis, report, stats
from mdmt.analysis.compare import METHOD
from mdmt.report import words
from tests import outfolder


def drawn(folds=5, cases=27, trainings=3, spread=0.15, seed=0):
    """(y, folds, [predictions (n,) of each training]): numbers that are off by what a case has, by
    what the training of its fold has, and by chance; the bias over all is 0 in the mean."""
    rng = np.random.default_rng(seed)
    fold = np.repeat(np.arange(folds), cases)
    of_case = rng.standard_normal(len(fold)) * 0.5
    of_training = rng.standard_normal((trainings, folds)) * spread
    noise = rng.standard_normal((trainings, len(fold))) * 0.25
    return np.zeros(len(fold)), fold, list(of_case + of_training[:, fold] + noise)


def bias(y, p):
    return float(np.mean(p - y))


def test_equal_trainings_change_nothing():
    y, fold, (p, q) = drawn(trainings=2)
    one = stats.resample(y, [("mae", p), ("mae", q)], n=500, folds=fold)
    same = [("mae", stats.Repeated([p, p, p])), ("mae", stats.Repeated([q, q, q]))]
    found = stats.resample(y, same, n=500, folds=fold)
    assert found.values == pytest.approx(one.values, abs=1e-12)
    assert found.resamples == pytest.approx(one.resamples, abs=1e-12)
    assert found.retrained == pytest.approx(one.resamples, abs=1e-12)
    low, high = np.quantile(one.resamples[0] - one.resamples[1], [0.025, 0.975])
    assert found.difference(0, 1)[:3] == pytest.approx((one.difference(0, 1)[0], low, high))
    assert one.retrained is None and found.left_out is None


def test_variance_of_the_mean_over_trainings_is_that_of_a_mean():
    """Where all patients are alike the trainings are all that varies: s^2 / T in each fold."""
    rng = np.random.default_rng(3)
    fold, y = np.repeat(np.arange(4), 10), np.zeros(40)
    off = rng.standard_normal((3, 4))
    each = stats.Repeated([row[fold] for row in off])
    found = stats.resample(y, [("mae", each)], n=20000, folds=fold)
    theory = np.abs(off).var(0, ddof=1).sum() / 3 / 4**2
    assert found.resamples[0].std() < 1e-12
    assert found.retrained[0].var() == pytest.approx(theory, rel=0.04)
    assert found.retrained[0].mean() == pytest.approx(found.values[0], abs=0.01)


def test_differences_are_paired_by_training():
    y, fold, p = drawn(trainings=4, spread=1.0)
    other = [q + 0.1 for q in p]  # the same trainings, all off by as much
    wanted = [("mae", stats.Repeated(p)), ("mae", stats.Repeated(other))]
    both = stats.resample(y, wanted, n=2000, folds=fold)
    apart = stats.resample(y, wanted, n=2000, folds=fold, sets=["one", "other"])
    paired = (both.retrained[0] - both.retrained[1]).std()
    alone = (apart.retrained[0] - apart.retrained[1]).std()
    assert paired < 0.5 * alone
    back = stats.resample(y, wanted[::-1], n=2000, folds=fold).difference(0, 1)
    there = both.difference(0, 1)
    assert (-back.high, -back.low, back.pvalue) == pytest.approx((there.low, there.high, there[3]))


def test_the_order_of_cases_does_not_matter():
    y, fold, p = drawn(trainings=2)
    mixed = np.random.default_rng(1).permutation(len(y))
    one = stats.resample(y, [("rmse", stats.Repeated(p))], n=300, folds=fold)
    other = [stats.Repeated([q[mixed] for q in p])]
    found = stats.resample(y[mixed], [("rmse", other[0])], n=300, folds=fold[mixed])
    assert found.interval(0) == pytest.approx(one.interval(0))


def test_folds_of_copied_networks_say_nothing_new():
    """A data set of three folds beside the six of another: each of its networks stands in two. What
    else is drawn, and the order of the cases, tells them apart from each other's no more."""
    y, fold, p = drawn(3, 40, 3, spread=0.6)
    patient, p = np.arange(len(y)) // 2, [q + 50 for q in p]
    two, of = np.arange(len(y)), np.r_[fold, fold + 3]
    mixed = np.random.default_rng(0).permutation(2 * len(y))
    other = [np.random.default_rng(k).normal(50, 1, 2 * len(y)) for k in range(3)]  # no copies
    wanted = [[np.r_[q, q[two]][mixed] for q in p], [q[mixed] for q in other]]
    once = stats.resample(y, [("mae", stats.Repeated(p))], patient, 2000, folds=fold)
    twice = stats.resample(
        np.r_[y, y][mixed], [("mae", stats.Repeated(w)) for w in wanted],
        np.r_[patient, patient][mixed], 2000, folds=of[mixed],
    )  # fmt: skip
    assert twice.deviation([0]) == pytest.approx(once.deviation([0]), rel=0.05)
    assert tuple(twice.interval(0)) == pytest.approx(tuple(once.interval(0)), abs=0.05)
    assert twice.freedom.tolist() == [once.freedom[0], 2 * once.freedom[0]]


@pytest.mark.parametrize("trainings", [2, 3])
def test_intervals_with_trainings_cover_and_those_of_patients_alone_do_not(trainings):
    held = {"patients": 0, "both": 0}
    for repeat in range(120):
        y, fold, p = drawn(trainings=trainings, seed=repeat)
        found = stats.resample(y, [(bias, stats.Repeated(p))], n=200, folds=fold, seed=repeat)
        for name, values in (("patients", found.resamples[0]), ("both", found.retrained[0])):
            low, high = np.quantile(values, [0.025, 0.975])
            held[name] += low <= 0 <= high
    # expected by a larger simulation: 82 and 94 % of 2, 87 and 96 % of 3 trainings
    assert held["both"] >= 105 and held["both"] > held["patients"] + 5, held


@pytest.mark.parametrize(("folds", "trainings", "least"), [(1, 3, 91), (3, 2, 91)])
def test_few_trainings_do_not_pass_for_many(folds, trainings, least):
    """With normal quantiles 85 % of intervals hold the truth where trainings are most of the
    variance, and as many more claims are wrong; with Student's 94 % do."""
    held = claimed = 0
    for repeat in range(400):
        y, fold, p = drawn(folds, 40, trainings, spread=0.6, seed=repeat)
        other = drawn(folds, 40, trainings, spread=0.6, seed=10000 + repeat)[2]
        wanted = [("mae", stats.Repeated([q + 50 for q in some])) for some in (p, other)]
        found = stats.resample(y, wanted, n=200, folds=fold, seed=repeat).difference(0, 1)
        held += found.low <= 0 <= found.high
        claimed += found.pvalue < 0.05
    assert 100 * held / 400 >= least and abs(claimed - (400 - held)) <= 12, (held, claimed)


def test_as_many_trainings_as_one_likes_are_as_if_their_variance_was_known():
    y, fold, p = drawn(trainings=2, spread=0.6)
    found = stats.resample(y, [(bias, stats.Repeated(p))], n=2000, folds=fold)
    assert found.freedom.tolist() == [5.0]
    low, high = np.quantile(found.retrained[0], [0.025, 0.975])
    share = 1 - found.resamples[0].var() / found.retrained[0].var()
    scale = t(5 / share**2).ppf(0.975) / norm.ppf(0.975)
    one, value = found.interval(0), found.values[0]
    assert one.low == pytest.approx(value - (value - low) * scale, abs=0.005)
    assert one.high == pytest.approx(value + (high - value) * scale, abs=0.005)
    many = found._replace(freedom=np.array([1e9])).interval(0)
    assert many[1:] == pytest.approx((low, high), abs=1e-3)


def test_intervals_end_where_the_metric_does():
    y = np.arange(40) % 2
    right, wrong = y.copy(), np.zeros(40, int)
    found = stats.resample(y, [("gmean", stats.Repeated([right, wrong]))], n=500)
    assert found.retrained[0].min() < 0 and found.retrained[0].max() > 1
    assert found.interval(0) == (0.5, 0.0, 1.0)


def test_wrong_trainings_are_refused():
    y, fold, p = drawn(trainings=2)
    with pytest.raises(ValueError, match="prediction 0 has no training"):
        stats.resample(y, [("mae", stats.Repeated([]))])
    with pytest.raises(ValueError, match="for the n cases of y"):
        stats.resample(y, [("mae", stats.Repeated([p[0], p[1][:3]]))])
    with pytest.raises(ValueError, match="sets has 2 labels for 1"):
        stats.resample(y, [("mae", p[0])], sets=["a", "b"])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """An out folder with three seeds, and its report."""
    out = outfolder.make(tmp_path_factory.mktemp("seeds") / "out", seeds=[0, 1, 2])
    return out, report.make(out, resamples=300, figures=False)


def test_spreads_are_those_of_an_analysis_of_variance(several):
    out, _ = several
    outcome = analysis.read(out)
    a = analysis.compare(outcome, 300)[0]
    found = {(s.configuration, s.against, s.metric): s for s in analysis.spreads(a)}
    rows = [r for r in analysis.results(outcome) if r["task"] == a.matrix.task]
    rows = [r for r in rows if r["validation"] == "cv"]
    cells = {(r["configuration"], r["fold"], r["seed"]): float(r["accuracy"]) for r in rows}
    other = next(c for c in a.matrix.configurations if c != METHOD)
    d = np.array([[cells[METHOD, f, s] - cells[other, f, s] for s in range(3)] for f in range(3)])
    within = ((d - d.mean(1, keepdims=True)) ** 2).sum() / (3 * 2)
    scale = 100 if abs(d).max() > 1 else 1
    s = found[METHOD, other, "accuracy"]
    assert s.deviation == pytest.approx(np.sqrt(within) / scale)
    assert s.error == pytest.approx(np.sqrt(within / 9) / scale)
    assert s.mean == pytest.approx(a.find(other, "accuracy").difference)
    assert 0 < s.share <= 1 and (s.seeds, s.folds) == (3, 3)


def test_copies_of_folds_make_no_mean_more_certain(several):
    a = analysis.compare(analysis.read(several[0]), 300)[0]
    m = a.matrix
    twice = {k: np.concatenate([getattr(m, k)] * 2) for k in ("y", "patient", "image", "center")}
    twice["fold"] = np.concatenate([m.fold, m.fold + 3])  # as where another data set has six
    twice["p"] = {net: np.concatenate([p, p]) for net, p in m.p.items()}
    doubled = dataclasses.replace(a, matrix=dataclasses.replace(m, **twice))
    for one, other in zip(analysis.spreads(a), analysis.spreads(doubled), strict=True):
        assert other.folds == 6 and other.deviation == pytest.approx(one.deviation, nan_ok=True)
        assert other.error == pytest.approx(one.error, nan_ok=True), one.metric


def test_the_report_says_what_trainings_do(several, tmp_path):
    out, made = several
    with open(out / "trainings.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {r["against"] for r in rows} > {"", "STL-tau1"} and all(r["seeds"] == "3" for r in rows)
    page = (out / "report.html").read_text()
    assert "Every network was trained with 3 seeds. From one training of a fold" in page
    assert "repeated trainings, mean ± standard deviation" in page
    assert out / "trainings.csv" in made["written"]
    alone = outfolder.make(tmp_path / "out")
    report.make(alone, resamples=300, figures=False)
    assert not (alone / "trainings.csv").exists()
    text = (alone / "report.html").read_text()
    assert "not measured and not part of the intervals" in text
    assert "repeated trainings, mean" not in text


def test_many_backbones_have_their_trainings_in_them(tmp_path):
    names = ["resnet18", "resnet34", "resnet50", "mobilenet_v2", "googlenet"]
    out = outfolder.make(tmp_path / "out", backbones=names, seeds=[0, 1])
    a = analysis.compare(analysis.read(out), 200)[0]
    assert a.random_backbones
    assert "the seeds of a backbone are averaged first" in words.method(a)
    assert all(s.share is None for s in analysis.spreads(a) if s.against)
