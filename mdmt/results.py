"""results.csv and predictions.csv of an out folder, from the files of its finished trainings."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from . import kinds, measures, metrics
from .errors import BadInput
from .paths import atomic, read_json, write_csv, write_json
from .runner.kept import COLLECTED, check_mark

RESULT_COLUMNS = [
    "release",
    "validation",
    "fold",
    "backbone",
    "configuration",
    "task",
    "seed",
    "n",
    "accuracy",
    "f1",
    "f1_macro",
    "f1_weighted",
    "gmean",
    "auc",
]
MORE_COLUMNS = ["best_epoch", "epochs", "steps", "job"]


def columns_of(values: dict) -> list[str]:
    """Columns of results.csv: those of every study, those of the kinds of tasks that this one has,
    and where a row comes from."""
    tasks = values["tasks"].values()
    more = list(metrics.NUMBERS) if kinds.NUMBER in map(kinds.kind_of, tasks) else []
    for task in tasks:
        if kinds.kind_of(task) == kinds.FINDINGS:
            more += [f"{k}_{c}" for k in ("auc", "f1") for c in task["classes"]]
    return [*RESULT_COLUMNS, *dict.fromkeys(more), *MORE_COLUMNS]


PREDICTION_COLUMNS = [
    "release",
    "validation",
    "fold",
    "backbone",
    "configuration",
    "task",
    "seed",
    "patient",
    "image",
    "center",
    "label",
    "predicted",
]


def collect(study, out: Path, done) -> list[dict]:
    """Write results.csv and predictions.csv of the finished jobs; return the results' rows.

    One training is in memory at a time: the predictions of a whole study are gigabytes.
    """
    classes = probable(study.values)
    entries = _entries(study, done)
    if not entries:
        return []
    columns = PREDICTION_COLUMNS + [f"p_{c}" for c in classes]
    cases = {(r.name, c.name): c for r in study.releases for c in r.cases}
    results = []
    with atomic(out / "predictions.csv") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        held = (None, None, None)
        for place, task, job in entries:
            folder = out / "runs" / job.id
            if held[0] != job.id:
                result = read_json(folder / "result.json")
                held = (job.id, result, _tested(folder, result))
            _, result, tested = held
            rows = [r for r in tested if r["task"] == task["name"]]
            if not rows:
                continue
            head = [place[c] for c in PREDICTION_COLUMNS[:5]] + [task["name"], place["seed"]]
            where = [columns.index(f"p_{c}") - len(PREDICTION_COLUMNS) for c in task["classes"]]
            for r in rows:
                case, row = cases[place["release"], r["dataset"]], int(r["row"])
                cells = [""] * len(classes)
                for k, at in enumerate(where):
                    cells[at] = r[f"p{k}"]
                writer.writerow([*head, *case.ids(row), r["label"], r["predicted"], *cells])
            results.append(
                {
                    **place,
                    "task": task["name"],
                    **_metrics(rows, study.values["tasks"][task["name"]]),
                    "best_epoch": result["best_epoch"],
                    "epochs": result["epochs"],
                    "steps": result.get("steps"),
                    "job": job.id,
                }
            )
        text.flush()
        text.detach()
    if results:
        write_csv(out / "results.csv", columns_of(study.values), results)
        write_json(out / COLLECTED, sorted({job.id for _, _, job in entries}))
    else:
        (out / "predictions.csv").unlink()
    return results


def probable(values: dict) -> list[str]:
    """The classes and findings that predictions.csv gives probabilities of."""
    tasks = [t for t in values["tasks"].values() if kinds.kind_of(t) != kinds.NUMBER]
    return list(dict.fromkeys(c for t in tasks for c in t["classes"]))


def _entries(study, done) -> list[tuple]:
    """(place, task, job) of everything that was tested, in the order of the results."""
    values = study.values
    order = {}
    for name in ("validation", "backbones", "configurations", "tasks"):
        order[name] = {v: i for i, v in enumerate(values[name])}
    releases = {r.name: i for i, r in enumerate(study.releases)}
    found = []
    for job in study.jobs:
        if job.id not in done:
            continue
        d = job.description
        for name in job.reported:
            place = {k: d[k] for k in ("release", "validation", "fold", "backbone")}
            place |= {"configuration": name, "seed": d["seed"]}
            for task in d["tasks"]:
                key = (
                    releases[d["release"]],
                    order["validation"][d["validation"]],
                    order["backbones"][d["backbone"]],
                    order["configurations"][name],
                    order["tasks"][task["name"]],
                    d["seed"],
                    d["fold"],
                )
                found.append((key, place, task, job))
    found.sort(key=lambda entry: entry[0])
    return [entry[1:] for entry in found]


def _tested(folder: Path, result: dict) -> list[dict]:
    path = folder / "predictions.csv"
    try:
        check_mark(path, result)
        with open(path, newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({(error.strerror or '').lower()}); delete the folder "
            f"{folder} and run again to train it anew"
        ) from error


def _metrics(rows: list[dict], task: dict) -> dict:
    import numpy as np

    kind, classes = kinds.kind_of(task), task["classes"]
    y = kinds.values_of(kind, classes, [r["label"] for r in rows])
    columns = ["predicted"] if kind == kinds.NUMBER else [f"p{k}" for k in range(len(classes))]
    p = np.array([[float(r[c]) for c in columns] for r in rows])
    return {k: (None if v != v else v) for k, v in metrics.task_summary(task, y, p).items()}


def fewer_folds(rows: list[dict], columns=("accuracy", "f1", "gmean", "auc")) -> str:
    """Which means over folds are of fewer folds than `rows` (of results.csv, at one place) has,
    as a sentence; "" for none. columns: measures."""
    folds = {str(r["fold"]) for r in rows}
    found: dict = {}
    for c in columns:
        n = len({str(r["fold"]) for r in rows if r.get(c) is not None})
        if n < len(folds):
            found.setdefault(n, []).append(called(c))
    return undefined(found, len(folds), "number" if "mae" in columns else "class")


def called(name: str) -> str:
    """The title of a measure in a sentence."""
    return "accuracy" if name == "accuracy" else measures.MEASURES[name].title


def undefined(found: dict, folds: int, what: str = "class") -> str:
    """The sentence of `fewer_folds`; found {number of folds: names of the metrics}; what: of which
    those test parts hold only one."""
    if not found:
        return ""
    said = []
    for n, names in found.items():
        named = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        one = len(names) == 1
        mean = f"{'a mean' if one else 'means'} over {n} of {folds} folds"
        said.append(f"{named} {'is' if one else 'are'} {mean if n else 'defined in no fold'}")
    return "; ".join(said) + f": test parts of one {what} leave them undefined."


def final_table(results: list[dict], values: dict) -> str:
    """The table at the end: four measures of each task, mean and deviation over folds."""
    lines = []
    places = dict.fromkeys((r["release"], r["validation"], r["task"]) for r in results)
    several = len({release for release, _, _ in places}) > 1
    for release, validation, task in places:
        place = (release, validation, task)
        rows = [r for r in results if (r["release"], r["validation"], r["task"]) == place]
        where = f"{task}, release {release}, {validation}" if several else f"{task}, {validation}"
        spec = values["tasks"][task]
        chosen = list(measures.drawn(spec))
        if spec["thresholds"] and kinds.kind_of(spec) == kinds.NUMBER:
            chosen.append("accuracy")
        folds = len({(r["fold"], r["seed"]) for r in rows})
        unit = _units(spec, chosen)
        lines.append(
            f"{where}, test parts: {unit}, mean ± standard deviation "
            f"over {folds} {'trainings' if len(values['seeds']) > 1 else 'folds'}"
            if folds > 1
            else f"{where}, test part of one fold: {unit}"
        )
        table = [["backbone", "configuration", *(_heading(k, spec) for k in chosen)]]
        for backbone, name, group in _groups(rows, values, chosen):
            table.append([backbone, name, *(_spread(k, group) for k in chosen)])
        # as wide as what is in them: names have any length, and a terminal often 80 columns
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            cells = [c.ljust(w) for c, w in zip(line[:2], widths[:2], strict=True)]
            cells += [c.rjust(w) for c, w in zip(line[2:], widths[2:], strict=True)]
            lines.append("  " + "  ".join(cells))
        note = fewer_folds(rows, chosen)
        lines += [f"  {note}", ""] if note else [""]
    return "\n".join(lines)


def _units(spec: dict, chosen: list[str]) -> str:
    """In what a table's figures are."""
    if kinds.kind_of(spec) != kinds.NUMBER:
        return "percent" if kinds.kind_of(spec) == kinds.CLASSES else "percent, means over findings"
    return "MAE and RMSE in the label's unit" + (", accuracy in percent" * ("accuracy" in chosen))


