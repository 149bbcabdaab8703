"""Resamples as weights, from a counter-based generator.

Resample r of a seed and stream is a function of (seed, stream, r, number of items) alone: it does
not depend on how many resamples are drawn or in which portions, nor on the platform (Philox4x64,
Salmon et al., SC 2011; only NumPy's `random_raw` is used, whose output is fixed).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PORTION = 1 << 18  # weights held at a time, so that they stay in the cache


def draws(first: int, rows: int, items: int, seed: int, stream: int = 0) -> np.ndarray:
    """Items (rows, items) int64 in 0..items-1, drawn with replacement, of resamples first, ..."""
    blocks = -(-items // 8)  # of four 64-bit numbers, hence eight of 32 bits
    generator = np.random.Philox(
        key=np.array([seed, stream], np.uint64),
        counter=np.array([first * blocks, 0, 0, 0], np.uint64),
    )
    raw = generator.random_raw(rows * blocks * 4).astype("<u8", copy=False).view("<u4")
    raw = raw.reshape(rows, blocks * 8)[:, :items].astype(np.uint64)
    return ((raw * np.uint64(items)) >> np.uint64(32)).astype(np.int64)


def portions(n: int, width: int):
    """(first, rows) of portions that cover 0..n-1, rows * width about PORTION."""
    rows = max(1, PORTION // max(1, width))
    for first in range(0, n, rows):
        yield first, min(rows, n - first)


def weights(first: int, rows: int, items: int, seed: int, stream: int = 0) -> np.ndarray:
    """How often each item was drawn: (rows, items) float64 with rows that add up to items."""
    flat = draws(first, rows, items, seed, stream) + np.arange(rows)[:, None] * items
    return np.bincount(flat.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)


class Cases(NamedTuple):
    """Canonical order of paired cases and the cluster (n,) of each, 0..clusters-1."""

    order: np.ndarray
    codes: np.ndarray
    clusters: int
    swapped: bool


def _codes(*columns: np.ndarray) -> list[np.ndarray]:
    """Rank (n,) of each column's values among the distinct values of them all."""
    found = np.unique(np.concatenate(columns), return_inverse=True)[1].reshape(-1)
    return np.split(found, np.cumsum([len(c) for c in columns])[:-1])


def _keys(y, first, second, cluster, fold) -> np.ndarray:
    """Sort keys (n, columns): cluster, fold, label, first prediction, second prediction."""
    if first.ndim == 1:
        pair = _codes(first, second)
    else:
        whole = _codes(first.reshape(-1), second.reshape(-1))
        pair = [w.reshape(len(y), -1) for w in whole]
    if y.ndim == 2:  # findings: equal rows are the same label
        y = np.unique(np.nan_to_num(y, nan=-1), axis=0, return_inverse=True)[1].reshape(-1)
    return np.column_stack([cluster, fold, _codes(y)[0], *pair])


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort(keys.T[::-1])
    return order, keys[order]


def _named(values, y, name: str, what: str) -> np.ndarray:
    """Codes (n,) of `values`, zeros for None."""
    if values is None:
        return np.zeros(len(y), np.int64)
    values = np.asarray(values)
    if values.shape != y.shape[:1]:
        raise ValueError(
            f"{name} has shape {values.shape} and y {y.shape}; it must name the {what} of each case"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN; give each case a {what}, its own one if need be")
    return _codes(values)[0]


def canonical(y, a, b, groups=None, folds=None) -> Cases:
    """Put the cases into an order that depends on their content alone, so that results do not
    depend on the order of rows; `swapped` tells that (b, a) sorts before (a, b), which makes the
    resamples of the pair (a, b) and (b, a) the same.

    groups None: every case is its own cluster.
    """
    cluster, fold = _named(groups, y, "groups", "patient"), _named(folds, y, "folds", "fold")
    order, mine = _sorted(_keys(y, a, b, cluster, fold))
    swapped_order, theirs = _sorted(_keys(y, b, a, cluster, fold))
    different = np.flatnonzero((mine != theirs).ravel())
    swapped = bool(different.size and theirs.ravel()[different[0]] < mine.ravel()[different[0]])
    if swapped:
        order = swapped_order
    codes = np.arange(len(y)) if groups is None else cluster[order]
    if codes.max() == 0:
        what = "there is one case" if groups is None else "all cases are of one patient"
        raise ValueError(f"{what}; resampling needs at least two, and many for a useful interval")
    return Cases(order, codes, int(codes.max()) + 1, swapped)
