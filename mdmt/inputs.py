"""What users hand to a Model, checked: images, tasks, targets, masks, resident data sets."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping

import numpy as np

from . import _core, nets
from .checked import array_of, finite, whole
from .loss import sample_weights
from .nets import heads as heads_

MAX_SIDE = 1 << 14  # pixels


def sides(size) -> tuple[int, int]:
    """(height, width) of an image size, which may be one number."""
    size = size.tolist() if isinstance(size, np.ndarray) else size
    both = size if isinstance(size, list | tuple) else (size, size)
    if len(both) != 2:
        raise ValueError(f"image_size must be one side or (height, width), not {len(both)} numbers")
    return tuple(whole("image_size", side, 1, MAX_SIDE) for side in both)


# Batches from outside ------------------------------------------------------------------------


def images(x, channels: int, backbone: str) -> np.ndarray:
    """x (N, channels, H, W), or (N, H, W) grey, as C-ordered float32 (N, channels, H, W)."""
    try:
        x = array_of(x)
    except ValueError:
        raise ValueError("x must be one array; its images differ in shape") from None
    if x.dtype.kind != "f":
        what = type(x.item()).__name__ if x.ndim == 0 and x.dtype == object else x.dtype
        raise ValueError(
            f"x holds {what}; a network takes normalised float32, of values v in 0..1 "
            "(v - model.mean) / model.std, of uint8 pictures model.normalise(x)"
        )
    if x.ndim == 3:
        x = np.broadcast_to(x[:, None], (x.shape[0], channels, *x.shape[1:]))
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(
            f"x must be (N, {channels}, H, W), or (N, H, W) grey, not {x.shape}"
            f"{_shape_hint(x, channels)}"
        )
    step = nets.multiple(backbone)
    if x.shape[2] % step or x.shape[3] % step:
        raise ValueError(
            f"{backbone} takes images whose sides are multiples of {step}, not "
            f"{x.shape[2]} x {x.shape[3]}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.require(x, np.float32, "CA")  # aligned, too: a part of a file may begin anywhere
    if not _core.all_finite(x):
        bad = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2, 3)))
        raise FloatingPointError(f"the input holds NaN or infinity in image {bad[0]} of the batch")
    return x


def _shape_hint(x, channels):
    """What the caller probably meant, as the end of a sentence."""
    if x.ndim == 4 and len(x) == 0:
        return ": the batch is empty"
    if x.ndim == 4 and x.shape[1] == 1:
        return "; of grey images in one channel give x[:, 0]"
    if x.ndim == 4 and x.shape[3] == channels:
        return "; bring the channels to the front: x.transpose(0, 3, 1, 2)"
    if x.ndim == 2:
        return "; give one image as a batch of one: x[None]"
    return ""


def normalised(pictures, mean, std) -> np.ndarray:
    """uint8 pictures (N, H, W) or (N, C, H, W) as float32 (N, C, H, W), scaled by mean, std (C)."""
    pictures = np.asarray(pictures)
    grey = pictures.ndim == 3
    if pictures.dtype != np.uint8 or not (grey or pictures.ndim == 4):
        raise ValueError(
            f"pictures must be uint8 (N, H, W) or (N, {len(mean)}, H, W), not {pictures.dtype} "
            f"{pictures.shape}"
        )
    if not grey and pictures.shape[1] != len(mean):
        raise ValueError(
            f"pictures must be (N, {len(mean)}, H, W), or (N, H, W) grey, not {pictures.shape}"
            f"{_shape_hint(pictures, len(mean))}"
        )
    values = (pictures[:, None] if grey else pictures) / np.float32(255)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (mean, std))
    return (values - mean) / std


def masks(task, mask, shape, heads: dict) -> np.ndarray:
    """Masks (N, 1, H, W) float32 of images of shape (N, H, W), zeros where a sample needs none."""
    numbered = [k for k, head in enumerate(heads.values()) if heads_.is_mask(head)]
    needs = np.isin(task, numbered)
    if mask is None:
        if needs.any():
            name = list(heads)[task[needs][0]]
            raise ValueError(f"task {name} needs a mask per sample: target (N, H, W)")
        return np.zeros((shape[0], 1, *shape[1:]), np.float32)
    mask = np.asarray(mask, np.float32)
    if mask.shape not in (shape, (shape[0], 1, *shape[1:])):
        raise ValueError(f"the masks must be {shape}, like the images, not {mask.shape}")
    mask = mask.reshape(shape[0], 1, *shape[1:])
    wrong = needs & ~((mask >= 0) & (mask <= 1)).all((1, 2, 3))
    if wrong.any():
        raise ValueError(
            f"the mask of sample {np.flatnonzero(wrong)[0]} must lie within 0 to 1 (1: inside)"
        )
    return np.where(needs[:, None, None, None], mask, np.float32(0))


def _numbers(target, n):
    """target (n,) or (n, k) as float32 (n, k)."""
    try:
        with np.errstate(over="ignore"):
            target = np.asarray(target, np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            "target must hold numbers, a class as its position in the list of classes"
        ) from None
    shape = target.shape
    target = target[:, None] if target.ndim == 1 else target
    if target.ndim != 2 or len(target) != n:
        raise ValueError(f"target must be ({n},) or ({n}, k), not {shape}")
    return target


def _numbered(task, heads):
    """What to write instead of heads' names, as the end of a sentence."""
    if np.asarray(task).dtype.kind != "U":
        return ""
    return f"; the numbers are {', '.join(f'{k} ({name})' for k, name in enumerate(heads))}"


