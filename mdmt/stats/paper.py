"""The paper's own tests (its Table 2), and what they are worth.

Ruffini et al., MICCAI 2024, section 4: one-tailed t-tests, paired over the backbones, of the mean
mu (MDMT higher) and the standard deviation sigma (MDMT lower) over the test folds.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from . import _check
from .paired import paired_t

METRICS = ("accuracy", "f1", "gmean")
METHOD = "MDMT"
# What MDMT is compared with, by task.
AGAINST = {"prognosis": ("STL-tau1", "FT"), "severity": ("STL-tau2",)}

PAPER_TEST_WARNING = (
    "The paper's tests: one-tailed t-tests paired over backbones. Backbones that share patients, "
    "folds and pretraining are not independent observations, so these tests find differences "
    "where there are none far more often than in 5 % of studies: in 18 % of simulated ones for mu "
    "when the networks of a configuration share a fifth of what makes them err, in 41 % when they "
    "share nine tenths (mdmt.stats.false_positive_rate_of_paper_test). No correction for the "
    "number of tests is made. The primary analysis is the bootstrap by patient."
)


class PaperTest(NamedTuple):
    """One cell of Table 2. quantity is "mu" or "sigma"; difference is the mean over the n
    backbones of MDMT's minus the other's; NaN where fewer than two backbones have both."""

    release: str
    validation: str
    task: str
    quantity: str
    against: str
    metric: str
    n: int
    difference: float
    statistic: float
    pvalue: float
    stars: str


class PaperTestRates(NamedTuple):
    """Share of null studies in which a test at `alpha` claims a difference: the paper's on mu and
    on sigma, and a one-tailed paired t-test over the cases; standard_error is that of mu."""

    mu: float
    sigma: float
    case_level: float
    standard_error: float
    n_simulations: int


def stars(pvalue: float) -> str:
    """The paper's marks: *** below 0.001, ** below 0.01, * below 0.05, else nothing."""
    return "***" if pvalue < 0.001 else "**" if pvalue < 0.01 else "*" if pvalue < 0.05 else ""


def _number(value) -> float:
    return float("nan") if value is None or value == "" else float(value)


def _by_fold(results, metrics) -> dict:
    """{(release, validation, task, configuration): {backbone: {fold: {metric: mean over seeds}}}}
    of the rows of results.csv; undefined values are left out."""
    table: dict = {}
    for i, row in enumerate(results):
        missing = [
            c
            for c in ("validation", "task", "configuration", "backbone", "fold", *metrics)
            if c not in row
        ]
        if missing:
            raise ValueError(f"results[{i}] has no {missing[0]!r}; pass the rows of results.csv")
        place = tuple(
            str(row.get(c, "")) for c in ("release", "validation", "task", "configuration")
        )
        fold = table.setdefault(place, {}).setdefault(str(row["backbone"]), {})
        cell = fold.setdefault(str(row["fold"]), {m: [] for m in metrics})
        for m in metrics:
            value = _number(row[m])
            if np.isfinite(value):
                cell[m].append(value)
    for backbones in table.values():
        for folds in backbones.values():
            for fold, cell in folds.items():
                folds[fold] = {m: float(np.mean(v)) for m, v in cell.items() if v}
    return table


