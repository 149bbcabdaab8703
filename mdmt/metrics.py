"""Metrics on arrays; also reachable as `mdmt.stats.*`.

Fractions in 0..1 except mae and rmse (in classes or points), r2 (at most 1) and mcc,
quadratic_weighted_kappa, pearson, spearman and ccc (-1..1).

accuracy: share of right predictions. f1: 2 TP / (2 TP + FP + FN). gmean: geometric mean of the
recalls of the classes that occur (for two classes the square root of sensitivity times
specificity). auc: area under the ROC curve from scores, ties counted half; for more than two
classes the mean of one class against the rest.

A share of nothing is NaN, not 0: f1 of a class without a case, and where all cases are of one
class macro f1, gmean, balanced_accuracy, mcc and auc, since what they compare is not there. Which
of these are defined depends on y alone, never on the predictions, so that means over folds compare
the same folds of every network. (ppv and npv are shares of those that are called so, or not.)
"""

from __future__ import annotations

import numpy as np

from . import kinds
from .checked import floats


def _pair(y, predicted) -> tuple[np.ndarray, np.ndarray]:
    y, predicted = np.asarray(y), np.asarray(predicted)
    if y.ndim != 1 or y.shape != predicted.shape or y.size == 0:
        raise ValueError(
            f"y has shape {y.shape} and predicted {predicted.shape}; both must be (n,) with n >= 1"
        )
    return y, predicted


def _single(y: np.ndarray) -> bool:
    return bool(np.all(y == y[0]))


def accuracy(y, predicted) -> float:
    """Share of cases (n,) whose predicted class is right."""
    y, predicted = _pair(y, predicted)
    return float(np.mean(y == predicted))


def f1(y, predicted, average: str = "binary", positive=1) -> float:
    """F1 of classes (n,).

    average: "binary" (of the class `positive`), "macro" (mean over the classes that occur in y or
    predicted) or "weighted" (weighted by their counts in y). 0 where a class is never right. NaN,
    where scikit-learn warns and says 0: "binary" without a case of `positive`, "macro" with all
    cases of one class.
    """
    y, predicted = _pair(y, predicted)
    if average not in ("binary", "macro", "weighted"):
        raise ValueError(f"average is {average!r}; it must be 'binary', 'macro' or 'weighted'")
    classes = [positive] if average == "binary" else np.unique(np.concatenate([y, predicted]))
    lacking = {"binary": not np.any(y == positive), "macro": _single(y), "weighted": False}
    if lacking[average]:
        return float("nan")
    scores, weights = [], []
    for c in classes:
        right = np.sum((y == c) & (predicted == c))
        scores.append(2.0 * right / (np.sum(y == c) + np.sum(predicted == c)))
        weights.append(np.sum(y == c))
    if average == "weighted":
        return float(np.average(scores, weights=weights))
    return float(np.mean(scores))


def recalls(y, predicted) -> dict:
    """Recall of each class that occurs in y (n,): {class: recall}."""
    y, predicted = _pair(y, predicted)
    return {c: float(np.mean(predicted[y == c] == c)) for c in np.unique(y).tolist()}


def gmean(y, predicted) -> float:
    """Geometric mean of the recalls of the classes that occur in y (n,); NaN where one does."""
    values = np.array(list(recalls(y, predicted).values()))
    return float(np.prod(values) ** (1.0 / len(values))) if len(values) > 1 else float("nan")


def balanced_accuracy(y, predicted) -> float:
    """Arithmetic mean of the recalls of the classes that occur in y (n,); NaN where one does."""
    values = list(recalls(y, predicted).values())
    return float(np.mean(values)) if len(values) > 1 else float("nan")


def sensitivity(y, predicted, positive=1) -> float:
    """TP / (TP + FN): share of the `positive` cases (n,) that are found; NaN without any."""
    y, predicted = _pair(y, predicted)
    chosen = y == positive
    return float(np.mean(predicted[chosen] == positive)) if chosen.any() else float("nan")


def specificity(y, predicted, positive=1) -> float:
    """TN / (TN + FP): share of the other cases (n,) that are not called `positive`; NaN if none."""
    y, predicted = _pair(y, predicted)
    rest = y != positive
    return float(np.mean(predicted[rest] != positive)) if rest.any() else float("nan")


