"""Values to the range 0..255: percentile clipping, and the min-max at the end.

Red, green and blue are scaled by the same numbers, found in all of them together, so that the hue
stays.
"""

from __future__ import annotations

import numpy as np

from ..data.levels import Levels, of_integers

TOP = 255.0


def normalise(picture, clip=(2, 98)) -> np.ndarray:
    """`normalised`, of `Levels` or of values (H, W) or (H, W, 3): float32 of the same shape."""
    if not isinstance(picture, Levels):
        picture = of_integers(np.asarray(picture))
    return normalised(picture, clip).grey


def normalised(picture: Levels, clip=(2, 98)) -> Levels:
    """Clip a picture to two percentiles and scale it to 0..255.

    clip: the percentiles (linear interpolation, as `numpy.percentile`), or None for the smallest
    and largest value. A flat picture becomes 0.
    """
    clip = (0, 100) if clip is None else clip
    if picture.table is None:
        return Levels(_scaled(picture.codes, *np.percentile(picture.codes, clip)))
    present = np.flatnonzero(picture.counts)
    values = picture.table[present]
    low, high = _percentiles(values, picture.counts[present], clip)
    table = np.zeros_like(picture.table)
    table[present] = _scaled(values, low, high)
    return Levels(picture.codes, table, picture.counted)


def _scaled(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """(grey - low) / (high - low) * 255 within 0..255: float32 of the same shape."""
    if high <= low:  # flat but for a few pixels
        low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return np.zeros_like(grey, np.float32)
    clipped = np.clip(grey, low, high)
    return ((clipped - low) * np.float32(TOP / (high - low))).astype(np.float32)


def _percentiles(values: np.ndarray, counts: np.ndarray, percents) -> list[np.float64]:
    """Percentiles of a picture in which value k occurs counts[k] times; as `numpy.percentile`."""
    order = np.argsort(values, kind="stable")
    ends, values = np.cumsum(counts[order]), values[order]
    found = []
    for percent in percents:
        place = (ends[-1] - 1) * (percent / 100)
        below = int(np.floor(place))
        above = min(below + 1, int(ends[-1]) - 1)
        a, b = (np.float64(values[np.searchsorted(ends, i, "right")]) for i in (below, above))
        share = place - below
        found.append(b - (b - a) * (1 - share) if share >= 0.5 else a + (b - a) * share)
    return found


def stretched(grey: np.ndarray) -> np.ndarray:
    """Min-max: the smallest value becomes 0, the largest 255; a flat picture stays as it is."""
    low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return grey
    return (grey - np.float32(low)) * np.float32(TOP / (high - low))


def to_bytes(grey: np.ndarray) -> np.ndarray:
    """Round values to uint8."""
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
