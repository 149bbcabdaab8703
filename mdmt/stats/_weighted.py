"""Metrics of many weighted samples at once: what makes 10,000 bootstrap resamples take a moment.

A resample is a row of weights: how often each case was drawn. `evaluator(metric, y, prediction)`
returns a function from weights (R, n) float64 to values (R,); each value is what the function of
the same name in mdmt.metrics gives for the cases repeated by their weights - or NaN, for the
metrics of `OF_ALL_CLASSES`, where a class of y has no weight.
"""

from __future__ import annotations

import numpy as np

from .. import metrics
from . import _check
from .calibration import brier, brier_losses

CLASS_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "f1_macro",
    "f1_weighted",
    "gmean",
    "mcc",
)
# What a resample that lacks a class would make another measure of: on average it lies elsewhere,
# and a BCa interval takes the distance for bias. The AUC, a mean over classes too, does not move.
OF_ALL_CLASSES = ("balanced_accuracy", "f1_macro", "gmean")
NUMBER_METRICS = ("mae", "rmse", "r2", "pearson", "ccc")
NAMES = (*CLASS_METRICS, "quadratic_weighted_kappa", *NUMBER_METRICS, "auc", "brier")

_FUNCTIONS = {
    metrics.accuracy: "accuracy",
    metrics.balanced_accuracy: "balanced_accuracy",
    metrics.sensitivity: "sensitivity",
    metrics.specificity: "specificity",
    metrics.ppv: "ppv",
    metrics.npv: "npv",
    metrics.f1: "f1",
    metrics.gmean: "gmean",
    metrics.mcc: "mcc",
    metrics.quadratic_weighted_kappa: "quadratic_weighted_kappa",
    metrics.mae: "mae",
    metrics.rmse: "rmse",
    metrics.r2: "r2",
    metrics.pearson: "pearson",
    metrics.ccc: "ccc",
    metrics.auc: "auc",
    brier: "brier",
}


def _share(part, whole):
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _class_metric(name: str, y: np.ndarray, predicted: np.ndarray, positive):
    """Metrics of the per-class counts true, called and right (R, K), and the total (R, 1)."""
    if predicted.shape != y.shape:
        raise ValueError(
            f"predictions have shape {predicted.shape} and y {y.shape}; metric {name!r} needs one "
            "predicted class per case"
        )
    if predicted.dtype.kind == "f" and np.any(predicted != np.round(predicted)):
        raise ValueError(
            f"metric {name!r} needs predicted classes, but the predictions look like scores; "
            "apply a threshold, or use 'auc' or 'brier'"
        )
    classes = np.unique(np.concatenate([y, predicted]))
    if name in ("sensitivity", "specificity", "ppv", "npv", "f1"):
        classes = np.array([positive])
    is_true = (y[:, None] == classes).astype(np.float64)
    is_called = (predicted[:, None] == classes).astype(np.float64)
    table = np.hstack([is_true, is_called, is_true * is_called])
    hit = (y == predicted).astype(np.float64)[:, None]
    table = np.hstack([table, hit])
    k = len(classes)
    needed = np.isin(classes, y) & (name in OF_ALL_CLASSES)

    def evaluate(weights):
        counts = weights @ table
        total = weights.sum(1)
        true, called, right = counts[:, :k], counts[:, k : 2 * k], counts[:, 2 * k : 3 * k]
        found = _from_counts(name, true, called, right, counts[:, -1], total)
        return np.where((true[:, needed] > 0).all(1), found, np.nan)

    return evaluate


def _from_counts(name, true, called, right, hits, total):
    """true, called, right (R, K), hits and total (R,) -> (R,)."""
    if name == "accuracy":
        return hits / total
    if name == "sensitivity":
        return _share(right[:, 0], true[:, 0])
    if name == "specificity":
        others = total - true[:, 0]
        return _share(others - called[:, 0] + right[:, 0], others)
    if name == "ppv":
        return _share(right[:, 0], called[:, 0])
    if name == "npv":
        others = total - called[:, 0]
        return _share(others - true[:, 0] + right[:, 0], others)
    single = np.sum(true > 0, 1) < 2
    if name == "mcc":
        below = (total**2 - np.sum(called**2, 1)) * (total**2 - np.sum(true**2, 1))
        above = hits * total - np.sum(true * called, 1)
        found = np.where(below > 0, above / np.sqrt(np.where(below > 0, below, 1)), 0.0)
        return np.where(single, np.nan, found)
    if name in ("balanced_accuracy", "gmean"):
        recall = right / np.where(true > 0, true, 1)
        occurring = np.sum(true > 0, 1)
        if name == "balanced_accuracy":
            return np.where(single, np.nan, np.sum(recall, 1) / occurring)
        product = np.prod(np.where(true > 0, recall, 1), 1)
        return np.where(single, np.nan, product ** (1 / occurring))
    both = true + called
    score = 2 * right / np.where(both > 0, both, 1)
    if name == "f1":
        return np.where(true[:, 0] > 0, score[:, 0], np.nan)
    if name == "f1_weighted":
        return np.sum(score * true, 1) / total
    return np.where(single, np.nan, np.sum(score, 1) / np.sum(both > 0, 1))