def targets(task, target, n: int, heads: dict) -> tuple[np.ndarray, np.ndarray]:
    """task (N) int32 and target (N, width) float32, NaN in columns that were not given; width is
    that of the head which reads most."""
    numbered = [k for k, head in enumerate(heads.values()) if heads_.is_mask(head)]
    task = np.asarray(task)
    if task.shape != (n,) or task.dtype.kind not in "iu":
        raise ValueError(
            f"task must be {n} integers, one per sample, not {task.dtype} {task.shape}"
            f"{_numbered(task, heads)}"
        )
    if target is None:  # of a batch of masks
        if not numbered:
            raise ValueError("target is None; give the label of each sample, NaN for none")
        target = np.where(np.isin(task, numbered), 0, np.nan)
    target = _numbers(target, n)
    if task.size and not -1 <= task.min() <= task.max() < len(heads):
        raise ValueError(
            f"task must be 0 to {len(heads) - 1} (or -1: no label), not "
            f"{task.min()} to {task.max()}"
        )
    width = heads_.target_width(heads)
    surplus = target[:, width:]
    if ((surplus != 0) & ~np.isnan(surplus)).any():
        raise ValueError(
            f"target has {target.shape[1]} columns, but these heads read at most {width}: each "
            "task reads the first ones, a class is one number (not one-hot)"
        )
    for k, (name, head) in enumerate(heads.items()):
        if k in numbered:
            target = np.where((task == k)[:, None], np.float32(0), target)
            continue
        _check_labels(name, head, target[task == k])
    missing = np.full((n, max(width - target.shape[1], 0)), np.nan, np.float32)
    return task.astype(np.int32), np.hstack([target[:, :width], missing])


def weights(given, task, target, heads: dict) -> np.ndarray | None:
    """sample_weight (N,) or (N, k) of what `targets` gave, as float32 (N, width); None of None."""
    return None if given is None else sample_weights(given, task, target, heads_.reads(heads))


def labelled(task, target, heads: dict) -> np.ndarray:
    """Which samples (...) have a label: all columns of target (..., width) that their task reads,
    of a binary cross-entropy one of them."""
    found = np.zeros(task.shape, bool)
    for k, (name, columns) in enumerate(heads_.reads(heads).items()):
        known = ~np.isnan(target[..., :columns])
        some = known.any(-1) if heads[name]["loss"] == "bce" else known.all(-1)
        found |= (task == k) & some
    return found


def shares(task, target, heads: dict) -> np.ndarray:
    """1 / labelled samples of each batch (S, N), float32 (S,); 0 where none is."""
    count = labelled(task, target, heads).sum(-1)
    return np.where(count > 0, 1 / np.maximum(count, 1), 0).astype(np.float32)


