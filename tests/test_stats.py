"""Tests and intervals against SciPy, scikit-learn, plain statements of the published formulas,
worked examples and simulations."""

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from mdmt import stats
from tests.statcases import ALTERNATIVES, classes, probabilities, two_scores

quick = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 10**6)


# Metrics.


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_class_metrics_are_scikit_learns(seed, k):
    y, a, _ = classes(seed, 60, k)
    assert stats.balanced_accuracy(y, a) == pytest.approx(reference.balanced_accuracy_score(y, a))
    assert stats.mcc(y, a) == pytest.approx(reference.matthews_corrcoef(y, a))
    kappa = reference.cohen_kappa_score(y, a, weights="quadratic", labels=range(k))
    assert stats.quadratic_weighted_kappa(y, a) == pytest.approx(kappa)
    assert stats.mae(y, a) == pytest.approx(reference.mean_absolute_error(y, a))
    assert stats.sensitivity(y, a) == pytest.approx(reference.recall_score(y == 1, a == 1))
    assert stats.specificity(y, a) == pytest.approx(reference.recall_score(y != 1, a != 1))


def test_metrics_of_nothing_to_measure():
    assert np.isnan(stats.sensitivity([0, 0], [0, 1]))
    assert np.isnan(stats.specificity([1, 1], [0, 1]))
    assert stats.mcc([0, 1], [1, 1]) == 0
    assert np.isnan(stats.quadratic_weighted_kappa([2, 2], [2, 2]))
    assert stats.quadratic_weighted_kappa([0, 1, 3], [0, 1, 3]) == 1
    with pytest.raises(ValueError, match="ranks 0, 1, 2"):
        stats.mae(["mild", "severe"], ["mild", "mild"])
    with pytest.raises(ValueError, match="NaN"):
        stats.mae([0.0, np.nan], [0, 0])


def test_decision_curves_count_true_and_false_positives():
    rng = np.random.default_rng(8)
    y = rng.integers(0, 2, 60)
    p = np.clip(0.3 * y + rng.random(60) * 0.7, 0, 1).round(2)
    found = stats.decision_curve(y, p)
    assert len(found.thresholds) == 99
    for t, value, everybody in zip(*found):
        (_, false), (_, true) = reference.confusion_matrix(y, p >= t)
        assert value == pytest.approx((true - false * t / (1 - t)) / 60, abs=1e-12)
        assert everybody == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t), abs=1e-12)
    other = stats.decision_curve(y, np.column_stack([1 - p, p]), [0.2, 0.5])
    assert other.model == pytest.approx(found.model[[19, 49]])
    assert stats.decision_curve(1 - y, 1 - p, [0.5], positive=0).model == pytest.approx(
        [np.mean((1 - p >= 0.5) * np.where(y == 1, 1, -1))]
    )
    perfect = stats.decision_curve(y, y.astype(float), [0.5, 0.9])
    assert perfect.model == pytest.approx([y.mean()] * 2)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        stats.decision_curve(y, p, [1.0])
    with pytest.raises(ValueError, match="of two classes"):
        stats.decision_curve([0, 1, 2], np.eye(3))


def test_brier_is_scikit_learns_for_two_classes_and_the_plain_sum_for_more():
    y, p = probabilities(0, k=2)
    assert stats.brier(y, p) == stats.brier(y, p[:, 1])
    assert stats.brier(y, p) == pytest.approx(reference.brier_score_loss(y, p[:, 1]))
    assert stats.brier(y, p, positive=0) == pytest.approx(stats.brier(y, p))
    y, p = probabilities(1, k=4)
    plain = [sum((p[i, k] - (y[i] == k)) ** 2 for k in range(4)) for i in range(len(y))]
    assert stats.brier(y, p) == pytest.approx(sum(plain) / len(y))
    assert stats.brier([0, 1, 2], np.eye(3)) == 0
    assert stats.brier([1, 2, 0], np.eye(3)) == 2


