"""External validation: what the networks of a configuration say together."""

from __future__ import annotations

import warnings

import numpy as np

from .. import stats
from ..measures import compared
from .compare import ON_CLASSES, Matrix, several_patients


def together(m: Matrix, n: int = 10000, seed: int = 0) -> dict:
    """{(backbone, configuration, metric): BootstrapInterval or None} of the mean of what all
    networks of a backbone and configuration say, which is what `mdmt predict` gives; BCa intervals
    by patient. None: not defined for these cases, or of one patient."""
    names = compared(m.spec)
    keys = [(b, c) for b in m.backbones for c in m.configurations]
    mean = {(b, c): np.mean([m.p[(*net, c)] for net in m.trainings(b)], 0) for b, c in keys}
    found = {}
    cut = [k for k in names if k in ON_CLASSES]
    for some in filter(None, (cut, [k for k in names if k not in cut])):
        every = [(key, k) for key in keys for k in some]
        if not several_patients(m):
            found |= {(*key, k): None for key, k in every}
            continue
        wanted = [(m.named_metric(k), m.given(k, mean[key])) for key, k in every]
        drawn = stats.resample(m.truth(some[0]), wanted, m.patient, n, seed)
        for i, (key, k) in enumerate(every):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                try:
                    found[(*key, k)] = drawn.interval(i)
                except ValueError:
                    found[(*key, k)] = None
    return found
