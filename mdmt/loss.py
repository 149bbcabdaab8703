"""The masked multi-task loss on arrays; the arithmetic is in csrc/cpu/loss.c."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mdmt import _core
from mdmt.checked import chosen, floats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

KINDS = ("ce", "bce", "mse", "ordinal")
REDUCTIONS = ("mean", "per_task_mean", "sum")


def masked_loss(
    logits: Sequence[ArrayLike],
    task: ArrayLike,
    target: ArrayLike,
    reduction: str = "mean",
    weights: Sequence[float] | None = None,
    losses: Sequence[str] | None = None,
    sample_weight: ArrayLike | None = None,
    smoothing: Sequence[float] | None = None,
) -> tuple[float, list[np.ndarray], np.ndarray]:
    """Loss of a mixed batch, equations (1) to (3) of the paper, and its gradients.

    logits: list of K arrays (N, C_k), float32, one per task: every head sees every sample.
    task (N): the task that each sample is labelled for, -1 for none.
    target (N,) or (N, k): class index (ce, ordinal), k values in 0 to 1 (bce), k values (mse); a
    task reads the first columns, and those that only tasks without a sample read may be left out.
    NaN is a missing label: of one output for bce, else of the sample.
    reduction: "mean", the sum over the samples divided by the number of labelled samples of the
    batch; "per_task_mean", the sum over tasks of the mean over their own samples; "sum".
    weights (K): factors of the tasks' losses, default 1. losses (K): "ce" (default), "bce" (mean
    over those of its k logits that have a label), "mse" (mean over its k outputs) or "ordinal", the
    logarithmic ranked score -sum_{j<C-1} [y <= j] log F_j + [y > j] log(1 - F_j) of the cumulative
    softmax probabilities F.

    sample_weight (N,) or (N, k): the weight of each sample, or of each of its targets: bce and mse
    are then means over the same outputs of weight times loss; other losses take the first column.
    Means stay divided by the number of labelled samples, those of weight 0 among them, and not by
    the sum of the weights (as PyTorch's `weight` is with reduction "mean"): the loss of a batch is
    an unbiased estimate of that of all data, and a task of which a batch holds one sample counts it
    with its weight, which would otherwise cancel.
    smoothing (K): share e of the target of each ce task that is spread evenly over its classes,
    (1 - e) onehot + e / C (label_smoothing of PyTorch's CrossEntropyLoss); 0 for other losses.

    A sample without a label has loss zero and gradient zero and is not counted; a task without a
    sample has loss zero and a gradient of zeros.

    Returns (loss, [d loss / d logits_k (N, C_k) float32], per_task), per_task (K, 2) float64 with
    the sum of each task's losses, with the weights of the samples and without its factor, and the
    number of its samples. Raises ValueError for shapes that do not fit and for a label or weight
    out of range, naming sample and value.
    """
    logits = _logits(logits)
    weights = _per_task("weights", weights, 1.0, len(logits))
    losses = _per_task("losses", losses, "ce", len(logits))
    spread = _per_task("smoothing", smoothing, 0.0, len(logits))
    if not len(weights) == len(losses) == len(spread) == len(logits):
        raise ValueError(
            f"{len(logits)} tasks need as many weights, losses and smoothing, not {len(weights)}, "
            f"{len(losses)} and {len(spread)}"
        )
    for weight in weights:
        if not isinstance(weight, numbers.Real) or not np.isfinite(weight):
            raise ValueError(f"the weight of a task must be a number, not {weight!r}")
    for kind in losses:
        if not chosen(kind, KINDS):
            raise ValueError(f"unknown loss {kind!r}: choose one of {', '.join(KINDS)}")
    spread = [smoothing_of(kind, share, k) for k, (kind, share) in enumerate(zip(losses, spread))]
    if not chosen(reduction, REDUCTIONS):
        raise ValueError(f"unknown reduction {reduction!r}: choose one of {', '.join(REDUCTIONS)}")
    if not 1 <= len(logits) <= 16:
        raise ValueError(f"masked_loss takes 1 to 16 tasks, not {len(logits)}")
    task, target = _labels(logits, task, target, losses)
    if sample_weight is not None:
        named = {
            str(k): columns_of(kind, z.shape[1]) for k, (kind, z) in enumerate(zip(losses, logits))
        }
        target = np.hstack([target, sample_weights(sample_weight, task, target, named)])
    tasks = [(KINDS.index(k), float(w), share) for k, w, share in zip(losses, weights, spread)]
    return _core.masked_loss(
        logits,
        task,
        np.ascontiguousarray(target),
        tasks,
        REDUCTIONS.index(reduction),
        sample_weight is not None,
    )


def _logits(given) -> list[np.ndarray]:
    if not isinstance(given, Sequence):
        found = given.shape if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"logits must be a list of one array per task, not one of {found}")
    found = [floats(f"logits[{k}]", z, np.float32) for k, z in enumerate(given)]
    return [np.require(z, np.float32, "CA") for z in found]


def _per_task(name: str, value, default, tasks: int) -> list:
    """What was given for each task, or the default of all."""
    if value is None:
        return [default] * tasks
    if not isinstance(value, (Sequence, np.ndarray)):
        raise ValueError(f"{name} must be a list with one entry per task, not {value!r}")
    return list(value)


def columns_of(loss: str, outputs: int) -> int:
    """How many columns of the targets a loss of so many outputs reads."""
    return outputs if loss in ("bce", "mse") else 1


def smoothing_of(loss: str, share, task) -> float:
    """A task's smoothing as a number. ValueError, naming the task, for one that it cannot have."""
    good = isinstance(share, numbers.Real) and not isinstance(share, bool) and 0 <= share < 1
    if not good:
        raise ValueError(
            f"task {task}: smoothing must be a number of at least 0 and below 1, not {share!r}"
        )
    if share and loss != "ce":
        raise ValueError(
            f"task {task}: smoothing spreads the target of the loss ce over its classes, and the "
            f"loss {loss} has no such target; leave it out"
        )
    return float(share)


def sample_weights(
    given: ArrayLike, task: np.ndarray, target: np.ndarray, reads: dict[str, int]
) -> np.ndarray:
    """The weights of target (N, width) as float32 of that shape, of sample_weight (N,) or (N, k).

    task (N) int32; reads: {name of a task: columns that it reads}, in order. ValueError for another
    shape, and for a weight of a label that is not a finite number of 0 or more.
    """
    weight = floats("sample_weight", given, np.float32)
    (n, width), shape = target.shape, weight.shape
    weight = weight[:, None] if weight.ndim == 1 else weight
    if weight.ndim != 2 or len(weight) != n or weight.shape[1] > max(width, 1):
        raise ValueError(
            f"sample_weight must be ({n},), or ({n}, k) with a column per target (at most "
            f"{width}), not {shape}"
        )
    columns = weight.shape[1]
    full = np.ones((n, width), np.float32)
    full[:, : width if columns == 1 else columns] = weight
    for k, (name, needed) in enumerate(reads.items()):
        mine = task == k
        if 1 < columns < needed and mine.any():
            raise ValueError(
                f"task {name} reads {needed} targets, but sample_weight has {columns} columns; "
                "give one per target, or one per sample"
            )
        some = full[:, :needed]
        bad = mine[:, None] & ~np.isnan(target[:, :needed]) & ~((some >= 0) & np.isfinite(some))
        for i, j in np.argwhere(bad)[:1]:
            raise ValueError(
                f"sample {i} has the weight {some[i, j]:g} for task {name}; a weight is a finite "
                "number, 0 or more"
            )
    return full


def _labels(logits, task, target, losses):
    """task (N) int32 and target (N, as many columns as any loss reads) float32, NaN where a column
    was not given."""
    task = np.asarray(task)
    if task.dtype.kind not in "iu" and task.size:
        raise ValueError(f"task must hold integers, not {task.dtype}")
    n = len(logits[0]) if logits[0].ndim else 0
    for k, z in enumerate(logits):
        if z.ndim != 2 or len(z) != n:
            raise ValueError(f"logits[{k}] must be ({n}, classes), not {z.shape}")
    target = floats("target", target, np.float32)
    target = target[:, None] if target.ndim == 1 else target
    if task.shape != (n,) or target.ndim != 2 or len(target) != n:
        raise ValueError(
            f"the logits are of {n} samples, task has the shape {task.shape} and target "
            f"{target.shape}; give one of each per sample"
        )
    for i in np.flatnonzero((task < -1) | (task >= len(logits)))[:1]:
        raise ValueError(
            f"sample {i} has the task {task[i]}, outside 0 to {len(logits) - 1} (-1: no label)"
        )
    reads = [z.shape[1] if kind in ("bce", "mse") else 1 for z, kind in zip(logits, losses)]
    columns, width = target.shape[1], max(reads, default=1)
    for k, needed in enumerate(reads):
        if needed > columns and (task == k).any():
            raise ValueError(
                f"task {k} has {needed} outputs, but the targets have {columns} columns"
            )
    missing = np.full((n, max(width - columns, 0)), np.nan, np.float32)
    return task.astype(np.int32), np.ascontiguousarray(np.hstack([target, missing]))
