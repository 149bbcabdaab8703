"""Which part of a picture the network sees: the whole or the lungs, square, never stretched."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..data.levels import Levels


class Box(NamedTuple):
    """Pixels left..right - 1, top..bottom - 1 of a picture; beyond the picture lies black."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def whole(shape) -> Box:
    """The box of a picture of `shape` (H, W)."""
    return Box(0, 0, int(shape[1]), int(shape[0]))


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the True pixels of mask (H, W) bool; None if there are none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def bordered(box: Box, border: float) -> Box:
    """Move every side outwards by `border` times the box's width or height."""
    x, y = round(border * box.width), round(border * box.height)
    return Box(box.left - x, box.top - y, box.right + x, box.bottom + y)


def squared(box: Box, shape, how: str = "pad") -> Box:
    """Make a box square by taking more of the picture of `shape` (H, W).

    The square has the box's longer side and its center, moved as far as needed to lie inside the
    picture. Where the picture is too small, `pad` lets the square reach beyond it evenly (black),
    and `crop` shortens the square to the picture's shorter side.
    """
    height, width = shape
    side = max(box.width, box.height)
    if how == "crop":
        side = min(side, height, width)
    left = _placed(box.left, box.width, side, width)
    top = _placed(box.top, box.height, side, height)
    return Box(left, top, left + side, top + side)


def _placed(start: int, length: int, side: int, limit: int) -> int:
    """Start of an interval of `side` around start..start + length within 0..limit."""
    if side > limit:
        return -((side - limit) // 2)
    return min(max(start + (length - side) // 2, 0), limit - side)


def cut(picture, box: Box) -> np.ndarray:
    """The pixels of a box of a picture, 0 beyond it: float32 (box.height, box.width).

    picture: `Levels` or grey values (H, W) float32. The result may be a view of these.
    """
    height, width = picture.shape
    left, top = max(box.left, 0), max(box.top, 0)
    rows = slice(top, max(min(box.bottom, height), top))
    columns = slice(left, max(min(box.right, width), left))
    inside = picture.part(rows, columns) if isinstance(picture, Levels) else picture[rows, columns]
    if inside.shape == (box.height, box.width):
        return inside
    out = np.zeros((box.height, box.width), inside.dtype)
    y, x = top - box.top, left - box.left
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out
