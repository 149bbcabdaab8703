"""Bootstrap and the paper's tests against SciPy, plain loops and simulations."""

import csv
import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmt import stats
from mdmt.data import paper_values
from mdmt.stats import _resample
from mdmt.stats._weighted import NAMES, OF_ALL_CLASSES, by_fold, evaluator
from tests.statcases import ALTERNATIVES, classes, probabilities, two_scores

SEEDS = st.integers(0, 10**6)


# Bootstrap.


def all_predictions(name, seed, n=30):
    if name == "auc":
        return two_scores(seed, n, levels=2.0)
    if name == "brier":
        y, p = probabilities(seed, n, 2)
        return y, p[:, 1], probabilities(seed + 1, n, 2)[1][:, 1]
    return classes(seed, n, 3)


def plain_metric(name, whole=()):
    """The metric of (y, prediction); NaN where it is one of all classes and y lacks one of
    `whole`, the labels of all cases."""
    metric = getattr(stats, name, None)
    if name.startswith("f1_"):
        metric = functools.partial(stats.f1, average=name[3:])
    if name not in OF_ALL_CLASSES:
        return metric
    return lambda y, p: metric(y, p) if set(whole) <= set(y.tolist()) else np.nan


@pytest.mark.parametrize("name", NAMES)
def test_weighted_metrics_are_those_of_repeated_cases(name):
    checked = 0
    for seed in range(4):
        y, a, _ = all_predictions(name, seed, 12)
        weights = _resample.weights(0, 25, len(y), seed)
        found = evaluator(name, y, a)(weights)
        for row, value in zip(weights.astype(int), found):
            again = np.repeat(np.arange(len(y)), row)
            want = plain_metric(name, y)(y[again], a[again])
            assert value == pytest.approx(want, nan_ok=True, abs=1e-12)
            checked += np.isfinite(want)
    assert checked > 90


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("auc", "brier")])
def test_weighted_metrics_where_resamples_lose_a_class(name):
    y, a = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    weights = _resample.weights(0, 99, 4, 0)
    found = evaluator(name, y, a)(weights)
    lost = 0
    for row, value in zip(weights.astype(int), found):
        again = np.repeat(np.arange(4), row)
        assert value == pytest.approx(plain_metric(name)(y[again], a[again]), nan_ok=True)
        lost += len(set(y[again])) == 1
    assert lost > 2


@pytest.mark.parametrize("name", ["auc", "brier"])
def test_weighted_metrics_of_more_classes(name):
    y, p = probabilities(0, 15, 3)
    weights = _resample.weights(0, 30, len(y), 1)
    for row, value in zip(weights.astype(int), evaluator(name, y, p)(weights)):
        again = np.repeat(np.arange(len(y)), row)
        assert value == pytest.approx(plain_metric(name, y)(y[again], p[again]), nan_ok=True)


def test_a_resample_without_a_class_is_of_another_measure():
    """Means over classes are then undefined, not means over fewer classes."""
    y, p = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 1, 1, 2, 2])
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 2, 0, 2, 0], [1, 1, 1, 3, 0, 0]], float)
    for name in ("balanced_accuracy", "f1_macro", "gmean"):
        assert np.isfinite(evaluator(name, y, p)(weights)).tolist() == [True, False, False]
    for name in ("accuracy", "f1_weighted", "mcc"):
        assert np.isfinite(evaluator(name, y, p)(weights)).all()


def test_how_often_a_class_is_missing_is_what_resamples_show():
    rng = np.random.default_rng(0)
    groups = np.sort(np.arange(60) % 25)
    y = np.where(rng.random(60) < 0.1, 3, rng.integers(0, 3, 60))
    folds = rng.integers(0, 3, 25)[groups]
    w = _resample.weights(0, 20000, 25, 0)[:, groups]
    lost = []
    for f in range(3):
        held = np.unique(y[folds == f])
        lost.append(np.any([(w[:, (folds == f) & (y == c)] == 0).all(1) for c in held], 0).mean())
    assert stats.missing_class(y, groups, folds) == pytest.approx(np.mean(lost), abs=0.01)
    assert stats.missing_class(np.arange(40) % 2) < 1e-5
    many = stats.missing_class(np.arange(30) % 15)  # a bound
    assert 0.9 < many <= 1


