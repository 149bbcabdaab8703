"""Initial weights, each drawn from a stream of its own: a function of seed and key alone."""

import math
import zlib

import numpy as np


def _uniform(key, seed, count):
    """count numbers in (0, 1), float64."""
    words = np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(key.encode())])
    return ((words.random_raw(count) >> np.uint64(11)) + 0.5) * 2.0**-53


def _normal(key, seed, count):
    half = (count + 1) // 2
    u = _uniform(key, seed, 2 * half)
    radius, angle = np.sqrt(-2 * np.log(u[:half])), 2 * math.pi * u[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def initial_value(key, init, shape, seed):
    """float32 of the shape. init: ("constant", value), ("normal", standard deviation) or
    ("uniform", bound), as Builder chose them by the rules of the network's original."""
    kind, number = init
    count = math.prod(shape)
    if kind == "constant":
        return np.full(shape, number, np.float32)
    if kind == "normal":
        values = number * _normal(key, seed, count)
    else:
        values = number * (2 * _uniform(key, seed, count) - 1)
    return values.astype(np.float32).reshape(shape)