def micro_batches(n: int, most: int | None) -> list[tuple[int, int]]:
    """A batch of n as few and as equal parts of at most `most` samples: [(samples of a part,
    parts)], the larger ones first."""
    parts = -(-n // (most or n))
    size, more = divmod(n, parts)
    return [(s, c) for s, c in ((size + 1, more), (size, parts - more)) if c]


def _check_labels(name, head, labels):
    if head["loss"] in ("bce", "mse"):
        if labels.size and labels.shape[1] < head["classes"]:
            raise ValueError(
                f"task {name} needs {head['classes']} targets per sample, not {labels.shape[1]}"
            )
        return
    classes = labels[:, :1]
    classes = classes[~np.isnan(classes)]
    wrong = (classes != np.floor(classes)) | (classes < 0) | (classes >= head["classes"])
    if wrong.any():
        raise ValueError(
            f"task {name} has the classes 0 to {head['classes'] - 1}; {classes[wrong][0]:g} is "
            "none of them (NaN: no label)"
        )


def check_place(path: str) -> None:
    """FileNotFoundError where no file can be written, or would replace a device, say."""
    folder = os.path.dirname(path) or "."
    taken = os.path.exists(path) and not os.path.isfile(path)
    if not os.path.isdir(folder) or taken:
        what = f"there is no folder {folder}"
        if taken:
            what = f"{path} is {'a folder' if os.path.isdir(path) else 'no regular file'}"
        raise FileNotFoundError(f"{path} cannot be written: {what}; choose a file in a folder")


def scaling(mean, std, channels: int) -> tuple[list[float], list[float]]:
    """mean and std of the resident images, one number per channel; within what a file may hold."""
    for name, values, least in (("mean", mean, -1e6), ("std", std, 1e-6)):
        if np.shape(values) != (channels,) or not all(least <= v <= 1e6 for v in values):
            raise ValueError(
                f"model.{name} must be {channels} numbers of {least:g} to 1e+06, one per channel, "
                f"not {values!r}"
            )
    return [float(v) for v in mean], [float(v) for v in std]


def task_weights(given, heads: dict) -> dict[str, float]:
    """{task: factor of its loss} for every head, 1 where none is given."""
    if not isinstance(given, Mapping) or not set(given) <= set(heads):
        odd = sorted(map(str, set(given) - set(heads)))[:1] if isinstance(given, Mapping) else []
        raise ValueError(
            f"task_weights must be a dictionary of the heads {', '.join(heads)}, not "
            f"{odd[0] if odd else reprlib.repr(given)}"
        )
    weights = {task: given.get(task, 1.0) for task in heads}
    for task, weight in weights.items():
        if not finite(weight):
            raise ValueError(f"the task weight of {task} must be a number, not {weight!r}")
    return {task: float(weight) for task, weight in weights.items()}


def adam(lr, betas, eps, weight_decay, decoupled, step: int, clip) -> tuple:
    """The numbers of an update as the engine takes them; step counts from 1, clip None is none."""
    if np.shape(betas) != (2,):
        raise ValueError(f"betas of Adam must be two numbers, not {betas!r}")
    given = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}
    for name, value in {**given, "eps": eps}.items():
        good = finite(value) and value >= 0
        if not good or (name[:4] == "beta" and value >= 1):
            raise ValueError(f"{name} of Adam cannot be {value!r}")
    if clip is not None and not (finite(clip) and clip > 0):
        raise ValueError(
            f"clip must be a number above 0, the largest norm of a gradient, or None, not {clip!r}"
        )
    return (lr, betas[0], betas[1], eps, weight_decay, bool(decoupled), step, clip or 0.0)


def at_step(adam: tuple, step: int) -> tuple:
    """The same numbers for another step."""
    return (*adam[:6], step, *adam[7:])


# Resident data sets --------------------------------------------------------------------------

FIELDS = ("images", "task", "target")
WEIGHTS = "sample_weight"  # which may be left out


def _fields(i, entry):
    """images, task, target and weights (or None) of data set i."""
    if isinstance(entry, Mapping):
        missing = [key for key in FIELDS if key not in entry]
        odd = [key for key in entry if key not in (*FIELDS, WEIGHTS)]
    else:
        missing, odd = [key for key in FIELDS if not hasattr(entry, key)], []
    if missing:
        given = f"; it has {', '.join(map(str, odd))}" if odd else ""
        raise ValueError(f"data set {i} has no {missing[0]}: give images, task and target{given}")
    values = [entry[k] if isinstance(entry, Mapping) else getattr(entry, k) for k in FIELDS]
    weight = entry.get(WEIGHTS) if isinstance(entry, Mapping) else getattr(entry, WEIGHTS, None)
    try:
        return np.asarray(values[0]), values[1], np.asarray(values[2]), weight
    except ValueError:
        raise ValueError(
            f"the images or targets of data set {i} differ in shape; give one array of each"
        ) from None


