"""Metrics on arrays, all fractions in 0..1; also reachable as `mdmt.stats.*`.

accuracy: share of right predictions. f1: 2 TP / (2 TP + FP + FN). gmean: geometric mean of the
recalls of the classes that occur (for two classes the square root of sensitivity times
specificity). auc: area under the ROC curve from scores, ties counted half; for more than two
classes the mean of one class against the rest.
"""

from __future__ import annotations

import numpy as np


def _pair(y, predicted) -> tuple[np.ndarray, np.ndarray]:
    y, predicted = np.asarray(y), np.asarray(predicted)
    if y.ndim != 1 or y.shape != predicted.shape or y.size == 0:
        raise ValueError(
            f"y has shape {y.shape} and predicted {predicted.shape}; both must be (n,) with n >= 1"
        )
    return y, predicted


def accuracy(y, predicted) -> float:
    """Share of cases (n,) whose predicted class is right."""
    y, predicted = _pair(y, predicted)
    return float(np.mean(y == predicted))


def f1(y, predicted, average: str = "binary", positive=1) -> float:
    """F1 of classes (n,).

    average: "binary" (of the class `positive`), "macro" (mean over the classes that occur in y or
    predicted) or "weighted" (weighted by their counts in y). 0 where a class is never right.
    """
    y, predicted = _pair(y, predicted)
    if average not in ("binary", "macro", "weighted"):
        raise ValueError(f"average is {average!r}; it must be 'binary', 'macro' or 'weighted'")
    classes = [positive] if average == "binary" else np.unique(np.concatenate([y, predicted]))
    scores, weights = [], []
    for c in classes:
        right = np.sum((y == c) & (predicted == c))
        both = np.sum(y == c) + np.sum(predicted == c)
        scores.append(2.0 * right / both if both else 0.0)
        weights.append(np.sum(y == c))
    if average == "weighted":
        return float(np.average(scores, weights=weights))
    return float(np.mean(scores))


def recalls(y, predicted) -> dict:
    """Recall of each class that occurs in y (n,): {class: recall}."""
    y, predicted = _pair(y, predicted)
    return {c: float(np.mean(predicted[y == c] == c)) for c in np.unique(y).tolist()}


def gmean(y, predicted) -> float:
    """Geometric mean of the recalls of the classes that occur in y (n,)."""
    values = np.array(list(recalls(y, predicted).values()))
    return float(np.prod(values) ** (1.0 / len(values)))


def _auc_binary(positive: np.ndarray, score: np.ndarray) -> float:
    """Mann-Whitney form: share of (positive, negative) pairs in the right order, ties half."""
    from scipy.stats import rankdata

    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if n1 == 0 or n0 == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def auc(y, score) -> float:
    """Area under the ROC curve.

    y (n,) class numbers; score (n,) of class 1, or (n, K) with a column per class. K = 2 uses
    column 1; K > 2 is the mean over the classes that have cases and others, one against the
    rest. NaN when y holds a single class.
    """
    y, score = np.asarray(y), np.asarray(score, np.float64)
    if y.ndim != 1 or score.shape[:1] != y.shape or score.ndim > 2 or y.size == 0:
        raise ValueError(
            f"y has shape {y.shape} and score {score.shape}; they must be (n,) and (n,) or (n, K)"
        )
    if score.ndim == 2 and score.shape[1] == 2:
        score = score[:, 1]
    if score.ndim == 1:
        return _auc_binary(y == 1, score)
    values = [_auc_binary(y == k, score[:, k]) for k in range(score.shape[1])]
    values = [v for v in values if v == v]
    return float(np.mean(values)) if values else float("nan")


def summary(y, probabilities, positive: int | None = None) -> dict:
    """All columns of results.csv for classes y (n,) and probabilities (n, K).

    `f1` is that of the positive class for K = 2 (the last one unless given), macro for K > 2.
    """
    y = np.asarray(y)
    probabilities = np.asarray(probabilities)
    predicted = probabilities.argmax(1)
    classes = probabilities.shape[1]
    positive = classes - 1 if positive is None else positive
    average = "binary" if classes == 2 else "macro"
    score = probabilities[:, positive] if classes == 2 else probabilities
    return {
        "n": len(y),
        "accuracy": accuracy(y, predicted),
        "f1": f1(y, predicted, average, positive),
        "f1_macro": f1(y, predicted, "macro"),
        "f1_weighted": f1(y, predicted, "weighted"),
        "gmean": gmean(y, predicted),
        "auc": _auc_binary(y == positive, score) if classes == 2 else auc(y, score),
    }
