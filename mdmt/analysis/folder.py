"""Reads an out folder: predictions.csv, checked against the configuration, splits and trainings.

Every number of tables, figures and report comes from predictions.csv. A file that was edited, cut
or belongs to another study is refused with a sentence; nothing is deleted or overwritten here.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import config, kinds, metrics, splits
from ..errors import BadInput, nearest
from ..paths import digest_file, read_csv, read_json
from ..results import PREDICTION_COLUMNS
from ..runner.kept import collected
from .cohort import COHORT
from .cohort import read as read_cohort

PLACE = PREDICTION_COLUMNS[:7]


class Part(NamedTuple):
    """The tested cases of one network on one task: text arrays patient, image, center (n,); y and
    predicted as from `kinds.values_of`: class numbers (n,), numbers (n,), or findings (n, K); p:
    probabilities (n, K), or the predicted numbers (n, 1)."""

    release: str
    validation: str
    fold: int
    backbone: str
    configuration: str
    task: str
    seed: int
    patient: np.ndarray
    image: np.ndarray
    center: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    p: np.ndarray


@dataclass
class Outcome:
    """What an out folder holds.

    values: resolved configuration; parts: every network's tested cases, in the file's order;
    splits: splits.json or None; jobs: {job id: job.json}; cohort: what the data were, or None;
    notes: sentences for the report.
    """

    out: Path
    values: dict
    parts: list[Part]
    splits: dict | None
    environment: dict
    jobs: dict
    cohort: dict | None
    hashes: dict
    notes: list[str] = field(default_factory=list)

    @property
    def synthetic(self) -> bool:
        """True for drawn data."""
        return self.values["data"]["synthetic"] is not None

    @property
    def external(self) -> bool:
        """True for what `mdmt evaluate` wrote: no folds, and the trainings are another run's."""
        return self.values["validation"] == ["external"]

    @property
    def places(self) -> list[tuple[str, str, str]]:
        """(release, validation, task) of what was tested, in the configuration's order."""
        found = dict.fromkeys((p.release, p.validation, p.task) for p in self.parts)
        tasks, schemes = list(self.values["tasks"]), list(self.values["validation"])
        return sorted(found, key=lambda f: (f[0], _at(tasks, f[2]), _at(schemes, f[1])))

    def task(self, name: str) -> dict:
        """A task as the configuration has it."""
        return self.values["tasks"][name]

    def select(self, **place) -> list[Part]:
        """The parts at a place, such as task="prognosis", configuration="FT"."""
        return [p for p in self.parts if all(getattr(p, k) == v for k, v in place.items())]

    def configurations(self, **place) -> list[str]:
        """Names of the configurations tested at a place: the paper's first, then the controls."""
        return _ordered(
            {p.configuration for p in self.select(**place)}, self.values["configurations"]
        )

    def backbones(self, **place) -> list[str]:
        """Names of the backbones tested at a place, in the configuration's order."""
        return _ordered({p.backbone for p in self.select(**place)}, self.values["backbones"], ())


PAPER_ORDER = ("STL-tau1", "STL-tau2", "FT", "MDMT")


def _at(names: list, name: str) -> int:
    return names.index(name) if name in names else len(names)


def _ordered(found: set, known: list, first=PAPER_ORDER) -> list[str]:
    return sorted(found, key=lambda n: (_at(list(first), n), _at(list(known), n), n))


def is_control(name: str) -> bool:
    """True for a configuration that is not one of the paper's (a further task's STL is)."""
    return name not in PAPER_ORDER and not re.fullmatch(r"STL-tau\d+", name)


