"""Checks of arguments: each failure is one sentence that names the argument, its value and what it
must be."""

from __future__ import annotations

import numpy as np

ALTERNATIVES = ("two-sided", "less", "greater")


def alternative_of(value: str) -> str:
    """`value` if SciPy knows such an alternative."""
    if value not in ALTERNATIVES:
        raise ValueError(f"alternative is {value!r}; it must be 'two-sided', 'less' or 'greater'")
    return value


def level_of(confidence_level: float) -> float:
    """`confidence_level` as a float strictly between 0 and 1."""
    if not 0 < confidence_level < 1:
        raise ValueError(
            f"confidence_level is {confidence_level}; it must lie between 0 and 1, such as 0.95"
        )
    return float(confidence_level)


def floats(values, name: str) -> np.ndarray:
    """`values` as a float64 array."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers in an array of one shape") from None


def count_of(value, name: str, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    whole = isinstance(value, (int, float, np.integer, np.floating)) and value == value // 1
    if not whole or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value}; it must be a whole number of at least {least}")
    return int(value)


def vector(values, name: str, least: int = 1) -> np.ndarray:
    """`values` as finite float64 (n,) with n >= least."""
    array = floats(values, name)
    if array.ndim != 1 or array.size < least:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be (n,) with at least {least} "
            f"value{'s' if least > 1 else ''}"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{name}[{bad[0]}] is {array[bad[0]]}; leave undefined values out "
            f"({bad.size} of {array.size})"
        )
    return array


def labels(y) -> np.ndarray:
    """y as (n,), n >= 1, without NaN."""
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"y has shape {y.shape}; it must be (n,) with n >= 1")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError("y holds NaN; leave the cases without a label out")
    return y


def outcomes(y) -> np.ndarray:
    """y as labels (n,), or as findings (n, K) of 0, 1 or NaN (not labelled)."""
    if np.ndim(y) != 2:
        return labels(y)
    y = floats(y, "y")
    if y.size == 0 or not np.isin(y[~np.isnan(y)], (0, 1)).all():
        raise ValueError(f"y has shape {y.shape}; findings (n, K) are 0, 1, or NaN for no label")
    return y


def scores(score, y: np.ndarray, name: str) -> np.ndarray:
    """`score` as finite float64 (n,) for labels y (n,)."""
    score = floats(score, name)
    if score.shape != y.shape:
        raise ValueError(
            f"{name} has shape {score.shape} and y {y.shape}; it must hold one score per case"
        )
    return vector(score, name)


def binary(y, positive=1, each: int = 1) -> np.ndarray:
    """Mask (n,) of the positive cases; at least `each` cases on both sides."""
    y = labels(y)
    distinct = np.unique(y)
    if len(distinct) > 2:
        raise ValueError(
            f"y holds {len(distinct)} classes; this is defined for two: compare one class with "
            "the rest by passing y == class"
        )
    mask = y == positive
    found = int(mask.sum())
    if found < each or len(y) - found < each:
        raise ValueError(
            f"y holds {found} cases of class {positive!r} and {len(y) - found} others; at least "
            f"{each} of each are needed"
        )
    return mask


def probabilities(y, p, positive=1) -> tuple[np.ndarray, np.ndarray]:
    """y (n,) and p as float64 in 0..1: (n,) of the positive class, or (n, K) with K >= 3.

    (n, 2) becomes its column 1 (which then must be `positive`).
    """
    y = labels(y)
    p = floats(p, "p")
    if p.ndim not in (1, 2) or p.shape[0] != y.shape[0]:
        raise ValueError(f"p has shape {p.shape} and y {y.shape}; p must be (n,) or (n, K)")
    if not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        raise ValueError(
            f"p runs from {p.min()} to {p.max()}; probabilities lie in 0..1 (a softmax's or a "
            "logistic function's output, not logits)"
        )
    if p.ndim == 2:
        if p.shape[1] < 2:
            raise ValueError(f"p has shape {p.shape}; (n, K) needs at least two classes")
        off = np.abs(p.sum(1) - 1).max()
        if off > 1e-3:
            raise ValueError(f"the rows of p must add up to 1; one is off by {off:.3g}")
        strange = [c for c in np.unique(y).tolist() if c not in range(p.shape[1])]
        if strange:
            raise ValueError(
                f"y holds class {strange[0]!r}; with p (n, {p.shape[1]}) the classes are the "
                f"column numbers 0 to {p.shape[1] - 1}"
            )
        if p.shape[1] == 2:
            if positive not in (0, 1):
                raise ValueError(f"positive is {positive!r}; with p (n, 2) it must be 0 or 1")
            p = p[:, int(positive)]
    return y, p


def mean_ratio(n_train, n_test) -> float:
    """Mean over the folds of n_test / n_train, each a number or one per fold."""
    train = np.atleast_1d(floats(n_train, "n_train"))
    test = np.atleast_1d(floats(n_test, "n_test"))
    if not ((train > 0).all() and (test > 0).all()):
        raise ValueError(f"n_train is {n_train} and n_test {n_test}; both must be above 0")
    return float(np.mean(test / train))
