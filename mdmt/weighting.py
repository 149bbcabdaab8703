"""Class weights: how much a label counts in the loss, so that rare classes are heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: Largest weight of a finding's positives: a finding in fewer than one image of a hundred counts no
#: more than one in a hundred, or single images would make whole steps.
MOST = 100.0


def class_weights(labels: ArrayLike, classes: int, loss: str = "ce") -> np.ndarray:
    """The weights (classes,) float64 that balance the labels of a training part.

    loss "ce" or "ordinal": labels (n,) class numbers from 0, NaN where there is none. The weight of
    class k is n / (K n_k), K the number of classes that occur ("balanced" of scikit-learn's
    compute_class_weight, after King and Zeng 2001): every class counts alike, and the mean weight
    of a sample is 1. A class that does not occur gets 1.
    "bce": labels (n, classes) of 1, 0 and NaN (not labelled). The weight of finding j's positives,
    negatives count 1: n_negative / n_positive (what PyTorch's pos_weight is usually given), at most
    100. A finding without a positive or without a negative gets 1.

    Give them as `sample_weight`, w[labels] of classes and np.where(labels == 1, w, 1) of findings.
    Only the training part may be counted. ValueError, one sentence, for other labels, numbers of
    classes or losses.
    """
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise ValueError(f"classes must be their number, 1 or more, not {classes!r}")
    try:
        values = np.asarray(labels, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            "labels must be numbers, NaN for none; name classes by 0, 1, 2, ..."
        ) from None
    shape = ("n",) if loss in ("ce", "ordinal") else ("n", classes)
    if loss not in ("ce", "ordinal", "bce"):
        raise ValueError(f"class weights are of the losses ce, ordinal and bce, not {loss!r}")
    if values.ndim != len(shape) or values.shape[1:] != shape[1:]:
        raise ValueError(
            f"labels of the loss {loss} must be ({', '.join(map(str, shape))}), not {values.shape}"
        )
    if loss == "bce":
        return _positives(values)
    known = values[~np.isnan(values)]
    wrong = known[(known != np.floor(known)) | (known < 0) | (known >= classes)]
    if len(wrong):
        raise ValueError(f"labels must be 0 to {classes - 1}, NaN for none, not {wrong[0]:g}")
    counts = np.bincount(known.astype(np.int64), minlength=classes)
    occurring = counts > 0
    weights = np.ones(classes)
    weights[occurring] = len(known) / (occurring.sum() * counts[occurring])
    return weights


def _positives(values: np.ndarray) -> np.ndarray:
    wrong = values[~np.isnan(values) & (values != 0) & (values != 1)]
    if len(wrong):
        raise ValueError(f"labels of findings must be 1, 0 or NaN, not {wrong[0]:g}")
    positive, negative = (values == 1).sum(0), (values == 0).sum(0)
    both = (positive > 0) & (negative > 0)
    return np.where(both, np.minimum(negative / np.maximum(positive, 1), MOST), 1.0)


def of_labels(labels: np.ndarray, weights: np.ndarray, loss: str) -> np.ndarray:
    """The weight of each label, float32 of its shape: weights (classes,) of class numbers (n,), or
    of the positives of findings (n, classes)."""
    if loss == "bce":
        return np.where(labels == 1, weights, 1.0).astype(np.float32)
    return np.asarray(weights, np.float32)[np.asarray(labels, np.int64)]
