"""Initial weights, each drawn from a stream of its own: a function of seed and key alone."""

import math
import zlib

import numpy as np

BLOCK = 1 << 14  # numbers at a time: what is computed on stays in the cache


def _words(key, seed, skipped=0):
    """The stream of a key, behind its first `skipped` words."""
    words = np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(key.encode())])
    words.advance(skipped // 4)  # a step of Philox gives four words
    words.random_raw(skipped % 4)
    return words


def _uniform(words, count):
    """count numbers in (0, 1), float64."""
    raw = words.random_raw(count)
    raw >>= np.uint64(11)
    u = raw.astype(np.float64)
    u += 0.5
    u *= 2.0**-53
    return u


def _fill_uniform(out, key, seed, bound):
    words = _words(key, seed)
    for start in range(0, len(out), BLOCK):
        u = _uniform(words, min(BLOCK, len(out) - start))
        u *= 2
        u -= 1
        np.multiply(u, bound, out=out[start : start + BLOCK], casting="same_kind")


def _fill_normal(out, key, seed, deviation):
    """Box and Muller's pairs: the first half of the stream is the radii, the second the angles;
    the first half of the values is of the cosines, the second of the sines."""
    half = (len(out) + 1) // 2
    radii, angles = _words(key, seed), _words(key, seed, half)
    for start in range(0, half, BLOCK):
        count = min(BLOCK, half - start)
        radius = _uniform(radii, count)
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle = _uniform(angles, count)
        angle *= 2 * math.pi
        for first, wave in ((start, np.cos), (half + start, np.sin)):
            place = out[first : first + count]
            value = wave(angle)
            value *= radius
            np.multiply(value[: len(place)], deviation, out=place, casting="same_kind")


def initial_value(key, init, shape, seed):
    """float32 of the shape. init: ("constant", value), ("normal", standard deviation) or
    ("uniform", bound), as Builder chose them by the rules of the network's original."""
    kind, number = init
    if kind == "constant":
        return np.full(shape, number, np.float32)
    values = np.empty(math.prod(shape), np.float32)
    fill = _fill_normal if kind == "normal" else _fill_uniform
    fill(values, key, seed, number)
    return values.reshape(shape)
