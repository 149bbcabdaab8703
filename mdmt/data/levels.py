"""A decoded picture as codes and a table: what is done to every pixel is done once per code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_BLOCK = 1 << 20  # pixels counted at a time, so that a count needs little memory


@dataclass(frozen=True)
class Levels:
    """A grey picture of at most 65,536 grey values.

    codes (H, W) uint8 or uint16; table (L,) float32: the grey value of code k is table[k], for
    every code that occurs. Where table is None, codes (H, W) float32 are the grey values
    themselves. counted: `counts`, where they are known.
    """

    codes: np.ndarray
    table: np.ndarray | None = None
    counted: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    @property
    def grey(self) -> np.ndarray:
        """Grey values (H, W) float32."""
        return self.part(slice(None), slice(None))

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """Grey values of some rows and columns: float32."""
        codes = self.codes[rows, columns]
        if self.table is None:
            return codes
        if self._plain:  # several times faster than looking each pixel up
            return codes.astype(np.float32)
        return self.table[codes]

    @cached_property
    def _plain(self) -> bool:
        """True if every code is its own grey value."""
        return np.array_equal(self.table, np.arange(len(self.table), dtype=np.float32))

    @cached_property
    def counts(self) -> np.ndarray:
        """Pixels of each code of the table, (L,) int64; only with a table."""
        counted = count(self.codes) if self.counted is None else self.counted
        return counted[: len(self.table)]


def count(codes: np.ndarray) -> np.ndarray:
    """Pixels of each value of `codes` (any shape, uint8 or uint16): (256 or 65,536,) int64."""
    if codes.ndim == 2 and codes.dtype == np.uint8:
        from PIL import Image

        return np.array(Image.fromarray(codes).histogram(), np.int64)  # twice as fast
    flat, size = codes.reshape(-1), 1 << (8 * codes.dtype.itemsize)
    total = np.zeros(size, np.int64)
    for start in range(0, flat.size, _BLOCK):
        total += np.bincount(flat[start : start + _BLOCK], minlength=size)
    return total


def of_integers(values: np.ndarray) -> Levels:
    """Levels of integer grey values (H, W); those of 8 or 16 unsigned bits get a table."""
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        if values.min() < 0 or values.max() > 0xFFFF:
            return Levels(values.astype(np.float32))
        values = values.astype(np.uint16)
    if values.dtype.kind != "u":
        return Levels(values.astype(np.float32))
    codes = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return Levels(codes, np.arange(1 << (8 * codes.dtype.itemsize), dtype=np.float32))