def plain_ece(happened, p, edges):
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(len(p)) if low <= p[i] < high]
        if inside:
            gap = sum(happened[i] for i in inside) - sum(p[i] for i in inside)
            total += abs(gap) / len(p)
    return total


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_ece_is_the_plain_sum_over_bins(bins):
    y, p = probabilities(2, 100, 2)
    edges = [*(i / bins for i in range(bins)), 1.1]
    assert stats.ece(y, p, bins, "width") == pytest.approx(plain_ece(y, p[:, 1], edges))
    cut = np.sort(p[:, 1])[:: 100 // bins]  # distinct probabilities, so bins hold 100 / bins each
    assert stats.ece(y, p, bins) == pytest.approx(plain_ece(y, p[:, 1], [*cut, 1.1]))
    assert set(stats.reliability_curve(y, p, bins).count) == {100 // bins}
    y, p = probabilities(3, 100, 4)
    right = p.argmax(1) == y
    assert stats.ece(y, p, bins, "width") == pytest.approx(plain_ece(right, p.max(1), edges))


def test_ece_keeps_equal_probabilities_together():
    y = np.array([1, 0, 1, 0, 1, 1])
    p = np.array([0.5, 0.5, 0.5, 0.5, 0.9, 0.9])
    assert stats.ece(y, p, 3) == pytest.approx((0 + 2 * 0.1) / 6)
    order = np.array([1, 3, 0, 5, 2, 4])
    assert stats.ece(y[order], p[order], 3) == stats.ece(y, p, 3)
    assert stats.ece([1, 0], [1.0, 0.0], 10, "width") == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_calibration_slope_and_intercept_are_the_maximum_of_the_likelihood(seed, scale):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=150)
    y = (rng.random(150) < 1 / (1 + np.exp(-(0.4 + z)))).astype(int)
    p = 1 / (1 + np.exp(-scale * z))

    def loss(b, slope=None):
        eta = b[0] + (b[1] if slope is None else slope) * scale * z
        return np.sum(np.logaddexp(0, eta) - y * eta)

    want = scipy.optimize.minimize(loss, [0.0, 1.0], method="Nelder-Mead", tol=1e-10).x
    assert stats.calibration_slope(y, p) == pytest.approx(want[1], abs=1e-4)
    want = scipy.optimize.minimize_scalar(lambda b: loss([b], 1.0), tol=1e-12).x
    assert stats.calibration_intercept(y, p) == pytest.approx(want, abs=1e-4)
    found = stats.recalibration(y, np.column_stack([1 - p, p]))
    assert found.slope == pytest.approx(stats.calibration_slope(y, p))
    assert found.intercept_low < found.intercept < found.intercept_high


def test_recalibration_intervals_are_statsmodels():
    statsmodels = pytest.importorskip("statsmodels.api", reason="statsmodels is the oracle here")
    y, p = probabilities(5, 200, 2)
    z = np.log(p[:, 1] / p[:, 0])
    found = stats.recalibration(y, p)
    fit = statsmodels.Logit(y, statsmodels.add_constant(z)).fit(disp=0)
    assert [found.slope_low, found.slope_high] == pytest.approx(fit.conf_int()[1], abs=1e-6)


def test_wald_intervals_of_the_slope_cover_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        z = rng.normal(size=300)
        y = rng.random(300) < 1 / (1 + np.exp(-0.7 * z))
        found = stats.recalibration(y, 1 / (1 + np.exp(-z)))
        covered += found.slope_low <= 0.7 <= found.slope_high
    assert covered / 100 >= 0.88


def test_calibration_where_no_slope_is_defined():
    assert stats.calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]) == np.inf
    assert stats.calibration_slope([1, 1, 0, 0], [0.1, 0.2, 0.7, 0.8]) == -np.inf
    assert np.isnan(stats.calibration_slope([1, 1], [0.1, 0.2]))
    assert np.isnan(stats.calibration_slope([0, 1], [0.3, 0.3]))
    assert stats.calibration_intercept([1, 1], [0.1, 0.2]) == np.inf
    assert np.isfinite(stats.calibration_slope([0, 1, 1, 0], [0.0, 1.0, 0.0, 1.0]))
    assert np.isnan(stats.recalibration([0, 1], [0.3, 0.3]).slope_low)