def _kappa(y, predicted):
    y, predicted = metrics._numbers(y, predicted)
    y, predicted = y - y.mean(), predicted - y.mean()  # squares of large numbers lose their digits
    table = np.column_stack([y, predicted, y * y, predicted**2, (y - predicted) ** 2])
    least = 1e-12 * (np.mean(y * y) + np.mean(predicted**2))  # what is rounding

    def evaluate(weights):
        mean_y, mean_p, square_y, square_p, distance = (
            weights @ table / weights.sum(1, keepdims=True)
        ).T
        expected = square_y + square_p - 2 * mean_y * mean_p
        return 1 - _share(distance, np.where(expected > least, expected, 0))

    return evaluate


def _number_metric(name: str, y, predicted):
    """Metrics of numbers, from weighted moments about the means of all cases."""
    y, predicted = metrics._numbers(y, predicted)
    error = y - predicted
    if name == "mae":
        return _mean(np.abs(error))
    if name == "rmse":
        mean = _mean(error**2)
        return lambda weights: np.sqrt(mean(weights))
    a, b = y - y.mean(), predicted - predicted.mean()
    table = np.column_stack([a, b, a * a, b * b, a * b, error**2])
    least = 1e-12 * np.array([np.mean(a * a), np.mean(b * b)])  # a variance that is rounding

    def evaluate(weights):
        means = (weights @ table / weights.sum(1, keepdims=True)).T
        mean_a, mean_b, square_a, square_b, product, square = means
        spread_a, spread_b = square_a - mean_a**2, square_b - mean_b**2
        spread_a = np.where(spread_a > least[0], spread_a, 0)
        spread_b = np.where(spread_b > least[1], spread_b, 0)
        if name == "r2":
            return 1 - _share(square, spread_a)
        covariance = product - mean_a * mean_b
        if name == "ccc":
            apart = (mean_a - mean_b + y.mean() - predicted.mean()) ** 2
            expected = spread_a + spread_b + apart
            return _share(2 * covariance, np.where(expected > least.sum(), expected, 0))
        return np.clip(_share(covariance, np.sqrt(spread_a * spread_b)), -1, 1)

    return evaluate


def _findings(name: str, y: np.ndarray, prediction: np.ndarray):
    """Mean over the findings of y (n, K) that a resample defines the metric for."""
    if prediction.shape != y.shape or name not in ("accuracy", "f1", "gmean", "auc", "brier"):
        raise ValueError(
            f"predictions have shape {prediction.shape} and findings y {y.shape}, metric {name!r}; "
            "they must have the same shape, and the metric be accuracy, f1, gmean, auc or brier"
        )
    parts = []
    for k in range(y.shape[1]):
        rows = np.flatnonzero(~np.isnan(y[:, k]))
        if len(rows):
            t = y[rows, k].astype(np.int64)
            p = prediction[rows, k]
            p = p if name in ("auc", "brier") else p.astype(np.int64)
            parts.append((rows, evaluator(name, t, p)))

    return _mean_of_parts(parts)


def _mean_of_parts(parts: list):
    """Function from weights (R, n) to the mean (R,) over those of `parts` = [(rows, function of
    their weights)] in which it is defined; NaN where it is in none."""

    def evaluate(weights):
        values = np.full((max(len(parts), 1), len(weights)), np.nan)
        for k, (rows, part) in enumerate(parts):
            inside = weights[:, rows]
            drawn = inside.any(1)
            values[k, drawn] = part(inside[drawn])
        defined = np.isfinite(values)
        return _share(np.where(defined, values, 0).sum(0), defined.sum(0))

    return evaluate


def _mean(losses: np.ndarray):
    return lambda weights: weights @ losses / weights.sum(1)