def test_small_studies_of_rare_classes_claim_no_more_than_they_may():
    """60 patients in 5 folds, 10 % of them in the rarest of four classes: where there is no
    difference, one of macro F1 is claimed in no more than 5 %, but for chance (120 studies)."""
    rng = np.random.default_rng(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of 1 % of the resamples
    claims = 0
    for _ in range(120):
        y = np.sort(rng.choice(4, 60, p=[0.25, 0.35, 0.3, 0.1]))
        hidden = y + rng.normal(0, 0.55, 60)
        a, b = (np.clip(np.rint(hidden + rng.normal(0, 0.75, 60)), 0, 3) for _ in "ab")
        found = stats.paired_bootstrap(y, a, b, "f1_macro", n=400, folds=np.arange(60) % 5)
        claims += found.pvalue < 0.05
    assert claims <= 11  # 5 % of 120, and two standard errors


def test_resamples_depend_on_seed_stream_and_number_alone():
    whole = _resample.draws(0, 40, 13, 5)
    parts = [_resample.draws(k, 10, 13, 5) for k in range(0, 40, 10)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, _resample.draws(0, 40, 13, 6))
    assert not np.array_equal(whole, _resample.draws(0, 40, 13, 5, stream=1))
    # Every NumPy gives these: Philox4x64's output is part of its promise.
    assert _resample.draws(0, 1, 10, 0)[0].tolist() == PINNED
    many = _resample.draws(0, 2000, 7, 0)
    share = np.bincount(many.ravel(), minlength=7) / many.size
    assert many.min() == 0 and many.max() == 6
    assert share == pytest.approx(np.full(7, 1 / 7), abs=0.01)
    assert np.all(_resample.weights(3, 4, 9, 1).sum(1) == 9)


PINNED = [0, 0, 6, 2, 3, 1, 1, 5, 5, 5]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "gmean", "auc"])
def test_bca_interval_is_scipys_for_the_same_resamples(name, alternative):
    y, a, b = all_predictions(name, 3, 40)
    metric = plain_metric(name)

    def statistic(rows):  # rounded, since SciPy lets rounding decide what ties with the estimate
        rows = rows.astype(int)
        return round(metric(y[rows], a[rows]) - metric(y[rows], b[rows]), 13)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = scipy.stats.bootstrap(
            (np.arange(len(y)),),
            statistic,
            vectorized=False,
            n_resamples=199,
            method="BCa",
            alternative=alternative,
            rng=np.random.default_rng(0),
        )
    rest = [np.delete(np.arange(len(y)), i) for i in range(len(y))]
    jackknife = [statistic(r) for r in rest]
    estimate = statistic(np.arange(len(y)))
    found = stats.bca_interval(
        want.bootstrap_distribution, jackknife, estimate, alternative=alternative
    )
    assert found == pytest.approx(tuple(want.confidence_interval), abs=1e-12)


@pytest.mark.parametrize("middle, unit", [(0, 1e-7), (1e8, 1), (3.1, 0.1)])
def test_numbers_of_any_size_are_resampled_as_exactly(middle, unit):
    rng = np.random.default_rng(0)
    y = middle + unit * rng.integers(0, 4, 40)
    p = np.where(rng.random(40) < 0.5, y, middle + unit * rng.integers(0, 4, 40))
    same = (y == y[0]) & (p == y[0])  # of these alone both are one and the same number
    for name in ("quadratic_weighted_kappa", "ccc"):
        of = evaluator(name, y, p)
        assert of(np.ones((1, 40)))[0] == pytest.approx(getattr(stats, name)(y, p), rel=1e-6)
        assert same.any() and np.isnan(of(same[None] * 1.0)[0])


