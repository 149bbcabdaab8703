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


def delong(
    y,
    a,
    b,
    alternative: str = "two-sided",
    confidence_level: float = 0.95,
    positive=1,
) -> DelongResult:
    """DeLong's test that two scores of the same cases have the same area under the ROC curve.

    y (n,) of two classes with at least two cases each; a, b (n,) scores of class `positive`.
    z = (auc_a - auc_b) / sqrt(V), V the variance of the differences of placement values, which is
    V_a + V_b - 2 Cov (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988; computed in
    O(n log n) as by Sun & Xu, IEEE Signal Process. Lett. 21, 2014). alternative "greater": auc_a
    is larger. The cases are taken as independent: for several images of a patient use
    `paired_bootstrap` with groups. Equal areas without variance (such as a = b) give p = 1
    (0.5 one-sided); different ones without variance give p = NaN and a RuntimeWarning.
    """
    from scipy.special import ndtr, ndtri

    _check.alternative_of(alternative)
    half = float(ndtri(0.5 + _check.level_of(confidence_level) / 2))
    mask = _check.binary(y, positive, 2)
    first = _placements(mask, _check.scores(a, mask, "a"))
    second = _placements(mask, _check.scores(b, mask, "b"))
    areas = float(np.mean(first[0])), float(np.mean(second[0]))
    difference = areas[0] - areas[1]
    variance = _variance(first[0] - second[0], first[1] - second[1])
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
                stacklevel=2,
            )
    return DelongResult(
        float(z), float(p), *areas, difference, error, difference - half * error,
        difference + half * error,
    )  # fmt: skip
