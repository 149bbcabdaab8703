"""Seeded cases for the tests of statistics."""

import numpy as np

ALTERNATIVES = ("two-sided", "greater", "less")


def two_scores(seed, n=60, gain=(1.2, 0.9), levels=None):
    """Labels 0/1 (both occur at least twice) and two correlated scores, in `levels` steps."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.append([0, 0, 1, 1], rng.integers(0, 2, n - 4)))
    common = rng.normal(size=n)
    a, b = (g * y + common + rng.normal(size=n) for g in gain)
    return (y, a, b) if levels is None else (y, np.round(a * levels), np.round(b * levels))


def classes(seed, n=50, k=3):
    rng = np.random.default_rng(seed)
    y, a, b = rng.integers(0, k, (3, n))
    return y, np.where(rng.random(n) < 0.4, y, a), np.where(rng.random(n) < 0.3, y, b)


def probabilities(seed, n=80, k=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    y[:k] = np.arange(k)
    p = rng.dirichlet(np.ones(k), n)
    p[np.arange(n), y] += 0.3
    return y, p / p.sum(1, keepdims=True)
