"""Bootstrap of metrics and of their differences, case by case or patient by patient."""

from __future__ import annotations

import itertools
import warnings
from typing import NamedTuple

import numpy as np

from . import _check, _resample
from ._weighted import by_fold

EQUAL = 1e-12  # differences smaller than this are 0, but for rounding


class PairedBootstrap(NamedTuple):
    """metric(a) - metric(b), its interval and p-value."""

    difference: float
    low: float
    high: float
    pvalue: float

    @property
    def statistic(self) -> float:
        """The difference, by SciPy's name."""
        return self.difference


class BootstrapInterval(NamedTuple):
    """A metric and its interval."""

    estimate: float
    low: float
    high: float


def _acceleration(jackknife: np.ndarray) -> float:
    """a = sum d^3 / (6 (sum d^2)^1.5), d = mean of the leave-one-out values minus each."""
    values = jackknife[np.isfinite(jackknife)]
    if values.size == 0:
        return 0.0
    d = values.mean() - values
    square = np.sum(d**2)
    return float(np.sum(d**3) / (6 * square**1.5)) if square > 1e-300 else 0.0


def _bias(distribution: np.ndarray, at: float) -> float:
    """z0: normal quantile of the share of resamples below `at`, ties (but for rounding, which would
    otherwise decide on which side they fall) half, never 0 or 1."""
    from scipy.special import ndtri

    below, upto = np.sum(distribution < at - EQUAL), np.sum(distribution <= at + EQUAL)
    share = (below + upto) / (2 * len(distribution))
    least = 0.5 / (len(distribution) + 1)
    return float(ndtri(np.clip(share, least, 1 - least)))


