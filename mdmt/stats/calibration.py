"""How far predicted probabilities can be taken at their word."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _check


class Recalibration(NamedTuple):
    """Logistic recalibration with 95 % (or other) Wald intervals."""

    intercept: float
    intercept_low: float
    intercept_high: float
    slope: float
    slope_low: float
    slope_high: float


class ReliabilityCurve(NamedTuple):
    """Bins of a reliability diagram (bins that hold cases only): arrays of the same length."""

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray


def brier_losses(y, p, positive=1) -> np.ndarray:
    """Each case's part (n,) in `brier`."""
    y, p = _check.probabilities(y, p, positive)
    if p.ndim == 1:
        return (p - (y == positive)) ** 2
    return np.sum((p - (y[:, None] == np.arange(p.shape[1]))) ** 2, 1)


def brier(y, p, positive=1) -> float:
    """Brier score: mean squared distance between probabilities and what happened.

    Two classes: mean (p - [y = positive])^2 in 0..1, p (n,) of the positive class or (n, 2).
    K > 2 classes: mean over cases of sum_k (p_k - [y = k])^2 in 0..2, p (n, K), y = 0..K-1
    (Brier, Mon. Weather Rev. 78, 1950). Smaller is better.
    """
    return float(np.mean(brier_losses(y, p, positive)))


def _event(y, p, positive) -> tuple[np.ndarray, np.ndarray]:
    """Probability (n,) of an event and whether it happened: the positive class, or, for K > 2
    classes, that the most probable class is right."""
    y, p = _check.probabilities(y, p, positive)
    if p.ndim == 1:
        return p, (y == positive).astype(np.float64)
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def reliability_curve(y, p, bins: int = 10, binning: str = "mass", positive=1) -> ReliabilityCurve:
    """Mean probability, observed share and number of cases in each bin.

    p (n,) or (n, 2): of the positive class; (n, K), K > 2: of the most probable class, whose
    being right is the event. binning: "mass" (bins of as equal a count as ties allow: equal
    probabilities always share a bin, so the order of the cases does not matter) or "width"
    (bins of equal width over 0..1; the right edge belongs to the last bin).
    """
    from scipy.stats import rankdata

    bins = _check.count_of(bins, "bins")
    p, happened = _event(y, p, positive)
    if binning == "mass":
        place = (rankdata(p) - 0.5) / len(p)
    elif binning == "width":
        place = p
    else:
        raise ValueError(f"binning is {binning!r}; it must be 'mass' or 'width'")
    of = np.minimum((place * bins).astype(np.int64), bins - 1)
    count = np.bincount(of, minlength=bins)
    kept = count > 0
    predicted = np.bincount(of, p, bins)[kept] / count[kept]
    observed = np.bincount(of, happened, bins)[kept] / count[kept]
    return ReliabilityCurve(predicted, observed, count[kept])


def ece(y, p, bins: int = 10, binning: str = "mass", positive=1) -> float:
    """Expected calibration error: sum over bins of n_b / n |observed_b - predicted_b|, in 0..1.

    Arguments as in `reliability_curve` (Naeini et al., AAAI 2015, for "width"; Nixon et al., CVPR
    workshops 2019, for equal mass).
    """
    curve = reliability_curve(y, p, bins, binning, positive)
    return float(
        np.sum(curve.count * np.abs(curve.observed - curve.predicted)) / np.sum(curve.count)
    )


def _logit(p: np.ndarray, clip: float) -> np.ndarray:
    p = np.clip(p, clip, 1 - clip)
    return np.log(p) - np.log1p(-p)


def _fit(design: np.ndarray, happened: np.ndarray, offset: np.ndarray):
    """Maximum-likelihood logistic regression by Newton's method with halved steps.

    design (n, k), happened (n,) 0/1, offset (n,). Returns coefficients (k,) and their covariance
    (k, k), the inverse of the information.
    """

    def loss(b):
        z = design @ b + offset
        return np.sum(np.logaddexp(0, z) - happened * z)

    b = np.zeros(design.shape[1])
    now = loss(b)
    for _ in range(200):
        mean = 1 / (1 + np.exp(-np.clip(design @ b + offset, -500, 500)))
        gradient = design.T @ (happened - mean)
        information = (design * (mean * (1 - mean))[:, None]).T @ design
        step = np.linalg.lstsq(information, gradient, rcond=None)[0]
        size = 1.0
        while size > 1e-10 and loss(b + size * step) > now:
            size /= 2
        b = b + size * step
        before, now = now, loss(b)
        if np.abs(size * step).max() <= 1e-10 * (1 + np.abs(b).max()) or before == now:
            break
    mean = 1 / (1 + np.exp(-np.clip(design @ b + offset, -500, 500)))
    information = (design * (mean * (1 - mean))[:, None]).T @ design
    return b, np.linalg.pinv(information)


