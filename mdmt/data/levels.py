"""A decoded picture as codes and a table: what is done to every pixel is done once per code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_BLOCK = 1 << 20  # pixels counted at a time, so that a count needs little memory


@dataclass(frozen=True)
class Levels:
    """A picture of at most 65,536 values, grey or in colour.

    codes (H, W) uint8 or uint16, of a colour picture (H, W, 3) red, green, blue; table (L,)
    float32: the value of code k is table[k] in every channel, for every code that occurs. Where
    table is None, codes float32 are the values themselves. counted: `counts`, where they are known.
    """

    codes: np.ndarray
    table: np.ndarray | None = None
    counted: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[:2]

    @property
    def colour(self) -> bool:
        """True for red, green and blue."""
        return self.codes.ndim == 3

    @property
    def grey(self) -> np.ndarray:
        """The values, float32: (H, W), of a colour picture (H, W, 3)."""
        return self.part(slice(None), slice(None))

    def planes(self) -> list[Levels]:
        """Red, green and blue as pictures of their own; of a grey picture itself."""
        if not self.colour:
            return [self]
        return [Levels(self.codes[..., c], self.table) for c in range(self.codes.shape[2])]

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """The values of some rows and columns: float32."""
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
        """Values of each code of the table, in all channels together, (L,) int64; only with a
        table."""
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
    """Levels of integer values (H, W) or (H, W, 3); those of 8 or 16 unsigned bits get a table."""
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        if values.min() < 0 or values.max() > 0xFFFF:
            return Levels(values.astype(np.float32))
        values = values.astype(np.uint16)
    if values.dtype.kind != "u":
        return Levels(values.astype(np.float32))
    codes = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return Levels(codes, np.arange(1 << (8 * codes.dtype.itemsize), dtype=np.float32))


def shown(pixels: np.ndarray) -> np.ndarray:
    """Pixels of a store, (S, S) or (3, S, S), as drawing takes them: (S, S) or (S, S, 3)."""
    return pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """The luminance (S, S) uint8 of pixels of a store (ITU-R 601); of grey ones they themselves."""
    if pixels.ndim == 2:
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(shown(pixels))).convert("L"))