def _auc_binary(positive: np.ndarray, score: np.ndarray):
    """Sum over positive cases of their weight times the weight of the negative ones below them,
    ties half, over the product of the totals."""
    yes = np.flatnonzero(positive)
    no = np.flatnonzero(~positive)
    no = no[np.argsort(score[no], kind="stable")]
    below = np.searchsorted(score[no], score[yes], "left")
    upto = np.searchsorted(score[no], score[yes], "right")
    tied = bool(np.any(below != upto))

    def evaluate(weights):
        of_yes = weights[:, yes]
        summed = np.zeros((len(weights), len(no) + 1))
        np.cumsum(weights[:, no], axis=1, out=summed[:, 1:])
        beaten = summed[:, below]
        if tied:
            beaten += summed[:, upto]
            beaten *= 0.5
        return _share(np.einsum("rn,rn->r", of_yes, beaten), of_yes.sum(1) * summed[:, -1])

    return evaluate


def _auc(y, score, positive):
    score = _check.floats(score, "scores")
    if score.ndim not in (1, 2) or score.shape[0] != y.shape[0] or not np.isfinite(score).all():
        raise ValueError(
            f"scores have shape {score.shape} and y {y.shape}; metric 'auc' needs finite scores "
            "(n,) or (n, K)"
        )
    if score.ndim == 2 and score.shape[1] == 2:
        if positive not in (0, 1):
            raise ValueError(f"positive is {positive!r}; with scores (n, 2) it must be 0 or 1")
        score = score[:, int(positive)]
    if score.ndim == 1:
        return _auc_binary(y == positive, score)
    parts = [_auc_binary(y == k, score[:, k]) for k in range(score.shape[1])]

    def evaluate(weights):
        values = np.stack([part(weights) for part in parts])
        defined = np.isfinite(values)
        return _share(np.where(defined, values, 0).sum(0), defined.sum(0))

    return evaluate


def _any_function(function, y, prediction):
    """`function(y, prediction)` of the repeated cases, one resample after the other (slow)."""

    def evaluate(weights):
        found = np.empty(len(weights))
        for r, row in enumerate(weights):
            rows = np.repeat(np.arange(len(y)), row.astype(np.int64))
            found[r] = function(y[rows], prediction[rows])
        return found

    return evaluate


def by_fold(metric, y, prediction, folds, positive=1):
    """As `evaluator`, of the mean over folds (n,) of the metric within each fold; a fold in which
    a resample leaves the metric undefined does not count in that resample's mean."""
    if folds is None:
        return evaluator(metric, y, prediction, positive)
    parts = []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        parts.append((rows, evaluator(metric, y[rows], np.asarray(prediction)[rows], positive)))

    return _mean_of_parts(parts)


def each_fold(metric, y, predictions, folds, positive=1):
    """Function from weights (R, n) to the metric of each of T `predictions` within each fold
    (T, folds, R); NaN where a resample leaves it undefined. folds (n,), or None: all in one."""
    folds = np.zeros(len(y), np.int64) if folds is None else folds
    parts = []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        given = [np.asarray(p)[rows] for p in predictions]
        parts.append((rows, [evaluator(metric, y[rows], p, positive) for p in given]))

    def evaluate(weights):
        values = np.full((len(predictions), len(parts), len(weights)), np.nan)
        for k, (rows, functions) in enumerate(parts):
            inside = weights[:, rows]
            drawn = inside.any(1)
            for t, function in enumerate(functions):
                values[t, k, drawn] = function(inside[drawn])
        return values

    return evaluate


def evaluator(metric, y, prediction, positive=1):
    """Function from weights (R, n) to the metric's values (R,).

    metric: a name of `NAMES`, the function of that name in mdmt.stats, or any function of
    (y, prediction). y (n,); prediction (n,), or (n, K) for metrics of scores. For findings y (n, K)
    with prediction (n, K), see `mdmt.stats.resample`.
    """
    prediction = np.asarray(prediction)
    if y.ndim == 2:
        return _findings(metric, y, prediction)
    if prediction.shape[:1] != y.shape:
        raise ValueError(
            f"predictions have shape {prediction.shape} and y {y.shape}; they must begin with the "
            "same number of cases"
        )
    name = _FUNCTIONS.get(metric, metric) if callable(metric) else metric
    if callable(name):
        return _any_function(name, y, prediction)
    if name not in NAMES:
        from ..errors import nearest

        raise ValueError(
            f"metric is {name!r}{nearest(name, NAMES)}; a function of (y, prediction) will do too"
        )
    if name in CLASS_METRICS:
        return _class_metric(name, y, prediction, positive)
    if name == "quadratic_weighted_kappa":
        return _kappa(y, prediction)
    if name in NUMBER_METRICS:
        return _number_metric(name, y, prediction)
    if name == "auc":
        return _auc(y, prediction, positive)
    return _mean(brier_losses(y, prediction, positive))
