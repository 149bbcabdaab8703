"""results.csv and predictions.csv of an out folder, from the files of its finished trainings."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from . import metrics
from .errors import BadInput
from .paths import atomic, read_json, write_csv

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
    classes = list(dict.fromkeys(c for t in study.values["tasks"].values() for c in t["classes"]))
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
                held = (job.id, read_json(folder / "result.json"), _tested(folder))
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
                ids = [case.patients[row], case.images[row], case.centers[row]]
                writer.writerow([*head, *ids, r["label"], r["predicted"], *cells])
            results.append(
                {
                    **place,
                    "task": task["name"],
                    **_metrics(rows, task),
                    "best_epoch": result["best_epoch"],
                    "epochs": result["epochs"],
                    "steps": result.get("steps"),
                    "job": job.id,
                }
            )
        text.flush()
        text.detach()
    if results:
        write_csv(out / "results.csv", RESULT_COLUMNS + MORE_COLUMNS, results)
    else:
        (out / "predictions.csv").unlink()
    return results


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


def _tested(folder: Path) -> list[dict]:
    path = folder / "predictions.csv"
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({(error.strerror or '').lower()}); delete the folder "
            f"{folder} and run again to train it anew"
        ) from error


def _metrics(rows: list[dict], task: dict) -> dict:
    import numpy as np

    number = {c: k for k, c in enumerate(task["classes"])}
    y = np.array([number[r["label"]] for r in rows])
    p = np.array([[float(r[f"p{k}"]) for k in range(len(number))] for r in rows])
    positive = number[task["positive"]] if task["positive"] is not None else None
    found = metrics.summary(y, p, positive)
    return {k: (None if v != v else v) for k, v in found.items()}


TITLES = {"accuracy": "accuracy", "f1": "F1", "gmean": "G-mean", "auc": "AUC"}


def fewer_folds(rows: list[dict], columns=tuple(TITLES)) -> str:
    """Which means over folds are of fewer folds than `rows` (of results.csv, at one place) has,
    as a sentence; "" for none."""
    folds = {str(r["fold"]) for r in rows}
    found: dict = {}
    for c in columns:
        n = len({str(r["fold"]) for r in rows if r[c] is not None})
        if n < len(folds):
            found.setdefault(n, []).append(TITLES[c])
    return undefined(found, len(folds))


def undefined(found: dict, folds: int) -> str:
    """The sentence of `fewer_folds`; found {number of folds: names of the metrics}."""
    if not found:
        return ""
    said = []
    for n, names in found.items():
        named = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        one = len(names) == 1
        mean = f"{'a mean' if one else 'means'} over {n} of {folds} folds"
        said.append(f"{named} {'is' if one else 'are'} {mean if n else 'defined in no fold'}")
    return "; ".join(said) + ": test parts of one class leave them undefined."


def final_table(results: list[dict], values: dict) -> str:
    """The table at the end: accuracy, F1 and G-mean (percent, mean and deviation over folds)."""
    import numpy as np

    lines = []
    wide = max([22, *(len(name) + 2 for name in values["backbones"])])
    places = dict.fromkeys((r["release"], r["validation"], r["task"]) for r in results)
    several = len({release for release, _, _ in places}) > 1
    for release, validation, task in places:
        place = (release, validation, task)
        rows = [r for r in results if (r["release"], r["validation"], r["task"]) == place]
        where = f"{task}, release {release}, {validation}" if several else f"{task}, {validation}"
        spec = values["tasks"][task]
        two = len(spec["classes"]) == 2
        average = f"F1 of {spec['positive'] or spec['classes'][-1]}" if two else "F1 macro"
        folds = len({(r["fold"], r["seed"]) for r in rows})
        lines.append(
            f"{where}, test parts: percent, mean ± standard deviation "
            f"over {folds} {'trainings' if len(values['seeds']) > 1 else 'folds'}"
            if folds > 1
            else f"{where}, test part of one fold: percent"
        )
        lines.append(
            f"  {'backbone':<{wide}}{'configuration':<15}{'accuracy':>14}"
            f"{average:>18}{'G-mean':>14}{'AUC':>14}"
        )
        keys = dict.fromkeys((r["backbone"], r["configuration"]) for r in rows)
        groups = [
            (b, c, [r for r in rows if (r["backbone"], r["configuration"]) == (b, c)])
            for b, c in keys
        ]
        if len(values["backbones"]) > 1:
            for name in dict.fromkeys(c for _, c in keys):
                groups.append(
                    (
                        "mean of backbones",
                        name,
                        _over_backbones([g for g in groups if g[1] == name]),
                    )
                )
        for backbone, name, group in groups:
            cells = []
            for column in TITLES:
                numbers = [100 * r[column] for r in group if r[column] is not None]
                cell = "-" if not numbers else f"{np.mean(numbers):.1f}"
                if len(numbers) > 1:
                    cell += f" ± {np.std(numbers, ddof=1):.1f}"
                cells.append(cell)
            lines.append(
                f"  {backbone:<{wide}}{name:<15}{cells[0]:>14}{cells[1]:>18}"
                f"{cells[2]:>14}{cells[3]:>14}"
            )
        note = fewer_folds(rows)
        lines += [f"  {note}", ""] if note else [""]
    return "\n".join(lines)


def _over_backbones(groups: list[tuple]) -> list[dict]:
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
                for c in TITLES
            }
        )
    return merged
