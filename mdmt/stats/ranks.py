"""Ranks of several configurations over backbones: Friedman's test and Nemenyi's critical
difference, the numbers behind a critical-difference diagram.

Description rather than proof: the backbones share their cases, so they are not the independent
data sets that these tests were made for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _check


class FriedmanResult(NamedTuple):
    """statistic: chi^2 with its p-value; f_statistic: Iman & Davenport's, less conservative."""

    statistic: float
    pvalue: float
    f_statistic: float
    f_pvalue: float
    ranks: np.ndarray


class NemenyiResult(NamedTuple):
    """Mean ranks (k,), the critical difference, p-values (k, k) and groups: the longest runs of
    configurations (by number, best first) whose mean ranks differ by less than it."""

    ranks: np.ndarray
    critical_difference: float
    pvalues: np.ndarray
    groups: list


def _scores(scores, least: int) -> np.ndarray:
    scores = _check.floats(scores, "scores")
    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < least:
        raise ValueError(
            f"scores has shape {scores.shape}; it must be (backbones, configurations), at least "
            f"2 x {least}"
        )
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"scores[{row}, {column}] is {scores[row, column]}; leave backbones without all the "
            "configurations out"
        )
    return scores


def mean_ranks(scores) -> np.ndarray:
    """Mean rank (k,) of each configuration over the rows of scores (N, k); the highest score of a
    row has rank 1, ties share their mean."""
    from scipy.stats import rankdata

    return rankdata(-_scores(scores, 1), axis=1).mean(0)


def friedman(scores) -> FriedmanResult:
    """Friedman's test that k >= 3 configurations rank alike over N backbones; scores (N, k).

    chi^2_F (with SciPy's correction for ties) has k - 1 degrees of freedom;
    F_F = (N - 1) chi^2_F / (N (k - 1) - chi^2_F) has k - 1 and (k - 1)(N - 1) (Friedman 1937;
    Iman & Davenport 1980; as in Demsar, JMLR 7, 2006, section 3.2.2). p = 1 where all tie.
    """
    from scipy.special import fdtrc
    from scipy.stats import friedmanchisquare

    scores = _scores(scores, 3)
    n, k = scores.shape
    ranks = mean_ranks(scores)
    if np.all(scores == scores[:, :1]):
        return FriedmanResult(0.0, 1.0, 0.0, 1.0, ranks)
    statistic, pvalue = friedmanchisquare(*scores.T)
    below = n * (k - 1) - statistic
    f = float((n - 1) * statistic / below) if below > 1e-12 * n * k else float("inf")
    f_pvalue = float(fdtrc(k - 1, (k - 1) * (n - 1), f)) if np.isfinite(f) else 0.0
    return FriedmanResult(float(statistic), float(pvalue), f, f_pvalue, ranks)


def critical_difference(k: int, n: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of the mean ranks of k configurations over n backbones.

    q_alpha sqrt(k (k + 1) / (6 n)), q_alpha the 1 - alpha quantile of the studentised range of k
    values with infinitely many degrees of freedom, over sqrt 2 (Demsar, JMLR 7, 2006, eq. 6).
    """
    from scipy.stats import studentized_range

    k, n = _check.count_of(k, "k", 2), _check.count_of(n, "n", 1)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1, such as 0.05")
    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def nemenyi(scores, alpha: float = 0.05) -> NemenyiResult:
    """Nemenyi's comparison of all pairs of k >= 2 configurations over N backbones; scores (N, k).

    p_ij = P(range > sqrt 2 |R_i - R_j| / sqrt(k (k + 1) / (6 N))) for mean ranks R (Nemenyi 1963;
    Demsar, JMLR 7, 2006, section 3.2.2).
    """
    from scipy.stats import studentized_range

    scores = _scores(scores, 2)
    n, k = scores.shape
    ranks = mean_ranks(scores)
    width = critical_difference(k, n, alpha)
    distance = np.abs(ranks[:, None] - ranks[None, :])
    pvalues = np.ones((k, k))
    rows, columns = np.triu_indices(k, 1)
    scaled = np.sqrt(2) * distance[rows, columns] / np.sqrt(k * (k + 1) / (6 * n))
    pvalues[rows, columns] = pvalues[columns, rows] = np.clip(
        studentized_range.sf(scaled, k, np.inf), 0, 1
    )
    return NemenyiResult(ranks, width, pvalues, _groups(ranks, width))


def _groups(ranks: np.ndarray, width: float) -> list[list[int]]:
    """Longest runs, in the order of the ranks, that span less than `width`; two or more each."""
    order = np.argsort(ranks, kind="stable")
    runs, reached = [], 0
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and ranks[order[last + 1]] - ranks[order[first]] < width:
            last += 1
        if last > first and last > reached:
            runs.append(order[first : last + 1].tolist())
            reached = last
    return runs
