"""Further numbers of a place: every metric, calibration, subgroups, centers, single cases."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .. import stats
from .cohort import BANDS, groups_of
from .compare import METHOD, Matrix, by_fold, value

LEAST = 10  # cases below which a subgroup is counted but not scored
PATIENTS = 5  # and patients: resampling fewer says next to nothing of the spread


class Calibration(NamedTuple):
    """Means over the networks of a configuration, all cases pooled. slope and intercept are NaN
    for more than two classes."""

    configuration: str
    brier: float
    ece: float
    ece_width: float
    slope: float
    intercept: float


class Subgroup(NamedTuple):
    """One level of a variable: n cases of `patients` patients, `positive` of the positive class
    (-1 for more than two classes); found {configuration: {metric: BootstrapInterval or None}}."""

    variable: str
    level: str
    n: int
    patients: int
    positive: int
    found: dict


def operating(m: Matrix, configuration: str) -> dict:
    """Every metric of a configuration: mean over folds and networks, NaN where undefined."""
    names = ["accuracy", "balanced_accuracy"]
    if len(m.classes) == 2:
        names += ["sensitivity", "specificity", "f1"]
    names += ["f1_macro", "f1_weighted", "gmean", "mcc", "auc", "brier"]
    if len(m.classes) > 2:
        names += ["quadratic_weighted_kappa", "mae", "correlation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {k: float(np.nanmean(by_fold(m, k, configuration))) for k in names}


def calibration(m: Matrix, configuration: str) -> Calibration:
    """How far the probabilities of a configuration can be taken at their word."""
    found = []
    y = m.target()
    for net in m.nets:
        p = m.score(m.p[(*net, configuration)])
        two = p.ndim == 1
        found.append(
            (
                stats.brier(y, p),
                stats.ece(y, p),
                stats.ece(y, p, binning="width"),
                stats.calibration_slope(y, p) if two else np.nan,
                stats.calibration_intercept(y, p) if two else np.nan,
            )
        )
    return Calibration(configuration, *np.mean(found, 0).tolist())


def confusion(m: Matrix, configuration: str) -> np.ndarray:
    """Cases by true (row) and predicted class (K, K): all folds, mean over the networks."""
    k = len(m.classes)
    table = np.zeros((k, k))
    for net in m.nets:
        np.add.at(table, (m.y, m.p[(*net, configuration)].argmax(1)), 1)
    return table / len(m.nets)


def mean_truth(m: Matrix, configuration: str) -> np.ndarray:
    """Mean over the networks of the probability given to the true class (cases,)."""
    rows = np.arange(len(m.y))
    return np.mean([m.p[(*n, configuration)][rows, m.y] for n in m.nets], 0)


def _level_order(variable: str, levels) -> list[str]:
    bands = [name for _, name in BANDS]
    return sorted(levels, key=lambda v: (bands.index(v) if v in bands else 99, v))


def shown(m: Matrix) -> list[str]:
    """The configurations that figures of subgroups show: the paper's, without further ones."""
    some = [c for c in m.configurations if c in ("STL-tau1", "STL-tau2", "FT", METHOD)]
    return some or m.configurations[:4]


def subgroups(m: Matrix, cohort: dict | None, n: int = 1000, seed: int = 0) -> list[Subgroup]:
    """Accuracy and (two classes) AUC within the levels of every variable that is known, with
    intervals by patient. Cases of all folds are pooled, metrics averaged over the networks."""
    found = []
    for variable, level_of in groups_of(cohort, m.task, m.image, m.center).items():
        for level in _level_order(variable, set(level_of)):
            rows = np.flatnonzero(level_of == level)
            positive = int(np.sum(m.y[rows] == m.positive)) if len(m.classes) == 2 else -1
            patients = len(set(m.patient[rows]))
            enough = len(rows) >= LEAST and patients >= PATIENTS
            scored = _score(m, rows, n, seed) if enough else {}
            found.append(Subgroup(variable, level, len(rows), patients, positive, scored))
    return found


def _score(m: Matrix, rows: np.ndarray, n: int, seed: int) -> dict:
    """{configuration: {metric: interval}} of the cases `rows`."""
    names = ["accuracy", "auc"] if len(m.classes) == 2 else ["accuracy"]
    first = m.p[(*m.nets[0], shown(m)[0])]
    names = [k for k in names if np.isfinite(value(m, k, rows, first))]
    keys = [(net, c, k) for net in m.nets for c in shown(m) for k in names]
    wanted = []
    for net, c, k in keys:
        p = m.p[(*net, c)][rows]
        wanted.append((k, m.score(p) if k == "auc" else m.predicted(p)))
    drawn = stats.resample(m.target()[rows], wanted, m.patient[rows], n, seed)
    scored: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for c in shown(m):
            for k in names:
                which = [i for i, key in enumerate(keys) if key[1:] == (c, k)]
                try:
                    scored.setdefault(c, {})[k] = drawn.mean(which)
                except ValueError:  # too few cases of a class in the resamples
                    scored.setdefault(c, {})[k] = None
    return scored
