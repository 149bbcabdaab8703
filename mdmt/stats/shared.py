"""Many metrics of many networks on the same cases, from one set of resamples.

What `paired_bootstrap` does for two predictions and one metric, for as many as a study has: every
resample is drawn once, each metric of each network is evaluated once, and any difference between
them follows. The numbers are those of `paired_bootstrap`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import _check, _resample
from ._weighted import by_fold, each_fold
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

# Where a metric ends: drawn trainings, whose deviations are scaled, may lie beyond.
BOUNDS = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv",
                     "f1", "f1_macro", "f1_weighted", "gmean", "auc"), (0, 1)),
    **dict.fromkeys(("mcc", "quadratic_weighted_kappa", "pearson", "ccc"), (-1, 1)),
    **dict.fromkeys(("brier", "mae", "rmse"), (0, None)), "r2": (None, 1),
}  # fmt: skip


class Repeated(NamedTuple):
    """What a network that was trained several times predicts: one (cases,) or (cases, K) for each
    training."""

    predictions: Sequence


class Resampled(NamedTuple):
    """Values of F metrics: of the cases (F,), of n resamples (F, n), with each group left out
    (F, G); names (F,) say what each is, seed what was drawn. Where networks were trained several
    times these are means over the trainings, left_out is None, and `retrained` (F, n) has the
    trainings drawn, too (None: each was trained once)."""

    values: np.ndarray
    resamples: np.ndarray
    left_out: np.ndarray | None
    names: tuple
    seed: int
    retrained: np.ndarray | None = None
    freedom: np.ndarray | None = None
    team: np.ndarray | None = None

    def interval(self, i: int, confidence_level: float = 0.95) -> BootstrapInterval:
        """The metric number `i` with its interval (as `mean` has it)."""
        return self.mean([i], confidence_level)

    def difference(self, i: int, j: int, confidence_level: float = 0.95) -> PairedBootstrap:
        """Metric `i` minus metric `j`, as `paired_bootstrap` has it (or `mean_difference`, where
        networks were trained several times)."""
        return self.mean_difference([(i, j)], confidence_level=confidence_level)

    def mean(self, which, confidence_level: float = 0.95) -> BootstrapInterval:
        """Mean of the metrics numbered `which`, with its interval: BCa, or, where networks were
        trained several times, percentile of patients and trainings."""
        which = list(which)
        value = float(np.mean(self.values[which]))
        name = self.names[which[0]]
        if self.retrained is not None:
            both, alone = (v[which].mean(0) for v in (self.retrained, self.resamples))
            kept = self._stretched(_defined(both, value, name), alone, value, which)
            ends = np.clip(_percentile(kept, confidence_level), *BOUNDS.get(name, (None, None)))
            return BootstrapInterval(value, *map(float, ends))
        kept = _defined(self.resamples[which].mean(0), value, name)
        low, high = bca_interval(kept, self.left_out[which].mean(0), value, confidence_level)
        return BootstrapInterval(value, low, high)

    def mean_difference(
        self, pairs, backbones: str = "fixed", confidence_level: float = 0.95
    ) -> PairedBootstrap:
        """Mean over `pairs` (i, j) of metric i minus metric j.

        backbones "fixed": these ones (BCa interval, or, where networks were trained several times,
        the percentile interval of patients and trainings); "random": the pairs, one per backbone,
        are drawn with replacement too, as in `hierarchical_bootstrap` (percentile interval), which
        has the trainings in it, since every backbone has its own.
        """
        if backbones not in ("random", "fixed"):
            raise ValueError(f"backbones is {backbones!r}; it must be 'random' or 'fixed'")
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        if len(pairs) == 0:
            raise ValueError("pairs is empty; give at least one pair of metrics")
        one, other = pairs.T
        value = float(np.mean(self.values[one] - self.values[other]))
        name = self.names[one[0]]
        if backbones == "random":
            each = self.resamples[one] - self.resamples[other]
            drawn = _resample.draws(0, each.shape[1], len(pairs), self.seed, stream=1)
            kept = _defined(np.take_along_axis(each.T, drawn, 1).mean(1), value, name)
        elif self.retrained is not None:
            both, alone = ((v[one] - v[other]).mean(0) for v in (self.retrained, self.resamples))
            kept = self._stretched(_defined(both, value, name), alone, value, [*one, *other])
        else:
            kept = _defined((self.resamples[one] - self.resamples[other]).mean(0), value, name)
            jackknife = (self.left_out[one] - self.left_out[other]).mean(0)
            low, high = bca_interval(kept, jackknife, value, confidence_level)
            pvalue = _bca_pvalue(kept, jackknife, value, "two-sided")
            return PairedBootstrap(value, low, high, pvalue)
        pvalue = _sided(*_shares(kept), "two-sided", self.resamples.shape[1])
        return PairedBootstrap(value, *_percentile(kept, confidence_level), pvalue)

    def deviation(self, which, less=()) -> float:
        """Standard deviation, of patients and of trainings where there are several, of the mean of
        the metrics numbered `which`, minus that of `less`; NaN where no resample defines it."""
        drawn = self.resamples if self.retrained is None else self.retrained
        values = drawn[list(which)].mean(0)
        if len(less):
            values = values - drawn[list(less)].mean(0)
        values = values[np.isfinite(values)]
        return float(np.std(values)) if len(values) else float("nan")

    def _stretched(self, drawn: np.ndarray, alone: np.ndarray, value: float, which) -> np.ndarray:
        """`drawn`, of patients and trainings, with Student's quantiles in the place of normal ones
        around `value`: few trainings do not know their own variance. alone: of patients only, whose
        variance counts as known; degrees of freedom by Satterthwaite (Biometrics 2, 1946)."""
        from scipy.special import ndtri, stdtrit

        # networks that draw the same trainings know of one variance; those of several teams are
        # added with about equal parts
        each = {int(self.team[i]): float(self.freedom[i]) for i in which}
        whole = float(np.var(drawn))
        share = 1 - float(np.nanvar(alone)) / whole if whole > 0 else 0.0
        if share <= 0 or sum(each.values()) == 0:
            return drawn
        shares = (np.arange(len(drawn)) + 0.5) / len(drawn)
        z = ndtri(shares)
        far = np.abs(z) > 1e-3  # in the middle the two are as good as the same
        scale = np.ones(len(drawn))
        scale[far] = stdtrit(sum(each.values()) / share**2, shares[far]) / z[far]
        return np.sort(value + (np.sort(drawn) - value) * scale)


def _percentile(distribution: np.ndarray, confidence_level: float) -> tuple[float, float]:
    tail = (1 - _check.level_of(confidence_level)) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return float(low), float(high)


def resample(
    y, wanted, groups=None, n: int = 10000, seed: int = 0, *, folds=None, positive=1, sets=None
) -> Resampled:
    """Resample the cases y (cases,) once for all `wanted`: a list of (metric, prediction).

    y may be findings (cases, K): 0, 1 or NaN (not labelled); then prediction is (cases, K), and a
    metric ("accuracy", "f1", "gmean", "auc", "brier") the mean over the findings that have it.
    metric, groups, folds, positive as in `paired_bootstrap`; prediction (cases,) or (cases, K). A
    metric of `wanted` that the cases themselves leave undefined is NaN throughout.

    prediction may be `Repeated`: T predictions of the same network trained T times (other seeds).
    The metric is their mean, and `Resampled.retrained` draws, in every resample and independently
    in every fold (whose networks were trained on their own), T of the T trainings with replacement.
    Folds with the same cases and predictions are of the same networks, and draw the same trainings.
    sets (F,): those of one label draw the same trainings, so that differences are paired by
    training (default: all). T trainings understate their variance by (T - 1) / T; deviations from
    their mean are scaled by sqrt(T / (T - 1)) to make up for it (Rao & Wu, JASA 83, 1988). That
    variance is itself known from few trainings only: `Resampled` takes intervals and p-values with
    Student's quantiles as far as it is part of the whole.

    Raises ValueError for shapes that do not fit.
    """
    y = _check.outcomes(y)
    n, seed = _check.count_of(n, "n"), _check.count_of(seed, "seed", 0)
    if not wanted:
        raise ValueError("wanted is empty; give at least one (metric, prediction)")
    wanted = [(m, p.predictions if isinstance(p, Repeated) else [p]) for m, p in wanted]
    wanted = [(m, [np.asarray(one) for one in p]) for m, p in wanted]
    for k, (_, predictions) in enumerate(wanted):
        if not predictions:
            raise ValueError(f"prediction {k} has no training; give at least one")
        for p in predictions:
            if p.shape[:1] != y.shape[:1] or p.ndim > 2:
                raise ValueError(
                    f"y has shape {y.shape} and prediction {k} {p.shape}; it must be (n,) or "
                    "(n, K) for the n cases of y"
                )
    if sets is not None and len(sets) != len(wanted):
        raise ValueError(f"sets has {len(sets)} labels for {len(wanted)} predictions; give as many")
    flat = np.column_stack([p.reshape(len(y), -1) for _, given in wanted for p in given])
    case = _resample.canonical(y, flat, flat, groups, folds)
    of_fold = None if folds is None else np.asarray(folds)[case.order]
    y, wanted = y[case.order], [(m, [p[case.order] for p in given]) for m, given in wanted]
    names = tuple(m if isinstance(m, str) else m.__name__ for m, _ in wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if all(len(given) == 1 for _, given in wanted):
            functions = [by_fold(m, y, p, of_fold, positive) for m, (p,) in wanted]
            return Resampled(*_run(functions, case, n, seed), names, seed)
        functions = [each_fold(m, y, given, of_fold, positive) for m, given in wanted]
        numbers = {}
        team = [numbers.setdefault(label, len(numbers)) for label in sets or [0] * len(wanted)]
        origins = [origins_of(case.codes, y, given, of_fold) for _, given in wanted]
        return _run_repeated(functions, team, origins, case, n, seed, names)


def origins_of(codes, y, given: list, of_fold) -> np.ndarray:
    """The first fold that each fold (F,) is the same as: where folds are gone through again beside
    those of another data set, their networks are copies.

    codes (n,): of the patients, as numbers; y, and each of given, the predictions (n,) or (n, K);
    of_fold (n,), or None: one fold.
    """
    if of_fold is None:
        return np.zeros(1, np.int64)
    table = np.column_stack([v.reshape(len(y), -1) for v in (codes, y, *given)])
    first: dict = {}
    found = []
    for k, fold in enumerate(np.unique(of_fold)):
        rows = table[of_fold == fold]
        found.append(first.setdefault(rows[np.lexsort(rows.T)].tobytes(), k))
    return np.array(found)


def _run_repeated(functions, team, origins, case, n: int, seed: int, names: tuple) -> Resampled:
    """As `_run`, of functions from weights (R, cases) to (trainings, folds, R); team (F,): numbers
    of those that draw the same trainings; origins: of each as from `origins_of`."""
    ones = np.ones((1, len(case.codes)))
    values = np.array([_mean_of(f(ones))[0] for f in functions])
    resamples = np.empty((len(functions), n))
    retrained = np.empty((len(functions), n))
    # of the folds that define the metric
    known = [np.isfinite(f(ones)[:, :, 0]).sum(0) for f in functions]
    freedom = np.array(
        [np.maximum(k[np.unique(o)] - 1, 0).sum() for k, o in zip(known, origins, strict=True)],
        np.float64,
    )
    for first, rows in _resample.portions(n, len(case.codes)):
        w = _resample.weights(first, rows, case.clusters, seed)[:, case.codes]
        drawn: dict = {}
        for k, (function, number) in enumerate(zip(functions, team, strict=True)):
            each = function(w)
            trainings, folds, _ = each.shape
            resamples[k, first : first + rows] = mean = _mean_of(each)
            if trainings == 1:
                retrained[k, first : first + rows] = mean
                continue
            if (number, trainings, folds) not in drawn:
                drawn[number, trainings, folds] = _trainings(
                    first, rows, trainings, folds, seed, number
                )
            which = drawn[number, trainings, folds][:, origins[k]]
            again = _mean_of(np.take_along_axis(each, which, 0))
            stretch = np.sqrt(trainings / (trainings - 1))
            retrained[k, first : first + rows] = mean + stretch * (again - mean)
    return Resampled(values, resamples, None, names, seed, retrained, freedom, np.array(team))


def _trainings(first, rows, trainings: int, folds: int, seed: int, team: int) -> np.ndarray:
    """Which trainings each resample draws: (trainings, folds, rows)."""
    # Streams 0 and 1 draw patients and backbones.
    streams = (2 + team * folds + fold for fold in range(folds))
    each = [_resample.draws(first, rows, trainings, seed, stream) for stream in streams]
    return np.stack(each).transpose(2, 0, 1)


def _mean_of(each: np.ndarray) -> np.ndarray:
    """Mean over trainings, then over folds, (R,) of values (trainings, folds, R), of those that are
    defined; NaN where none is."""
    return np.nanmean(np.nanmean(each, 0), 0)
