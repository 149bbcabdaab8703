"""`mdmt explain OUT IMAGE...`: which places of a picture a run's networks call its class by, or its
number.

Occlusion (Zeiler & Fergus, ECCV 2014): a square of the network's input is painted in the picture's
mean grey or colour, and the predicted class's probability, or the number, falls by so much. No
network is looked into, so that the map means the same for all of them. It says what the network
used, not what is ill.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import kinds, predict
from .errors import BadData, BadInput
from .paths import make_folder, write_atomic
from .plots import occlusion as drawing
from .predict import Network

SQUARES = 8  # a square's side is this part of the picture's
STEPS = 2  # positions per square
CHUNK = 64  # pictures whose maps are drawn together, after every network was asked about them


def occlusion(pixels: np.ndarray, probabilities) -> dict:
    """Fall of probabilities where a square is hidden, mean over the squares that cover a pixel.

    pixels (S, S) or (3, S, S) uint8; probabilities: function from n such pictures to {what: (n,)}.
    Returns {what: (S, S) float64}, positive where the picture speaks for it.
    """
    hidden, places = _hidden(pixels)
    found = {what: np.asarray(p, np.float64) for what, p in probabilities(hidden).items()}
    return {what: _spread(p[0] - p[1:], places, pixels.shape[-2:]) for what, p in found.items()}


def _hidden(pixels: np.ndarray) -> tuple[np.ndarray, list[tuple]]:
    """The picture and its copies with a square hidden each, (n + 1, S, S) or (n + 1, 3, S, S); the
    squares' slices of the last two axes."""
    side = pixels.shape[-1]
    square = max(side // SQUARES, 1)
    starts = sorted({*range(0, side - square, max(square // STEPS, 1)), side - square})
    places = [np.s_[y : y + square, x : x + square] for y in starts for x in starts]
    hidden = np.repeat(pixels[None], len(places) + 1, 0)
    cover = [round(float(plane.mean())) for plane in pixels.reshape(-1, side, side)]
    cover = np.array(cover, np.uint8).reshape(*pixels.shape[:-2], 1, 1)
    for one, place in zip(hidden[1:], places, strict=True):
        one[(..., *place)] = cover
    return hidden, places


def _spread(falls: np.ndarray, places: list[tuple], shape: tuple) -> np.ndarray:
    """Mean fall over the squares that cover each pixel."""
    total, count = np.zeros(shape), np.zeros(shape)
    for fall, place in zip(falls, places, strict=True):
        total[place] += fall
        count[place] += 1
    return total / count


def explain(out, images, folder, *, device: str = "cpu", skip: bool = False, quiet: bool = True,
            **chosen) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Write a picture per image and task to `folder`: what the networks see, and the map.

    Each network is loaded once for CHUNK pictures. Arguments and errors as of
    `mdmt.predict.predict`. Returns (files, notes).
    """
    reason = drawing.available()
    if reason:
        raise BadInput(reason)
    run = predict.opened(out, **chosen)
    paths = predict.find_images(images)
    pictures, notes = _usable(run, paths, skip)
    folder, written = make_folder(folder), []
    used: set[str] = set()
    total = sum(len(one.nets) for one in pictures)
    with predict.Progress(total, quiet, "explaining", " image x network") as progress:
        for start in range(0, len(pictures), CHUNK):
            some = pictures[start : start + CHUNK]
            _ask(run.nets, some, device, progress)
            for one in some:
                for task, made in _drawn(one, run.nets[0].tasks):
                    written.append(folder / _name(one.path, task, used))
                    write_atomic(written[-1], made)
                one.given.clear()
    return written, run.notes + notes


@dataclass
class _Picture:
    """A picture, (S, S) or (3, S, S) uint8, and the networks (by number) that do not know it; given
    {task: for each of them the probabilities or numbers (1 + squares, C), the whole picture's
    first}."""

    path: Path
    pixels: np.ndarray
    nets: list[int]
    given: dict = field(default_factory=dict)


def _usable(run: predict.Opened, paths: list[Path], skip: bool) -> tuple[list[_Picture], list[str]]:
    """The pictures that a network may be asked about, and why not the others."""
    pictures, notes = [], []
    for path, one in zip(paths, predict.prepared(paths, run.settings), strict=True):
        if one.pixels is None and not skip:
            raise BadData(predict.refusal(path, one))
        if one.pixels is None:
            notes.append(f"{path}: {one.facts['reason']}")
        else:
            pictures.append(_Picture(path, one.pixels, []))
    shown = run.known.shown([p.path for p in pictures], [p.pixels for p in pictures])
    for one, mine in zip(pictures, shown, strict=True):
        one.nets = [k for k, net in enumerate(run.nets) if not net.knows(mine)]
        if not one.nets:
            notes.append(f"{one.path}: every network learnt from it")
    return [p for p in pictures if p.nets], notes


def _ask(nets: list[Network], pictures: list[_Picture], device: str, progress) -> None:
    """Fill in what every network says of the pictures with and without their squares."""
    for k, net in enumerate(nets):
        mine = [one for one in pictures if k in one.nets]
        for _, model in predict.loaded([net], device) if mine else ():
            for one in mine:
                hidden, _ = _hidden(one.pixels)
                for task, p in predict.probabilities([(net, model)], hidden).items():
                    one.given.setdefault(task, []).append(p[0])
                progress()


def _drawn(one: _Picture, tasks: dict):
    """(task, PNG) of a picture: the mean over the networks for the class (or most probable finding)
    that they call it, or for the number."""
    _, places = _hidden(one.pixels)
    for task, spec in tasks.items():
        p = np.mean(one.given[task], 0)
        best = int(p[0].argmax())
        found = _spread(p[0, best] - p[1:, best], places, one.pixels.shape[-2:])
        number = kinds.kind_of(spec) == kinds.NUMBER
        said = f"{p[0, 0]:.2f}" if number else f"{spec['classes'][best]}, {100 * p[0, best]:.1f} %"
        title = f"{one.path.name}\n{task}: {said}"
        yield task, drawing.draw(one.pixels, found, title, len(one.nets), number)


def _name(path: Path, task: str, used: set[str]) -> str:
    """A file name that no other picture of the call has."""
    name, number = f"{path.stem}-{task}.png", 1
    while name in used:
        number += 1
        name = f"{path.stem}-{task}-{number}.png"
    used.add(name)
    return name