# DeLong.


def plain_delong(y, *scores):
    """Areas and covariance by the formulas as published, every pair of cases compared."""
    areas, over_cases, over_others = [], [], []
    k = len(scores)
    for score in scores:
        yes, no = score[y == 1], score[y == 0]
        psi = np.array([[1.0 if p > q else 0.5 if p == q else 0.0 for q in no] for p in yes])
        areas.append(psi.mean())
        over_cases.append(psi.mean(1))
        over_others.append(psi.mean(0))
    m, n = len(over_cases[0]), len(over_others[0])
    s10, s01 = np.zeros((k, k)), np.zeros((k, k))
    for r, s in itertools.product(range(k), repeat=2):
        for i in range(m):
            s10[r, s] += (over_cases[r][i] - areas[r]) * (over_cases[s][i] - areas[s]) / (m - 1)
        for j in range(n):
            s01[r, s] += (over_others[r][j] - areas[r]) * (over_others[s][j] - areas[s]) / (n - 1)
    return areas, s10 / m + s01 / n


@pytest.mark.parametrize("levels", [None, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_delong_is_the_published_formula(seed, levels):
    y, a, b = two_scores(seed, 40, levels=levels)
    areas, covariance = plain_delong(y, a, b)
    found = stats.delong(y, a, b)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert (found.auc_a, found.auc_b) == pytest.approx(areas)
    assert found.standard_error == pytest.approx(error)
    assert found.statistic == pytest.approx((areas[0] - areas[1]) / error)
    assert found.pvalue == pytest.approx(2 * scipy.stats.norm.sf(abs(found.statistic)))
    assert found.high - found.low == pytest.approx(2 * scipy.stats.norm.ppf(0.975) * error)
    for alternative, p in (("greater", "sf"), ("less", "cdf")):
        want = getattr(scipy.stats.norm, p)(found.statistic)
        assert stats.delong(y, a, b, alternative).pvalue == pytest.approx(want)
    single = stats.auc_interval(y, a)
    assert single.standard_error == pytest.approx(math.sqrt(covariance[0, 0]))
    assert single.auc == pytest.approx(reference.roc_auc_score(y, a))


@pytest.mark.parametrize("seed", range(3))
def test_delong_of_networks_and_folds_is_a_contrast_of_the_published_covariance(seed):
    y, a, b = two_scores(seed, 60, levels=1.0)
    rng = np.random.default_rng(seed)
    a, b = (s[:, None] + rng.normal(size=(60, 3)).round(1) for s in (a, b))
    folds = np.array(["first", "second"])[np.arange(60) % 2]
    contrast = np.repeat([1 / 3, -1 / 3], 3)
    difference = variance = 0
    for f in ("first", "second"):
        rows = folds == f
        areas, covariance = plain_delong(y[rows], *a[rows].T, *b[rows].T)
        difference += contrast @ areas / 2
        variance += contrast @ covariance @ contrast / 4
    found = stats.delong(y, a, b, folds=folds)
    assert found.difference == pytest.approx(difference)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.pvalue == pytest.approx(
        2 * scipy.stats.norm.sf(abs(difference) / math.sqrt(variance))
    )
    one = stats.delong(y, a[:, :1], b[:, :1], folds=np.zeros(60))
    assert one == pytest.approx(stats.delong(y, a[:, 0], b[:, 0]))
    mean = stats.delong(y, a[:, [0, 0]], b[:, [0, 0]])  # a network twice is that network
    assert mean == pytest.approx(one)


def test_delong_keeps_its_level_within_folds():
    claims = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y = np.arange(60) % 2
        a, b = (y + rng.normal(size=60) + 3 * (np.arange(60) // 20) for _ in range(2))
        claims.append(stats.delong(y, a, b, folds=np.arange(60) // 20).pvalue < 0.05)
    low, high = stats.wilson(sum(claims), len(claims), 0.99)[-2:]
    assert low < 0.05 < high


def test_delong_agrees_with_a_bootstrap():
    y, a, b = two_scores(11, 300)
    found = stats.delong(y, a, b)
    drawn = stats.paired_bootstrap(y, a, b, "auc", n=4000)
    assert drawn.difference == pytest.approx(found.difference)
    assert (drawn.low, drawn.high) == pytest.approx((found.low, found.high), abs=0.012)
    single, interval = stats.auc_interval(y, a), stats.bootstrap_interval(y, a, "auc", n=4000)
    assert (interval.low, interval.high) == pytest.approx((single.low, single.high), abs=0.012)


def test_logit_interval_of_an_area():
    y, a, _ = two_scores(3, 30, (4.0, 1.0))
    plain, logit = stats.auc_interval(y, a), stats.auc_interval(y, a, transform="logit")
    middle = np.log(plain.auc / (1 - plain.auc))
    ends = np.log([logit.low / (1 - logit.low), logit.high / (1 - logit.high)])
    assert ends.mean() == pytest.approx(middle)
    slope = plain.auc * (1 - plain.auc)
    assert ends[1] - middle == pytest.approx(1.959964 * plain.standard_error / slope, rel=1e-5)
    perfect = stats.auc_interval([0, 0, 1, 1], [1, 2, 3, 4], transform="logit")
    assert perfect == (1, 0, 1, 1)


def test_delong_without_variance():
    y = [0, 0, 1, 1]
    assert stats.delong(y, [1, 2, 3, 4], [1, 2, 3, 4])[:2] == (0, 1)
    assert stats.delong(y, [1, 2, 3, 4], [5, 6, 7, 8], "greater").pvalue == 0.5
    with pytest.warns(RuntimeWarning, match="no variance"):
        found = stats.delong(y, [1, 2, 3, 4], [0, 0, 0, 0])
    assert np.isnan(found.pvalue) and found.statistic == np.inf


@quick
@given(SEEDS, st.sampled_from([None, 1.0]))
def test_delong_properties(seed, levels):
    y, a, b = two_scores(seed, 25, levels=levels)
    found, back = stats.delong(y, a, b), stats.delong(y, b, a)
    assert 0 <= found.pvalue <= 1
    assert found.difference == -back.difference and found.pvalue == back.pvalue
    order = np.random.default_rng(seed).permutation(len(y))
    assert stats.delong(y[order], a[order], b[order]) == pytest.approx(found)
    assert stats.delong(y, np.exp(a / 9), b) == pytest.approx(found)
    assert stats.delong(1 - y, -a, -b) == pytest.approx(found)


# Tests of paired values.


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 5, 18])
def test_paired_t_is_scipys(n, alternative):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n)) + [[0.3], [0]]
    want = scipy.stats.ttest_rel(a, b, alternative=alternative)
    found = stats.paired_t(a, b, alternative)
    assert found[:3] == pytest.approx((want.statistic, want.pvalue, n - 1))
    assert stats.paired_t(a - b, alternative=alternative) == pytest.approx(found)
    interval = scipy.stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(interval))


def test_t_tests_without_spread():
    assert stats.paired_t([0.7, 0.7], [0.7, 0.7])[:2] == (0, 1)
    assert stats.paired_t([0.7, 0.7], [0.7, 0.7], "greater").pvalue == 0.5
    with pytest.warns(RuntimeWarning, match="spread"):
        found = stats.paired_t([0.71, 0.61, 0.31], [0.70, 0.60, 0.30])
    assert found.statistic == np.inf and found.pvalue == 0


def test_nadeau_bengio_is_the_corrected_t():
    d = [0.02, 0.01, 0.03, -0.01, 0.02]
    found = stats.nadeau_bengio(d, 80, 20)
    want = 0.014 / math.sqrt((1 / 5 + 20 / 80) * np.var(d, ddof=1))
    assert found.statistic == pytest.approx(want)
    assert found.pvalue == pytest.approx(2 * scipy.stats.t.sf(want, 4))
    assert found.statistic == pytest.approx(stats.paired_t(d).statistic / math.sqrt(1 + 5 * 0.25))
    same = stats.nadeau_bengio(d, [80] * 5, [20] * 5)
    assert same == pytest.approx(found)
    assert stats.nadeau_bengio(d, 10**9, 1) == pytest.approx(stats.paired_t(d), rel=1e-6)


def test_nadeau_bengio_by_simulation():
    """Random splits of the same cases without any difference: the correction makes the variance
    right and brings the false positives near 5 %, where the plain t-test claims 4 in 10."""
    rng = np.random.default_rng(0)
    n_train, n_test, splits, studies = 50, 10, 10, 1000
    means, corrected, plain, scaled = [], 0, 0, []
    for _ in range(studies):
        gain = rng.normal(size=n_train + n_test)
        d = np.array([rng.permutation(gain)[:n_test].mean() for _ in range(splits)])
        found = stats.nadeau_bengio(d, n_train, n_test)
        means.append(found.difference)
        scaled.append(found.standard_error**2)
        corrected += found.pvalue < 0.05
        plain += stats.paired_t(d).pvalue < 0.05
    assert np.mean(scaled) == pytest.approx(np.var(means), rel=0.12)
    assert corrected / studies < 0.08
    assert plain / studies > 0.2


def test_mcnemar_on_a_published_table():
    """Approval in two surveys: 86 and 150 changed their minds (Agresti, Categorical Data Analysis,
    1990, section 10.1.1: z = -4.17)."""
    y = np.ones(1600, int)
    a = np.repeat([1, 1, 0, 0], [794, 150, 86, 570])
    b = np.repeat([1, 0, 1, 0], [794, 150, 86, 570])
    found = stats.mcnemar(y, a, b, exact=False, correction=False)
    assert math.sqrt(found.statistic) == pytest.approx(4.17, abs=0.005)
    assert found.pvalue == pytest.approx(scipy.stats.chi2.sf(found.statistic, 1))
    corrected = stats.mcnemar(y, a, b, exact=False)
    assert corrected.statistic == pytest.approx(63**2 / 236)
    assert (found.only_a, found.only_b) == (150, 86)
    exact = stats.mcnemar(y, a, b)
    tail = sum(math.comb(236, k) for k in range(87)) / 2**236
    assert exact.statistic == 86 and exact.pvalue == pytest.approx(2 * tail)
    assert stats.mcnemar(y, a, b, alternative="greater").pvalue == pytest.approx(tail)


def test_mcnemar_is_statsmodels():
    oracle = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is the oracle here"
    )
    y, a, b = classes(4, 200)
    table = np.histogram2d(a == y, b == y, 2)[0]
    for exact, correction in ((True, True), (False, True), (False, False)):
        want = oracle.mcnemar(table, exact=exact, correction=correction)
        found = stats.mcnemar(y, a, b, exact, correction)
        assert found[:2] == pytest.approx((want.statistic, want.pvalue))


