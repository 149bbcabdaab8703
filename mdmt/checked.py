"""Checks of single values that users give."""

from __future__ import annotations

import operator
import reprlib


def _index(value) -> int | None:
    """The integer that a value is (NumPy's count, too), or None. A bool is none."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, bool) or kind == "b":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def whole(name: str, value, low: int, high: int) -> int:
    """An integer from low to high; ValueError, naming it, otherwise."""
    number = _index(value)
    if number is None:
        raise ValueError(
            f"{name} must be an integer from {low} to {high}, not {reprlib.repr(value)}"
        )
    if not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {number}")
    return number


def integer(name: str, value) -> int:
    """An integer that fits 64 bits, whose range another checks; ValueError otherwise."""
    if _index(value) is None:
        raise ValueError(f"{name} must be an integer, not {reprlib.repr(value)}")
    return whole(name, value, -(1 << 63), (1 << 63) - 1)
