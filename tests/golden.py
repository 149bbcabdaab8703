"""What the golden files are about: a network, its weights and its batches, made of integers alone,
so that every machine and every library version makes the same ones.

tests/make_golden.py runs PyTorch in float64 on them and keeps the losses of ten steps and, of
every gradient tensor of the first step, its norm and a sample of its elements.
"""

from pathlib import Path

import numpy as np

from tests import tinynets

FOLDER = Path(__file__).parent / "golden"
# Networks of few layers: residual ones (of a bottleneck or not) and one of each other construct.
# `seed` of the images is one for which no value stands so near a kink of an activation that
# rounding decides its side: there the gradient jumps, and no two programs agree (resnet18 on random
# images at this size: relative errors of 1e-2 between any two).
# name: (image size, batch, seed)
RUNS = {
    "basic": (64, 4, 0),
    "bottleneck": (64, 4, 10),
    "dense": (24, 6, 3),
    "inception": (24, 6, 1),
    "shuffle": (24, 6, 1),
    "inverted": (24, 6, 0),
    "excited": (24, 6, 0),
}
RESIDUAL = {"basic": False, "bottleneck": True}  # name: whether its blocks are bottlenecks
TINY = {
    "dense": lambda: tinynets.dense(3),
    "inception": tinynets.inception,
    "shuffle": lambda: tinynets.shuffle(20, 3),
    "inverted": lambda: tinynets.inverted("relu6", False, kernel=3),
    "excited": lambda: tinynets.inverted("silu", True),
}
HEADS = {"prognosis": 2, "severity": 4}
STEPS, SAMPLE = 10, 192
ADAM = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}


def uniform(seed, shape):
    """float32 in [-1, 1): SplitMix64 (Steele et al. 2014) of the position."""
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 32)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(shape)


def weights(shapes):
    """{name: array} for {name: shape}: He-scaled weights, batch norms away from 1 and 0."""
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        u = uniform(number + 1, shape)
        if name.endswith("num_batches_tracked"):
            u = np.zeros(shape, np.int64)
        elif len(shape) > 1:
            u = u * np.float32(np.sqrt(6.0 / np.prod(shape[1:])))
        elif name.endswith(("weight", "running_var")):
            u = 1 + np.float32(0.25) * u
        else:
            u = np.float32(0.1) * u
        found[name] = u
    return found


def batch(name, step):
    """x (N,3,H,W) float32, task (N) int64, target (N) int64 of a step."""
    size, n, seed = RUNS[name]
    x = 2 * uniform(1000 + 50 * seed + step, (n, 3, size, size))
    task = np.arange(n) % len(HEADS)
    classes = np.array(list(HEADS.values()))[task]
    return x, task, (np.arange(n) * 7 + step) % classes


def positions(count):
    """Which elements of a flat tensor are kept: all of a small one."""
    if count <= SAMPLE:
        return np.arange(count)
    return np.unique((uniform(77, (SAMPLE,)) + 1) / 2 * count).astype(np.int64)
