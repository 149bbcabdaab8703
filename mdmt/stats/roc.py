"""DeLong's variance of areas under ROC curves, and the test of two areas on the same cases."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from . import _check


class DelongResult(NamedTuple):
    """Test of auc_a - auc_b; `statistic` is z, low..high the interval of the difference."""

    statistic: float
    pvalue: float
    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    low: float
    high: float


class AucInterval(NamedTuple):
    """Area under one ROC curve with DeLong's standard error and interval."""

    auc: float
    standard_error: float
    low: float
    high: float


def _placements(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Placement values: for each positive case the share of negative ones that it beats (m,), for
    each negative case the share of positive ones that beat it (n,); ties count half.

    With midranks among all cases and within each class, in O(N log N) (Sun & Xu, IEEE Signal
    Process. Lett. 21, 2014, eqs. 9-13). Their means are both the area.
    """
    from scipy.stats import rankdata

    together = rankdata(score)
    m = int(positive.sum())
    n = len(score) - m
    of_positive = (together[positive] - rankdata(score[positive])) / n
    of_negative = 1 - (together[~positive] - rankdata(score[~positive])) / m
    return of_positive, of_negative


def _variance(of_positive: np.ndarray, of_negative: np.ndarray) -> float:
    """S10 / m + S01 / n (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988, eq. 5-6)."""
    return float(
        np.var(of_positive, ddof=1) / len(of_positive)
        + np.var(of_negative, ddof=1) / len(of_negative)
    )


def auc_interval(
    y, score, confidence_level: float = 0.95, transform: str | None = None, positive=1
) -> AucInterval:
    """Area under the ROC curve with DeLong's standard error and confidence interval.

    y (n,) of two classes with at least two cases each, score (n,) of class `positive`. transform:
    None (normal interval, cut at 0 and 1) or "logit" (normal on the logit scale, better near 1;
    Pepe 2003, section 5.2). An area of 0 or 1 has no variance: its interval is that one value,
    which says nothing about the uncertainty.
    """
    from scipy.special import ndtri

    if transform not in (None, "logit"):
        raise ValueError(f"transform is {transform!r}; it must be None or 'logit'")
    half = float(ndtri(0.5 + _check.level_of(confidence_level) / 2))
    mask = _check.binary(y, positive, 2)
    parts = _placements(mask, _check.scores(score, mask, "score"))
    area = float(np.mean(parts[0]))
    error = _variance(*parts) ** 0.5
    if transform is None or error == 0 or not 0 < area < 1:
        return AucInterval(
            area, error, max(0.0, area - half * error), min(1.0, area + half * error)
        )
    middle = np.log(area / (1 - area))
    width = half * error / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-v))) for v in (middle - width, middle + width))
    return AucInterval(area, error, low, high)


def _columns(score, y: np.ndarray, name: str) -> np.ndarray:
    """`score` (n,) or (n, J) as finite float64 (n, J)."""
    array = _check.floats(score, name)
    if array.ndim == 1:
        return _check.scores(array, y, name)[:, None]
    if array.ndim != 2 or array.shape[0] != len(y) or array.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {array.shape} and y {y.shape}; it must hold one score per case, or "
            "a column of them per network"
        )
    _check.vector(array.ravel(), name)
    return array


def _mean_placements(mask: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_placements` of each column of score (n, J), averaged over the columns."""
    each = [_placements(mask, column) for column in score.T]
    return np.mean([p for p, _ in each], 0), np.mean([n for _, n in each], 0)


def delong(
    y,
    a,
    b,
    alternative: str = "two-sided",
    confidence_level: float = 0.95,
    positive=1,
    *,
    folds=None,
) -> DelongResult:
    """DeLong's test that two scores of the same cases have the same area under the ROC curve.

    y (n,) of two classes with at least two cases each; a, b (n,) scores of class `positive`, or
    (n, J) those of J networks, whose areas are averaged. folds (n,): areas are taken within each
    fold, with at least two cases of both classes in it, and averaged over the folds.
    z = (auc_a - auc_b) / sqrt(V), V the variance of the differences of placement values, which is
    V_a + V_b - 2 Cov (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988; computed in
    O(n log n) as by Sun & Xu, IEEE Signal Process. Lett. 21, 2014). An average of areas has the
    averaged placement values, as DeLong's eq. 6 has it for any contrast; folds share no case, so
    that V is the sum of theirs over the squared number of folds. alternative "greater": auc_a
    is larger. The cases are taken as independent, the networks as given: for several images of a
    patient use `paired_bootstrap` with groups. Equal areas without variance (such as a = b) give
    p = 1 (0.5 one-sided); different ones without variance give p = NaN and a RuntimeWarning.
    """
    _check.alternative_of(alternative)
    _check.level_of(confidence_level)
    mask = _check.binary(y, positive, 2)
    first, second = _columns(a, mask, "a"), _columns(b, mask, "b")
    folds = np.zeros(len(mask), np.int64) if folds is None else np.asarray(folds)
    if folds.shape != mask.shape:
        raise ValueError(
            f"folds has shape {folds.shape} and y {mask.shape}; it must name the fold of each case"
        )
    found = []
    for fold in np.unique(folds):
        rows = folds == fold
        inside = mask[rows]
        if min(inside.sum(), (~inside).sum()) < 2:
            raise ValueError(
                f"fold {fold} holds {inside.sum()} cases of class {positive!r} and "
                f"{(~inside).sum()} others; at least 2 of each are needed: leave the fold out"
            )
        pair = _mean_placements(inside, first[rows]), _mean_placements(inside, second[rows])
        variance = _variance(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1])
        found.append((float(np.mean(pair[0][0])), float(np.mean(pair[1][0])), variance))
    one, other, variance = np.array(found).T
    areas = float(one.mean()), float(other.mean())
    return _delong(areas, float(variance.sum()) / len(found) ** 2, alternative, confidence_level)


def _delong(areas, variance: float, alternative: str, confidence_level: float) -> DelongResult:
    """The test of two areas whose difference has this variance."""
    from scipy.special import ndtr, ndtri

    half = float(ndtri(0.5 + confidence_level / 2))
    difference = areas[0] - areas[1]
    if variance > 1e-30:
        error = variance**0.5
        z = difference / error
        p = {
            "two-sided": 2 * ndtr(-abs(z)),
            "greater": ndtr(-z),
            "less": ndtr(z),
        }[alternative]
    else:
        error = 0.0
        if abs(difference) < 1e-12:
            z, difference, p = 0.0, 0.0, 1.0 if alternative == "two-sided" else 0.5
        else:
            z, p = float(np.sign(difference) * np.inf), float("nan")
            warnings.warn(
                f"the areas {areas[0]:.3g} and {areas[1]:.3g} have no variance, as for perfect or "
                "constant scores: DeLong's p-value is not defined",
                RuntimeWarning,
                stacklevel=3,
            )
    return DelongResult(
        float(z), float(p), *areas, difference, error, difference - half * error,
        difference + half * error,
    )  # fmt: skip