def read(out, verify: bool = True) -> Outcome:
    """Read the out folder `out`; `verify` compares its predictions with those of its trainings.

    Raises BadInput: no out folder, predictions.csv missing, edited, or of another study.
    """
    out = Path(out)
    if not out.is_dir():
        raise BadInput(f"{out}: there is no such folder; give the --out folder of a run")
    stored = out / "config.yaml"
    if not stored.is_file():
        raise BadInput(
            f"{out}: is no out folder of mdmt (it has no config.yaml); give the --out folder of a "
            "run"
        )
    values = config.resolve(
        config.read_yaml(stored.read_text(encoding="utf-8"), str(stored)), str(stored)
    )
    if config.is_masks(values):
        raise BadInput(
            f"{out}: is a run of kind masks, of which there is no report; `mdmt show {out}` prints "
            "its results"
        )
    record = splits.read(out / "splits.json") if (out / "splits.json").is_file() else None
    environment = out / "environment.json"
    path = out / "predictions.csv"
    if not path.is_file():
        raise BadInput(
            f"{path}: is missing, and everything is computed from it; `mdmt run --resume --out "
            f"{out}` writes it again from the finished trainings"
        )
    outcome = Outcome(
        out,
        values,
        _read_predictions(path, values),
        record,
        read_json(environment) if environment.is_file() else {},
        _read_jobs(out / "runs"),
        read_cohort(out / COHORT),
        {"predictions.csv": digest_file(path)},
    )
    _check_people(outcome)
    if outcome.external:
        _count_missing(outcome)
        return outcome
    if record is None:
        outcome.notes.append(
            "splits.json is missing: that every tested case was held out could not be checked."
        )
    else:
        outcome.hashes["splits.json"] = record["hash"]
        _check_splits(outcome)
    if verify:
        _verify(outcome)
    _count_missing(outcome)
    return outcome


def _again(path: Path) -> str:
    return f"delete it and `mdmt run --resume --out {path.parent}` writes it again"


def _read_predictions(path: Path, values: dict) -> list[Part]:
    """Read predictions.csv: one Part per network and task."""
    columns = PREDICTION_COLUMNS
    parts: dict[tuple, Part] = {}
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            if header[: len(columns)] != columns:
                absent = [c for c in columns if c not in header]
                what = f"has no column '{absent[0]}'" if absent else "has its columns out of order"
                raise BadInput(f"{path}: {what}; {_again(path)}")
            width = len(PLACE)
            line = 2
            for place, rows in groupby(reader, key=lambda r: tuple(r[:width])):
                rows = list(rows)
                part = _part(path, header, place, rows, line, values)
                line += len(rows)
                if place in parts:
                    raise BadInput(
                        f"{path}: the rows of {_called(part)} are not together or are there "
                        f"twice; {_again(path)}"
                    )
                parts[place] = part
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: is not valid CSV ({error}); {_again(path)}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(f"{path}: cannot be read ({reason})") from error
    if not parts:
        raise BadInput(f"{path}: holds no prediction; {_again(path)}")
    return list(parts.values())


def _called(p: Part) -> str:
    return f"{p.backbone} {p.validation} fold {p.fold} seed {p.seed} {p.configuration} {p.task}"


def _part(path: Path, header, place, rows, line: int, values: dict) -> Part:
    """One Part from its rows (lists of text), the first of which is line `line` of the file."""
    for k, row in enumerate(rows):
        if len(row) != len(header):
            raise BadInput(
                f"{path}: line {line + k} has {len(row)} cells and the header {len(header)}; "
                f"{_again(path)}"
            )
    release, validation, fold, backbone, configuration, task, seed = place
    if task not in values["tasks"]:
        raise BadInput(
            f"{path}: line {line} has the task '{task}', which {path.parent / 'config.yaml'} does "
            f"not have{nearest(task, values['tasks'])}; these are predictions of another study"
        )
    known = {
        "release": values["data"]["releases"] or [values["data"]["release"]],
        "backbone": values["backbones"],
        "configuration": values["configurations"],
        "validation": values["validation"],
    }
    for name, allowed in known.items():
        value = place[PLACE.index(name)]
        if value not in allowed:
            raise BadInput(
                f"{path}: line {line} has the {name} '{value}', which "
                f"{path.parent / 'config.yaml'} does not have; these are predictions of another "
                "study, put them back into their own folder"
            )
    if not (fold.isdigit() and seed.isdigit()):
        raise BadInput(
            f"{path}: line {line} has fold '{fold}' and seed '{seed}'; both must be numbers"
        )
    spec = values["tasks"][task]
    kind, classes = kinds.kind_of(spec), spec["classes"]
    columns = [11]
    if kind != kinds.NUMBER:
        columns = [header.index(f"p_{c}") if f"p_{c}" in header else -1 for c in classes]
    if min(columns) < 0:
        raise BadInput(f"{path}: has no column 'p_{classes[columns.index(-1)]}'; {_again(path)}")
    try:
        y, predicted = (kinds.values_of(kind, classes, [r[c] for r in rows]) for c in (10, 11))
    except ValueError as error:
        raise BadInput(
            f"{path}: near line {line} a case of task '{task}' has {error}; {_again(path)}"
        ) from error
    try:
        p = np.array([[float(r[c]) for c in columns] for r in rows])
    except ValueError as error:
        raise BadInput(
            f"{path}: near line {line} a probability is not a number ({error}); {_again(path)}"
        ) from error
    _check_numbers(path, line, kind, predicted, p)
    text = [np.array([r[c] for r in rows], dtype=object) for c in (7, 8, 9)]
    return Part(
        release, validation, int(fold), backbone, configuration, task, int(seed),
        *text, y, predicted, p,
    )  # fmt: skip


