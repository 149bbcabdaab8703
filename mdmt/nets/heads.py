"""The heads, one per task: fully connected ones on the pooled features (paper, equation 1), and
masks, one 1 x 1 convolution of the network's feature map, up-sampled to the size of the image."""

import math
from collections.abc import Mapping

from ..checked import whole
from ..loss import columns_of, smoothing_of

LOSSES = ("ce", "bce", "mse", "ordinal", "dice_ce")
MASK = "dice_ce"  # the loss of a mask: soft Dice and binary cross-entropy
MOST = (1 << 31) - 1  # classes, and neurons of a hidden layer
DEFAULT = {"hidden": [128, 32], "dropout": 0.5, "loss": "ce"}
LONGEST = 95  # bytes of a head's name: the engine's names of its layers have 111 at most
# Names that the engine gives to tensors of its own.
RESERVED = ("input", "image", "features", "task", "target", "mask", "loss", "per_task")


def normalise(heads):
    """{task: class count or description} -> {task: full description}; ValueError otherwise. A
    description says its smoothing only where there is some: files without it are read alike."""
    if not isinstance(heads, Mapping) or not 1 <= len(heads) <= 16:
        raise ValueError("heads must be a dictionary of 1 to 16 tasks, e.g. {'prognosis': 2}")
    return {task: _normalise(task, head) for task, head in heads.items()}


def is_mask(head):
    """Whether a head gives a mask, (N, 1, H, W) logits, instead of classes."""
    return head["loss"] == MASK


def target_width(heads):
    """Columns of the targets that the losses of `heads` read: one per output for bce and mse."""
    return max(reads(heads).values())


def reads(heads):
    """{task: columns of the targets that its loss reads}."""
    return {task: columns_of(head["loss"], head["classes"]) for task, head in heads.items()}


def _normalise(task, head):
    word = isinstance(task, str) and task.isprintable() and "." not in task
    if not word or not task or task in RESERVED:
        raise ValueError(
            f"a head cannot be named {task!r}: use a printable word without dots other than "
            f"{', '.join(RESERVED)}"
        )
    if len(task.encode()) > LONGEST:
        raise ValueError(
            f"a head cannot be named {task[:20]!r}...: the name has {len(task.encode())} bytes; "
            f"use at most {LONGEST}"
        )
    head = dict(head) if isinstance(head, Mapping) else {"classes": head}
    known = ("classes", *DEFAULT, "smoothing")
    unknown = sorted(set(head) - set(known))
    if unknown:
        raise ValueError(
            f"head {task} has no setting {unknown[0]!r}: choose among {', '.join(known)}"
        )
    if head.get("loss") == MASK:
        head = {"classes": 1, "hidden": [], "dropout": 0.0, **head}
        for key, only in (("classes", 1), ("hidden", []), ("dropout", 0)):
            if head[key] != only:
                raise ValueError(
                    f"head {task} gives a mask (loss {MASK}): its {key} can only be {only!r}, not "
                    f"{head[key]!r}"
                )
    full = {"classes": head.get("classes"), **DEFAULT, **head}
    if not isinstance(full["hidden"], list | tuple):
        raise ValueError(
            f"head {task}: hidden must be a list of widths, such as [128, 32], not "
            f"{full['hidden']!r}"
        )
    try:
        full["classes"] = whole("classes", full["classes"], 1, MOST)
        full["hidden"] = [whole("hidden", n, 1, MOST) for n in full["hidden"]]
    except ValueError as error:
        raise ValueError(f"head {task}: {error}") from None
    if full["loss"] not in LOSSES:
        raise ValueError(f"head {task}: the loss {full['loss']!r} is none of {', '.join(LOSSES)}")
    if full["loss"] in ("ce", "ordinal") and full["classes"] < 2:
        raise ValueError(f"head {task}: the loss {full['loss']} needs at least 2 classes")
    rate = full["dropout"]
    if not isinstance(rate, int | float) or math.isnan(rate) or not 0 <= rate < 1:
        raise ValueError(f"head {task}: dropout must be in [0, 1), not {rate!r}")
    share = smoothing_of(full["loss"], full.pop("smoothing", 0.0), task)
    return full | ({"smoothing": share} if share else {})


def build(b, features, task, head):
    """Appends one head: [linear - ReLU - dropout] per hidden layer, then linear; or a mask's."""
    if is_mask(head):
        if b.dense is None:
            raise ValueError(
                f"head {task} gives a mask, which needs a backbone with a feature map to make it "
                "of: unet"
            )
        x = b.conv(b.dense, f"heads.{task}.0", 1, 1, bias=True)
        return b.upsample(x)
    x = features
    for i, width in enumerate(head["hidden"]):
        x = b.dropout(b.relu(b.linear(x, f"heads.{task}.{i}", width)), head["dropout"])
    if not head["hidden"]:
        x = b.dropout(x, head["dropout"])
    return b.linear(x, f"heads.{task}.{len(head['hidden'])}", head["classes"])