def test_mcnemar_of_predictions_that_do_not_differ():
    for exact in (True, False):
        assert stats.mcnemar([0, 1], [0, 0], [0, 0], exact)[:2] == (0, 1)
    assert stats.mcnemar([0, 1], [0, 0], [1, 1], False) == (0, 1, 1, 1)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [1, 5, 12, 60])
def test_wilcoxon_without_ties_is_scipys(n, alternative):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    found = stats.wilcoxon(d, alternative=alternative)
    method = "exact" if n <= 50 else "approx"
    want = scipy.stats.wilcoxon(d, alternative=alternative, method=method)
    assert found[:2] == pytest.approx((want.statistic, want.pvalue))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_wilcoxon_with_ties_counts_all_signs(alternative):
    d = np.array([1, 1, -1, 2, 2, -3, 3, 0, 4])
    found = stats.wilcoxon(d, alternative=alternative)
    ranks = scipy.stats.rankdata(np.abs(d[d != 0]))
    seen = ranks[d[d != 0] > 0].sum()
    sums = [np.dot(ranks, s) for s in itertools.product((0, 1), repeat=8)]
    upper, lower = (np.mean([s >= seen for s in sums]), np.mean([s <= seen for s in sums]))
    want = {"greater": upper, "less": lower, "two-sided": 2 * min(upper, lower)}[alternative]
    assert found.pvalue == pytest.approx(want) and found.n == 8


