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
    """float32 of the shape.

    conv: normal with standard deviation sqrt(2 / fan out) (He et al. 2015), as torchvision's
    ResNet; linear and "bias of n": uniform in +-1 / sqrt(inputs), PyTorch's default.
    """
    count = math.prod(shape)
    if init in ("zeros", "ones"):
        return np.full(shape, init == "ones", np.float32)
    if init == "conv":
        std = math.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        return (std * _normal(key, seed, count)).astype(np.float32).reshape(shape)
    fan_in = shape[1] if init == "linear" else int(init.removeprefix("bias of "))
    bound = 1 / math.sqrt(fan_in)
    return ((2 * _uniform(key, seed, count) - 1) * bound).astype(np.float32).reshape(shape)
