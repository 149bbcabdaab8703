"""The primary analysis: differences between configurations with intervals, by patient.

At each place (release, validation, task) every network of every configuration has predicted the
same cases. All patients are resampled once for all networks (`mdmt.stats.resample`, which gives
what `mdmt.stats.paired_bootstrap` gives); a metric is computed within each test fold and averaged
over folds, as in the tables. Where a study has several seeds, the trainings of each fold are
resampled, too. Differences are those of MDMT minus another configuration, per backbone and on
average over the backbones.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .. import kinds, metrics, stats
from ..config import pictured
from ..measures import CUT, MEASURES, compared
from ..results import undefined
from .cohort import people
from .folder import Outcome
from .scheme import in_words, without_centers

METHOD = "MDMT"
# Measures of the classes that thresholds make of a number; the others are of the number itself.
ON_CLASSES = (*CUT, "balanced_accuracy", "f1_macro", "f1_weighted", "mcc", "sensitivity",
              "specificity", "quadratic_weighted_kappa")  # fmt: skip
RARELY = 0.01  # share of resampled test parts without a class that is worth no sentence
ONE_PATIENT = (
    "all tested cases are of one patient, so there are no intervals and no tests; test on more."
)
FEW_BACKBONES = 5  # below, backbones are taken as given: too few to say how others would do


class Comparison(NamedTuple):
    """METHOD minus `against` in `metric`, fractions (not percent) or the number's unit.

    backbone "" is the mean over backbones. low, high, pvalue: bootstrap by patient, and by training
    where there are several seeds; all are means over the seeds;
    holm: pvalue corrected over the place's means, NaN for single backbones; corrected_t: p-value of
    Nadeau & Bengio's test over folds, NaN with fewer than two folds.
    """

    backbone: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    pvalue: float
    holm: float
    corrected_t: float

    @property
    def better(self) -> float:
        """The difference with the sign that makes positive good."""
        return -self.difference if MEASURES[self.metric].less else self.difference


class Ranks(NamedTuple):
    """Mean ranks of configurations over backbones in one metric (1 is best), for description."""

    metric: str
    configurations: list
    ranks: np.ndarray
    critical_difference: float
    groups: list
    friedman: float
    n: int


@dataclass
class Matrix:
    """The predictions of all networks at a place for the same cases.

    spec: the task as the configuration has it; y, p as of `folder.Part`: y (cases,) or (cases, K),
    p {(backbone, seed, configuration): (cases, K)}; fold, patient, image, center (cases,), patients
    of whom there is the same radiograph being one;
    several: the study has more than one release; scheme: the validation in words, with the number
    of folds; centerless: folds by center of the study, of which this task's data have none.
    """

    release: str
    validation: str
    task: str
    spec: dict
    configurations: list
    nets: list
    y: np.ndarray
    fold: np.ndarray
    patient: np.ndarray
    image: np.ndarray
    center: np.ndarray
    p: dict
    notes: list = field(default_factory=list)
    several: bool = False
    scheme: str = ""
    centerless: bool = False

    @property
    def named(self) -> str:
        """ ", release 2" in a study of several releases, else nothing."""
        return f", release {self.release}" if self.several else ""

    @property
    def kind(self) -> str:
        """The kind of its task (`mdmt.kinds`)."""
        return kinds.kind_of(self.spec)

    @property
    def classes(self) -> list[str]:
        """Classes or findings; of a number those that thresholds make of it, or none."""
        return self.spec["classes"]

    @property
    def positive(self) -> int:
        """Number of the positive class of two classes."""
        return kinds.positive_of(self.spec)

    @property
    def two(self) -> bool:
        """Whether the task is one of two classes."""
        return self.kind == kinds.CLASSES and len(self.classes) == 2

    @property
    def place(self) -> tuple[str, str, str]:
        """(release, validation, task)."""
        return self.release, self.validation, self.task

    @property
    def external(self) -> bool:
        """Whether its networks are another run's: one test part, and no folds."""
        return self.validation == "external"

    @property
    def repeated(self) -> bool:
        """Whether a case is tested in several folds."""
        return len(self.y) > len(set(self.image.tolist()))

    @property
    def once(self) -> np.ndarray:
        """Rows that hold every image once, in order."""
        return np.sort(np.unique(self.image.astype(str), return_index=True)[1])

    @property
    def over(self) -> str:
        """What measures are means over."""
        return "networks" if self.external else "folds and networks"

    @property
    def folds(self) -> list[int]:
        """Numbers of the folds."""
        return sorted(set(self.fold.tolist()))

    @property
    def backbones(self) -> list[str]:
        """Backbones of the networks, in order."""
        return list(dict.fromkeys(b for b, _ in self.nets))

    def trainings(self, backbone: str) -> list[tuple]:
        """The networks (backbone, seed) of a backbone: one for each seed."""
        return [net for net in self.nets if net[0] == backbone]

    def score(self, p: np.ndarray) -> np.ndarray:
        """What the AUC and calibration are computed from: p of the positive class, or all."""
        return p[:, self.positive] if self.two else p

    def target(self) -> np.ndarray:
        """y, as 0/1 of the positive class for two classes."""
        return self._sided(self.y) if self.two else self.y

    def predicted(self, p: np.ndarray) -> np.ndarray:
        """The decisions of p, on the scale of `target`."""
        found = kinds.called(self.kind, p)
        return self._sided(found) if self.two else found

    def _sided(self, numbers: np.ndarray) -> np.ndarray:
        """Class numbers of two classes as 0/1 of the positive one."""
        return (numbers == self.positive).astype(np.int64) if len(self.classes) == 2 else numbers

    def pooled(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes and their probabilities, for calibration: of findings all that are labelled,
        one after the other."""
        if self.kind == kinds.FINDINGS:
            known = ~np.isnan(self.y)
            return self.y[known].astype(np.int64), p[known]
        return self.target(), self.score(p)

    def truth(self, metric: str) -> np.ndarray:
        """The labels that `metric` takes; of a number it may be the classes that it is cut into."""
        if self.kind == kinds.NUMBER and metric in ON_CLASSES:
            return self._sided(kinds.cut(self.y, self.spec["thresholds"]))
        return self.target()

    def given(self, metric: str, p: np.ndarray) -> np.ndarray:
        """What `metric` takes of p: decisions, probabilities, numbers or the classes of these."""
        if self.kind == kinds.NUMBER and metric in ON_CLASSES:
            return self._sided(kinds.cut(p[:, 0], self.spec["thresholds"]))
        return self.score(p) if metric in ("auc", "brier") else self.predicted(p)

    def named_metric(self, metric: str) -> str:
        """The name of `metric` in `mdmt.stats`: F1 of more than two classes is their mean."""
        many = self.kind != kinds.FINDINGS and len(self.classes) > 2
        return "f1_macro" if metric == "f1" and many else metric


@dataclass
class Analysis:
    """What `compare` finds at a place; estimates {(configuration, metric): BootstrapInterval};
    deviations {(configuration, "" or against, metric): of patients and trainings with these
    backbones}, where there are intervals."""

    matrix: Matrix
    n: int
    random_backbones: bool
    estimates: dict
    comparisons: list[Comparison]
    ranks: list[Ranks]
    notes: list[str]
    deviations: dict = field(default_factory=dict)

    def find(self, against: str, metric: str, backbone: str = "") -> Comparison | None:
        """The comparison with `against` in `metric`, or None."""
        for c in self.comparisons:
            if (c.backbone, c.against, c.metric) == (backbone, against, metric):
                return c
        return None


def matrix(outcome: Outcome, release: str, validation: str, task: str) -> Matrix | None:
    """Bring the predictions at a place into one order; None when no fold is shared by all."""
    parts = outcome.select(release=release, validation=validation, task=task)
    names = outcome.configurations(release=release, validation=validation, task=task)
    cells: dict = {}
    for part in parts:
        cell = cells.setdefault((part.backbone, part.seed, part.configuration), {})
        cell[part.fold] = part
    every = sorted({f for cell in cells.values() for f in cell})
    order = outcome.backbones(release=release, validation=validation, task=task)
    nets = sorted({k[:2] for k in cells}, key=lambda k: (order.index(k[0]), k[1]))
    complete = [
        net for net in nets if all(set(cells.get((*net, c), {})) == set(every) for c in names)
    ]
    notes = []
    several = len({p[0] for p in outcome.places}) > 1
    where = f"{task}, {validation}" + (f", release {release}" if several else "")
    if complete:
        if len(complete) < len(nets):
            notes.append(
                f"{where}: {len(nets) - len(complete)} of {len(nets)} networks have not all folds "
                "and configurations yet and are left out of the comparisons."
            )
        nets, folds = complete, every
    else:
        folds = [f for f in every if all(f in cell for cell in cells.values())]
        nets = [n for n in nets if all((*n, c) in cells for c in names)]
        if not folds or not nets:
            return None
        notes.append(
            f"{where}: only {len(folds)} of {len(every)} folds are finished for every network; "
            "the comparisons are of these."
        )
    first = [cells[(*nets[0], names[0])][f] for f in folds]
    p = {}
    for net in nets:
        for name in names:
            rows = []
            for f, reference in zip(folds, first, strict=True):
                part = cells[(*net, name)][f]
                rows.append(part.p[_aligned(reference.image, part.image)])
            p[(*net, name)] = np.concatenate(rows)
    image = np.concatenate([q.image for q in first])
    patient = np.concatenate([q.patient for q in first])
    person = people(outcome.cohort, release, task, image, patient)
    joined = len(set(patient.tolist())) - len(set(person.tolist()))
    if joined:
        notes.append(
            f"{where}: {len(set(patient.tolist()))} patient ids are {len(set(person.tolist()))} "
            f"patients, since some show the same {pictured(outcome.values)}; these count as one."
        )
    return Matrix(
        release,
        validation,
        task,
        outcome.task(task),
        names,
        nets,
        np.concatenate([q.y for q in first]),
        np.concatenate([np.full(len(q.y), q.fold) for q in first]),
        person,
        image,
        np.concatenate([q.center for q in first]),
        p,
        notes,
        several,
        in_words(outcome, release, validation, task, len(folds)),
        without_centers(outcome, release, validation, task),
    )


def _aligned(wanted: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Rows of `have` in the order of `wanted` (the same images)."""
    if np.array_equal(wanted, have):
        return np.arange(len(have))
    order, back = np.argsort(have, kind="stable"), np.argsort(wanted, kind="stable")
    rows = np.empty(len(have), np.int64)
    rows[back] = order
    return rows


def compare(outcome: Outcome, n: int = 10000, seed: int = 0) -> list[Analysis]:
    """Compare METHOD with every other configuration at every place, n resamples."""
    found = []
    for place in outcome.places:
        m = matrix(outcome, *place)
        if m is not None:
            found.append(_compare(outcome, m, n, seed))
    return found


def _compare(outcome: Outcome, m: Matrix, n: int, seed: int) -> Analysis:
    names = compared(m.spec)
    drawn, at = _drawn(m, names, n, seed)
    many = len(m.backbones) >= FEW_BACKBONES  # else they are no sample of backbones
    notes = list(m.notes)
    estimates, comparisons = {}, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for c in m.configurations:
            for k in names:
                which = [at[b, c, k] for b in m.backbones]
                estimates[c, k] = _or_nan(lambda k=k, w=which: drawn[k].mean(w), 3)
        others = [c for c in m.configurations if c != METHOD]
        for other in others if METHOD in m.configurations else []:
            for k in names:
                pairs = [(at[b, METHOD, k], at[b, other, k]) for b in m.backbones]
                mode = "random" if many else "fixed"
                whole = _or_nan(lambda k=k, p=pairs, w=mode: drawn[k].mean_difference(p, w), 4)
                comparisons.append(_one(outcome, m, "", other, k, whole))
                if len(m.backbones) < 2:
                    continue
                for b, pair in zip(m.backbones, pairs, strict=True):
                    part = _or_nan(lambda k=k, p=pair: drawn[k].mean_difference([p]), 4)
                    comparisons.append(_one(outcome, m, b, other, k, part))
    alone = "" if several_patients(m) else ONE_PATIENT
    for text in filter(None, (alone, fewer_folds(m), "" if alone else missing(m))):
        notes.append(f"{m.task}, {m.validation}{m.named}: {text}")
    for text in dict.fromkeys(str(w.message) for w in caught):
        notes.append(f"{m.task}, {m.validation}{m.named}: {text}.")
    comparisons = _corrected(comparisons)
    spread = _deviations(m, names, drawn, at) if not alone else {}
    return Analysis(m, n, many, estimates, comparisons, _ranks(m), notes, spread)


def _deviations(m: Matrix, names: tuple, drawn: dict, at: dict) -> dict:
    """`Analysis.deviations`."""
    found = {}
    for k in names:
        which = {c: [at[b, c, k] for b in m.backbones] for c in m.configurations}
        for c, own in which.items():
            found[c, "", k] = drawn[k].deviation(own)
            if c != METHOD and METHOD in which:
                found[METHOD, c, k] = drawn[k].deviation(which[METHOD], own)
    return found


def several_patients(m: Matrix) -> bool:
    """Whether there are patients to draw from: intervals and tests are by patient."""
    return len(set(m.patient.tolist())) > 1


class _OnePatient:
    """In the place of `stats.Resampled` where nothing can be drawn: values without intervals."""

    def __init__(self, m: Matrix, keys: list):
        self.values = np.array([self._of_cases(m, *key) for key in keys])

    @staticmethod
    def _of_cases(m: Matrix, backbone: str, configuration: str, metric: str) -> float:
        p = [m.p[(*net, configuration)] for net in m.trainings(backbone)]
        each = np.array([value(m, metric, m.fold == f, one) for one in p for f in m.folds])
        return float(each[~np.isnan(each)].mean()) if not np.isnan(each).all() else float("nan")

    def mean(self, which) -> tuple:
        return (float(np.mean(self.values[which])), *[float("nan")] * 2)

    def mean_difference(self, pairs, backbones="fixed") -> tuple:
        one, other = np.reshape(pairs, (-1, 2)).T
        return (float(np.mean(self.values[one] - self.values[other])), *[float("nan")] * 3)


def _drawn(m: Matrix, names: tuple, n: int, seed: int) -> tuple[dict, dict]:
    """({metric: Resampled}, {(backbone, configuration, metric): number in it}); metrics that take
    the same labels share one, and the patients and trainings drawn are the same in all. Where some
    network leaves a fold's correlation undefined, correlations are of the other folds."""
    drawn, at = {}, {}
    cut = [k for k in names if k in ON_CLASSES] if m.kind == kinds.NUMBER else []
    rows, fewer = np.ones(len(m.y), bool), []
    if "pearson" in names and defined_folds(m, "pearson"):
        rows = np.isin(m.fold, defined_folds(m, "pearson"))
        fewer = ["pearson"] * (not rows.all())
    for some in filter(None, (cut, fewer, [k for k in names if k not in cut + fewer])):
        of = rows if some is fewer else slice(None)
        keys = [(b, c, k) for b in m.backbones for c in m.configurations for k in some]
        wanted = []
        for b, c, k in keys:
            each = [m.given(k, m.p[(*net, c)])[of] for net in m.trainings(b)]
            wanted.append((m.named_metric(k), stats.Repeated(each) if len(each) > 1 else each[0]))
        if not several_patients(m):
            found = _OnePatient(m, keys)
        else:
            found = stats.resample(
                m.truth(some[0])[of], wanted, m.patient[of], n, seed, folds=m.fold[of],
                sets=[b for b, _, _ in keys],
            )  # fmt: skip
        drawn |= dict.fromkeys(some, found)
        at |= {key: i for i, key in enumerate(keys)}
    return drawn, at


def _or_nan(function, width: int):
    """function(), or NaNs where the metric is not defined for these cases."""
    try:
        return tuple(function())
    except ValueError:
        return (float("nan"),) * width


def _one(outcome, m: Matrix, backbone: str, other: str, metric: str, found) -> Comparison:
    t = corrected_t(outcome, m, backbone, other, metric)
    return Comparison(
        backbone, other, metric, *found, float("nan"), float("nan") if t is None else t.pvalue
    )


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """Fill in Holm's p-values over the means (all metrics, all opponents)."""
    chosen = [i for i, c in enumerate(comparisons) if c.backbone == "" and c.pvalue == c.pvalue]
    if not chosen:
        return comparisons
    adjusted = stats.holm([comparisons[i].pvalue for i in chosen])
    for i, p in zip(chosen, adjusted, strict=True):
        comparisons[i] = comparisons[i]._replace(holm=float(p))
    return comparisons


def value(m: Matrix, metric: str, rows, p: np.ndarray) -> float:
    """`metric` of the cases `rows` (indices or mask), NaN where it is undefined."""
    if metric == "correlation":  # of the expected class with the true one
        y, p = m.target()[rows], p[rows]
        return stats.pearson(y, p @ np.arange(p.shape[1])) if len(y) else float("nan")
    y, given = m.truth(metric)[rows], m.given(metric, p[rows])
    if len(y) == 0:
        return float("nan")
    if metric == "bias":
        return float(np.mean(given - y))
    if m.kind == kinds.FINDINGS:
        return metrics.mean_of_findings(metric, y, given)
    if metric in ("f1", "f1_macro", "f1_weighted"):
        average = m.named_metric(metric).removeprefix("f1").removeprefix("_")
        return metrics.f1(y, given, average or "binary")
    return getattr(stats, metric)(y, given)


def by_fold(m: Matrix, metric: str, configuration: str, backbone: str = "") -> np.ndarray:
    """Mean over networks of `metric` in each fold (folds,), NaN where it is undefined, correlations
    also where another network's is."""
    nets = [net for net in m.nets if backbone in ("", net[0])]
    used = m.folds
    if metric in ("pearson", "spearman"):  # the same folds for every configuration
        used = defined_folds(m, "pearson")
    return np.array(
        [
            np.mean([value(m, metric, m.fold == f, m.p[(*n, configuration)]) for n in nets])
            if f in used
            else np.nan
            for f in m.folds
        ]
    )


def defined_folds(m: Matrix, metric: str) -> list[int]:
    """The folds that define `metric`, of which its means are: their labels alone decide that, but a
    correlation is of those in which every network has one."""
    some = list(m.p.values()) if metric == "pearson" else [m.p[(*m.nets[0], m.configurations[0])]]
    return [f for f in m.folds
            if all(np.isfinite(value(m, metric, m.fold == f, p)) for p in some)]  # fmt: skip


def fewer_folds(m: Matrix) -> str:
    """Which metrics are not of all folds, in sentences; "" for none."""
    found: dict = {}
    for k in compared(m.spec):
        n = len(defined_folds(m, k))
        if k != "pearson" and n < len(m.folds):
            found.setdefault(n, []).append(MEASURES[k].title)
    said = [undefined(found, len(m.folds), "number" if m.kind == kinds.NUMBER else "class")]
    n = len(defined_folds(m, "pearson")) if "pearson" in compared(m.spec) else len(m.folds)
    if n < len(m.folds):
        said.append(
            f"Correlations are over {n} of {len(m.folds)} folds: in the others a network predicts "
            "one number, or the test part holds one."
        )
    return " ".join(filter(None, said))


def missing(m: Matrix) -> str:
    """How often a resampled test part lacks a class, as a sentence; "" where hardly ever, where no
    measure of all classes is shown, or where there is one part: then its resample is left out,
    which `stats` tells itself."""
    some = [k for k in compared(m.spec) if m.named_metric(k) in stats.OF_ALL_CLASSES]
    few = len(m.classes) < 3 or len(m.folds) < 2
    if not some or few or m.kind == kinds.FINDINGS:
        return ""
    share = stats.missing_class(m.truth(some[0]), m.patient, m.fold)
    if share < RARELY:
        return ""
    titles = [MEASURES[k].title for k in some]
    named = " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))
    one = len(titles) == 1
    return (
        f"a class is missing in {100 * share:.0f} % of the resampled test parts, whose {named} "
        f"{'is' if one else 'are'} then not defined and in no mean over folds."
    )


def corrected_t(outcome, m: Matrix, backbone: str, other: str, metric: str):
    """Nadeau & Bengio's two-sided t-test (`stats.nadeau_bengio`) of METHOD minus `other` over the
    folds that define `metric`.

    None where it says nothing: another scheme than cross-validation, folds that test the same cases
    (a fixed test set), whose chance they share, no splits.json, fewer than two folds, or the same
    difference in all of them.
    """
    sizes = _sizes(outcome, m)
    d = by_fold(m, metric, METHOD, backbone) - by_fold(m, metric, other, backbone)
    kept = np.flatnonzero(np.isfinite(d))
    if sizes is None or len(kept) < 2 or m.validation != "cv" or m.repeated:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.nadeau_bengio(d[kept], sizes[0][kept], sizes[1][kept])
    return found if found.standard_error > 0 else None


def _sizes(outcome: Outcome, m: Matrix):
    """(training cases, test cases) of each fold, of the task's data sets; None without splits."""
    if outcome.splits is None:
        return None
    names = {d["name"] for d in outcome.values["data"]["datasets"] if d["task"] == m.task}
    train, test = [], []
    entries = outcome.splits["validation"].get(m.validation, [])
    folds = {e["fold"]: e for e in entries if e.get("release", m.release) == m.release}
    for f in m.folds:
        parts = [p for name, p in folds[f]["datasets"].items() if name in names]
        train.append(sum(len(p["train"]) for p in parts))
        test.append(sum(len(p["test"]) for p in parts))
    return np.array(train), np.array(test)


def scores(m: Matrix, metric: str) -> np.ndarray:
    """Mean over folds and seeds (backbones, configurations)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a metric that no fold defines
        return np.array(
            [[np.nanmean(by_fold(m, metric, c, b)) for c in m.configurations] for b in m.backbones]
        )


def _ranks(m: Matrix) -> list[Ranks]:
    """Mean ranks where there are at least two backbones and three configurations."""
    if len(m.backbones) < 2 or len(m.configurations) < 3:
        return []
    found = []
    for k in compared(m.spec):
        table = scores(m, k) * (-1 if MEASURES[k].less else 1)
        if not np.isfinite(table).all():
            continue
        nemenyi = stats.nemenyi(table)
        found.append(
            Ranks(
                k,
                m.configurations,
                nemenyi.ranks,
                nemenyi.critical_difference,
                nemenyi.groups,
                stats.friedman(table).pvalue,
                len(m.backbones),
            )
        )
    return found
