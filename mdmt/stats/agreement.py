"""How far two readers, or a reader and a network, agree about the same cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import metrics
from ..metrics import pearson
from . import _check


class Agreement(NamedTuple):
    """Of n cases; bias is the mean of b - a; a correlation or kappa that is not defined is NaN."""

    n: int
    exact: float
    kappa: float
    weighted_kappa: float
    mae: float
    bias: float
    pearson: float
    spearman: float
    icc: float


def _pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Finite float64 a, b (n,): cases that either lacks (NaN) are left out."""
    a, b = _check.floats(a, "a"), _check.floats(b, "b")
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; both must be (n,)")
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        raise ValueError("a and b have no case in common that both have scored")
    return a[both], b[both]


def kappa(a, b) -> float:
    """Cohen's kappa (Educ. Psychol. Meas. 20, 1960) of classes a and b (n,), unweighted; NaN where
    both hold one and the same class."""
    a, b = np.asarray(a), np.asarray(b)
    classes = np.unique(np.concatenate([a, b]))
    chance = sum(np.mean(a == c) * np.mean(b == c) for c in classes)
    return float((np.mean(a == b) - chance) / (1 - chance)) if chance < 1 else float("nan")


def icc(ratings) -> float:
    """Intraclass correlation ICC(2,1) of ratings (n, k): n cases, each scored by the same k
    readers, who stand for others like them; absolute agreement of a single score.

    (MS_cases - MS_error) / (MS_cases + (k - 1) MS_error + k (MS_readers - MS_error) / n)
    (Shrout & Fleiss, Psychol. Bull. 86, 1979). NaN where nothing varies or n < 2.
    """
    x = _check.floats(ratings, "ratings")
    if x.ndim != 2 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"ratings has shape {x.shape}; it must be (cases, readers) with at least two readers, "
            "without NaN"
        )
    n, k = x.shape
    if n < 2:
        return float("nan")
    whole, cases, readers = x.mean(), x.mean(1), x.mean(0)
    between = k * np.sum((cases - whole) ** 2) / (n - 1)
    reader = n * np.sum((readers - whole) ** 2) / (k - 1)
    error = np.sum((x - cases[:, None] - readers + whole) ** 2) / ((n - 1) * (k - 1))
    below = between + (k - 1) * error + k * (reader - error) / n
    return float((between - error) / below) if below > 0 else float("nan")


def agreement(a, b) -> Agreement:
    """Agreement of two readers' numbers or ordered classes a, b (n,); NaN marks a case that a
    reader has not scored, and such cases are left out.

    exact: share of equal scores; kappa: Cohen's; weighted_kappa: with quadratic weights; mae and
    bias in classes or points; pearson, spearman; icc: `icc` of the two. Raises ValueError for
    shapes that do not fit and where no case is left.
    """
    from scipy.stats import rankdata

    a, b = _pair(a, b)
    return Agreement(
        len(a),
        float(np.mean(a == b)),
        kappa(a, b),
        metrics.quadratic_weighted_kappa(a, b),
        metrics.mae(a, b),
        float(np.mean(b - a)),
        pearson(a, b),
        pearson(rankdata(a), rankdata(b)),
        icc(np.column_stack([a, b])),
    )


def region_agreement(a, b, names: str = "ABCDEF") -> dict[str, Agreement]:
    """Agreement by region of regional scores a, b (n, regions), then of each lung (first and
    second half of the regions) and of their sum: {"A": ..., "right": ..., "left": ..., "global"}.

    names: a letter per region; for Brixia scores A to C are the right lung, D to F the left one.
    """
    a, b = _check.floats(a, "a"), _check.floats(b, "b")
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(names):
        raise ValueError(
            f"a has shape {a.shape} and b {b.shape}; both must be (n, {len(names)}), a column per "
            f"region {names}"
        )
    half = len(names) // 2
    found = {r: agreement(a[:, k], b[:, k]) for k, r in enumerate(names)}
    found["right"] = agreement(a[:, :half].sum(1), b[:, :half].sum(1))
    found["left"] = agreement(a[:, half:].sum(1), b[:, half:].sum(1))
    found["global"] = agreement(a.sum(1), b.sum(1))
    return found
