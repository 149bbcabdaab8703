"""Checks of single values that users give."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib

import numpy as np


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


def finite(value) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def chosen(value, known) -> bool:
    """Whether it is a text that `known` holds; an array or a list, which cannot be looked up, is
    none."""
    return isinstance(value, str) and value in known


def floats(name: str, value, dtype=np.float64) -> np.ndarray:
    """The numbers of what is or becomes an array; ValueError, naming it, for other things and for
    rows of different lengths."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(array_of(value), dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name} must hold numbers, in rows of the same length, not {reprlib.repr(value)}"
        ) from None


def array_of(value) -> np.ndarray:
    """The array of what is one or becomes one: also PyTorch's tensors that have gradients, lie on a
    GPU or are of bfloat16, which NumPy has not."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    return np.asarray(value)
