"""Many metrics of many networks on the same cases, from one set of resamples.

What `paired_bootstrap` does for two predictions and one metric, for as many as a study has: every
resample is drawn once, each metric of each network is evaluated once, and any difference between
them follows. The numbers are those of `paired_bootstrap`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from . import _check, _resample
from ._weighted import by_fold
from .bootstrap import (
    BootstrapInterval,
    PairedBootstrap,
    _bca_pvalue,
    _defined,
    _run,
    _shares,
    _sided,
    bca_interval,
)


class Resampled(NamedTuple):
    """Values of F metrics: of the cases (F,), of n resamples (F, n), with each group left out
    (F, G); names (F,) say what each is, seed what was drawn."""

    values: np.ndarray
    resamples: np.ndarray
    left_out: np.ndarray
    names: tuple
    seed: int

    def interval(self, i: int, confidence_level: float = 0.95) -> BootstrapInterval:
        """The metric number `i` with its BCa interval."""
        value = float(self.values[i])
        kept = _defined(self.resamples[i], value, self.names[i])
        return BootstrapInterval(
            value, *bca_interval(kept, self.left_out[i], value, confidence_level)
        )

    def difference(self, i: int, j: int, confidence_level: float = 0.95) -> PairedBootstrap:
        """Metric `i` minus metric `j`, as `paired_bootstrap` has it."""
        value = float(self.values[i] - self.values[j])
        kept = _defined(self.resamples[i] - self.resamples[j], value, self.names[i])
        jackknife = self.left_out[i] - self.left_out[j]
        low, high = bca_interval(kept, jackknife, value, confidence_level)
        return PairedBootstrap(value, low, high, _bca_pvalue(kept, jackknife, value, "two-sided"))

    def mean(self, which, confidence_level: float = 0.95) -> BootstrapInterval:
        """Mean of the metrics numbered `which`, with its BCa interval."""
        which = list(which)
        value = float(np.mean(self.values[which]))
        kept = _defined(self.resamples[which].mean(0), value, self.names[which[0]])
        low, high = bca_interval(kept, self.left_out[which].mean(0), value, confidence_level)
        return BootstrapInterval(value, low, high)

    def mean_difference(
        self, pairs, backbones: str = "fixed", confidence_level: float = 0.95
    ) -> PairedBootstrap:
        """Mean over `pairs` (i, j) of metric i minus metric j.

        backbones "fixed": these ones (BCa interval); "random": the pairs, one per backbone, are
        drawn with replacement too, as in `hierarchical_bootstrap` (percentile interval).
        """
        if backbones not in ("random", "fixed"):
            raise ValueError(f"backbones is {backbones!r}; it must be 'random' or 'fixed'")
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        if len(pairs) == 0:
            raise ValueError("pairs is empty; give at least one pair of metrics")
        each = self.resamples[pairs[:, 0]] - self.resamples[pairs[:, 1]]
        value = float(np.mean(self.values[pairs[:, 0]] - self.values[pairs[:, 1]]))
        if backbones == "fixed":
            kept = _defined(each.mean(0), value, self.names[pairs[0, 0]])
            jackknife = (self.left_out[pairs[:, 0]] - self.left_out[pairs[:, 1]]).mean(0)
            low, high = bca_interval(kept, jackknife, value, confidence_level)
            return PairedBootstrap(
                value, low, high, _bca_pvalue(kept, jackknife, value, "two-sided")
            )
        n = each.shape[1]
        drawn = _resample.draws(0, n, len(pairs), self.seed, stream=1)
        kept = _defined(
            np.take_along_axis(each.T, drawn, 1).mean(1), value, self.names[pairs[0, 0]]
        )
        tail = (1 - _check.level_of(confidence_level)) / 2
        low, high = np.quantile(kept, [tail, 1 - tail])
        pvalue = _sided(*_shares(kept), "two-sided", n)
        return PairedBootstrap(value, float(low), float(high), pvalue)


def resample(
    y, wanted, groups=None, n: int = 10000, seed: int = 0, *, folds=None, positive=1
) -> Resampled:
    """Resample the cases y (cases,) once for all `wanted`: a list of (metric, prediction).

    y may be findings (cases, K): 0, 1 or NaN (not labelled); then prediction is (cases, K), and a
    metric ("accuracy", "f1", "gmean", "auc", "brier") the mean over the findings that have it.
    metric, groups, folds, positive as in `paired_bootstrap`; prediction (cases,) or (cases, K). A
    metric of `wanted` that the cases themselves leave undefined is NaN throughout.
    Raises ValueError for shapes that do not fit.
    """
    y = _check.outcomes(y)
    n, seed = _check.count_of(n, "n"), _check.count_of(seed, "seed", 0)
    wanted = [(metric, np.asarray(prediction)) for metric, prediction in wanted]
    if not wanted:
        raise ValueError("wanted is empty; give at least one (metric, prediction)")
    for k, (_, prediction) in enumerate(wanted):
        if prediction.shape[:1] != y.shape[:1] or prediction.ndim > 2:
            raise ValueError(
                f"y has shape {y.shape} and prediction {k} {prediction.shape}; it must be (n,) or "
                "(n, K) for the n cases of y"
            )
    flat = np.column_stack([prediction.reshape(len(y), -1) for _, prediction in wanted])
    case = _resample.canonical(y, flat, flat, groups, folds)
    of_fold = None if folds is None else np.asarray(folds)[case.order]
    functions = [
        by_fold(metric, y[case.order], prediction[case.order], of_fold, positive)
        for metric, prediction in wanted
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        values, resamples, left_out = _run(functions, case, n, seed)
    names = tuple(m if isinstance(m, str) else m.__name__ for m, _ in wanted)
    return Resampled(values, resamples, left_out, names, seed)