def test_wilcoxon_states_its_floor():
    found = stats.wilcoxon([0.66, 0.67, 0.68, 0.69, 0.70], [0.61] * 5, "greater")
    assert found.pvalue == found.floor == 1 / 32
    assert stats.wilcoxon([1, 2, 3, 4, 5]).floor == 2 / 32
    # Equal up to rounding: 0.71 - 0.70 and 0.61 - 0.60 differ in the last bit.
    tied = stats.wilcoxon([0.71, 0.61, 0.31], [0.70, 0.60, 0.33])
    assert tied.pvalue == stats.wilcoxon([1, 1, -2]).pvalue
    assert stats.wilcoxon([0.5, 0.5], [0.5, 0.5]) == (0, 1, 1, 0)


def test_holm_on_worked_examples():
    # Holm 1979, as in every textbook: 0.01, 0.04, 0.03, 0.005 at 5 % rejects two.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx(
        [0.05, 0.08, 0.09, 0.09, 0.09]
    )


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), SEEDS)
def test_holm_properties(p, seed):
    p = np.array(p)
    found = stats.holm(p)
    assert np.all((found >= p) & (found <= np.minimum(1, len(p) * p)) | (found == p))
    order = np.random.default_rng(seed).permutation(len(p))
    assert np.array_equal(stats.holm(p[order]), found[order])
    # Step-down as Holm states it: go on rejecting while p_(i) <= alpha / (m - i + 1).
    for alpha in (0.05, 0.2):
        rejected = set()
        for i, k in enumerate(np.argsort(p, kind="stable")):
            if p[k] * (len(p) - i) > alpha:
                break
            rejected.add(k)
        assert set(np.flatnonzero(found <= alpha)) == rejected


