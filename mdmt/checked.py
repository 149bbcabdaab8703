"""Checks of single values that users give."""

from __future__ import annotations

import numbers
import reprlib


def whole(name: str, value, low: int, high: int) -> int:
    """An integer from low to high; ValueError, naming it, otherwise."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(
            f"{name} must be an integer from {low} to {high}, not {reprlib.repr(value)}"
        )
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
    return int(value)


def integer(name: str, value) -> int:
    """An integer that fits 64 bits, whose range another checks; ValueError otherwise."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, not {reprlib.repr(value)}")
    return whole(name, value, -(1 << 63), (1 << 63) - 1)