def _pairs(ours: dict, other: dict, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """mu and sigma of both, (backbones, 2 configurations) each, over the folds both have; sigma
    with n - 1, NaN for a single fold."""
    mu, sigma = [], []
    for backbone in sorted(set(ours) & set(other)):
        a, b = ours[backbone], other[backbone]
        folds = [f for f in a if f in b and metric in a[f] and metric in b[f]]
        if folds:
            values = np.array([[a[f][metric], b[f][metric]] for f in folds])
            mu.append(values.mean(0))
            sigma.append(values.std(0, ddof=1) if len(folds) > 1 else [np.nan, np.nan])
    mu, sigma = np.array(mu).reshape(-1, 2), np.array(sigma).reshape(-1, 2)
    return mu, sigma[np.isfinite(sigma).all(1)]


def paper_t_tests(results, metrics=METRICS, method: str = METHOD, against=None) -> list[PaperTest]:
    """The paper's Table 2, to be shown with `PAPER_TEST_WARNING`.

    results: rows of results.csv (mappings; text as csv.DictReader gives it, or numbers). For every
    release, validation and task: mu and sigma over folds per backbone (seeds averaged first), then
    a one-tailed t-test, paired over backbones, that `method` has the higher mu and the lower sigma
    than each configuration of against[task] (default: STL-tau1 and FT for prognosis, STL-tau2 for
    severity). Only folds that both configurations have count; n says how many backbones.
    Configurations that do not occur give no rows. Raises ValueError for rows without a column.
    """
    against = AGAINST if against is None else against
    table = _by_fold(results, metrics)
    tests = []
    for release, validation, task in dict.fromkeys(place[:3] for place in table):
        ours = table.get((release, validation, task, method))
        if ours is None:
            continue
        for quantity in ("mu", "sigma"):
            for name in against.get(task, ()):
                other = table.get((release, validation, task, name))
                if other is None:
                    continue
                for metric in metrics:
                    values = _pairs(ours, other, metric)[quantity == "sigma"]
                    found = _one_tailed(values, "greater" if quantity == "mu" else "less")
                    tests.append(
                        PaperTest(release, validation, task, quantity, name, metric, *found)
                    )
    return tests


def _one_tailed(values: np.ndarray, alternative: str):
    """n, difference, statistic, pvalue, stars of values (n, 2)."""
    n = len(values)
    difference = float(np.mean(values[:, 0] - values[:, 1])) if n else float("nan")
    if n < 2:
        return n, difference, float("nan"), float("nan"), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = paired_t(values[:, 0], values[:, 1], alternative)
    if found.standard_error == 0:  # the same difference for every backbone proves nothing
        return n, difference, found.statistic, float("nan"), ""
    return n, difference, found.statistic, found.pvalue, stars(found.pvalue)


def false_positive_rate_of_paper_test(
    n_simulations: int = 1000,
    seed: int = 0,
    *,
    shared: float = 0.3,
    case: float = 0.5,
    accuracy: float = 0.67,
    cases: int = 820,
    backbones: int = 18,
    folds: int = 5,
    alpha: float = 0.05,
) -> PaperTestRates:
    """How often the paper's test claims that one of two equally good configurations is better.

    Backbone k of configuration c is right about case i where
    sqrt(case) u_i + sqrt(1 - case) (sqrt(shared) v_ci + sqrt(1 - shared) e_cki) < Phi^-1(accuracy),
    all terms standard normal: u_i makes the case hard for everybody, v_ci for this configuration
    whatever its backbone (same training cases, same stages, same second data set), e_cki is this
    network's own. Both configurations have the same expected accuracy, in every case. mu and sigma
    are those of the accuracy over `folds` test folds, tested over `backbones` one-tailed at
    `alpha`. With shared = 0 the backbones' differences are independent and the rate is alpha;
    `case_level` tests the same runs over the cases, which are independent, and keeps to alpha.
    2,000 studies with seed 0: mu 5 % (shared = 0), 18 % (0.2), 23 % (0.3), 32 % (0.6), 41 % (0.9);
    sigma 6, 12, 15, 25, 36 %; case level 5 to 6 %.
    """
    from scipy.special import ndtri, stdtrit

    n_simulations = _check.count_of(n_simulations, "n_simulations")
    folds = _check.count_of(folds, "folds", 2)
    backbones = _check.count_of(backbones, "backbones", 2)
    cases = _check.count_of(cases, "cases", 2 * folds)
    seed = _check.count_of(seed, "seed", 0)
    for name, value in (("shared", shared), ("case", case)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a share of a variance, in 0..1")
    if not (0 < accuracy < 1 and 0 < alpha < 0.5):
        raise ValueError(f"accuracy is {accuracy} and alpha {alpha}; they must be fractions")
    starts = np.arange(folds) * cases // folds
    sizes = np.diff(np.append(starts, cases))
    limit = float(ndtri(accuracy))
    scale = [np.sqrt(v) for v in (case, (1 - case) * shared, (1 - case) * (1 - shared))]
    claims = np.zeros(3)
    for i in range(n_simulations):
        random = np.random.Generator(np.random.Philox(key=np.array([seed, i], np.uint64)))
        z = scale[2] * random.standard_normal((2, backbones, cases), np.float32)
        z += scale[1] * random.standard_normal((2, 1, cases), np.float32)
        z += scale[0] * random.standard_normal(cases, np.float32)
        right = (z < limit).astype(np.float64)
        by_fold = np.add.reduceat(right, starts, 2) / sizes
        mu, sigma = by_fold.mean(2), by_fold.std(2, ddof=1)
        tested = (mu[0] - mu[1], sigma[1] - sigma[0], (right[0] - right[1]).mean(0))
        for k, d in enumerate(tested):
            error = d.std(ddof=1) / np.sqrt(len(d))
            claims[k] += d.mean() > stdtrit(len(d) - 1, 1 - alpha) * error
    rates = claims / n_simulations
    error = float(np.sqrt(rates[0] * (1 - rates[0]) / n_simulations))
    return PaperTestRates(*rates.tolist(), error, n_simulations)
