"""How much results change when a training is repeated with another seed.

Of a measure v (fold, seed) of one backbone, the variance between its seeds within a fold, averaged
over folds and backbones, is that of a repeated training, since the networks of different folds are
trained on their own; the mean over F folds, S seeds and B backbones then has from the trainings
alone the standard error sqrt(variance / (F S B)). Folds that are the same as another, beside those
of another data set, are copies of its trainings: of F such folds with c_g copies in the g-th group
the variance is divided by F^2 / sum(c_g^2) instead of F.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ..measures import compared
from ..stats.shared import origins_of
from .compare import METHOD, Analysis, Matrix, defined_folds, value


@dataclass(frozen=True)
class Spread:
    """A measure of a configuration, or (against: the other one) of METHOD minus it.

    mean: over folds, seeds and backbones; deviation: standard deviation of a repeated training of
    the same fold; error: standard error of the mean from that alone; share: part of the variance
    of the mean over patients and trainings that the trainings make (None: the interval is of
    something else or not known); seeds, folds: how many.
    """

    configuration: str
    against: str
    metric: str
    mean: float
    deviation: float
    error: float
    share: float | None
    seeds: int
    folds: int


def spreads(a: Analysis) -> list[Spread]:
    """Spread of every configuration and every difference of METHOD in the compared measures; none
    where no backbone was trained with several seeds."""
    m = a.matrix
    seeds = max((len(m.trainings(b)) for b in m.backbones), default=0)
    if seeds < 2:
        return []
    found = []
    _, codes = np.unique(m.patient, return_inverse=True)
    for k in compared(m.spec):
        each = {c: [_values(m, k, c, b) for b in m.backbones] for c in m.configurations}
        rows = [(c, "", each[c]) for c in m.configurations]
        for other in [c for c in m.configurations if c != METHOD and METHOD in each]:
            pairs = zip(each[METHOD], each[other], strict=True)
            rows.append((METHOD, other, [x - y for x, y in pairs]))
        for name, other, values in rows:
            whole = None if a.random_backbones else a.deviations.get((name, other, k))
            origins = [
                _origins(m, k, codes, b, [name, *[other][: bool(other)]]) for b in m.backbones
            ]
            found.append(_spread(name, other, k, values, origins, whole, seeds))
    return found


def _values(m: Matrix, metric: str, configuration: str, backbone: str) -> np.ndarray:
    """(folds, seeds) of a backbone's networks."""
    nets, folds = m.trainings(backbone), _folds(m, metric)
    return np.array(
        [[value(m, metric, m.fold == f, m.p[(*n, configuration)]) for n in nets] for f in folds]
    ).reshape(len(folds), len(nets))


def _folds(m: Matrix, metric: str):
    return defined_folds(m, metric) if metric == "pearson" else m.folds  # as in the comparisons


def _origins(m: Matrix, metric: str, codes, backbone: str, configurations: list) -> np.ndarray:
    """The first fold that each of `_folds` is the same as, by the backbone's networks."""
    mine = np.isin(m.fold, _folds(m, metric))
    if not mine.any():  # no fold defines the measure
        return np.zeros(0, np.int64)
    given = [m.p[(*n, c)][mine] for n in m.trainings(backbone) for c in configurations]
    return origins_of(codes[mine], m.y[mine], given, m.fold[mine])


def _spread(name, other, metric, values, origins, whole: float | None, seeds: int) -> Spread:
    """values, origins: of each backbone; whole: standard deviation of the mean over patients and
    trainings, None where not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a measure that no fold defines
        mean = float(np.mean([np.nanmean(v) for v in values]))
        variances = [np.nanmean(np.nanvar(v, 1, ddof=1)) for v in values if v.shape[1] > 1]
        variance = float(np.mean(variances))
        shares = [_share_of_one(np.isfinite(v), o) for v, o in zip(values, origins, strict=True)]
        # of the mean over backbones of each one's mean
        error = float(np.sqrt(np.mean(shares) * variance / len(values)))
    folds = int(np.isfinite(values[0]).any(1).sum())
    share = float(min((error / whole) ** 2, 1.0)) if whole and whole == whole else None
    return Spread(name, other, metric, mean, float(np.sqrt(variance)), error, share, seeds, folds)


def _share_of_one(known: np.ndarray, origins: np.ndarray) -> float:
    """The variance of the mean over known (folds, seeds) trainings, in that of one training."""
    counts = [known[origins == o].sum(0) for o in np.unique(origins)]
    return float(np.sum(np.square(counts)) / known.sum() ** 2) if known.any() else np.nan
