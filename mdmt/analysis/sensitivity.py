"""Other tests of the same differences, beside the bootstrap by patient: what they say as well.

Each is applied only where what it assumes can be had; where not, a row says why it is left out.
None replaces the primary analysis (`compare`).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .. import kinds, stats
from ..measures import compared
from .compare import METHOD, Analysis, Comparison, Matrix, by_fold, corrected_t, scores
from .folder import Outcome

ALPHA = 0.05
TESTS = ("DeLong", "McNemar", "Nadeau-Bengio", "Wilcoxon")
# Fewer differing cases: the binomial test itself; as many or more: its chi-squared approximation.
EXACT_BELOW = 25
# Fewer pairs cannot give a two-sided p < 0.05 in a signed-rank test: 2 / 2^5 = 0.0625.
LEAST_PAIRS = 6


class Sensitivity(NamedTuple):
    """METHOD minus `against` by another test: metric as in `compare`, fractions.

    n units ("patients", "folds", "backbones"); estimate of the difference with its 95 % interval
    (NaN where the test has none), statistic, two-sided p-value, and that after Holm's correction
    over the rows of this test at the place. primary: the row of `compare` beside it; agrees: both
    establish the same (a difference with the same sign at 5 % after correction, or none), None
    where one of them is undefined. detail: McNemar's cases that METHOD alone and the other alone
    has right, and the form of the test. note: what else must be known; for a test that is left
    out (n = 0) the reason.
    """

    test: str
    against: str
    metric: str
    unit: str
    n: int
    estimate: float
    low: float
    high: float
    statistic: float
    pvalue: float
    holm: float
    primary: Comparison | None
    agrees: bool | None
    detail: str
    note: str

    @property
    def left_out(self) -> bool:
        """True where the test was not done."""
        return self.n == 0


def sensitivity(outcome: Outcome, analysis: Analysis) -> list[Sensitivity]:
    """Every test of TESTS for METHOD against every other configuration at a place; DeLong's and
    McNemar's are for tasks of classes."""
    m = analysis.matrix
    if METHOD not in m.configurations:
        return []
    found = []
    names = compared(m.spec)
    people = _people(m) if m.kind == kinds.CLASSES else None
    tables = {k: scores(m, k) for k in names} if len(m.backbones) >= LEAST_PAIRS else {}
    for other in (c for c in m.configurations if c != METHOD):
        if people is not None:
            found.append(_delong(m, people, other))
            found.append(_mcnemar(m, people, other))
        found += [_over_folds(outcome, m, other, k) for k in names]
        found += [_signed_ranks(m, tables, other, k) for k in names]
    return _finished(found, analysis)


def _row(test, other, metric, unit, n, numbers, note="", detail="") -> Sensitivity:
    """numbers: estimate, low, high, statistic, p-value."""
    return Sensitivity(
        test, other, metric, unit, int(n), *map(float, numbers), np.nan, None, None, detail, note
    )


def _without(test: str, other: str, metric: str, unit: str, reason: str) -> Sensitivity:
    return _row(test, other, metric, unit, 0, [np.nan] * 5, reason)


def _finished(found: list[Sensitivity], analysis: Analysis) -> list[Sensitivity]:
    """With Holm's correction within each test, the primary analysis beside, and the agreement."""
    for test in TESTS:
        rows = [i for i, s in enumerate(found) if s.test == test and s.pvalue == s.pvalue]
        if rows:
            for i, p in zip(rows, stats.holm([found[i].pvalue for i in rows]), strict=True):
                found[i] = found[i]._replace(holm=float(p))
    ready = []
    for s in found:
        primary = analysis.find(s.against, s.metric)
        agrees = None
        if primary is not None and s.holm == s.holm and primary.holm == primary.holm:
            agrees = _verdict(s.holm, s.estimate) == _verdict(primary.holm, primary.difference)
        ready.append(s._replace(primary=primary, agrees=agrees))
    return ready


def _verdict(holm: float, difference: float) -> int:
    """1, -1 or 0: higher, lower or nothing established."""
    return int(np.sign(difference)) if holm < ALPHA else 0


class _People(NamedTuple):
    """Patients as independent cases: class y and fold (P,) (-1: several folds), and the rows of
    each; apart: patients left out, whose images are of different classes; images: of all."""

    y: np.ndarray
    fold: np.ndarray
    rows: list
    apart: int
    images: int

    def note(self) -> str:
        """How the images became patients."""
        said = []
        if self.images > len(self.y) + self.apart:
            said.append("a patient's images averaged")
        if self.apart:
            word = "patient" if self.apart == 1 else "patients"
            said.append(f"{self.apart} {word} with images of different classes left out")
        return "; ".join(said)


