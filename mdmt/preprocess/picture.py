"""One image from file to network input: decode, clip, find lungs, crop, square, resize, min-max.

Every step is a key of `data` in the configuration. The steps and their order are those of the
paper's code: percentile clipping of the whole picture, lung mask, box of the two largest regions
with a border, square by taking more of the picture, resize, min-max.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import read_levels
from ..data.levels import Levels
from ..data.store import FORMAT, picture_shape
from ..errors import BadData
from . import crop
from .normalise import normalised, stretched, to_bytes

BATCH = 8  # images whose lungs are looked for together
PIXELS = 24_000_000  # of a batch, so that large images are fewer at a time
COARSE = 512  # shortest side of what the lungs are looked for in, where the picture is larger
SQUARE = 1 << 29  # pixels of a square, at most: a narrow picture's can be far larger than itself
LOOK = 200  # longest side of the small picture that contact sheets show


@dataclass
class Task:
    """An image to prepare: its file, and what a person decided about it.

    decision: None, ["accept"] (the lungs are right as found), ["whole"] (the whole picture) or
    ["box", left, top, right, bottom] in pixels of the picture.
    """

    path: Path
    decision: list | None = None


@dataclass
class Prepared:
    """What became of an image.

    pixels (S, S) uint8, in a study in colour (3, S, S), or None with a reason. facts: what the
    store's entry keeps: doubt (0..1 or more, how unlike lungs the mask is), shape (H, W), box
    (left, top, right, bottom; None where no lungs were found). look: JPEG and PNG bytes for the
    contact sheet. seconds: of the decoder.
    """

    pixels: np.ndarray | None
    facts: dict
    look: tuple[bytes, bytes] | None
    seconds: float


def settings_of(values: dict) -> dict:
    """Return what the pixels of a store depend on besides the sources and people's decisions."""
    data = values["data"]
    found = {
        "format": FORMAT,
        "size": values["image_size"],
        "crop": data["crop"],
        "square": data["square"],
        "clip": None if data["clip"] is None else [float(c) for c in data["clip"]],
        "minmax": data["minmax"],
        "voi": data["voi"],
    }
    if data["crop"] != "whole":
        found |= {"border": float(data["border"]), "lungs": _lungs_version()}
    if data["colour"]:
        found["colour"] = True
    return found


def _lungs_version() -> str:
    """What the masks and the verdicts on them depend on besides the picture."""
    from . import lungs

    return lungs.version()


def preprocess(path, settings: dict, decision: list | None = None) -> np.ndarray:
    """Return one image as the network's input pixels, uint8 (S, S) or (3, S, S). Raises BadData."""
    (found,) = prepare([Task(Path(path), decision)], settings)
    if found.pixels is None:
        raise BadData(f"{path}: {found.facts['reason']}")
    return found.pixels


def prepare(tasks: list[Task], settings: dict, begin=None, alone: bool = False) -> list[Prepared]:
    """Prepare images, those of a batch together.

    begin: called with the position of each task before its file is decoded, and with None before
    the lungs of a batch are looked for. alone: see `mdmt.data.images.read_levels`.
    """
    done: list[Prepared] = []
    batch: list[tuple] = []
    held = 0
    for position, task in enumerate(tasks):
        if begin is not None:
            begin(position)
        start = time.perf_counter()
        levels, reason = None, None
        try:
            levels = read_levels(task.path, settings["voi"], alone, settings.get("colour", False))
            held += levels.codes.size
        except BadData as error:
            reason = str(error).removeprefix(f"{task.path}: ")
        batch.append((task, levels, reason, time.perf_counter() - start))
        if len(batch) == BATCH or held >= PIXELS:
            done += _finish(batch, settings, begin)
            batch, held = [], 0
    return done + _finish(batch, settings, begin)


def _finish(batch: list[tuple], settings: dict, begin) -> list[Prepared]:
    """Prepare the decoded images of a batch."""
    lungs: dict[int, tuple] = {}
    if settings["crop"] != "whole":
        wanted = [
            i
            for i, (task, levels, _, _) in enumerate(batch)
            if levels is not None and (task.decision or [""])[0] not in ("whole", "box")
        ]
        if wanted:
            if begin is not None:
                begin(None)
            masks = _lung_masks(_coarse(batch[i][1]) for i in wanted)
            lungs = dict(zip(wanted, masks, strict=True))
    return [
        Prepared(None, {"reason": reason}, None, seconds)
        if levels is None
        else _prepared(
            normalised(levels, settings["clip"]), task.decision, lungs.get(i), settings, seconds
        )
        for i, (task, levels, reason, seconds) in enumerate(batch)
    ]