def _check_images(i: int, pictures, channels: int) -> None:
    """The images of data set i must be as Model.attach takes them."""
    colour = f" or (M, {channels}, H, W)" if channels > 1 else ""
    kind = f"C-ordered uint8 (M, H, W){colour}"
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4):
        raise ValueError(
            f"the images of data set {i} must be {kind}, not {pictures.dtype} {pictures.shape}"
        )
    if pictures.size == 0:
        raise ValueError(f"data set {i} has no images: {pictures.shape}; leave it out")
    if pictures.ndim == 4 and pictures.shape[1] != channels:
        raise ValueError(
            f"the images of data set {i} must be {kind}, not {pictures.shape}"
            f"{_shape_hint(pictures, channels)}"
        )
    if not pictures.flags.c_contiguous:
        raise ValueError(
            f"the images of data set {i} must be {kind}: they are in another order; use "
            "np.ascontiguousarray"
        )


def datasets(entries, heads: dict, channels: int) -> tuple[list, list, list]:
    """Of data sets as Model.attach takes them: images (M, H, W) or (M, channels, H, W) uint8;
    (task, target (M, k) float32, weights (M, k) float32 or None); masks (M, H, W) uint8 or None."""
    if isinstance(entries, Mapping) or not isinstance(entries, Iterable):
        raise ValueError("attach takes a list of data sets; put brackets around a single one")
    sources, labels, resident = [], [], []
    for i, entry in enumerate(entries):
        pictures, task, target, weight = _fields(i, entry)
        _check_images(i, pictures, channels)
        if isinstance(task, str):
            raise ValueError(
                f"task of data set {i} must be an integer, not {task!r}{_numbered(task, heads)}"
            )
        n, k = len(pictures), whole(f"task of data set {i}", task, 0, len(heads) - 1)
        resident.append(None)
        if heads_.is_mask(list(heads.values())[k]):
            like = (n, *pictures.shape[-2:])
            if target.dtype != np.uint8 or target.shape != like:
                raise ValueError(
                    f"the masks of data set {i} must be uint8 {like}, like its images, "
                    f"not {target.dtype} {target.shape}"
                )
            if target.max(initial=0) == 1:  # each pixel would be inside by a 255th
                raise ValueError(
                    f"the masks of data set {i} hold 0 and 1 alone, and 255 is inside; multiply "
                    "them by 255"
                )
            resident[i], target = np.ascontiguousarray(target), None
        try:
            numbered, target = targets(np.full(n, k), target, n, heads)
            weight = weights(weight, numbered, target, heads)
        except ValueError as error:
            raise ValueError(f"data set {i}: {error}") from None
        sources.append(pictures)
        labels.append((k, target, weight))
    return sources, labels, resident


def samples(dataset, index, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """dataset as int32 and index as int64, each of them an image that is attached."""
    for name, array in (("dataset", dataset), ("index", index)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must hold integers, not {array.dtype}")
    if not counts:
        raise ValueError("no data set is attached: call attach first")
    known = (dataset >= 0) & (dataset < len(counts))
    there = np.array(counts)[np.where(known, dataset, 0).astype(np.intp)]
    wrong = np.flatnonzero(~(known & (index >= 0) & (index < there)))
    if len(wrong):
        raise IndexError(
            f"sample {wrong[0]} of the batch is image {index.flat[wrong[0]]} of data set "
            f"{dataset.flat[wrong[0]]}, which does not exist"
        )
    return np.ascontiguousarray(dataset, np.int32), np.ascontiguousarray(index, np.int64)


def gathered(labels: list, dataset, index) -> tuple[np.ndarray, np.ndarray, bool]:
    """task (S, N) int32 and target (S, N, width) float32 of attached samples (S, N), and whether
    any data set has weights: they then follow the targets, as many columns again."""
    weighted = any(weight is not None for _, _, weight in labels)
    width = max(target.shape[1] for _, target, _ in labels)
    task = np.empty(index.shape, np.int32)
    target = np.full((*index.shape, width), np.nan, np.float32)
    weights = np.ones_like(target) if weighted else None
    for d, (k, own, weight) in enumerate(labels):
        mine = dataset == d
        task[mine] = k
        target[mine, : own.shape[1]] = own[index[mine]]
        if weight is not None:
            weights[mine, : own.shape[1]] = weight[index[mine]]
    return task, np.concatenate([target, weights], 2) if weighted else target, weighted
