"""An out folder as a run leaves it, without any training: drawn predictions of drawn cases."""

import csv
import io

import numpy as np

from mdmt import config, splits
from mdmt.analysis import cohort
from mdmt.data.table import Cases
from mdmt.paths import write_json
from mdmt.results import PREDICTION_COLUMNS
from mdmt.study import Release, Study, split_record

CONTROL = "STL-long"
GAIN = {"STL-tau1": 0.0, "STL-tau2": 0.0, "FT": 0.15, "MDMT": 0.6, CONTROL: 0.1}


def values(**more):
    """A resolved configuration of two tasks."""
    raw = {
        "name": "drawn",
        "data": {
            "root": "/nowhere",
            "datasets": [
                {"name": "one", "table": "one.csv", "task": "prognosis"},
                {"name": "two", "table": "two.csv", "task": "severity"},
            ],
        },
        "tasks": {
            "prognosis": {"classes": ["MILD", "SEVERE"], "positive": "SEVERE"},
            "severity": {"classes": ["0", "1", "2", "3"], "thresholds": [5, 9, 14]},
        },
        "experiments": {CONTROL: [{"tasks": ["tau1"]}, {"tasks": ["tau1"], "init": 0}]},
        "backbones": ["resnet18"],
        "cv": {"folds": 3},
    }
    data = {**raw["data"], **more.pop("data", {})}
    return config.resolve({**raw, "data": data, **more})


def draw_cases(name, task, classes, n, seed, one_class=False):
    """A data set of n images of about n / 1.3 patients in three centers; one_class: all of Center
    0 are of the first class."""
    rng = np.random.default_rng(seed)
    patients = [f"{name}{p}" for p in rng.integers(0, int(n / 1.3), n)]
    of_patient = {p: rng.integers(0, len(classes)) for p in sorted(set(patients))}
    if one_class:
        of_patient = {p: k * (hash_of(p) % 3 > 0) for p, k in of_patient.items()}
    labels = np.array([of_patient[p] for p in patients])
    centers = [f"Center {hash_of(p) % 3}" for p in patients]
    columns = {
        "Sex": [("F", "M", "")[hash_of(p) % 7 % 3] for p in patients],
        "age": [str(30 + hash_of(p) % 60) for p in patients],
    }
    return Cases(
        name, task, classes, [f"{name}_{i}" for i in range(n)], patients,
        centers if task == "prognosis" else [""] * n, labels, np.full(n, np.nan), [None] * n,
        3, ["excluded: /data/broken.png: is not an image"], columns if task == "prognosis" else {},
        second=draw_second(labels, rng) if task == "severity" else {},
    )  # fmt: skip


def draw_second(labels, rng):
    """A second reader who is off by a class in a third of the cases and skips the first two."""
    off = rng.integers(-1, 2, len(labels)) * (rng.random(len(labels)) < 0.5)
    second = np.clip(labels + off, 0, 3)
    second[:2] = -1
    regions = rng.integers(0, 4, (len(labels), 6)).astype(float)
    other = np.clip(regions + rng.integers(-1, 2, regions.shape), 0, 3)
    other[:2] = np.nan
    return {"labels": second, "scores": second * 1.0, "regions": regions, "second_regions": other}


def hash_of(text):
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 10007


class _Store:
    def __init__(self, folder, n, size=32):
        self.folder = folder
        folder.mkdir(parents=True)
        y, x = np.mgrid[:size, :size]
        images = np.stack([(x * (i % 7) + y * (i % 5)) % 256 for i in range(n)]).astype(np.uint8)
        (folder / "images.u8").write_bytes(images.tobytes())
        entries = [{"source": f"{i:064x}", "file": f"{i}.png"} for i in range(n)]
        write_json(
            folder / "index.json", {"key": "k", "settings": {"size": size}, "entries": entries}
        )


