"""`mdmt explain OUT IMAGE...`: which places of a picture a run's networks call its class by.

Occlusion (Zeiler & Fergus, ECCV 2014): a square of the network's input is painted in the picture's
mean grey, and the predicted class's probability falls by so much. No network is looked into, so
that the map means the same for all of them. It says what the network used, not what is ill.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import predict
from .errors import BadData, BadInput
from .paths import make_folder, write_atomic
from .plots import occlusion as drawing
from .predict import Network

SQUARES = 8  # a square's side is this part of the picture's
STEPS = 2  # positions per square


def occlusion(pixels: np.ndarray, probabilities) -> dict:
    """Fall of probabilities where a square is hidden, mean over the squares that cover a pixel.

    pixels (S, S) uint8; probabilities: function from pictures (n, S, S) uint8 to {what: (n,)}.
    Returns {what: (S, S) float64}, positive where the picture speaks for it.
    """
    hidden, places = _hidden(pixels)
    found = {what: np.asarray(p, np.float64) for what, p in probabilities(hidden).items()}
    return {what: _spread(p[0] - p[1:], places, pixels.shape) for what, p in found.items()}


def _hidden(pixels: np.ndarray) -> tuple[np.ndarray, list[tuple]]:
    """The picture and its copies with a square hidden each, (n + 1, S, S); the squares' slices."""
    side = len(pixels)
    square = max(side // SQUARES, 1)
    starts = sorted({*range(0, side - square, max(square // STEPS, 1)), side - square})
    places = [np.s_[y : y + square, x : x + square] for y in starts for x in starts]
    hidden = np.repeat(pixels[None], len(places) + 1, 0)
    for one, place in zip(hidden[1:], places, strict=True):
        one[place] = round(float(pixels.mean()))
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

    Arguments and errors as of `mdmt.predict.predict`. Returns (files, notes).
    """
    reason = drawing.available()
    if reason:
        raise BadInput(reason)
    run = predict.opened(out, **chosen)
    paths = predict.find_images(images)
    folder, notes, written = make_folder(folder), list(run.notes), []
    used: set[str] = set()
    with predict.Progress(len(paths), quiet, "explaining") as progress:
        for path in paths:
            (one,) = predict.prepared([path], run.settings)
            if one.pixels is None and not skip:
                raise BadData(predict.refusal(path, one))
            if one.pixels is None:
                notes.append(f"{path}: {one.facts['reason']}")
            elif not (nets := _free(run, path, one.pixels)):
                notes.append(f"{path}: every network was trained on it")
            else:
                for task, made in _drawn(path, one.pixels, nets, device):
                    written.append(folder / _name(path, task, used))
                    write_atomic(written[-1], made)
            progress()
    return written, notes


def _free(run, path: Path, pixels: np.ndarray) -> list[Network]:
    """The networks that do not know a picture."""
    (shown,) = run.known.shown([path], [pixels])
    return [n for n in run.nets if not n.knows(shown)]


def _drawn(path: Path, pixels: np.ndarray, nets: list[Network], device: str):
    """(task, PNG) of a picture."""
    tasks = nets[0].tasks
    first = predict.probabilities(predict.loaded(nets, device), pixels[None])
    means = {task: p.mean(0)[0] for task, p in first.items()}
    maps: dict[str, list] = {task: [] for task in tasks}
    for net in predict.loaded(nets, device):

        def of_its_class(pictures, net=net):
            given = predict.probabilities([net], pictures)
            return {task: p[0, :, means[task].argmax()] for task, p in given.items()}

        for task, found in occlusion(pixels, of_its_class).items():
            maps[task].append(found)
    for task, classes in tasks.items():
        best = int(means[task].argmax())
        title = f"{path.name}\n{task}: {classes[best]}, {100 * means[task][best]:.1f} %"
        yield task, drawing.draw(pixels, np.mean(maps[task], 0), title, len(nets))


def _name(path: Path, task: str, used: set[str]) -> str:
    """A file name that no other picture of the call has."""
    name, number = f"{path.stem}-{task}.png", 1
    while name in used:
        number += 1
        name = f"{path.stem}-{task}-{number}.png"
    used.add(name)
    return name