def _two_classes(y, p, positive, clip) -> tuple[np.ndarray, np.ndarray]:
    y, p = _check.probabilities(y, p, positive)
    if p.ndim == 2:
        raise ValueError(
            f"p has shape {p.shape}; calibration slope and intercept are defined for two classes: "
            "pass y == class and that class's column"
        )
    return (y == positive).astype(np.float64), _logit(p, clip)


def _separated(happened: np.ndarray, z: np.ndarray) -> float:
    """+inf or -inf where z separates the classes (no finite slope fits best), NaN where no slope
    is defined, else 0."""
    if happened.min() == happened.max() or z.min() == z.max():
        return float("nan")
    yes, no = z[happened == 1], z[happened == 0]
    if yes.min() >= no.max():
        return float("inf")
    if yes.max() <= no.min():
        return float("-inf")
    return 0.0


def calibration_slope(y, p, positive=1, clip: float = 1e-6) -> float:
    """Slope b of the logistic recalibration logit P(y = positive) = a + b logit(p).

    p (n,) or (n, 2). 1 is perfect, under 1 says that the probabilities are too extreme (the mark
    of overfitting), over 1 too timid (Cox, Biometrika 45, 1958; Van Calster et al., BMC Med. 17,
    2019). Probabilities are clipped to clip..1-clip. Infinite where p separates the classes, NaN
    where y or p holds one value only.
    """
    happened, z = _two_classes(y, p, positive, clip)
    apart = _separated(happened, z)
    if apart != 0:
        return apart
    return float(_fit(np.column_stack([np.ones_like(z), z]), happened, np.zeros_like(z))[0][1])


def calibration_intercept(y, p, positive=1, clip: float = 1e-6) -> float:
    """Calibration in the large: a of logit P(y = positive) = a + logit(p), the slope held at 1.

    0 is perfect; above 0 says that risks are underestimated on average, below 0 overestimated
    (Van Calster et al., BMC Med. 17, 2019). p (n,) or (n, 2). Infinite where y holds one class.
    """
    happened, z = _two_classes(y, p, positive, clip)
    if happened.min() == happened.max():
        return float("inf") if happened[0] else float("-inf")
    return float(_fit(np.ones((len(z), 1)), happened, z)[0][0])


def recalibration(y, p, positive=1, confidence_level: float = 0.95, clip: float = 1e-6):
    """`calibration_intercept` and `calibration_slope` with Wald intervals: a `Recalibration`.

    The intervals take the cases as independent; they are NaN where a value is not finite.
    """
    from scipy.special import ndtri

    half = float(ndtri(0.5 + _check.level_of(confidence_level) / 2))
    happened, z = _two_classes(y, p, positive, clip)
    values = []
    intercept = calibration_intercept(y, p, positive, clip)
    slope = calibration_slope(y, p, positive, clip)
    for value, design, offset in (
        (intercept, np.ones((len(z), 1)), z),
        (slope, np.column_stack([np.ones_like(z), z]), np.zeros_like(z)),
    ):
        width = float("nan")
        if np.isfinite(value):
            width = half * float(np.sqrt(_fit(design, happened, offset)[1][-1, -1]))
        values += [value, value - width, value + width]
    return Recalibration(*values)


def grouped_recalibration(y, networks, groups, positive=1, confidence_level=0.95, clip=1e-6):
    """Mean over networks of `calibration_intercept` and `calibration_slope`, with intervals that
    take the groups (patients), not the cases, as independent: a `Recalibration`.

    y (n,); networks: a p of each, (n,) or (n, 2), for the same cases; groups (n,). The variance of
    a coefficient is the sum over groups of the squares of what their cases move it by (row of the
    inverse information times the score, mean over the networks), times G / (G - 1) (Liang & Zeger,
    Biometrika 73, 1986). Intervals are NaN where a value is not finite or there is one group.
    """
    from scipy.special import ndtri

    half = float(ndtri(0.5 + _check.level_of(confidence_level) / 2))
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].reshape(-1)
    values = []
    for function, sloped in ((calibration_intercept, False), (calibration_slope, True)):
        each = [function(y, p, positive, clip) for p in networks]
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            value = float(np.mean(each))
        width = float("nan")
        if np.isfinite(value) and codes.max() > 0:
            moved = np.mean([_moved(y, p, positive, clip, sloped) for p in networks], 0)
            by_group = np.bincount(codes, moved)
            width = half * float(np.sqrt(np.sum(by_group**2) * len(by_group) / codes.max()))
        values += [value, value - width, value + width]
    return Recalibration(*values)


def _moved(y, p, positive, clip: float, sloped: bool) -> np.ndarray:
    """By how much each case (n,) moves the slope, or the intercept with the slope held at 1."""
    happened, z = _two_classes(y, p, positive, clip)
    ones = np.ones_like(z)
    design = np.column_stack([ones, z]) if sloped else ones[:, None]
    offset = np.zeros_like(z) if sloped else z
    b, covariance = _fit(design, happened, offset)
    mean = 1 / (1 + np.exp(-np.clip(design @ b + offset, -500, 500)))
    return (design * (happened - mean)[:, None]) @ covariance[:, -1]