def test_holm_is_statsmodels():
    oracle = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is the oracle")
    p = np.random.default_rng(0).random(9) ** 3
    assert stats.holm(p) == pytest.approx(oracle.multipletests(p, method="holm")[1])


@quick
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9), st.sampled_from(ALTERNATIVES))
def test_tests_of_differences_properties(d, alternative):
    d = np.array(d, float)
    other = {"two-sided": "two-sided", "greater": "less", "less": "greater"}[alternative]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for test in (
            stats.paired_t,
            stats.wilcoxon,
            lambda d, alternative: stats.nadeau_bengio(d, 4, 1, alternative),
        ):
            found = test(d, alternative=alternative)
            assert 0 <= found.pvalue <= 1
            assert test(-d, alternative=other).pvalue == pytest.approx(found.pvalue)
            assert test(d[::-1], alternative=alternative) == pytest.approx(found)


# Ranks.

# Areas of four classifiers on 14 data sets (Demsar, JMLR 7, 2006, table 6). The table prints 0.975
# twice in the row before the last and ranks them 2 and 3: they differed before rounding.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_ranks_on_demsars_example():
    assert stats.mean_ranks(DEMSAR) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    found = stats.friedman(DEMSAR)
    # Demsar leaves the correction for ties out: 9.28 and F = 3.69.
    plain = 12 * 14 / (4 * 5) * (np.sum(found.ranks**2) - 4 * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.005)
    assert 13 * plain / (14 * 3 - plain) == pytest.approx(3.69, abs=0.005)
    tied = scipy.stats.friedmanchisquare(*DEMSAR.T)
    assert found[:2] == pytest.approx((tied.statistic, tied.pvalue))
    f = 13 * found.statistic / (14 * 3 - found.statistic)
    assert found.f_statistic == pytest.approx(f)
    assert found.f_pvalue == pytest.approx(scipy.stats.f.sf(f, 3, 39))