def _step(shape) -> int:
    """Side in pixels of the blocks that are averaged before the lungs are looked for."""
    return max(1, min(shape) // COARSE)


def _coarse(levels: Levels) -> np.ndarray:
    """The grey values of a picture, a large one as means of blocks: float32.

    The network sees 256 x 256 pixels, so that no more than a coarse picture is worth its passes.
    """
    from PIL import Image

    step, grey = _step(levels.shape), levels.grey
    return grey if step == 1 else np.asarray(Image.fromarray(grey).reduce(step))


def _lung_masks(greys):
    """(mask (H, W) bool, verdict) of each of the pictures (H, W) float32."""
    from .lungs import lung_masks

    return lung_masks(greys)


def _prepared(picture: Levels, decision, lungs, settings: dict, seconds: float) -> Prepared:
    """Crop and scale a normalised picture.

    lungs: (mask, verdict) of `_coarse`, or None where they were not looked for.
    """
    facts: dict = {"shape": list(picture.shape)}
    mask, box = None, None
    if decision is not None and decision[0] == "box":
        box = _given(decision, picture.shape, facts)
    elif settings["crop"] == "whole" or decision == ["whole"]:
        box = crop.whole(picture.shape)
    else:
        mask, verdict = lungs
        inner = crop.bounding_box(mask)
        _judge(facts, verdict, inner, decision)
        if inner is not None:
            step, (height, width) = _step(picture.shape), picture.shape
            left, top, right, bottom = (step * side for side in inner)
            inner = crop.Box(left, top, min(right, width), min(bottom, height))
            box = crop.bordered(inner, settings["border"])
    pixels = None
    if box is not None:
        square = crop.squared(box, picture.shape, settings["square"])
        facts["box"] = list(square)
        if square.width * square.height > SQUARE:
            facts["reason"] = (
                f"has {picture.shape[1]} x {picture.shape[0]} pixels, of which a square of "
                f"{square.width} x {square.height} would be made; scale the image down"
            )
        if "reason" not in facts:
            parts = (crop.cut(plane, square) for plane in picture.planes())
            if settings["crop"] == "masked" and mask is not None:
                seen = crop.cut(_enlarged(mask, picture.shape), square)
                parts = (part * seen for part in parts)
            pixels = _resized(parts, settings)
    return Prepared(pixels, facts, _look(picture, mask), seconds)


def _given(decision: list, shape, facts: dict) -> crop.Box | None:
    """The box that a person gave; without it, the reason in facts."""
    box = crop.Box(*decision[1:])
    if 0 <= box.left < box.right <= shape[1] and 0 <= box.top < box.bottom <= shape[0]:
        return box
    facts["reason"] = (
        f"has {shape[1]} x {shape[0]} pixels, and the box {decision[1:]} (left, top, right, "
        "bottom) does not lie in it; correct the box"
    )
    return None


def _judge(facts: dict, verdict, inner, decision) -> None:
    """Put doubt and finding of a verdict into facts, and the reason where it refuses."""
    facts["doubt"] = round(float(verdict.doubt), 4)
    finding = str(verdict.reason) if not verdict.ok else _unusual(verdict)
    if finding:
        facts["finding"] = finding
    if not verdict.ok and decision != ["accept"]:
        facts["reason"] = f"shows no plausible lungs ({verdict.reason})"
    elif inner is None:
        facts["reason"] = "shows no lungs, so that there are none to accept; give a box"


def _unusual(verdict) -> str:
    """What makes a mask that is used a little doubtful."""
    from .lungs import unusual

    return unusual(verdict)


def _enlarged(mask: np.ndarray, shape) -> np.ndarray:
    """The mask of a coarse picture at the size of the picture itself, `shape`: bool (H, W)."""
    step = _step(shape)
    if step == 1:
        return mask
    return np.repeat(np.repeat(mask, step, 0), step, 1)[: shape[0], : shape[1]]


def _resized(planes, settings: dict) -> np.ndarray:
    """Scale the square planes (H, H) of a picture, one or three, to the network's size: uint8, as
    of `picture_shape`; a grey picture's plane is repeated where the study is in colour."""
    from PIL import Image

    size, found = settings["size"], []
    for square in planes:
        if square.shape[0] != size:
            picture = Image.fromarray(np.ascontiguousarray(square))
            square = np.asarray(
                picture.resize((size, size), Image.Resampling.BILINEAR)
            )  # with antialiasing when scaling down
        found.append(square)
    stack = np.stack(found)
    pixels = to_bytes(stretched(stack) if settings["minmax"] else stack)
    shape = picture_shape(settings)
    return np.ascontiguousarray(np.broadcast_to(pixels, shape)) if len(shape) == 3 else pixels[0]


def _look(picture: Levels, mask: np.ndarray | None) -> tuple[bytes, bytes]:
    """A small JPEG of a picture and a small PNG of its mask (h, w)."""
    from PIL import Image

    height, width = picture.shape
    share = min(1.0, LOOK / max(height, width))
    size = (max(1, round(share * width)), max(1, round(share * height)))
    step = max(1, max(height, width) // (4 * LOOK))  # coarse is enough to look at
    some = Image.fromarray(to_bytes(picture.part(slice(None, None, step), slice(None, None, step))))
    small = some.reduce(max(1, max(some.size) // LOOK)).resize(size, Image.Resampling.BILINEAR)
    look, outline = io.BytesIO(), io.BytesIO()
    small.save(look, "JPEG", quality=80)
    if mask is not None:
        Image.fromarray(mask).resize(size, Image.Resampling.NEAREST).save(outline, "PNG")
    return look.getvalue(), outline.getvalue()