def ppv(y, predicted, positive=1) -> float:
    """TP / (TP + FP), positive predictive value (precision): share of the cases (n,) called
    `positive` that are; NaN where none is called so."""
    y, predicted = _pair(y, predicted)
    chosen = predicted == positive
    return float(np.mean(y[chosen] == positive)) if chosen.any() else float("nan")


def npv(y, predicted, positive=1) -> float:
    """TN / (TN + FN), negative predictive value: share of the cases (n,) not called `positive` that
    are not; NaN where all are called so."""
    y, predicted = _pair(y, predicted)
    rest = predicted != positive
    return float(np.mean(y[rest] != positive)) if rest.any() else float("nan")


def mcc(y, predicted) -> float:
    """Matthews' correlation of classes (n,), for K classes Gorodkin's R_K.

    (c n - sum_k t_k p_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)) with c right predictions,
    t_k cases and p_k predictions of class k (Gorodkin, Comput. Biol. Chem. 28, 2004, eq. 8); 0
    where predicted holds a single class, NaN where y does.
    """
    y, predicted = _pair(y, predicted)
    if _single(y):
        return float("nan")
    classes = np.unique(np.concatenate([y, predicted]))
    true = np.array([np.sum(y == c) for c in classes], np.float64)
    called = np.array([np.sum(predicted == c) for c in classes], np.float64)
    n = float(len(y))
    below = (n * n - np.sum(called**2)) * (n * n - np.sum(true**2))
    above = np.sum(y == predicted) * n - np.sum(true * called)
    return float(above / np.sqrt(below)) if below > 0 else 0.0


def _numbers(y, predicted) -> tuple[np.ndarray, np.ndarray]:
    y, predicted = _pair(y, predicted)
    if y.dtype.kind not in "biuf" or predicted.dtype.kind not in "biuf":
        raise ValueError(
            f"y is {y.dtype} and predicted {predicted.dtype}; both must be numbers, since their "
            "distance counts (for named classes pass their ranks 0, 1, 2, ...)"
        )
    y, predicted = y.astype(np.float64), predicted.astype(np.float64)
    if not (np.isfinite(y).all() and np.isfinite(predicted).all()):
        raise ValueError("y or predicted holds NaN or infinity; leave those cases out")
    return y, predicted


def _centered(values: np.ndarray) -> np.ndarray:
    """`values` (n,) less their mean: zeros where all are equal, whose mean is it up to rounding."""
    return np.zeros_like(values) if _single(values) else values - values.mean()


def quadratic_weighted_kappa(y, predicted) -> float:
    """Cohen's kappa of ordered classes (n,) with weights (y - predicted)^2.

    1 - mean (y - p)^2 / (var y + var p + (mean y - mean p)^2): the denominator is what the
    squared distance would be on average, were y and p independent (Cohen, Psychol. Bull. 70,
    1968). The classes' numbers are their positions. NaN where both hold one and the same class.
    """
    y, predicted = _numbers(y, predicted)
    spread = np.mean(_centered(y) ** 2) + np.mean(_centered(predicted) ** 2)
    expected = spread + (y.mean() - predicted.mean()) ** 2
    return float(1 - np.mean((y - predicted) ** 2) / expected) if expected > 0 else float("nan")


def mae(y, predicted) -> float:
    """Mean absolute error of numbers or ordered classes (n,), in their unit."""
    y, predicted = _numbers(y, predicted)
    return float(np.mean(np.abs(y - predicted)))


def rmse(y, predicted) -> float:
    """Square root of the mean squared error of numbers (n,), in their unit."""
    y, predicted = _numbers(y, predicted)
    return float(np.sqrt(np.mean((y - predicted) ** 2)))


def r2(y, predicted) -> float:
    """Coefficient of determination of numbers (n,): 1 - sum (y - p)^2 / sum (y - mean y)^2, 0 for
    always saying the mean of these y; NaN where y is constant."""
    y, predicted = _numbers(y, predicted)
    spread = np.mean(_centered(y) ** 2)
    return float(1 - np.mean((y - predicted) ** 2) / spread) if spread > 0 else float("nan")


def pearson(a, b) -> float:
    """Pearson's correlation of a and b (n,); NaN where one of them is constant."""
    a, b = _centered(np.asarray(a, np.float64)), _centered(np.asarray(b, np.float64))
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.clip(np.sum(a * b) / scale, -1, 1)) if scale > 0 else float("nan")