@pytest.mark.parametrize("k, q", [(2, 1.960), (3, 2.343), (4, 2.569), (10, 3.164)])
def test_critical_difference_has_demsars_constants(k, q):
    found = stats.critical_difference(k, 14)
    assert found / math.sqrt(k * (k + 1) / (6 * 14)) == pytest.approx(q, abs=1e-3)
    if k == 4:  # his example: the best and the first variant (1.964 and 3.143) are not apart
        assert found == pytest.approx(1.25, abs=0.005)
        assert stats.nemenyi(DEMSAR).groups == [[3, 1, 2, 0]]


def test_nemenyi_of_three_configurations():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(18, 3)) + [0, 0.2, 2.5]
    found = stats.nemenyi(scores)
    assert np.array_equal(found.pvalues, found.pvalues.T) and np.all(np.diag(found.pvalues) == 1)
    apart = np.abs(np.subtract.outer(found.ranks, found.ranks)) > found.critical_difference
    assert np.array_equal(found.pvalues < 0.05, apart)
    assert [sorted(g) for g in found.groups] == [[0, 1]]
    same = stats.nemenyi(np.ones((3, 3)))
    assert np.all(same.pvalues == 1) and [sorted(g) for g in same.groups] == [[0, 1, 2]]
    assert stats.friedman(np.ones((3, 3)))[:4] == (0, 1, 0, 1)


def test_groups_may_overlap_and_are_not_nested():
    from mdmt.stats.ranks import _groups

    assert _groups(np.array([1.0, 2.0, 3.0, 4.0]), 2.5) == [[0, 1, 2], [1, 2, 3]]
    assert _groups(np.array([4.0, 1.0, 2.0]), 1.0) == []
    assert _groups(np.array([1.0, 1.5, 1.2]), 9.0) == [[0, 2, 1]]


