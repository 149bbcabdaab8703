"""`mdmt evaluate OUT CONFIG`: external validation of a finished run.

Every network of every configuration of the run in OUT predicts the labelled cases of other data,
prepared as the run's own were. The new folder is one of a run whose only validation scheme is
`external`: one test part, tested by all networks of a configuration, of all folds and seeds, whose
`seed` in predictions.csv is the number in networks.csv. `mdmt report` computes the rest from it.

A case of which a network of the run knows the picture is left out, and so is its whole patient;
with `data.same_patients`, also who has the id of a patient of the run.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import __version__, config, kinds, predict, splits, study
from .analysis import cohort
from .errors import BadConfig, BadInput, nearest
from .known import Known
from .paths import (
    atomic,
    digest_file,
    folder_lock,
    read_json,
    remove_unfinished,
    write_atomic,
    write_csv,
    write_json,
)
from .results import PREDICTION_COLUMNS, probable
from .runner.kept import RESULT

SCHEME = "external"
RECORD = "evaluation.json"
NETWORKS = "networks.csv"
# Keys of `data` that are the run's: what the networks' own images went through.
PREPARED = ("colour", "voi", "clip", "crop", "border", "square", "minmax")


@dataclass
class Group:
    """The networks of one backbone and configuration; numbers: which of the places (fold, seed) of
    the run each is of, the same in every group."""

    backbone: str
    configuration: str
    nets: list
    numbers: list


def settings(out, name: str, overrides=()) -> tuple[dict, dict, list[str]]:
    """(configuration of the run in `out`, that of the evaluation, notes): the run's, with the data
    of the configuration `name`, whose tasks may name their labels otherwise. Raises BadConfig,
    BadInput.
    """
    values = study.stored_values(out)
    if values is None:
        raise BadInput(f"{out}: is no out folder of mdmt (it has no config.yaml)")
    if config.is_masks(values):
        raise BadInput(f"{out}: is a run of kind masks, which has no tasks to evaluate")
    if values["validation"] == [SCHEME]:
        raise BadInput(f"{out}: is itself an evaluation; give the out folder of a run")
    raw = config.load(name, overrides, check=False)
    data = raw.get("data")
    if not isinstance(data, dict):
        raise BadConfig(f"{name}: the key 'data' is missing; it says where the cases are")
    tasks = _tasks(values, raw.get("tasks") or {}, name)
    own = {k: values["data"][k] for k in PREPARED}
    notes = [
        f"data.{k} is {data[k]!r} in {name} and was {own[k]!r} in the run: the images are prepared "
        "as the run's"
        for k in PREPARED
        if k in data and data[k] != own[k]
    ]
    datasets = data.get("datasets") or []
    for entry in datasets if isinstance(datasets, list) else []:
        task = entry.get("task") if isinstance(entry, dict) else None
        if task is not None and task not in tasks:
            raise BadConfig(
                f"{name}: a data set has the task '{task}', which the run was not trained for"
                f"{nearest(str(task), tasks)}"
            )
    merged = {
        **values,
        "name": f"{values['name']}-external",
        "data": {**data, **own, "releases": None},
        "tasks": tasks,
        "validation": [SCHEME],
        "folds": None,
    }
    return values, config.resolve(merged, name), notes


def _tasks(values: dict, given: dict, name: str) -> dict:
    """The run's tasks, with the labels' names and thresholds of the configuration `name`, whose
    tasks must have the same classes."""
    found = dict(values["tasks"])
    for task, other in given.items() if isinstance(given, dict) else ():
        if task not in found or not isinstance(other, dict):
            continue  # one that the evaluation does not take part in
        classes = other.get("classes")
        if classes is not None and list(map(str, classes)) != found[task]["classes"]:
            raise BadConfig(
                f"{name}: tasks.{task}.classes are {', '.join(map(str, classes))} and the run's "
                f"{', '.join(found[task]['classes'])}; name labels that differ in "
                f"tasks.{task}.labels"
            )
        more = {k: other[k] for k in ("labels", "thresholds") if other.get(k) is not None}
        if kinds.kind_of(found[task]) == kinds.NUMBER:
            more.pop("thresholds", None)
        found[task] = {**found[task], **more}
    return found


def groups(out, values: dict, known: Known, tasks: set, chosen: dict) -> tuple[list[Group], list]:
    """Networks of every backbone and configuration that were trained for one of `tasks`, and
    sentences about those that are not there. chosen: release, validation."""
    found, notes = [], []
    predict.chosen_of(values, backbone=values["backbones"][0], **chosen)
    for backbone in values["backbones"]:
        for name in values["configurations"]:
            try:
                nets = predict.networks(
                    out, values, known, configuration=name, backbone=backbone, **chosen
                )
            except BadInput as error:  # none of its trainings is here
                notes.append(str(error))
                continue
            if tasks & set(nets[0].tasks):
                found.append(Group(backbone, name, nets, []))
    if not found:
        raise BadInput(notes[0] if notes else f"{out}: no network was trained for these tasks")
    places = sorted({_place(net) for group in found for net in group.nets})
    for group in found:
        group.numbers = [places.index(_place(net)) for net in group.nets]
    return found, notes


def _place(net) -> tuple[int, int]:
    return net.description["fold"], net.description["seed"]


def _learnt_from(cases, store, known: Known, nets: list) -> dict[int, str]:
    """{row: why} of the cases whose picture a network knows."""
    shown = known.shown(list(cases.paths), list(store.images))
    return {
        i: f"shows {some[0].name}, which the run learnt from"
        for i, some in enumerate(shown)
        if any(net.knows(some) for net in nets)
    }


def unseen(cases, own: dict[int, str], people: set, ids: set) -> tuple[np.ndarray, list[str]]:
    """Rows of the cases that no network knows, and a sentence for every other.

    own: as from `_learnt_from`; people: patients of whom a network knows a picture; ids: patients
    of the run, whose ids mean the same people.
    """
    kept, lost = [], []
    for i, patient in enumerate(cases.patients):
        why = own.get(i)
        if why is None and patient in people:
            why = f"another image of its patient '{patient}' shows one that the run learnt from"
        if why is None and patient in ids:
            why = f"its patient '{patient}' is one of the run's"
        if why is None:
            kept.append(i)
        else:
            lost.append(f"{cases.paths[i]}: {why}")
    return np.array(kept, np.int64), lost


def _patients(out) -> dict[str, set]:
    """{data set: patient ids} of the run, from its cohort.json."""
    record = cohort.read(Path(out) / cohort.COHORT) or {"datasets": []}
    found = {}
    for d in record["datasets"]:
        prefix = d.get("patient_prefix", "")
        found[d["name"]] = {name.removeprefix(prefix) for name in d["cases"]["patient"]}
    return found


def select(
    out, gathered: list[tuple], values: dict, known: Known, nets: list, alike=()
) -> list[tuple]:
    """[(Cases, Store, rows)] of the data sets, without what the networks know; their warnings say
    what was left out. alike: near-duplicates within and between the data sets, by which a patient
    with two ids is known under both. Raises BadInput where nothing is left of one."""
    theirs = _patients(out)
    same = values["data"]["same_patients"]
    ids = set().union(*theirs.values()) if same else set()
    own = [_learnt_from(cases, store, known, nets) for cases, store in gathered]
    people = _people(gathered, own, splits.persons([c for c, _ in gathered], values, alike))
    if same:  # whoever is known in one data set is the same person in the others
        people = [set().union(*people)] * len(gathered)
    found = []
    for (cases, store), mine, who in zip(gathered, own, people, strict=True):
        rows, lost = unseen(cases, mine, who, ids)
        cases.warnings += [f"excluded: {text}" for text in lost]
        if not len(rows):
            raise BadInput(
                f"data set '{cases.name}': nothing of it is new to the run ({lost[0]}); an "
                "evaluation needs cases that the run did not learn from"
            )
        for name, patients in {} if same else theirs.items():
            shared = sorted(patients & {cases.patients[i] for i in rows})
            if shared:
                cases.warnings.append(
                    f"{len(shared)} patient ids ('{shared[0]}', ...) are in the run's data set "
                    f"'{name}', too; if they are the same people, set data.same_patients to true"
                )
        found.append((cases, store, rows))
    return found


def _people(gathered: list[tuple], own: list, whose: list[list[str]]) -> list[set]:
    """Patient ids of each data set whose person is one of those in the rows `own`; whose: the
    person of each case, named alike in all data sets of a task."""
    known: dict[str, set] = {}
    for (cases, _), rows, names in zip(gathered, own, whose, strict=True):
        known.setdefault(cases.task, set()).update(names[i] for i in rows)
    return [
        {p for p, name in zip(cases.patients, names, strict=True) if name in known[cases.task]}
        for (cases, _), names in zip(gathered, whose, strict=True)
    ]


def evaluate(out, name: str, to, *, overrides=(), device: str = "cpu", release=None,
             validation=None, figures: bool = True, quiet: bool = True) -> dict:  # fmt: skip
    """Evaluate the networks of the run in `out` on the data of the configuration `name`, and write
    the folder `to`; return what `mdmt.report.make` does.

    release, validation: of the run's trainings (default: the last and the first). A folder that
    holds an evaluation of the same networks on the same data is written again. Raises BadInput.
    """
    from .report import make

    out, to = Path(out), Path(to)
    own, values, notes = settings(out, name, overrides)
    chosen = {"release": release, "validation": validation}
    known = Known(equal_only=own["data"]["synthetic"] is not None)
    wanted = {d["task"] for d in values["data"]["datasets"]}
    every, missing = groups(out, own, known, wanted, chosen)
    notes += missing
    nets = [net for group in every for net in group.nets]
    if any(net.seen is None for net in nets):
        notes.append(
            "the run's prepared images are not here any more, so it is not known whether the "
            "networks were trained on any of these pictures"
        )
    values |= {
        "backbones": list(dict.fromkeys(g.backbone for g in every)),
        "configurations": list(dict.fromkeys(g.configuration for g in every)),
        "seeds": sorted({k for g in every for k in g.numbers}),
    }
    _claim(to)
    with folder_lock(to, "out folder"):
        for folder in (to, to / "figures"):
            remove_unfinished(folder)
        gathered = study.gather(values, to, quiet)
        ((_, cases, stores),) = gathered
        # drawn pictures all look alike, wherever they are read from
        alike = [] if known.equal_only else study.find_alike(values, gathered)[0]
        pairs = list(zip(cases, stores, strict=True))
        chosen_cases = select(out, pairs, values, known, nets, alike)
        tested = _predicted(every, chosen_cases, device, quiet)
        _write(to, out, values, every, (chosen_cases, alike), tested, notes)
        made = make(to, figures=figures, locked=True)
    made["notes"] = [*notes, *_told(chosen_cases), *made["notes"]]
    return made


def _told(chosen: list[tuple]) -> list[str]:
    """The warnings of the data sets, those on single images counted."""
    found = []
    for cases, _, _ in chosen:
        left = [w.removeprefix("excluded: ") for w in cases.warnings if w.startswith("excluded: ")]
        if left:
            images = f"{len(left)} image{'s' * (len(left) > 1)} left out"
            found.append(f"{cases.name}: {images} ({left[0]}{', ...' * (len(left) > 1)})")
        found += [f"{cases.name}: {w}" for w in cases.warnings if not w.startswith("excluded: ")]
    return found


def _claim(to: Path) -> None:
    """Refuse a folder that is not empty and no evaluation; hidden files are a killed one's."""
    inside = [p.name for p in to.iterdir()] if to.is_dir() else []
    if any(n != "data" and not n.startswith(".") for n in inside) and not (to / RECORD).is_file():
        raise BadInput(f"{to}: is not empty and holds no evaluation; choose another --out")