def _heading(name: str, spec: dict) -> str:
    if name == "f1" and kinds.kind_of(spec) == kinds.CLASSES:
        positive = spec["classes"][kinds.positive_of(spec)]
        positive = positive if len(positive) <= 20 else positive[:19] + "\u2026"
        return f"F1 of {positive}" if len(spec["classes"]) == 2 else "F1 macro"
    return called(name)


def _groups(rows: list[dict], values: dict, chosen: list[str]) -> list[tuple]:
    """(backbone, configuration, rows) of a table's lines."""
    keys = dict.fromkeys((r["backbone"], r["configuration"]) for r in rows)
    groups = [
        (b, c, [r for r in rows if (r["backbone"], r["configuration"]) == (b, c)]) for b, c in keys
    ]
    if len(values["backbones"]) > 1:
        for name in dict.fromkeys(c for _, c in keys):
            some = [g for g in groups if g[1] == name]
            groups.append(("mean of backbones", name, _over_backbones(some, chosen)))
    return groups


def _spread(name: str, rows: list[dict]) -> str:
    """Mean and deviation of a measure."""
    import numpy as np

    one = measures.MEASURES[name]
    numbers = [one.scale * r[name] for r in rows if r.get(name) is not None]
    if not numbers:
        return "-"
    text = f"{round(float(np.mean(numbers)), one.digits) + 0.0:.{one.digits}f}"  # no -0
    if len(numbers) > 1:
        text += f" ± {np.std(numbers, ddof=1):.{one.digits}f}"
    return text


def _over_backbones(groups: list[tuple], columns: list[str]) -> list[dict]:
    """Mean over backbones of each fold's metrics."""
    import numpy as np

    places = dict.fromkeys((r["fold"], r["seed"]) for _, _, rows in groups for r in rows)
    merged = []
    for place in places:
        rows = [r for _, _, group in groups for r in group if (r["fold"], r["seed"]) == place]
        merged.append(
            {
                c: (
                    float(np.mean([r[c] for r in rows if r[c] is not None]))
                    if any(r[c] is not None for r in rows)
                    else None
                )
                for c in columns
            }
        )
    return merged
