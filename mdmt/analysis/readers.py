"""The human reference: how far a second reader agrees with the labels, beside the networks."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .. import kinds, stats
from .compare import Matrix

KAPPA = "quadratic_weighted_kappa"
NAN = (float("nan"),) * 4


class Reading(NamedTuple):
    """Agreement of a configuration's networks, or of the second reader, with the first reader:
    means over the networks. kappa: weighted (of numbers that is Lin's concordance), with its
    interval; other: weighted kappa with the second reader; beyond: kappa minus the second reader's,
    with its interval."""

    name: str
    exact: float
    mae: float
    spearman: float
    kappa: stats.BootstrapInterval
    other: float
    beyond: stats.PairedBootstrap


class Readers(NamedTuple):
    """n images of `patients` patients that both readers scored; readings: the second reader's
    first; regions {region: stats.Agreement}, or None."""

    n: int
    patients: int
    readings: list[Reading]
    regions: dict | None


def _texts(cohort: dict | None, task: str, name: str) -> dict:
    """{image: text} of a column of cohort.json, of the data sets with `task`."""
    found: dict = {}
    for source in (cohort or {}).get("datasets", []):
        if source["task"] == task and name in source["cases"]:
            found.update(zip(source["cases"]["image"], source["cases"][name], strict=True))
    return found


def readers(m: Matrix, cohort: dict | None, n: int = 1000, seed: int = 0) -> Readers | None:
    """The second reader and the networks, against the labels, on the images that both readers
    scored; None where there is no second reader. n resamples of the patients."""
    if m.kind == kinds.FINDINGS:
        return None
    number = m.kind == kinds.NUMBER
    second = _texts(cohort, m.task, "second")
    second = {k: v for k, v in second.items() if (v if number else v in m.classes)}
    # where folds are gone through again, an image counts once
    first = {image: i for i, image in reversed(list(enumerate(m.image))) if image in second}
    rows = np.array(sorted(first.values()))
    if len(rows) < 2 or len(set(m.patient[rows])) < 2:  # kappa's interval is by patient
        return None
    y, patient = m.y[rows], m.patient[rows].astype(str)
    other = kinds.values_of(m.kind, m.classes, [second[i] for i in m.image[rows]])
    keys = [(net, c) for c in m.configurations for net in m.nets]
    called = [other, *(kinds.called(m.kind, m.p[(*net, c)][rows]) for net, c in keys)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = stats.resample(y, [(KAPPA, v) for v in called], patient, n, seed)
        found = [_reading("second reader", y, other, [other], drawn, [0])]
        for c in m.configurations:
            which = [k + 1 for k, key in enumerate(keys) if key[1] == c]
            found.append(_reading(c, y, other, [called[k] for k in which], drawn, which))
    return Readers(len(rows), len(set(patient)), found, _regions(m, cohort, m.image[rows]))


def _reading(name: str, y, other, calls: list, drawn, which: list) -> Reading:
    agreed = [stats.agreement(y, v) for v in calls]
    try:
        kappa = drawn.mean(which)
        beyond = drawn.mean_difference([(k, 0) for k in which])
    except ValueError:  # one class only
        kappa, beyond = stats.BootstrapInterval(*NAN[:3]), stats.PairedBootstrap(*NAN)
    return Reading(
        name,
        float(np.mean([a.exact for a in agreed])),
        float(np.mean([a.mae for a in agreed])),
        float(np.mean([a.spearman for a in agreed])),
        kappa,
        float(np.mean([stats.quadratic_weighted_kappa(other, v) for v in calls])),
        beyond,
    )


def _regions(m: Matrix, cohort: dict | None, images) -> dict | None:
    """Agreement of the two readers by region, of `images`; None without regional scores."""
    first, second = (_texts(cohort, m.task, k) for k in ("regions", "second_regions"))
    both = [i for i in images if first.get(i) and second.get(i)]
    if len(both) < 2:
        return None
    scores = [np.array([[int(d) for d in by[i]] for i in both], np.float64)
              for by in (first, second)]  # fmt: skip
    return stats.region_agreement(*scores)