def make(out, n=90, seed=0, jobs=True, one_class=False, **more):
    """Write an out folder to `out`; n cases of the first data set; more: configuration keys. Of
    several releases (data: {"releases": [...]}) each holds more of the same cases."""
    resolved = values(**more)
    tasks = resolved["tasks"]
    names = resolved["data"]["releases"] or [resolved["data"]["release"]]
    whole = [
        draw_cases("one", "prognosis", tasks["prognosis"]["classes"], n, seed, one_class),
        draw_cases("two", "severity", tasks["severity"]["classes"], n + 20, seed + 1),
    ]
    releases = []
    for number, name in enumerate(names, 1):
        cases = [c.take(range(len(c) * number // len(names))) for c in whole]
        made = splits.make(cases, resolved)
        stores = [_Store(out / "store" / f"{c.name}-{name}", len(c)) for c in cases]
        releases.append(Release(name, cases, stores, made))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(config.dump(resolved))
    write_json(out / "splits.json", split_record(Study(resolved, releases, [])))
    write_json(out / "environment.json", {"mdmt": "0", "python": "3"})
    write_json(out / cohort.COHORT, cohort.record(releases, resolved))
    rows = []
    for release in releases:
        for backbone in resolved["backbones"]:
            for name in resolved["configurations"]:
                for validation, folds in release.splits.items():
                    for k, fold in enumerate(folds):
                        for s in resolved["seeds"]:
                            place = (release.name, validation, k, backbone, name)
                            rows += _network(out, resolved, release.cases, fold, place, s, jobs)
    columns = PREDICTION_COLUMNS + [f"p_{c}" for t in tasks.values() for c in t["classes"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    order = list(tasks)
    rows.sort(key=lambda r: (r["release"], r["validation"], r["backbone"], r["configuration"],
                             order.index(r["task"]), r["seed"], r["fold"]))  # fmt: skip
    writer.writerows(rows)
    (out / "predictions.csv").write_text(text.getvalue())
    return out


def _tasks_of(name):
    return {"STL-tau2": ["severity"], "MDMT": ["prognosis", "severity"]}.get(name, ["prognosis"])


def _network(out, resolved, cases, fold, place, seed, jobs):
    """Rows of one network's predictions; its run folder."""
    release, validation, k, backbone, name = place
    rng = np.random.default_rng([hash_of("/".join(map(str, place))), seed])
    number = f"{backbone}-r{release}-{validation}{k}-s{seed}-{hash_of(name):012x}"
    found, own = [], []
    for c in cases:
        if c.task not in _tasks_of(name):
            continue
        for r in fold[c.name]["test"]:
            hard = np.random.default_rng(hash_of(c.images[r])).normal(size=len(c.classes))
            logits = hard + 0.5 * rng.normal(size=len(c.classes))
            logits[c.labels[r]] += 1.0 + GAIN.get(name, 0) + 0.1 * rng.normal()
            p = np.exp(logits) / np.exp(logits).sum()
            text = [str(v) for v in p]
            label, called = c.classes[c.labels[r]], c.classes[int(p.argmax())]
            numbered = {f"p{i}": t for i, t in enumerate(text)}
            found.append({
                **dict(zip(("release", "validation", "fold", "backbone", "configuration"), place)),
                "task": c.task, "seed": seed, "patient": c.patients[r], "image": c.images[r],
                "center": c.centers[r], "label": label, "predicted": called,
                **{f"p_{x}": t for x, t in zip(c.classes, text)},
            })  # fmt: skip
            own.append({"dataset": c.name, "task": c.task, "row": r, "label": label,
                        "predicted": called, **numbered})  # fmt: skip
    if jobs:
        _run_folder(out / "runs" / number, resolved, place, seed, number, own, rng)
    return found


def _run_folder(folder, resolved, place, seed, number, own, rng):
    release, validation, k, backbone, name = place
    folder.mkdir(parents=True)
    tasks = _tasks_of(name)
    description = {
        "release": release, "validation": validation, "fold": k, "backbone": backbone,
        "seed": seed, "tasks": [{"name": t} for t in tasks],
        "datasets": [{"name": {"prognosis": "one", "severity": "two"}[t], "manifest": "m"}
                     for t in tasks],
    }  # fmt: skip
    write_json(folder / "job.json", {"id": number, "configurations": [name],
                                     "description": description})  # fmt: skip
    write_json(folder / "result.json", {"best_epoch": 2, "epochs": 4})
    lines = ["epoch,lr," + ",".join(f"loss_{t},val_loss_{t}" for t in tasks)]
    for e in range(4):
        cells = [f"{1 / (e + 1) + 0.1 * v:.4f}" for v in rng.random(2 * len(tasks))]
        lines.append(",".join([str(e), "0.001", *cells]))
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    columns = ["dataset", "task", "row", "label", "predicted", "p0", "p1", "p2", "p3"]
    with open(folder / "predictions.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(own)