def _check_numbers(path: Path, line: int, kind: str, predicted: np.ndarray, p: np.ndarray) -> None:
    """Probabilities are such, of classes add up to 1, and the decision follows from them."""
    if kind == kinds.NUMBER:
        return
    with np.errstate(invalid="ignore"):
        if kind == kinds.FINDINGS:
            wrong, other = ~((p >= 0) & (p <= 1)).all(1), ((p > 0.5) != (predicted == 1)).any(1)
            said = ("that are none", "other findings than those above a half")
        else:
            wrong = ~(np.abs(p.sum(1) - 1) < 1e-3) | (p.min(1) < 0)
            other = p.argmax(1) != predicted
            said = ("that do not add up to 1", "another class than its largest probability")
    off = np.flatnonzero(wrong | other)
    if off.size:
        k = int(off[0])
        what = f"has probabilities {said[0]}" if wrong[k] else f"predicts {said[1]}"
        raise BadInput(
            f"{path}: line {line + k} {what}; it was changed after it was written: {_again(path)}"
        )


def _read_jobs(runs: Path) -> dict:
    """{job id: job.json} of the finished trainings below `runs` that the results are from."""
    if not runs.is_dir():
        return {}
    found: dict = {}
    current = collected(runs.parent)
    for folder in sorted(runs.iterdir()):
        if current is not None and folder.name not in current:
            continue
        if (folder / "result.json").is_file() and (folder / "job.json").is_file():
            job = read_json(folder / "job.json")
            if not isinstance(job, dict) or "description" not in job:
                raise BadInput(
                    f"{folder / 'job.json'}: describes no training; delete that folder and "
                    f"`mdmt run --resume --out {runs.parent}` trains it again"
                )
            found[folder.name] = job
    return found


def _key(description: dict, configuration: str) -> tuple:
    d = description
    return (
        d["release"], d["validation"], int(d["fold"]), d["backbone"], configuration, int(d["seed"])
    )  # fmt: skip


def jobs_by_place(outcome: Outcome) -> dict:
    """{(release, validation, fold, backbone, configuration, seed): [job ids]}."""
    found: dict = {}
    for number, job in outcome.jobs.items():
        for name in job.get("configurations") or []:
            found.setdefault(_key(job["description"], name), []).append(number)
    return found


def _verify(outcome: Outcome) -> None:
    """The rows of predictions.csv must be those that the trainings left in their folders."""
    path = outcome.out / "predictions.csv"
    jobs = jobs_by_place(outcome)
    cache: dict = {}
    unchecked = 0
    for part in outcome.parts:
        key = (*part[:5], part.seed)
        numbers = [n for n in jobs.get(key, []) if _left(outcome, n).is_file()]
        if not numbers:
            unchecked += 1
            continue
        if not any(_same(outcome, n, part, cache) for n in numbers):
            raise BadInput(
                f"{path}: the rows of {_called(part)} are not those of the training in "
                f"{outcome.out / 'runs' / numbers[0]}; one of the two was changed after it was "
                f"written: {_again(path)}; if it comes out the same, delete that folder, which "
                "trains it again"
            )
    here = {(*p[:5], p.seed) for p in outcome.parts}
    lost = [k for k in jobs if k not in here and k[4] in outcome.values["configurations"]]
    wanted = outcome.values
    lost = [k for k in lost if k[3] in wanted["backbones"] and k[1] in wanted["validation"]]
    lost = [k for k in lost if wanted["folds"] is None or k[2] in wanted["folds"]]
    lost = [k for k in lost if k[5] in wanted["seeds"]]
    if lost:
        k = lost[0]
        raise BadInput(
            f"{path}: lacks the rows of {len(lost)} finished trainings (the first: {k[3]} {k[1]} "
            f"fold {k[2]} seed {k[5]} {k[4]}); {_again(path)}"
        )
    if unchecked:
        outcome.notes.append(
            f"{unchecked} of {len(outcome.parts)} sets of predictions could not be compared with "
            "the trainings that made them: their folders in runs/ are not here."
        )