def _predicted(every: list[Group], chosen: list[tuple], device: str, quiet: bool) -> dict:
    """{(backbone, configuration, task, data set): (networks, cases, C)}; a training that several
    configurations report is asked once."""
    found: dict = {}
    asked: dict = {}
    total = len({n.folder for g in every for n in g.nets})
    images = {cases.name: np.asarray(store.images)[rows] for cases, store, rows in chosen}
    with predict.Progress(total, quiet, "evaluating", "network") as progress:
        for group in every:
            for net, model in predict.loaded(_new(group.nets, asked), device):
                asked[net.folder] = {}
                for cases, _, _ in chosen:
                    if cases.task in net.tasks:
                        given = predict.probabilities([(net, model)], images[cases.name])
                        asked[net.folder][cases.name] = given[cases.task][0]
                progress()
            for cases, _, _ in chosen:
                if cases.task in group.nets[0].tasks:
                    place = (group.backbone, group.configuration, cases.task, cases.name)
                    found[place] = np.stack([asked[n.folder][cases.name] for n in group.nets])
    return found


def _new(nets: list, asked: dict) -> list:
    return [n for n in nets if n.folder not in asked]


def _among(alike: list, chosen: list[tuple]) -> list:
    """The near-duplicates of whole data sets, `alike`, that are among the cases `chosen`, by their
    rows there."""
    at = [{row: i for i, row in enumerate(rows.tolist())} for _, _, rows in chosen]
    return [
        pair._replace(**{k: (n, at[n][row]) for k, (n, row) in (("one", pair.one),
                                                                 ("two", pair.two))})
        for pair in alike
        if all(row in at[n] for n, row in (pair.one, pair.two))
    ]  # fmt: skip