# Input that cannot be used.


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: stats.delong([0, 1, 2], [1, 2, 3], [1, 2, 3]), "3 classes"),
        (lambda: stats.delong([0, 1, 1], [1, 2, 3], [1, 2, 3]), "at least 2 of each"),
        (lambda: stats.delong([0, 0, 1, 1], [1, 2, 3], [1, 2, 3, 4]), "one score per case"),
        (lambda: stats.delong([0, 0, 1, 1], [1, 2, np.nan, 4], [1, 2, 3, 4]), r"a\[2\] is nan"),
        (lambda: stats.delong([0, 0, 1, 1], [1] * 4, [1] * 4, "larger"), "'larger'"),
        (lambda: stats.delong([0, 0, 1, 1], [1] * 4, [1] * 4, folds=[0, 1]), "fold of each case"),
        (lambda: stats.delong([0, 0, 1, 1], [1] * 4, [1] * 4, folds=[0, 0, 0, 1]), "fold 0 holds"),
        (lambda: stats.delong([0, 0, 1, 1], [[1]] * 3, [1] * 4), "a column of them per network"),
        (lambda: stats.auc_interval([0, 0, 1, 1], [1] * 4, 95), "such as 0.95"),
        (lambda: stats.auc_interval([0, 0, 1, 1], [1] * 4, transform="log"), "'log'"),
        (lambda: stats.brier([0, 1], [0.2, 1.2]), "not logits"),
        (lambda: stats.brier([0, 3], [[0.2, 0.3, 0.5]] * 2), "class 3"),
        (lambda: stats.brier([0, 1], [[0.2, 0.3, 0.1]] * 2), "add up to 1"),
        (lambda: stats.brier([0, 1], [0.2]), "p must be"),
        (lambda: stats.ece([0, 1], [0.2, 0.3], binning="equal"), "'equal'"),
        (lambda: stats.ece([0, 1], [0.2, 0.3], 0), "bins is 0"),
        (lambda: stats.calibration_slope([0, 2], [[0.2, 0.3, 0.5]] * 2), "two classes"),
        (lambda: stats.paired_t([1], [2]), "at least 2 values"),
        (lambda: stats.paired_t([1, 2], [2, 3, 4]), "pairs"),
        (lambda: stats.nadeau_bengio([1, 2], 0, 1), "above 0"),
        (lambda: stats.nadeau_bengio([1, 2], [1, 2, 3], 1), "n_train"),
        (lambda: stats.nadeau_bengio([1, np.inf], 1, 1), r"differences\[1\]"),
        (lambda: stats.mcnemar([0, 1], [0], [1, 1]), "one predicted class"),
        (lambda: stats.mcnemar([0], [0], [1], False, True, "less"), "exact=True"),
        (lambda: stats.wilcoxon([]), "shape"),
        (lambda: stats.paired_t([1, 2], ["a", "b"]), "b must hold numbers"),
        (lambda: stats.nemenyi([[1, 2], [1]]), "scores must hold numbers"),
        (lambda: stats.critical_difference("three", 4), "k is three"),
        (lambda: stats.critical_difference(2.5, 4), "k is 2.5"),
        (lambda: stats.holm([0.1, np.nan]), r"pvalues\[1\] is nan"),
        (lambda: stats.holm([0.1, 1.2]), "lie in 0..1"),
        (lambda: stats.friedman([[1, 2], [2, 1]]), "2 x 3"),
        (lambda: stats.nemenyi([[1, 2], [np.nan, 1]]), r"scores\[1, 0\]"),
        (lambda: stats.critical_difference(3, 10, 5), "alpha is 5"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1, 1]), "n cases of y"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1], "acuracy"), "'accuracy'"),
        (lambda: stats.paired_bootstrap([0, 1], [0.2, 1], [0.3, 1], "f1"), "threshold"),
        (lambda: stats.paired_bootstrap([0, 1], [[0, 1]] * 2, [[0, 1]] * 2, "f1"), "one predicted"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1], groups=["a"]), "patient"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1], folds=[0, np.nan]), "a fold"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1], n=0), "n is 0"),
        (lambda: stats.paired_bootstrap([0, 1], [0, 1], [0, 1], seed=-1), "seed is -1"),
        (lambda: stats.paired_bootstrap([0, 1], [0, np.nan], [0, 1], "auc"), "a holds NaN"),
        (lambda: stats.paired_bootstrap([0, np.nan], [0, 1], [0, 1]), "y holds NaN"),
        (lambda: stats.paired_bootstrap([0, 1], ["a", "b"], ["b", "a"], "auc"), "numbers"),
        (lambda: stats.hierarchical_bootstrap([0, 1], [0, 1], [0, 1]), "B backbones"),
        (lambda: stats.hierarchical_bootstrap([0, 1], [[0, 1]], [[0, 1]], backbones="x"), "'x'"),
        (lambda: stats.false_positive_rate_of_paper_test(10, shared=2), "shared is 2"),
    ],
)
def test_input_that_cannot_be_used(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_importing_takes_no_scipy():
    code = "import sys, mdmt.stats; assert not [m for m in sys.modules if m.startswith('scipy')]"
    subprocess.run([sys.executable, "-c", code], check=True)