def bca_interval(
    distribution,
    jackknife,
    estimate: float,
    confidence_level: float = 0.95,
    alternative: str = "two-sided",
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (low, high) from resampled values.

    distribution (R,) resampled values, jackknife (G,) leave-one-out values. Quantiles of
    `distribution` at Phi(z0 + (z0 + z) / (1 - a (z0 + z))) for z = -+z_alpha (Efron, JASA 82, 1987;
    Efron & Tibshirani 1993, section 14.3). `alternative` "greater" or "less" gives the one-sided
    interval, as in scipy.stats.bootstrap.
    """
    from scipy.special import ndtr, ndtri

    distribution = np.asarray(distribution, np.float64)
    a, z0 = _acceleration(np.asarray(jackknife, np.float64)), _bias(distribution, estimate)
    level = _check.level_of(confidence_level)
    tail = (1 - level) / 2 if _check.alternative_of(alternative) == "two-sided" else 1 - level

    def quantile(z):
        below = 1 - a * (z0 + z)
        if below <= 0:
            return float(np.max(distribution) if z0 + z > 0 else np.min(distribution))
        return float(np.quantile(distribution, ndtr(z0 + (z0 + z) / below)))

    z = float(ndtri(tail))
    low = quantile(z) if alternative != "less" else float("-inf")
    high = quantile(-z) if alternative != "greater" else float("inf")
    return low, high


def _sided(below: float, upto: float, alternative: str, n: int) -> float:
    """p-value from the probabilities that the difference is below 0 and that it is at most 0, at
    least 1 / (n + 1). Resamples without a difference count against one, as in an interval that
    ends at 0."""
    p = {
        "two-sided": 2 * min(upto, 1 - below),
        "greater": upto,
        "less": 1 - below,
    }[alternative]
    return float(np.clip(p, 1 / (n + 1), 1))


def _shares(distribution: np.ndarray) -> list[float]:
    """Shares of resamples below 0 and at most 0 (but for rounding), kept off 0 and 1 by half a
    resample."""
    counts = int(np.sum(distribution < -EQUAL)), int(np.sum(distribution <= EQUAL))
    return [(count + 0.5) / (len(distribution) + 1) for count in counts]


def _bca_pvalue(distribution, jackknife, estimate: float, alternative: str) -> float:
    """The level at which the end of the BCa interval reaches 0 (the interval's inverse)."""
    from scipy.special import ndtr, ndtri

    a, z0 = _acceleration(jackknife), _bias(distribution, estimate)

    def level(share: float) -> float:
        z = float(ndtri(share)) - z0
        scale = 1 + a * z
        return float(ndtr(z / scale - z0 if scale > 0 else np.sign(z) * np.inf))

    return _sided(*map(level, _shares(distribution)), alternative, len(distribution))


def _run(functions, case, n: int, seed: int):
    """Values of each function: at the data (F,), of the resamples (F, n), leave-one-out (F, G)."""
    cases = len(case.codes)

    def spread(w):
        return w if cases == case.clusters else w[:, case.codes]

    def apply(w):
        return np.stack([f(w) for f in functions])

    whole = apply(np.ones((1, cases)))[:, 0]
    resampled = np.empty((len(functions), n))
    for first, rows in _resample.portions(n, cases):
        w = spread(_resample.weights(first, rows, case.clusters, seed))
        resampled[:, first : first + rows] = apply(w)
    left_out = np.full((len(functions), case.clusters), np.nan)
    if case.clusters > 1:
        for first, rows in _resample.portions(case.clusters, cases):
            w = np.ones((rows, case.clusters))
            w[np.arange(rows), np.arange(first, first + rows)] = 0
            left_out[:, first : first + rows] = apply(spread(w))
    return whole, resampled, left_out


def _defined(distribution: np.ndarray, estimate: float, metric) -> np.ndarray:
    """The finite resampled values; complains when the metric is undefined too often."""
    if not np.isfinite(estimate):
        raise ValueError(
            f"the metric {_name(metric)} of the cases themselves is not defined (nan): does y hold "
            "the classes that it needs?"
        )
    kept = distribution[np.isfinite(distribution)]
    lost = 1 - len(kept) / len(distribution)
    if lost > 0.5:
        raise ValueError(
            f"the metric {_name(metric)} is not defined in {100 * lost:.0f} % of the resamples: "
            "too few cases of a class"
        )
    if lost > 0.01:
        warnings.warn(
            f"the metric {_name(metric)} is not defined in {100 * lost:.1f} % of the resamples; "
            "they are left out, which makes the interval too narrow",
            RuntimeWarning,
            stacklevel=3,
        )
    return kept


def _name(metric) -> str:
    return repr(metric) if isinstance(metric, str) else getattr(metric, "__name__", "given")


def _seed(seed) -> int:
    return _check.count_of(seed, "seed", 0)


def _pair(y, a, b) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, a, b = _check.labels(y), np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.shape[:1] != y.shape or a.ndim > 2:
        raise ValueError(
            f"y has shape {y.shape}, a {a.shape} and b {b.shape}; a and b must both be (n,) or "
            "(n, K) for the n cases of y"
        )
    for name, array in (("a", a), ("b", b)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity; leave those cases out of both")
    return y, a, b


def paired_bootstrap(
    y,
    a,
    b,
    metric="accuracy",
    groups=None,
    n: int = 10000,
    seed: int = 0,
    *,
    folds=None,
    alternative: str = "two-sided",
    confidence_level: float = 0.95,
    positive=1,
) -> PairedBootstrap:
    """Bootstrap of metric(y, a) - metric(y, b) over cases, or over patients.

    y (cases,) labels. a, b: predictions of the same cases, (cases,) predicted classes or scores, or
    (cases, K) scores. metric: "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv",
    "npv", "f1" (of the class `positive`), "f1_macro", "f1_weighted", "gmean", "mcc", "auc",
    "brier", "quadratic_weighted_kappa", of numbers "mae", "rmse", "r2", "pearson", "ccc", the
    mdmt.stats function of that name, or any function of (y, prediction), which is slow. groups
    (cases,): whole groups (patients) are drawn with all their cases (cluster bootstrap; Field &
    Welsh, J. R. Stat. Soc. B 69, 2007). n resamples. folds (cases,): the metric is the mean over
    folds of its value within each, as tables of cross-validation have it (and as "auc" should,
    since the scores of different folds come from different networks); otherwise all cases are
    pooled.

    low, high: the BCa interval (`bca_interval`; jackknife over the same groups). pvalue: the level
    at which that interval's end reaches 0, at least 1 / (n + 1); so p < 0.05 says that the 95 %
    interval leaves 0 out (resamples without a difference count against one). alternative
    "greater": metric(a) is larger; the interval is then one-sided.

    The same arguments give the same answer on every machine, whatever the order of the cases;
    exchanging a and b changes nothing but the sign. Resamples in which the metric is not defined
    (such as the AUC of one class) are left out, with a RuntimeWarning from 1 % on. So are those
    without a class that y has, of "balanced_accuracy", "f1_macro" and "gmean", which would be
    another measure. With folds it is the fold that does not count in a resample's mean
    (`missing_class` says how often).
    Raises ValueError for shapes that do not fit and where the metric is not defined.
    """
    y, a, b = _pair(y, a, b)
    _check.alternative_of(alternative)
    n, seed = _check.count_of(n, "n"), _seed(seed)
    case = _resample.canonical(y, a, b, groups, folds)
    folds = None if folds is None else np.asarray(folds)[case.order]
    first = by_fold(metric, y[case.order], a[case.order], folds, positive)
    second = by_fold(metric, y[case.order], b[case.order], folds, positive)
    whole, resampled, left_out = _run([first, second], case, n, seed)
    difference = float(whole[0] - whole[1])
    distribution = _defined(resampled[0] - resampled[1], difference, metric)
    jackknife = left_out[0] - left_out[1]
    low, high = bca_interval(distribution, jackknife, difference, confidence_level, alternative)
    return PairedBootstrap(
        difference, low, high, _bca_pvalue(distribution, jackknife, difference, alternative)
    )


def missing_class(y, groups=None, folds=None) -> float:
    """Share, over resamples and folds, of test parts that lack a class which they hold.

    y (cases,) labels; groups, folds (cases,) as in `paired_bootstrap`. By inclusion and exclusion:
    of P groups drawn with replacement none is among m with the probability (1 - m / P)^P. More
    than 12 classes: the sum over single classes, at most 1, which is an upper bound.
    """
    y = _check.labels(y)
    groups = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    folds = np.zeros(len(y), np.int64) if folds is None else np.asarray(folds)
    count = int(groups.max()) + 1
    shares = []
    for fold in np.unique(folds):
        inside = folds == fold
        members = [set(groups[inside & (y == c)].tolist()) for c in np.unique(y[inside])]
        most = len(members) if len(members) <= 12 else 1
        share = 0.0
        for size in range(1, most + 1):
            for some in itertools.combinations(members, size):
                share -= (-1) ** size * (1 - len(set().union(*some)) / count) ** count
        shares.append(min(share, 1.0))
    return float(np.mean(shares))


def bootstrap_interval(
    y,
    prediction,
    metric="accuracy",
    groups=None,
    n: int = 10000,
    seed: int = 0,
    *,
    folds=None,
    confidence_level: float = 0.95,
    positive=1,
) -> BootstrapInterval:
    """BCa interval of one metric; arguments as in `paired_bootstrap`."""
    y, prediction, _ = _pair(y, prediction, prediction)
    n, seed = _check.count_of(n, "n"), _seed(seed)
    case = _resample.canonical(y, prediction, prediction, groups, folds)
    folds = None if folds is None else np.asarray(folds)[case.order]
    function = by_fold(metric, y[case.order], prediction[case.order], folds, positive)
    whole, resampled, left_out = _run([function], case, n, seed)
    estimate = float(whole[0])
    distribution = _defined(resampled[0], estimate, metric)
    return BootstrapInterval(
        estimate, *bca_interval(distribution, left_out[0], estimate, confidence_level)
    )


def hierarchical_bootstrap(
    y,
    a,
    b,
    metric="accuracy",
    groups=None,
    n: int = 10000,
    seed: int = 0,
    *,
    folds=None,
    backbones: str = "random",
    alternative: str = "two-sided",
    confidence_level: float = 0.95,
    positive=1,
) -> PairedBootstrap:
    """Mean over backbones of metric(y, a_k) - metric(y, b_k), resampling patients and backbones.

    y (cases,); a, b (B, cases) or (B, cases, K): predictions of B backbones for the same cases.
    Every resample draws the patients once for all backbones, since the backbones share them, and
    then, with backbones="random", B backbones with replacement: the answer speaks of such patients
    and such backbones. backbones="fixed" keeps these B ones. Other arguments as in
    `paired_bootstrap`.

    low, high: percentile interval. pvalue: from the share of resampled means beyond 0, at least
    1 / (n + 1). Two crossed levels, resampled each on its own, err on the safe side: the variance
    is overestimated rather than underestimated (Owen, Ann. Appl. Stat. 1, 2007), except that few
    backbones (B < 5) understate theirs by (B - 1) / B.
    """
    y, a, b = _check.labels(y), np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim not in (2, 3) or a.shape[1] != len(y) or a.shape[0] == 0:
        raise ValueError(
            f"y has shape {y.shape}, a {a.shape} and b {b.shape}; a and b must be (B, n) or "
            "(B, n, K) for B backbones and the n cases of y"
        )
    if backbones not in ("random", "fixed"):
        raise ValueError(f"backbones is {backbones!r}; it must be 'random' or 'fixed'")
    _check.alternative_of(alternative)
    level = _check.level_of(confidence_level)
    n, seed = _check.count_of(n, "n"), _seed(seed)
    count = len(a)
    flat = [np.moveaxis(v, 0, 1).reshape(len(y), -1) for v in (a, b)]
    case = _resample.canonical(*_pair(y, *flat), groups, folds)
    folds = None if folds is None else np.asarray(folds)[case.order]
    pairs = [
        by_fold(metric, y[case.order], v[k][case.order], folds, positive)
        for k in range(count)
        for v in (a, b)
    ]
    whole, resampled, _ = _run(pairs, case, n, seed)
    differences = resampled[0::2] - resampled[1::2]
    if backbones == "random":
        drawn = _resample.draws(0, n, count, seed, stream=1)
        means = np.take_along_axis(differences.T, drawn, 1).mean(1)
    else:
        means = differences.mean(0)
    difference = float(np.mean(whole[0::2] - whole[1::2]))
    means = _defined(means, difference, metric)
    tail = (1 - level) / 2 if alternative == "two-sided" else 1 - level
    low, high = np.quantile(means, [tail, 1 - tail])
    pvalue = _sided(*_shares(means), alternative, n)
    return PairedBootstrap(
        difference,
        float("-inf") if alternative == "less" else float(low),
        float("inf") if alternative == "greater" else float(high),
        pvalue,
    )
