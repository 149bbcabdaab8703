"""Further numbers of a place: every metric, calibration, subgroups, centers, single cases."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .. import kinds, metrics, stats
from ..measures import grouped
from .cohort import BANDS, groups_of
from .compare import METHOD, Matrix, by_fold, value

LEAST = 10  # images below which a subgroup is counted but not scored
PATIENTS = 5  # and patients: resampling fewer says next to nothing of the spread


class Calibration(NamedTuple):
    """Means over the networks of a configuration, all cases (and findings) pooled. slope and
    intercept, with 95 % intervals by patient, are NaN for more than two classes."""

    configuration: str
    brier: float
    ece: float
    ece_width: float
    slope: float
    intercept: float
    slope_interval: tuple[float, float]
    intercept_interval: tuple[float, float]


class Subgroup(NamedTuple):
    """One level of a variable: n images of `patients` patients, `positive` of the positive class
    (-1 where there are not two classes), each counted once however often it is tested; found
    {configuration: {metric: BootstrapInterval or None}}."""

    variable: str
    level: str
    n: int
    patients: int
    positive: int
    found: dict


def operating(m: Matrix, configuration: str) -> dict:
    """Every metric of a configuration: mean over folds and networks, NaN where undefined."""
    names = ["accuracy", "balanced_accuracy"]
    if m.kind == kinds.FINDINGS:
        names = ["accuracy", "f1", "f1_weighted", "gmean", "auc", "brier"]
    elif m.kind == kinds.NUMBER:
        cut = [*names, "f1_macro", "gmean", "mcc", "quadratic_weighted_kappa"]
        names = [*metrics.NUMBERS, "bias", *(cut if m.classes else [])]
    else:
        names += ["sensitivity", "specificity", "f1"] if m.two else []
        names += ["f1_macro", "f1_weighted", "gmean", "mcc", "auc", "brier"]
        names += [] if m.two else ["quadratic_weighted_kappa", "mae", "correlation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {k: float(np.nanmean(by_fold(m, k, configuration))) for k in names}


def calibration(m: Matrix, configuration: str) -> Calibration:
    """How far the probabilities of a configuration can be taken at their word."""
    pairs = [m.pooled(m.p[(*net, configuration)]) for net in m.nets]
    y = pairs[0][0]
    errors = [
        (stats.brier(y, p), stats.ece(y, p), stats.ece(y, p, binning="width")) for _, p in pairs
    ]
    r = (np.nan,) * 6
    if pairs[0][1].ndim == 1 and len(set(y.tolist())) == 2:
        people = m.patient if m.y.ndim == 1 else np.repeat(m.patient, m.y.shape[1])
        known = np.ones(len(people), bool) if m.y.ndim == 1 else ~np.isnan(m.y).reshape(-1)
        r = stats.grouped_recalibration(y, [p for _, p in pairs], people[known])
    return Calibration(
        configuration, *np.mean(errors, 0).tolist(), r[3], r[0], tuple(r[4:]), tuple(r[1:3])
    )


def confusion(m: Matrix, configuration: str) -> np.ndarray:
    """Cases by true (row) and predicted class (K, K), of a number those that thresholds make of it:
    all folds, mean over the networks and over the tests of an image, so that all images count
    alike."""
    k = len(m.classes)
    _, image, times = np.unique(m.image.astype(str), return_inverse=True, return_counts=True)
    table = np.zeros((k, k))
    for net in m.nets:
        both = m.y, kinds.called(m.kind, m.p[(*net, configuration)])
        if m.kind == kinds.NUMBER:
            both = tuple(kinds.cut(v, m.spec["thresholds"]) for v in both)
        np.add.at(table, both, 1 / times[image])
    return np.round(table / len(m.nets), 9)  # thirds of an image add up to whole ones


def mean_truth(m: Matrix, configuration: str) -> np.ndarray:
    """Mean over the networks of the probability given to the true class, or to what is true of each
    labelled finding; of numbers the negative mean absolute error (cases,)."""
    each = [m.p[(*n, configuration)] for n in m.nets]
    if m.kind == kinds.NUMBER:
        return -np.mean([np.abs(p[:, 0] - m.y) for p in each], 0)
    if m.kind == kinds.FINDINGS:
        return np.mean([np.nanmean(np.where(m.y == 1, p, 1 - p) + 0 * m.y, 1) for p in each], 0)
    rows = np.arange(len(m.y))
    return np.mean([p[rows, m.y] for p in each], 0)


def by_finding(m: Matrix, configuration: str) -> dict[str, np.ndarray]:
    """{"auc", "f1": (K,)} of a configuration's findings: means over folds and networks, NaN where
    no fold defines them."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for k in ("auc", "f1"):
            each = []
            for net in m.nets:
                given = m.given(k, m.p[(*net, configuration)])
                each += [metrics.of_findings(k, m.y[m.fold == f], given[m.fold == f])
                         for f in m.folds]  # fmt: skip
            found[k] = np.nanmean(each, 0)
    return found


def _level_order(variable: str, levels) -> list[str]:
    bands = [name for _, name in BANDS]
    return sorted(levels, key=lambda v: (bands.index(v) if v in bands else 99, v))


def shown(m: Matrix) -> list[str]:
    """The configurations that figures of subgroups show: the paper's, without further ones."""
    some = [c for c in m.configurations if c in ("STL-tau1", "STL-tau2", "FT", METHOD)]
    return some or m.configurations[:4]


def subgroups(m: Matrix, cohort: dict | None, n: int = 1000, seed: int = 0) -> list[Subgroup]:
    """The measures `mdmt.measures.grouped` within the levels of every variable that is known, with
    intervals by patient. Cases of all folds are pooled, metrics averaged over the networks."""
    found = []
    for variable, level_of in groups_of(cohort, m.task, m.image, m.center).items():
        for level in _level_order(variable, set(level_of)):
            rows = np.flatnonzero(level_of == level)
            once = rows[np.unique(m.image[rows].astype(str), return_index=True)[1]]
            positive = int(np.sum(m.y[once] == m.positive)) if m.two else -1
            patients = len(set(m.patient[rows]))
            enough = len(once) >= LEAST and patients >= PATIENTS
            scored = _score(m, rows, n, seed) if enough else {}
            found.append(Subgroup(variable, level, len(once), patients, positive, scored))
    return found


def _score(m: Matrix, rows: np.ndarray, n: int, seed: int) -> dict:
    """{configuration: {metric: interval}} of the cases `rows`."""
    first = m.p[(*m.nets[0], shown(m)[0])]
    names = [k for k in grouped(m.spec) if np.isfinite(value(m, k, rows, first))]
    if not names:
        return {}
    keys = [(net, c, k) for net in m.nets for c in shown(m) for k in names]
    wanted = []
    for net, c, k in keys:
        wanted.append((k, m.given(k, m.p[(*net, c)][rows])))
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