def spearman(y, predicted) -> float:
    """Spearman's rank correlation of numbers (n,), ties with their mean rank; NaN where one of them
    is constant."""
    from scipy.stats import rankdata

    y, predicted = _numbers(y, predicted)
    return pearson(rankdata(y), rankdata(predicted))


def ccc(y, predicted) -> float:
    """Concordance correlation of numbers (n,): 2 cov / (var y + var p + (mean y - mean p)^2), the
    correlation less what lies off the line y = p (Lin, Biometrics 45, 1989, with 1 / n); NaN
    where both hold one and the same number."""
    return quadratic_weighted_kappa(y, predicted)


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
    y, score = np.asarray(y), floats("score", score)
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


NUMBERS = {
    "mae": mae, "rmse": rmse, "r2": r2, "pearson": pearson, "spearman": spearman, "ccc": ccc,
}  # fmt: skip


def number_summary(y, predicted) -> dict:
    """The columns of results.csv for numbers y and predicted (n,): {"n", "mae", ...}."""
    return {"n": len(y), **{name: function(y, predicted) for name, function in NUMBERS.items()}}


def thresholded_summary(y, predicted, task: dict) -> dict:
    """The class columns of results.csv for numbers (n,) that the thresholds of a task cut. The AUC
    is that of the number, of two classes only."""
    positive, two = kinds.positive_of(task), len(task["classes"]) == 2
    true, called = (kinds.cut(v, task["thresholds"]) for v in (y, predicted))
    towards = np.asarray(predicted) if positive else -np.asarray(predicted)
    return {
        "accuracy": accuracy(true, called),
        "f1": f1(true, called, "binary" if two else "macro", positive),
        "f1_macro": f1(true, called, "macro"),
        "f1_weighted": f1(true, called, "weighted"),
        "gmean": gmean(true, called),
        "auc": _auc_binary(true == positive, towards) if two else float("nan"),
    }


def of_findings(name: str, y, given) -> np.ndarray:
    """A metric of each finding (K,), NaN where it is not defined.

    name: accuracy, f1 (of the finding's being there), gmean, auc or brier. y (n, K): 1, 0, or NaN
    where a finding is not labelled, which is left out; given (n, K): decisions 0 or 1, for auc and
    brier probabilities.
    """
    functions = {"accuracy": accuracy, "f1": f1, "gmean": gmean, "auc": auc,
                 "brier": lambda t, p: float(np.mean((t - p) ** 2))}  # fmt: skip
    y, given = np.asarray(y, np.float64), np.asarray(given, np.float64)
    found = np.full(y.shape[1], np.nan)
    for k, known in enumerate(~np.isnan(y.T)):
        if known.any():
            found[k] = functions[name](y[known, k], given[known, k])
    return found


def mean_of_findings(name: str, y, given) -> float:
    """Mean of `of_findings` over the findings for which it is defined; "f1_weighted" counts each by
    its cases."""
    found = of_findings(name.removesuffix("_macro").removesuffix("_weighted"), y, given)
    defined = np.isfinite(found)
    weights = (np.asarray(y) == 1).sum(0) if name.endswith("_weighted") else np.ones(len(found))
    return float(np.average(found[defined], weights=weights[defined])) if defined.any() else np.nan


def finding_summary(y, p, findings: list[str]) -> dict:
    """The columns of results.csv for findings y (n, K) (NaN: not labelled) and probabilities p
    (n, K): means over the findings, then auc_<finding> and f1_<finding>. `f1` is `f1_macro`."""
    calls = np.asarray(p) > 0.5
    names = ("accuracy", "f1", "f1_macro", "f1_weighted", "gmean")
    found = {"n": len(y), **{name: mean_of_findings(name, y, calls) for name in names}}
    found["auc"] = mean_of_findings("auc", y, p)
    for name, given in (("auc", p), ("f1", calls)):
        each = of_findings(name, y, given).tolist()
        found |= {f"{name}_{c}": v for c, v in zip(findings, each, strict=True)}
    return found


def task_summary(task: dict, y, p) -> dict:
    """The columns of results.csv of a task: y as from `kinds.values_of`, p (n, K) probabilities, or
    (n, 1) predicted numbers."""
    kind = kinds.kind_of(task)
    if kind == kinds.FINDINGS:
        return finding_summary(y, p, task["classes"])
    if kind == kinds.CLASSES:
        return summary(y, p, kinds.positive_of(task))
    found = number_summary(y, p[:, 0])
    return found | (thresholded_summary(y, p[:, 0], task) if task["thresholds"] else {})
