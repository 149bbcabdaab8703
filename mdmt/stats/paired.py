"""Tests of paired values (folds, backbones) and of paired predictions, and Holm's correction."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from . import _check


class TResult(NamedTuple):
    """A t-test of a mean difference, with its two-sided confidence interval."""

    statistic: float
    pvalue: float
    df: int
    difference: float
    standard_error: float
    low: float
    high: float


class McnemarResult(NamedTuple):
    """McNemar's test; only_a: cases that a alone has right, only_b: those that b alone has."""

    statistic: float
    pvalue: float
    only_a: int
    only_b: int


class WilcoxonResult(NamedTuple):
    """Signed-rank test; floor: the smallest p-value that n non-zero differences can give."""

    statistic: float
    pvalue: float
    floor: float
    n: int


def _t_test(d: np.ndarray, factor: float, alternative: str, confidence_level: float) -> TResult:
    """t-test of differences d (n,) whose mean has the variance factor * var(d)."""
    from scipy.special import stdtr, stdtrit

    _check.alternative_of(alternative)
    level = _check.level_of(confidence_level)
    df = len(d) - 1
    mean = float(d.mean())
    deviation = float(d.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(d).max()):  # constant up to rounding
        deviation = 0.0
    error = float(np.sqrt(factor)) * deviation
    if error > 0:
        t = mean / error
    elif mean == 0:
        t = 0.0
    else:
        t = float(np.sign(mean) * np.inf)
        warnings.warn(
            f"all {len(d)} differences are {mean:.4g}: without any spread the t-test's p-value of "
            "0 or 1 means nothing",
            RuntimeWarning,
            stacklevel=3,
        )
    if mean == 0 and alternative == "two-sided":
        p = 1.0
    else:
        p = {
            "two-sided": 2 * stdtr(df, -abs(t)),
            "greater": stdtr(df, -t),
            "less": stdtr(df, t),
        }[alternative]
    half = float(stdtrit(df, 0.5 + level / 2)) * error
    return TResult(float(t), float(p), df, mean, error, mean - half, mean + half)


def paired_t(a, b=None, alternative: str = "two-sided", confidence_level: float = 0.95) -> TResult:
    """Student's t-test of paired values a (n,) and b (n,), or of differences a; n >= 2.

    t = mean(d) / (sd(d) / sqrt(n)), d = a - b, n - 1 degrees of freedom; alternative "greater": a
    is larger. It takes the n differences as independent, which folds that share training data
    (see `nadeau_bengio`) and backbones that share cases (see `hierarchical_bootstrap`) are not.
    """
    d = _differences(a, b)
    return _t_test(d, 1 / len(d), alternative, confidence_level)


def _differences(a, b, least: int = 2) -> np.ndarray:
    a = _check.vector(a, "a", least)
    if b is None:
        return a
    b = _check.vector(b, "b", least)
    if a.shape != b.shape:
        raise ValueError(f"a holds {len(a)} values and b {len(b)}; they must be pairs")
    return a - b


def nadeau_bengio(
    differences,
    n_train,
    n_test,
    alternative: str = "two-sided",
    confidence_level: float = 0.95,
) -> TResult:
    """Corrected resampled t-test of differences (J,), J >= 2, one per fold or random split.

    t = mean(d) / sqrt((1 / J + n_test / n_train) var(d)), J - 1 degrees of freedom: the training
    sets overlap, so that the differences have a correlation of about n_test / (n_test + n_train)
    (Nadeau & Bengio, Mach. Learn. 52, 2003, section 5; for cross-validation Bouckaert & Frank,
    PAKDD 2004). n_train, n_test: cases, a number each or one per fold (their ratio is averaged).
    """
    d = _check.vector(differences, "differences", 2)
    for name, value in (("n_train", n_train), ("n_test", n_test)):
        if np.ndim(value) > 1 or np.size(value) not in (1, len(d)):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; it must be one number or one for each of "
                f"the {len(d)} differences"
            )
    factor = 1 / len(d) + _check.mean_ratio(n_train, n_test)
    return _t_test(d, factor, alternative, confidence_level)