def _left(outcome: Outcome, number: str) -> Path:
    return outcome.out / "runs" / number / "predictions.csv"


def _same(outcome: Outcome, number: str, part: Part, cache: dict) -> bool:
    """True when `part` is what the training `number` left."""
    if number not in cache:
        cache.clear()  # neighbours in the file share a training
        cache[number] = read_csv(_left(outcome, number))
    rows = [r for r in cache[number] if r["task"] == part.task]
    spec = outcome.task(part.task)
    kind, classes = kinds.kind_of(spec), spec["classes"]
    if len(rows) != len(part.y):
        return False
    if [r["label"] for r in rows] != kinds.texts(kind, classes, part.y):
        return False
    columns = ["predicted"] if kind == kinds.NUMBER else [f"p{k}" for k in range(len(classes))]
    try:
        p = np.array([[float(r[c]) for c in columns] for r in rows])
    except (KeyError, ValueError):
        return False
    return bool(np.array_equal(p, part.p))


def _check_splits(outcome: Outcome) -> None:
    """Every part must hold exactly the test cases of its fold in splits.json."""
    tasks = {d["name"]: d["task"] for d in outcome.values["data"]["datasets"]}
    wanted: dict = {}
    for validation, folds in outcome.splits["validation"].items():
        for entry in folds:
            for name, part in entry["datasets"].items():
                place = (entry.get("release"), validation, entry["fold"], tasks.get(name))
                wanted.setdefault(place, []).extend(part["test"])
    for part in outcome.parts:
        place = (part.validation, part.fold, part.task)
        test = wanted.get((part.release, *place), wanted.get((None, *place)))
        if test is None or sorted(test) != sorted(part.image.tolist()):
            path = outcome.out / "predictions.csv"
            raise BadInput(
                f"{path}: the images of {_called(part)} are not the test part of that fold in "
                f"{outcome.out / 'splits.json'}; the two files belong to different studies or one "
                f"was changed: {_again(path)}"
            )


def _check_people(outcome: Outcome) -> None:
    """Networks that were tested on the same images must agree whose these are, and from where."""
    known: dict = {}
    for part in outcome.parts:
        found = set(zip(part.image, part.patient, part.center, strict=True))
        place = (part.release, part.validation, part.fold, part.task)
        first, wanted = known.setdefault(place, (part, found))
        if found == wanted or sorted(part.image) != sorted(first.image):
            continue
        image, patient, center = min(found ^ wanted)
        path = outcome.out / "predictions.csv"
        raise BadInput(
            f"{path}: {_called(part)} and {_called(first)} do not agree on image '{image}' (of "
            f"patient '{patient}' and center '{center}' in one of them); it was changed after it "
            f"was written: {_again(path)}"
        )


def _count_missing(outcome: Outcome) -> None:
    """Notes trainings that the configuration asks for and that have no predictions."""
    values = outcome.values
    if outcome.splits is None:
        return
    folds = [
        entry["fold"]
        for validation in values["validation"]
        for entry in outcome.splits["validation"].get(validation, [])
    ]
    expected = len([f for f in folds if values["folds"] is None or f in values["folds"]])
    expected *= len(values["backbones"]) * len(values["configurations"]) * len(values["seeds"])
    here = len({(*p[:5], p.seed) for p in outcome.parts})
    if here < expected:
        outcome.notes.append(
            f"INCOMPLETE: {expected - here} of {expected} trainings have no predictions yet; the "
            "tables hold what is there."
        )


def results(outcome: Outcome) -> list[dict]:
    """The rows of results.csv, computed from the predictions; None where a metric is undefined."""
    jobs = jobs_by_place(outcome)
    rows = []
    for part in outcome.parts:
        found = metrics.task_summary(outcome.task(part.task), part.y, part.p)
        row = dict(zip(PLACE, part[:7], strict=True))
        row.update({k: (None if v != v else v) for k, v in found.items()})
        numbers = jobs.get((*part[:5], part.seed), [])
        if numbers:
            path = outcome.out / "runs" / numbers[-1] / "result.json"
            result = read_json(path)
            row.update({k: result.get(k) for k in ("best_epoch", "epochs", "steps")})
            row["job"] = numbers[-1]
        rows.append(row)
    return rows
