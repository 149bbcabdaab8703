"""Which trainings' weights are kept: all, or only those that others still start from.

The weights of the paper's whole study take 130 GB, its predictions some hundred MB. With
`keep_weights: false` a training's weights are deleted as soon as everything that needs it is
finished, and a file `weights.deleted` says so; a training that needs them later runs it again,
which gives the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import BadInput
from ..paths import digest_file, read_json

WEIGHTS = "model.safetensors"
DELETED = "weights.deleted"
RESULT = "result.json"
PREDICTIONS = "predictions.csv"
COLLECTED = Path("inputs") / "collected.json"  # in the out folder: ids of what it reports
LEFTOVERS = ("checkpoint.safetensors", "error.json")  # of no use once a job is finished


def finished(folder) -> bool:
    """True when the job of `folder` is finished and its files are there, none of them cut."""
    folder = Path(folder)
    return (
        (folder / RESULT).is_file()
        and (folder / PREDICTIONS).is_file()
        and ((folder / WEIGHTS).is_file() or (folder / DELETED).is_file())
        and _uncut(folder)
    )


def _uncut(folder: Path) -> bool:
    """Whether the files have the sizes that the result says, where it does."""
    try:
        marks = json.loads((folder / RESULT).read_text(encoding="utf-8")).get("files", {})
    except (OSError, ValueError, AttributeError):
        return True  # who reads the result says what is wrong with it
    there = [folder / name for name in marks if (folder / name).is_file()]
    return all(path.stat().st_size == marks[path.name][0] for path in there)


def collected(out) -> set | None:
    """Ids of the trainings that the results of an out folder are from; None where no list is.

    Other finished ones below its runs are of data, weights or settings that it had before.
    """
    path = Path(out) / COLLECTED
    return set(read_json(path)) if path.is_file() else None


def marks_of(folder) -> dict:
    """{file: [bytes, SHA-256]} of what a training left, for its result."""
    found = {}
    for name in (WEIGHTS, PREDICTIONS):
        path = Path(folder) / name
        found[name] = [path.stat().st_size, digest_file(path)]
    return found


def check_mark(path, result: dict) -> None:
    """BadInput where a file of a training is not what its `result` says of it."""
    path = Path(path)
    mark = result.get("files", {}).get(path.name)  # none: from an earlier version
    if mark is not None and mark != [path.stat().st_size, digest_file(path)]:
        raise BadInput(
            f"{path}: is not as its training wrote it (it was changed or damaged); delete the "
            f"folder {path.parent} and run again to train it anew"
        )


def tidy(folder) -> None:
    """Take away what a finished job needs no more."""
    for name in LEFTOVERS:
        (Path(folder) / name).unlink(missing_ok=True)


def done_and_usable(jobs: list, runs: Path) -> list[str]:
    """Ids of the finished jobs, in order; one whose weights were deleted, and are needed by a job
    that is not finished, must run again and is not among them."""
    done = {j.id for j in jobs if finished(runs / j.id)}
    for job in reversed(jobs):  # those that need others come after them
        if job.id not in done:
            for name in job.needs:
                folder = runs / name
                if name in done and not (folder / WEIGHTS).is_file():
                    (folder / DELETED).unlink(missing_ok=True)
                    done.discard(name)
    return [j.id for j in jobs if j.id in done]


class Kept:
    """Deletes the weights that nothing needs any more; does nothing when `all` are kept."""

    def __init__(self, jobs: list, runs: Path, done, everything: bool):
        self.runs, self.everything = Path(runs), everything
        self.needs = {j.id: j.needs for j in jobs}
        self.left = {j.id: 0 for j in jobs}  # jobs that still need it
        if everything:
            return
        done = set(done)
        for job in jobs:
            if job.id not in done:
                for name in job.needs:
                    self.left[name] += 1
        for name in done:
            self._maybe_delete(name)

    def finish(self, name: str) -> None:
        """Note that job `name` is finished."""
        if self.everything:
            return
        for source in self.needs[name]:
            self.left[source] -= 1
            self._maybe_delete(source)
        self._maybe_delete(name)

    def _maybe_delete(self, name: str) -> None:
        folder = self.runs / name
        if self.left[name] == 0 and finished(folder):
            (folder / DELETED).touch()
            (folder / WEIGHTS).unlink(missing_ok=True)
