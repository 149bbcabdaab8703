"""What decisions by a predicted probability are worth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _check


class DecisionCurve(NamedTuple):
    """Net benefits per case at thresholds (T,): of the model, of treating everybody (treating
    nobody has 0)."""

    thresholds: np.ndarray
    model: np.ndarray
    treat_all: np.ndarray


def net_benefits(positive: np.ndarray, p: np.ndarray, thresholds, weights: np.ndarray):
    """Net benefit (R, T) of calling cases with p >= t, for weights (R, n) of the cases; positive
    (n,) 0 or 1, p (n,), thresholds (T,) in 0..1, 1 excluded."""
    t = np.asarray(thresholds, np.float64)
    called = (p[:, None] >= t).astype(np.float64)
    total = weights.sum(1, keepdims=True)
    true = weights @ (called * positive[:, None])
    false = weights @ (called * (1 - positive)[:, None])
    return (true - false * (t / (1 - t))) / total


def decision_curve(y, p, thresholds=None, positive=1) -> DecisionCurve:
    """Decision curve (Vickers & Elkin, Med. Decis. Making 26, 2006).

    y (n,) labels, p (n,) probabilities of the class `positive`, or (n, 2). At a threshold t, the
    probability from which on one would treat, a false positive costs t / (1 - t) of what a true one
    is worth: net benefit = TP / n - FP / n * t / (1 - t), in true positives per case. thresholds
    (T,): default 0.01, 0.02, ..., 0.99. Raises ValueError for other shapes, probabilities outside
    0..1 and thresholds outside 0..1 (1 excluded).
    """
    y, p = _check.probabilities(y, p, positive)
    if p.ndim != 1:
        raise ValueError(f"p has shape {p.shape}; a decision curve is of two classes")
    t = np.arange(1, 100) / 100 if thresholds is None else _check.floats(thresholds, "thresholds")
    if t.ndim != 1 or not ((t >= 0) & (t < 1)).all():
        raise ValueError("thresholds must be (T,), from 0 to below 1")
    event = (y == positive).astype(np.float64)
    one = np.ones((1, len(event)))
    everybody = net_benefits(event, np.ones(len(event)), t, one)[0]
    return DecisionCurve(t, net_benefits(event, p, t, one)[0], everybody)