def _write(to: Path, out: Path, values: dict, every, tried, tested: dict, notes: list) -> None:
    """Everything that the report is computed from; tried: as from `select`, and near-duplicates.

    First the record, which makes the folder an evaluation's, so that one that was interrupted is
    done again; last the configuration, without which nothing reports a part of it."""
    chosen, alike = tried
    places = {(g.nets[0].description["release"], g.nets[0].description["validation"])
              for g in every}  # fmt: skip
    write_json(
        to / RECORD,
        {
            "format": 1,
            "mdmt": __version__,
            "run": str(out.resolve()),
            "run_predictions": _digest(out / "predictions.csv"),
            "release": sorted({r for r, _ in places})[0],
            "validation": sorted({v for _, v in places})[0],
            "thresholds": _thresholds(every),
            "notes": notes,
        },
    )
    (to / "config.yaml").unlink(missing_ok=True)
    _write_predictions(to, values, every, chosen, tested)
    rows = []
    for g in every:
        for k, net in zip(g.numbers, g.nets, strict=True):
            d = net.description
            rows.append({"backbone": g.backbone, "configuration": g.configuration, "seed": k,
                         "run_fold": d["fold"], "run_seed": d["seed"],
                         "training": net.folder.name})  # fmt: skip
    write_csv(to / NETWORKS, list(rows[0]), rows)
    taken = [cases.take(rows.tolist()) for cases, _, rows in chosen]
    for cases, (before, _, _) in zip(taken, chosen, strict=True):
        cases.warnings[:] = before.warnings
    stores = [store for _, store, _ in chosen]
    # of whom there is the same radiograph under two ids counts as one patient, as in a run
    pairs = _among(alike, chosen)
    release = study.Release(values["data"]["release"], taken, stores, {}, pairs)
    write_json(to / cohort.COHORT, cohort.record([release], values))
    write_json(to / "environment.json", study.environment())
    write_atomic(to / "config.yaml", config.dump(study.stored_form(values)))