def mcnemar(
    y, a, b, exact: bool = True, correction: bool = True, alternative: str = "two-sided"
) -> McnemarResult:
    """McNemar's test that predictions a and b (n,) of labels y (n,) are right equally often.

    With r cases that a alone has right and s that b alone has: exact: the binomial test of r among
    r + s with 1/2, statistic min(r, s) (any `alternative`; "greater": a is right more often);
    otherwise chi^2 = (|r - s| - 1)^2 / (r + s), or without `correction` (r - s)^2 / (r + s), one
    degree of freedom, two-sided (McNemar, Psychometrika 12, 1947; Edwards 1948). The cases are
    taken as independent. p = 1 where no case tells a and b apart.
    """
    from scipy.special import chdtrc
    from scipy.stats import binomtest

    _check.alternative_of(alternative)
    y, a, b = _check.labels(y), np.asarray(a), np.asarray(b)
    if a.shape != y.shape or b.shape != y.shape:
        raise ValueError(
            f"y has shape {y.shape}, a {a.shape} and b {b.shape}; a and b must hold one predicted "
            "class per case"
        )
    only_a = int(np.sum((a == y) & (b != y)))
    only_b = int(np.sum((a != y) & (b == y)))
    apart = only_a + only_b
    if exact:
        p = 1.0 if apart == 0 else binomtest(only_a, apart, 0.5, alternative).pvalue
        return McnemarResult(float(min(only_a, only_b)), float(p), only_a, only_b)
    if alternative != "two-sided":
        raise ValueError(
            f"alternative is {alternative!r}; the chi-squared form is two-sided: use exact=True"
        )
    if apart == 0:
        return McnemarResult(0.0, 1.0, 0, 0)
    distance = max(0.0, abs(only_a - only_b) - (1.0 if correction else 0.0))
    statistic = distance**2 / apart
    return McnemarResult(statistic, float(chdtrc(1, statistic)), only_a, only_b)


def _signed_rank_tail(doubled: np.ndarray) -> np.ndarray:
    """P(twice the rank sum of the positive differences = s), s = 0..sum, when every sign is
    equally likely; `doubled` are twice the midranks, as integers."""
    share = np.zeros(int(doubled.sum()) + 1)
    share[0] = 1.0
    for rank in doubled.astype(int):
        moved = np.zeros_like(share)
        moved[rank:] = share[: len(share) - rank]
        share = 0.5 * (share + moved)
    return share


def wilcoxon(a, b=None, alternative: str = "two-sided") -> WilcoxonResult:
    """Wilcoxon's signed-rank test of paired values a, b (n,), or of differences a.

    Zero differences are left out (Wilcoxon), equal ones share a midrank. Up to 50 the p-value is
    exact, ties included (all 2^n signs); beyond, SciPy's normal approximation. statistic as
    SciPy's: the smaller rank sum for two-sided, else that of the positive differences. floor: the
    smallest p that n non-zero differences can give, 1 / 2^n one-sided and 2 / 2^n two-sided: five
    folds cannot reach p < 1/32. p = 1 where all differences are 0.
    """
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as scipy_wilcoxon

    _check.alternative_of(alternative)
    d = _differences(a, b, 1)
    size = np.abs(d).max()
    # Differences of decimal fractions that should be 0 or equal are so up to rounding only.
    d = np.where(np.abs(d) <= 1e-12 * size, 0.0, d)
    d = d[d != 0]
    n = len(d)
    if n == 0:
        return WilcoxonResult(0.0, 1.0, 1.0, 0)
    floor = min(1.0, (2.0 if alternative == "two-sided" else 1.0) / 2.0**n)
    ranks = rankdata(np.round(np.abs(d) / size, 11))
    plus, minus = float(ranks[d > 0].sum()), float(ranks[d < 0].sum())
    statistic = min(plus, minus) if alternative == "two-sided" else plus
    if n > 50:
        p = scipy_wilcoxon(d, alternative=alternative, method="approx").pvalue
        return WilcoxonResult(statistic, float(p), floor, n)
    share = _signed_rank_tail(2 * ranks)
    upper = float(share[round(2 * plus) :].sum())
    lower = float(share[: round(2 * plus) + 1].sum())
    p = {"greater": upper, "less": lower, "two-sided": 2 * min(upper, lower)}[alternative]
    return WilcoxonResult(statistic, min(1.0, p), floor, n)


def holm(pvalues) -> np.ndarray:
    """Holm's adjusted p-values (m,), in the order given, of a family of m tests.

    p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)); those <= alpha are rejected with a
    family-wise error of at most alpha, whatever their dependence (Holm, Scand. J. Stat. 6, 1979).
    """
    p = _check.vector(pvalues, "pvalues", 1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"pvalues run from {p.min()} to {p.max()}; they must lie in 0..1")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