@pytest.mark.parametrize("seed", range(8))
def test_rounding_does_not_decide_ties_with_the_estimate(seed):
    """0.85 - 0.75 and 0.9 - 0.8 are not the same number, but the same difference: the interval is
    that of the counts, whose arithmetic is exact."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(15, 60))
    y = rng.integers(0, 2, n)
    a, b = (np.where(rng.random(n) < share, y, 1 - y) for share in (0.8, 0.7))
    found = stats.paired_bootstrap(y, a, b, n=1000)
    order = _resample.canonical(y, a, b).order
    gain = ((a == y) * 1 - (b == y))[order]
    counts = _resample.weights(0, 1000, n, 0) @ gain
    jackknife = (gain.sum() - gain) / (n - 1)
    want = stats.bca_interval(counts, jackknife, gain.sum())
    assert (found.low * n, found.high * n) == pytest.approx(want, abs=1e-9)


def test_paired_bootstrap_is_scipys_up_to_the_draw():
    y, a, b = two_scores(2, 120)
    a, b = (a > 0.5).astype(int), (b > 0.5).astype(int)
    found = stats.paired_bootstrap(y, a, b)
    gain = (a == y) * 1.0 - (b == y)
    want = scipy.stats.bootstrap(
        (gain,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.difference == found.statistic == pytest.approx(gain.mean())
    assert (found.low, found.high) == pytest.approx(tuple(want), abs=0.01)


def test_bootstrap_by_patient_is_scipys_over_patients():
    """All patients with the same number of images: the mean over images is that over patients."""
    rng = np.random.default_rng(4)
    patient = rng.permutation(np.repeat(np.arange(40), 5))
    quality = rng.normal(size=40)
    y = np.zeros(200, int)
    a = (quality[patient] + 0.3 * rng.normal(size=200) > 0.2).astype(int)
    b = (quality[patient] + 0.3 * rng.normal(size=200) > -0.3).astype(int)
    by_image = stats.paired_bootstrap(y, a, b)
    by_patient = stats.paired_bootstrap(y, a, b, groups=[f"P{k}" for k in patient])
    gain = np.bincount(patient, (a == y) * 1.0 - (b == y)) / 5
    want = scipy.stats.bootstrap(
        (gain,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (by_patient.low, by_patient.high) == pytest.approx(tuple(want), abs=0.02)
    assert by_patient.high - by_patient.low > 1.4 * (by_image.high - by_image.low)
    # A group for every case is no group at all, up to the numbering of the cases.
    alone = stats.paired_bootstrap(y, a, b, groups=np.arange(200))
    assert (alone.low, alone.high) == pytest.approx((by_image.low, by_image.high), abs=0.02)


@pytest.mark.parametrize("name", ["accuracy", "auc"])
def test_paired_bootstrap_keeps_its_level(name):
    """150 studies without a difference: about 5 % are claimed."""
    claimed = 0
    for seed in range(150):
        y, a, b = two_scores(seed, 100, (1.0, 1.0))
        if name == "accuracy":
            a, b = (a > 0.5).astype(int), (b > 0.5).astype(int)
        claimed += stats.paired_bootstrap(y, a, b, name, n=400).pvalue < 0.05
    assert 0.01 <= claimed / 150 <= 0.10


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(["accuracy", "f1_macro", "gmean", "auc", "brier"]), st.booleans())
def test_paired_bootstrap_properties(seed, name, grouped):
    y, a, b = all_predictions(name, seed, 24)
    groups = np.random.default_rng(seed).integers(0, 9, 24) if grouped else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.paired_bootstrap(y, a, b, name, groups, n=150)
        back = stats.paired_bootstrap(y, b, a, name, groups, n=150)
        order = np.random.default_rng(seed + 1).permutation(24)
        moved = stats.paired_bootstrap(
            y[order], a[order], b[order], name, None if groups is None else groups[order], n=150
        )
        greater = stats.paired_bootstrap(y, a, b, name, groups, n=150, alternative="greater")
        less = stats.paired_bootstrap(y, a, b, name, groups, n=150, alternative="less")
    assert 0 < found.pvalue <= 1 and found.low <= found.high
    assert moved == pytest.approx(found, abs=1e-12)
    assert (back.difference, back.pvalue) == pytest.approx((-found.difference, found.pvalue))
    if not np.array_equal(np.sort(a), np.sort(b)):
        assert (-back.high, -back.low) == pytest.approx((found.low, found.high), abs=1e-12)
    assert greater.high == np.inf and less.low == -np.inf
    assert min(greater.pvalue, less.pvalue) <= found.pvalue <= 1


def test_pvalue_inverts_the_interval():
    agreed = 0
    for seed in range(60):
        y, a, b = two_scores(seed, 80, (1.3, 0.7))
        found = stats.paired_bootstrap(y, a, b, "auc", n=500)
        if abs(found.pvalue - 0.05) > 0.004:
            assert (found.pvalue < 0.05) == (not found.low <= 0 <= found.high)
            agreed += 1
    assert agreed > 50


def test_no_pvalue_contradicts_an_interval_that_ends_at_zero():
    """Accuracies of few cases: many resamples have no difference at all."""
    ended = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 24)
        a, b = (np.where(rng.random(24) < share, y, 1 - y) for share in (0.85, 0.6))
        found = stats.paired_bootstrap(y, a, b, n=500)
        both = stats.hierarchical_bootstrap(y, a[None], b[None], n=500, backbones="fixed")
        for one in (found, both):
            covers = one.low <= 1e-12 and one.high >= -1e-12
            ended += covers and abs(one.low) < 1e-12
            if covers:
                assert one.pvalue >= 0.05 - 1 / 500
            elif one.pvalue >= 0.05:
                assert one.pvalue < 0.07  # quantiles lie between two resamples
    assert ended > 5


def test_no_difference_in_the_cases_themselves_is_none():
    """Neither finds the rare class: its G-mean is 0, but in resamples without that class."""
    y = np.array([0] * 20 + [1] * 20 + [2] * 2)
    a, b = np.where(y == 2, 0, y), np.where(y == 2, 1, 1 - y)
    found = stats.paired_bootstrap(y, a, b, "gmean", n=400)
    assert found.difference == 0 and found.pvalue == 1


def test_bootstrap_of_predictions_that_do_not_differ():
    y = [0, 1] * 10
    assert stats.paired_bootstrap(y, y, y, n=50) == (0, 0, 0, 1)
    wrong = [1 - v for v in y]
    found = stats.paired_bootstrap(y, y, wrong, n=199)
    assert found == (1, 1, 1, 1 / 200)
    with pytest.raises(ValueError, match="there is one case"):
        stats.paired_bootstrap([1], [1], [0], n=9)
    with pytest.raises(ValueError, match="all cases are of one patient"):
        stats.paired_bootstrap(y, y, wrong, n=9, groups=["P"] * 20)
    a = np.stack([y, y])
    assert stats.hierarchical_bootstrap(y, a, a, n=50) == (0, 0, 0, 1)


@pytest.mark.parametrize("name", ["accuracy", "gmean", "auc"])
def test_folds_are_measured_one_by_one(name):
    """The mean over folds of the metric within each, for the data and for repeated cases."""
    y, a, b = all_predictions(name, 5, 40)
    folds = np.random.default_rng(0).permutation(np.repeat(["A", "B", "C", "D"], [16, 13, 10, 1]))
    metric = [plain_metric(name, y[folds == f]) for f in "ABCD"]

    def mean(rows, prediction):
        inside = [rows[folds[rows] == f] for f in "ABCD"]
        return np.nanmean([of(y[r], prediction[r]) for of, r in zip(metric, inside) if len(r)])

    found = stats.paired_bootstrap(y, a, b, name, n=60, folds=folds)
    rows = np.arange(40)
    assert found.difference == pytest.approx(mean(rows, a) - mean(rows, b))
    weights = _resample.weights(0, 30, 40, 1)
    for row, value in zip(weights.astype(int), by_fold(name, y, a, folds)(weights)):
        assert value == pytest.approx(mean(np.repeat(rows, row), a))
    order = np.random.default_rng(1).permutation(40)
    moved = stats.paired_bootstrap(y[order], a[order], b[order], name, n=60, folds=folds[order])
    assert moved == pytest.approx(found, abs=1e-12)
    one = stats.bootstrap_interval(y, a, name, n=60, folds=np.zeros(40))
    assert one == stats.bootstrap_interval(y, a, name, n=60)
    both = stats.hierarchical_bootstrap(y, a[None], b[None], name, n=60, folds=folds)
    assert both.difference == pytest.approx(found.difference)


def test_any_function_can_be_bootstrapped():
    y, a, b = classes(0, 30)
    slow = stats.paired_bootstrap(y, a, b, lambda y, p: np.mean(y == p), n=200)
    assert slow == pytest.approx(stats.paired_bootstrap(y, a, b, stats.accuracy, n=200))


def test_names_of_classes_may_be_words():
    y, a, b = classes(1, 40, 2)
    words = np.array(["mild", "severe"])
    found = stats.paired_bootstrap(words[y], words[a], words[b], "f1", n=200, positive="severe")
    assert found == stats.paired_bootstrap(y, a, b, "f1", n=200)


def test_metrics_that_are_often_undefined():
    y = np.array([1] + [0] * 40)
    a, b = np.random.default_rng(0).normal(size=(2, 41))
    with pytest.warns(RuntimeWarning, match=r"not defined in 3\d"):
        stats.paired_bootstrap(y, a, b, "auc", n=2000)
    with pytest.raises(ValueError, match="not defined"):
        stats.paired_bootstrap(np.zeros(5, int), a[:5], b[:5], "auc", n=20)


def test_hierarchical_bootstrap_of_one_backbone_is_the_paired_one():
    y, a, b = two_scores(0, 100)
    single = stats.paired_bootstrap(y, a, b, "auc", n=4000)
    found = stats.hierarchical_bootstrap(y, a[None], b[None], "auc", n=4000)
    assert found.difference == pytest.approx(single.difference)
    assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=0.015)


def test_hierarchical_bootstrap_has_the_variance_of_both_levels():
    """Normal data: the interval's width is that of the variance of cases plus that of backbones,
    and of the cases alone with backbones="fixed"."""
    rng = np.random.default_rng(1)
    cases, backbones = 200, 12
    effect = 0.4 * rng.normal(size=(backbones, 1))
    own = rng.normal(size=cases) + 0.01 * rng.normal(size=(backbones, cases))
    y = np.zeros(cases)
    a, b = effect + own, np.zeros((backbones, cases))

    def mean(y, p):
        return np.mean(p)

    found = stats.hierarchical_bootstrap(y, a, b, mean, n=250)
    fixed = stats.hierarchical_bootstrap(y, a, b, mean, n=250, backbones="fixed")
    of_cases = np.var(own.mean(0)) / cases
    of_backbones = np.var(effect + own.mean(1, keepdims=True)) / backbones
    width = 2 * 1.96 * np.sqrt([of_cases + of_backbones, of_cases])
    assert [found.high - found.low, fixed.high - fixed.low] == pytest.approx(width, rel=0.15)
    assert found.difference == fixed.difference == pytest.approx(a.mean())


def test_hierarchical_bootstrap_keeps_its_level_where_backbones_share_cases():
    """Six backbones, each configuration with a leaning that all of its backbones share: no
    difference on average. A t-test over these backbones claims one in about 3 of 10 studies."""
    rng = np.random.default_rng(0)
    claimed, by_t_test = 0, 0
    for _ in range(100):
        lean = rng.normal(size=(2, 1, 80)) + 0.6 * rng.normal(size=(2, 6, 80))
        a, b = (lean > -0.5).astype(int)
        y = np.ones(80, int)
        claimed += stats.hierarchical_bootstrap(y, a, b, n=300).pvalue < 0.05
        by_t_test += stats.paired_t(a.mean(1), b.mean(1)).pvalue < 0.05
    assert claimed / 100 <= 0.10
    assert by_t_test / 100 > 0.2


# The paper's tests.


def study(seed, gain=0.03, backbones=6, folds=5, task="prognosis"):
    rng = np.random.default_rng(seed)
    rows = []
    for backbone, fold in itertools.product(range(backbones), range(folds)):
        for name in ("STL-tau1", "FT", "MDMT") if task == "prognosis" else ("STL-tau2", "MDMT"):
            value = 0.65 + (gain if name == "MDMT" else 0) + 0.03 * rng.normal(size=3)
            rows.append(
                {
                    "release": "3",
                    "validation": "cv",
                    "fold": fold,
                    "backbone": f"net{backbone}",
                    "configuration": name,
                    "task": task,
                    "seed": 0,
                    **dict(zip(("accuracy", "f1", "gmean"), value.tolist())),
                }
            )
    return rows


def test_paper_t_tests_are_scipys_over_backbones(tmp_path):
    rows = study(0) + study(1, task="severity")
    found = stats.paper_t_tests(rows)
    assert len(found) == 2 * 2 * 3 + 2 * 3
    assert [t.against for t in found if t.task == "severity"] == ["STL-tau2"] * 6
    for test in found:
        values = np.empty((2, 6, 5))
        for row in rows:
            if row["task"] == test.task and row["configuration"] in ("MDMT", test.against):
                first = int(row["configuration"] != "MDMT")
                values[first, int(row["backbone"][3:]), row["fold"]] = row[test.metric]
        if test.quantity == "mu":
            want = scipy.stats.ttest_rel(*values.mean(2), alternative="greater")
        else:
            want = scipy.stats.ttest_rel(*values.std(2, ddof=1), alternative="less")
        assert (test.statistic, test.pvalue) == pytest.approx((want.statistic, want.pvalue))
        assert test.n == 6 and test.stars == stats.stars(want.pvalue)
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with path.open(newline="") as file:
        again = stats.paper_t_tests(csv.DictReader(file))
    assert again == found


def test_paper_t_tests_of_unfinished_studies():
    rows = study(0)
    whole = {(t.quantity, t.against, t.metric): t for t in stats.paper_t_tests(rows)}
    lost = [r for r in rows if not (r["backbone"] == "net0" and r["configuration"] == "FT")]
    for test in stats.paper_t_tests(lost):
        key = (test.quantity, test.against, test.metric)
        assert test.n == (5 if test.against == "FT" else 6)
        assert (test == whole[key]) == (test.against != "FT")
    one = stats.paper_t_tests([r for r in rows if r["backbone"] == "net0"])
    assert all(t.n == 1 and np.isnan(t.pvalue) and t.stars == "" for t in one)
    single_fold = stats.paper_t_tests([r for r in rows if r["fold"] == 0])
    assert {t.n for t in single_fold if t.quantity == "sigma"} == {0}
    assert stats.paper_t_tests([r for r in rows if r["configuration"] != "MDMT"]) == []
    undefined = [{**r, "f1": None if r["fold"] == 1 else r["f1"]} for r in rows]
    kept = [t for t in stats.paper_t_tests(undefined) if t.metric == "f1"]
    rest = [t for t in stats.paper_t_tests([r for r in rows if r["fold"] != 1]) if t.metric == "f1"]
    assert kept == rest
    # Seeds are averaged before anything else.
    twice = [{**r, "seed": s, "f1": r["f1"] + 0.01 * s} for r in rows for s in (0, 2, 1)]
    for test in stats.paper_t_tests(twice):
        want = whole[(test.quantity, test.against, test.metric)]
        assert test.pvalue == pytest.approx(want.pvalue)
    with pytest.raises(ValueError, match=r"results\[0\] has no 'backbone'"):
        stats.paper_t_tests([{"validation": "cv", "task": "severity", "configuration": "FT"}])


def test_stars():
    assert [stats.stars(p) for p in (0.0009, 0.001, 0.009, 0.01, 0.049, 0.05, math.nan)] == [
        "***", "**", "**", "*", "*", "", "",
    ]  # fmt: skip


def test_paper_test_claims_too_much_where_backbones_share_cases():
    independent = stats.false_positive_rate_of_paper_test(400, 0, shared=0, cases=200)
    shared = stats.false_positive_rate_of_paper_test(400, 0, shared=0.6, cases=200)
    assert 0.02 <= independent.mu <= 0.09 and 0.02 <= independent.sigma <= 0.09
    assert 0.25 <= shared.mu <= 0.45 and shared.sigma > 0.12
    assert 0.02 <= shared.case_level <= 0.09
    assert shared == stats.false_positive_rate_of_paper_test(400, 0, shared=0.6, cases=200)
    assert shared.standard_error == pytest.approx(math.sqrt(shared.mu * (1 - shared.mu) / 400))
    assert "bootstrap" in stats.PAPER_TEST_WARNING


def test_paper_values():
    """The sentence of the paper's section 4: MDMT is best on average, everywhere."""
    assert paper_values.table1("cv", "MDMT", "accuracy") == 68.6
    assert paper_values.table1("loco", "FT", "f1") == 58.9
    assert paper_values.table1("cv", "MDMT", "auc") is None
    for validation, metric in itertools.product(("cv", "loco"), ("accuracy", "f1", "gmean")):
        values = {c: paper_values.table1(validation, c, metric) for c in ("STL-tau1", "FT", "MDMT")}
        assert max(values, key=values.get) == "MDMT"