def _thresholds(every: list[Group]) -> dict:
    """{training: its operating points by task}, as it chose them on its validation part."""
    folders = {net.folder for group in every for net in group.nets}
    results = [(f.name, f / RESULT) for f in sorted(folders)]
    return {name: read_json(p).get("thresholds", {}) for name, p in results if p.is_file()}


def _digest(path: Path) -> str | None:
    return digest_file(path) if path.is_file() else None


def _write_predictions(to: Path, values: dict, every, chosen, tested: dict) -> None:
    classes = probable(values)
    columns = PREDICTION_COLUMNS + [f"p_{c}" for c in classes]
    with atomic(to / "predictions.csv") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for task, group in ((t, g) for t in values["tasks"] for g in every):
            sets = [c for c in chosen if c[0].task == task]
            if not sets or task not in group.nets[0].tasks:
                continue
            for i, k in enumerate(group.numbers):
                head = [values["data"]["release"], SCHEME, 0, group.backbone,
                        group.configuration, task, k]  # fmt: skip
                for cases, _, rows in sets:
                    p = tested[group.backbone, group.configuration, task, cases.name][i]
                    for cells in _cells(values["tasks"][task], classes, cases, rows, p):
                        writer.writerow([*head, *cells])
        text.flush()
        text.detach()


def _cells(task: dict, classes: list[str], cases, rows: np.ndarray, p: np.ndarray):
    """Per case its ids, label, prediction and probabilities, p (n, C)."""
    kind, own = kinds.kind_of(task), task["classes"]
    p = p.astype(np.float32)  # as the network gave it, in its shortest text
    labels = kinds.texts(kind, own, cases.target[rows])
    called = kinds.texts(kind, own, kinds.called(kind, p))
    for i, row in enumerate(rows.tolist()):
        cells = [""] * len(classes)
        for c, v in zip(own, p[i] if kind != kinds.NUMBER else (), strict=False):
            cells[classes.index(c)] = str(v)
        yield [*cases.ids(row), labels[i], called[i], *cells]
