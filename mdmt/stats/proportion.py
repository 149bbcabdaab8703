"""Shares: k of n with an interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _check


class Share(NamedTuple):
    """k / n and its interval; arrays where k or n is one."""

    estimate: float
    low: float
    high: float


def wilson(k, n, confidence_level: float = 0.95) -> Share:
    """Wilson's interval (J. Am. Stat. Assoc. 22, 1927) of a share k / n, without continuity
    correction.

    k, n: numbers or arrays of one shape, 0 <= k <= n; NaN throughout where n is 0. k may be no
    whole number, as for a mean over networks. Raises ValueError otherwise.
    """
    from scipy.special import ndtri

    k, n = np.broadcast_arrays(_check.floats(k, "k"), _check.floats(n, "n"))
    if not ((k >= 0) & (k <= n)).all():
        raise ValueError(f"k is {k} and n {n}; k of n needs 0 <= k <= n")
    z = float(ndtri((1 + _check.level_of(confidence_level)) / 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = k / n
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at the ends the bounds are 0 and 1 exactly, up to rounding
    low = np.where(share == 0, 0.0, middle - half)
    high = np.where(share == 1, 1.0, middle + half)
    found = (share, np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan))
    return Share(*(float(v) if v.ndim == 0 else v for v in map(np.asarray, found)))
