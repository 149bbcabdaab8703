"""Operating points of two classes: what thresholds that were chosen on the validation part of each
fold do to the cases of its test part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from .. import points as points_
from .. import stats
from ..paths import read_csv, read_json
from .compare import Matrix, several_patients
from .folder import Outcome, jobs_by_place

MEASURES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Point:
    """A configuration at an operating point of `mdmt.points.POINTS`.

    thresholds: of its networks, one per fold, backbone and seed; found {measure: BootstrapInterval,
    or None where it is not defined}: of all test cases, mean over backbones and seeds, intervals by
    patient with networks and thresholds as they are. Resampling cannot tell a share of 0 or 1 from
    certainty: there the interval is Wilson's, of the patients that the share is of.
    """

    configuration: str
    name: str
    thresholds: np.ndarray
    found: dict


def operating_points(outcome: Outcome, m: Matrix, n: int = 2000, seed: int = 0) -> list[Point]:
    """The points of every configuration at a place, n resamples; none where the task has not two
    classes, all cases are of one patient, or trainings kept no thresholds (their validation part
    lacks a class, or they were made by a version before there were any)."""
    chosen = _thresholds(outcome, m) if m.two and several_patients(m) else None
    if not chosen:
        return []
    wanted, keys, patients = [], [], []
    y = m.target()
    for c in m.configurations:
        for name in points_.POINTS:
            for net in m.nets:
                cut = np.zeros(len(m.y))
                for f in m.folds:
                    cut[m.fold == f] = chosen[(*net, c, f)][name]
                called = (m.score(m.p[(*net, c)]) > cut).astype(np.int64)
                wanted += [(k, called) for k in MEASURES]
                keys += [(c, name, k) for k in MEASURES]
                patients += [len(set(m.patient[of])) for of in _shared(y, called)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = stats.resample(y, wanted, m.patient, n, seed)
        found = {}
        for key in dict.fromkeys(keys):
            which = [i for i, other in enumerate(keys) if other == key]
            found[key] = _interval(drawn, which, [patients[i] for i in which])
    return [
        Point(
            c,
            name,
            np.array([chosen[(*net, c, f)][name] for net in m.nets for f in m.folds]),
            {k: found[c, name, k] for k in MEASURES},
        )
        for c in m.configurations
        for name in points_.POINTS
    ]


def _external(outcome: Outcome, m: Matrix) -> tuple[dict, dict]:
    """As in `_thresholds`, of the run whose networks an external validation is of."""
    jobs = {}
    for row in read_csv(outcome.out / "networks.csv"):
        key = (m.release, m.validation, 0, row["backbone"], row["configuration"], int(row["seed"]))
        jobs[key] = [row["training"]]
    record = read_json(outcome.out / "evaluation.json").get("thresholds", {})
    return jobs, {row[0]: record.get(row[0], {}) for row in jobs.values()}


def _shared(y, called) -> tuple:
    """The cases that each of MEASURES is a share of."""
    return y == 1, y == 0, called == 1, called == 0


def _interval(drawn, which: list[int], patients: list[int]):
    """Mean of the values that are defined, with its interval; None where none is. patients: how
    many each of `which` is of."""
    defined = [i for i in which if np.isfinite(drawn.values[i])]
    value = np.mean(drawn.values[defined]) if defined else np.nan
    if value in (0, 1):  # what is not defined is of nobody
        fewest = min(n for n in patients if n)
        return stats.BootstrapInterval(*stats.wilson(fewest * value, fewest))
    try:
        return drawn.mean(defined) if defined else None
    except ValueError:  # in too few resamples
        return None


def _thresholds(outcome: Outcome, m: Matrix) -> dict | None:
    """{(backbone, seed, configuration, fold): {name: threshold}}; None unless all are there."""
    jobs, read = jobs_by_place(outcome), {}
    if outcome.external:
        jobs, read = _external(outcome, m)
    found = {}
    for backbone, seed in m.nets:
        for c in m.configurations:
            for f in m.folds:
                for job in jobs.get((m.release, m.validation, f, backbone, c, seed), []):
                    if job not in read:
                        path = outcome.out / "runs" / job / "result.json"
                        read[job] = read_json(path).get("thresholds", {})
                    if set(read[job].get(m.task, {})) >= set(points_.POINTS):
                        found[backbone, seed, c, f] = read[job][m.task]
                if (backbone, seed, c, f) not in found:
                    return None
    return found