def _people(m: Matrix) -> _People:
    names, codes = np.unique(m.patient.astype(str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    each = np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
    y = m.target()
    same = [rows for rows in each if len(set(y[rows].tolist())) == 1]
    folds = [set(m.fold[rows].tolist()) for rows in same]
    return _People(
        np.array([y[rows[0]] for rows in same], np.int64),
        np.array([f.pop() if len(f) == 1 else -1 for f in folds], np.int64),
        same,
        len(each) - len(same),
        len(set(m.image.tolist())),
    )


def _averaged(people: _People, values: np.ndarray) -> np.ndarray:
    """Mean of values (cases, ...) over the rows of each patient: (P, ...); to 12 digits, so that
    the same value of two images or of three stays the same."""
    mean = np.stack([values[rows].mean(0) for rows in people.rows])
    mantissa, exponent = np.frexp(mean)
    return np.ldexp(np.round(mantissa, 12), exponent)


def _delong(m: Matrix, people: _People, other: str) -> Sensitivity:
    """AUC within folds, a patient's score being the mean over the images; averaged over folds and
    networks as the primary analysis has it."""
    if len(m.classes) != 2:
        reason = f"compares areas of two classes, and {m.task} has {len(m.classes)}"
        return _without("DeLong", other, "auc", "patients", reason)
    if (people.fold < 0).any():
        reason = "takes folds as independent, and here patients are tested in several"
        return _without("DeLong", other, "auc", "patients", reason)
    counts = {f: np.bincount(people.y[people.fold == f], minlength=2) for f in m.folds}
    used = [f for f in m.folds if counts[f].min() >= 2]
    if not used:
        reason = "needs two patients of each class in a fold"
        return _without("DeLong", other, "auc", "patients", reason)
    kept = np.isin(people.fold, used)
    ours, theirs = (
        np.column_stack([_averaged(people, m.score(m.p[(*net, name)]))[kept] for net in m.nets])
        for name in (METHOD, other)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of areas without variance: p is NaN
        d = stats.delong(people.y[kept], ours, theirs, folds=people.fold[kept])
    said = [people.note()]
    if len(used) < len(m.folds):
        said.append(f"{len(used)} of {len(m.folds)} folds have two patients of each class")
    return _row("DeLong", other, "auc", "patients", kept.sum(),
                (d.difference, d.low, d.high, d.statistic, d.pvalue),
                "; ".join(filter(None, said)))  # fmt: skip


def _mcnemar(m: Matrix, people: _People, other: str) -> Sensitivity:
    """Accuracy of one call per patient: the class of the mean probabilities over the patient's
    images and over the networks."""
    if not len(people.y):
        reason = "every patient has images of different classes"
        return _without("McNemar", other, "accuracy", "patients", reason)
    calls = [
        m.predicted(_averaged(people, np.mean([m.p[(*net, name)] for net in m.nets], 0)))
        for name in (METHOD, other)
    ]
    found = stats.mcnemar(people.y, *calls)
    exact = found.only_a + found.only_b < EXACT_BELOW
    if not exact:
        found = stats.mcnemar(people.y, *calls, exact=False)
    said = [people.note(), f"{len(m.nets)} networks averaged" if len(m.nets) > 1 else ""]
    detail = f"{found.only_a} : {found.only_b}, {'exact' if exact else 'χ²'}"
    estimate = (found.only_a - found.only_b) / len(people.y)
    return _row("McNemar", other, "accuracy", "patients", len(people.y),
                (estimate, np.nan, np.nan, found.statistic, found.pvalue),
                "; ".join(filter(None, said)), detail)  # fmt: skip


def _over_folds(outcome: Outcome, m: Matrix, other: str, metric: str) -> Sensitivity:
    if m.validation != "cv":
        reason = "is for the folds of a cross-validation"
    elif m.repeated:
        reason = "needs folds that share no tested case"
    elif outcome.splits is None:
        reason = "needs the sizes of the training parts, and splits.json is missing"
    else:
        t = corrected_t(outcome, m, "", other, metric)
        if t is not None:
            numbers = (t.difference, t.low, t.high, t.statistic, t.pvalue)
            return _row("Nadeau-Bengio", other, metric, "folds", t.df + 1, numbers)
        reason = "needs two folds whose differences are defined and not the same"
    return _without("Nadeau-Bengio", other, metric, "folds", reason)


def _signed_ranks(m: Matrix, tables: dict, other: str, metric: str) -> Sensitivity:
    """Over backbones where there are enough, else over folds that share no case; the estimate is
    that of Hodges and Lehmann, the median of all means of two differences (Ann. Math. Stat. 34,
    1963), which belongs to this test."""
    if tables:
        unit, table = "backbones", tables[metric]
        d = table[:, m.configurations.index(METHOD)] - table[:, m.configurations.index(other)]
    elif m.repeated:
        return _without("Wilcoxon", other, metric, "folds",
                        "needs folds that share no case")  # fmt: skip
    else:
        unit = "folds"
        d = by_fold(m, metric, METHOD) - by_fold(m, metric, other)
    d = d[np.isfinite(d)]
    found = stats.wilcoxon(d) if len(d) else None
    if found is None or found.n < LEAST_PAIRS:
        one = len(m.backbones) == 1
        reason = (
            f"needs {LEAST_PAIRS} backbones or folds that differ to give a p below {ALPHA}; "
            f"here {'is' if one else 'are'} {len(m.backbones)} backbone{'' if one else 's'} and "
            f"{len(m.folds)} fold{'s' * (len(m.folds) > 1)}"
        )
        return _without("Wilcoxon", other, metric, unit, reason)
    walsh = (d[:, None] + d)[np.triu_indices(len(d))] / 2
    return _row("Wilcoxon", other, metric, unit, found.n,
                (np.median(walsh), np.nan, np.nan, found.statistic, found.pvalue),
                f"smallest possible p {found.floor:.2g}")  # fmt: skip
