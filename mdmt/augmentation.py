"""Training augmentation on arrays; the arithmetic is in csrc/cpu/images.c."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmt import _core, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

#: The ranges of the paper's code; each transform is applied with `probability`.
RANGES = {
    "probability": 0.5,
    "shift": 0.1,  # fraction of the side, both ways
    "zoom": 0.1,  # factor 0.9 to 1.1
    "flip": True,  # horizontal
    "rotation": 10.0,  # degrees, both ways
    "elastic_alpha": (20.0, 40.0),  # pixels of the output
    "elastic_sigma": 7.0,  # pixels of the output; 0: no elastic deformation
    # Of the grey values v in 0..1, in this order, each cut to 0..1; off in the paper's code.
    "gamma": 0.0,  # v ** exp(g), g both ways
    "contrast": 0.0,  # mean + c (v - mean), factor 1 - contrast to 1 + contrast
    "brightness": 0.0,  # v + b, both ways
    "invert": 0.0,  # 1 - v, with this probability instead of `probability`
    "noise": 0.0,  # standard deviation, 0 to noise
}
TONE = ("gamma", "contrast", "brightness", "invert", "noise")


def complete(ranges):
    """RANGES with those of the mapping `ranges` in their place; ValueError for an unknown name."""
    if not isinstance(ranges, Mapping):
        raise ValueError(
            "augment must be None (off) or a dictionary of ranges ({} for those of the paper), not "
            f"{ranges!r}"
        )
    unknown = sorted(set(ranges) - set(RANGES))
    if unknown:
        raise ValueError(
            f"unknown range {unknown[0]!r} of the augmentation: choose among {', '.join(RANGES)}"
        )
    for name, value in ranges.items():
        wanted = np.shape(RANGES[name])
        try:
            found = np.asarray(value)
        except ValueError:
            found = np.asarray(None)
        if found.shape != wanted or found.dtype.kind not in "fiub":
            what = "two numbers, low and high" if wanted else "a number"
            raise ValueError(f"{name} of the augmentation must be {what}, not {value!r}")
    return {**RANGES, **ranges}


def _numbers(name: str, value: ArrayLike, count: int) -> np.ndarray:
    """The numbers of data sets or samples as (count,) int64. A number that is not whole would be
    another sample's: nothing is rounded."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape not in ((), (1,), (count,)):
        raise ValueError(
            f"{name} must be an integer or {count} of them, one for each image, not "
            f"{array.dtype} {array.shape}"
        )
    return np.broadcast_to(array.astype(np.int64), count).copy()


def augment(
    images: ArrayLike,
    dataset: ArrayLike,
    index: ArrayLike,
    *,
    epoch: int,
    seed: int,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.uint8,
    threads: int = 1,
    masks: bool = False,
    **ranges: Any,
) -> np.ndarray:
    """Images as a training step sees them, for study and contact sheets.

    images (N, h, w) or (h, w) uint8, or in colour (N, C, h, w) with C of 1 to 4. dataset, index:
    integers or arrays (N); together with epoch and seed they are all that the random numbers depend
    on, so that image i is augmented as sample index[i] of data set dataset[i] is in that epoch.
    size: (H, W) of the result, or its side; default (h, w). ranges: those of RANGES that differ
    from it.

    Shift, zoom, flip, rotation and elastic deformation (Simard et al. 2003) form one map with one
    bilinear sampling; beyond its border an image is mirrored. Then come gamma, contrast,
    brightness, inversion and noise; in colour the same for each channel (contrast about the
    channel's own mean), but noise is drawn for each. masks: the images are masks (255 inside),
    which are moved as the image of the same numbers is and keep their values otherwise.

    Returns (N, H, W), (H, W) or (N, C, H, W): uint8, rounded, or the dtype that is asked for, in
    0 to 255. ValueError, one sentence, for what cannot be used.
    """
    r = complete(ranges)
    images = np.asarray(images)
    channels = images.shape[1] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (2, 3, 4) or not 1 <= channels <= 4:
        raise ValueError(
            "images must be uint8 (N, h, w), (h, w) or (N, C, h, w) with 1 to 4 channels, not "
            f"{images.dtype} {images.shape}"
        )
    stack = np.ascontiguousarray(images[None] if images.ndim == 2 else images)
    keys = [_numbers(*k, len(stack)) for k in (("dataset", dataset), ("index", index))]
    seed = checked.whole("seed", seed, 0, (1 << 64) - 1)
    epoch = checked.whole("epoch", epoch, 0, (1 << 63) - 1)
    low, high = r["elastic_alpha"]
    packed = (r["probability"], r["shift"], r["zoom"], r["flip"], r["rotation"], low, high)
    packed = (*map(float, packed), float(r["elastic_sigma"]), *(float(r[k]) for k in TONE))
    height, width = stack.shape[-2:] if size is None else size if np.ndim(size) else (size, size)
    out = _core.augment(
        stack, *keys, seed, epoch, packed, (int(height), int(width)), int(threads), masks
    )
    out = np.rint(out).astype(np.uint8) if np.dtype(dtype) == np.uint8 else out.astype(dtype)
    return out[0] if images.ndim == 2 else out
