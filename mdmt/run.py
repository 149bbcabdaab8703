"""The main job: `python -m mdmt.run [CONFIG] [--set key.sub=value ...] [--out DIR] ...`.

Reads the data sets, makes the splits, trains the configurations over the folds and writes
results.csv, predictions.csv, splits.json and runs/<job id>/ to the out folder.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from . import __version__, config, experiments, metrics, splits
from .errors import BadConfig, BadInput, JobsFailed, MdmtError, debugging
from .paths import (
    digest,
    folder_lock,
    make_folder,
    read_csv,
    read_json,
    write_atomic,
    write_csv,
    write_json,
)

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
MORE_COLUMNS = ["best_epoch", "epochs", "job"]
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
FORMAT = 1


@dataclass
class Study:
    """A configuration with its data: cases and stores per data set, splits, jobs."""

    values: dict
    cases: list
    stores: list
    splits: dict
    jobs: list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mdmt run`."""
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="YAML file or shipped name: " + ", ".join(config.shipped()) + " (default: demo)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a configuration key, e.g. --set train.epochs=10",
    )
    parser.add_argument("--out", metavar="DIR", help="out folder (default: results/<name>)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:i]")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="trainings at the same time (default: 1)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out (re-running does so too); without "
        "CONFIG, with the configuration stored there",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="let the run in --out grow by other folds, seeds, backbones, "
        "configurations or validation schemes",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the jobs and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def load_values(arguments) -> dict:
    """Return the resolved configuration that the arguments ask for."""
    if arguments.config is None and arguments.resume and arguments.out:
        stored = Path(arguments.out) / "config.yaml"
        if stored.is_file():
            raw = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
            for override in arguments.overrides:
                config.override(raw, override)
            return config.resolve(raw, str(stored))
    return config.load(arguments.config or "demo", arguments.overrides)


def read_cases(values: dict, out: Path | None = None) -> list:
    """Read (or, for the demo, draw) the data sets of a configuration."""
    from .data import readers, synthetic
    from .paths import cache_folder

    drawing = values["data"]["synthetic"]
    root = values["data"]["root"]
    if drawing is not None:
        root = synthetic.make(root or (out / "data" if out else cache_folder()), **drawing)
    elif root is None:
        raise BadConfig(
            f"{values['name']}: data.root is not set; give the data's folder with "
            "--set data.root=FOLDER"
        )
    elif not Path(root).is_dir():
        raise BadConfig(f"data.root: the folder {root} does not exist; correct it")
    return [
        readers.read_cases(spec, values["tasks"][spec["task"]], root, values["data"]["release"])
        for spec in values["data"]["datasets"]
    ]


def manifest(cases, store) -> str:
    """Hash of what a data set is: every image's pixels and label, in order."""
    return digest(
        [store.key, cases.images, cases.patients, cases.centers, cases.labels.tolist()], 24
    )


def prepare(values: dict, out: Path | None = None, quiet: bool = False) -> Study:
    """Read the data, build the stores, make the splits and plan the jobs."""
    from .data import store

    _check_names(values)
    read = read_cases(values, out)
    cases, stores = [], []
    for one in read:
        built, kept = store.build(one, values, progress=not quiet)
        stores.append(built)
        cases.append(kept)
    made = splits.make(cases, values)
    _check_across(cases, stores, made)
    datasets = [(c, manifest(c, s)) for c, s in zip(cases, stores, strict=True)]
    return Study(values, cases, stores, made, experiments.plan(values, datasets, made))


def _check_across(cases: list, stores: list, made: dict) -> None:
    """A picture in two data sets must not be tested in one and trained on in the other.

    Patient ids that occur in two data sets are noted: only the user knows whether they are the
    same people.
    """
    for a in range(len(cases)):
        for b in range(a + 1, len(cases)):
            one, two = cases[a], cases[b]
            shared = sorted(set(one.patients) & set(two.patients))
            if shared:
                one.warnings.append(
                    f"{len(shared)} patient ids ('{shared[0]}', ...) are in data set '{two.name}' "
                    "too; if they are the same people, test cases of one are trained on in the "
                    "other"
                )
            where = {s: i for i, s in enumerate(stores[b].sources)}
            both = [(i, where[s]) for i, s in enumerate(stores[a].sources) if s in where]
            for i, j in both:
                for folds in made.values():
                    for fold in folds:
                        if (i in fold[one.name]["test"]) != (j in fold[two.name]["test"]):
                            raise BadInput(
                                f"{one.paths[i]}: is the same picture as {two.paths[j]}, and "
                                f"would be tested in data set '{one.name}' or '{two.name}' and "
                                "trained on in the other; keep one"
                            )


def _check_names(values: dict) -> None:
    """Unknown backbones and configurations stop before any data is read."""
    from .errors import nearest
    from .nets import backbones

    known = list(backbones())
    for name in values["backbones"]:
        if name not in known:
            raise BadConfig(f"backbones: '{name}' is unknown{nearest(name, known)}")
    for name in values["configurations"]:
        experiments.stages_of(values, name)


def claim(out: Path, values: dict, extend: bool = False) -> None:
    """Refuse an out folder that belongs to another configuration, or is no out folder."""
    stored = out / "config.yaml"
    if not stored.exists():
        known = {"data", ".lock"}
        if out.is_dir() and any(
            p.name not in known and not p.name.startswith(".") for p in out.iterdir()
        ):
            raise BadInput(
                f"{out}: is not empty and not an out folder of mdmt; choose another --out"
            )
        return
    old = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
    ignore = config.NEUTRAL + (config.SELECTING if extend else ())
    changed = config.differences(old if isinstance(old, dict) else {}, values, ignore)
    if changed:
        path, before, now = changed[0]
        more = f" and {len(changed) - 1} more keys differ" if len(changed) > 1 else ""
        hint = ", or --extend" if path.split(".")[0] in config.SELECTING and not extend else ""
        raise BadInput(
            f"{out}: belongs to another configuration ({path} is {before!r} there and "
            f"{now!r} here{more}); choose another --out{hint}"
        )


def resolve_device(name: str) -> str:
    """Return the device that --device names; auto is cuda where it works, else cpu."""
    if name == "auto":
        return "cpu"
    if name == "cpu":
        return name
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit()):
        raise BadConfig(f"--device {name}: this build has no CUDA; use cpu or auto")
    raise BadConfig(f"--device {name}: is not a device; use auto, cpu or cuda[:i]")


def _inputs_of(study: Study, out: Path, device: str):
    """Return the function that gives a job's inputs.json."""
    by_name = {c.name: (c, s) for c, s in zip(study.cases, study.stores, strict=True)}
    train = study.values["train"]

    def inputs(job) -> dict:
        datasets = {}
        for name, rows in job.rows.items():
            cases, store = by_name[name]
            datasets[name] = {
                "store": str(store.folder.resolve()),
                "labels": cases.labels.tolist(),
                **{p: [int(r) for r in rows[p]] for p in rows},
            }
        source = experiments.weights_source(study.values, job.description["backbone"])
        return {
            "datasets": datasets,
            "runs": str((out / "runs").resolve()),
            "device": device,
            "weights": source.get("path"),
            "checkpoint_seconds": train["checkpoint_seconds"],
            "checkpoint_steps": train["checkpoint_steps"],
        }

    return inputs


def environment() -> dict:
    """What the run ran on."""
    import numpy
    import scipy

    return {
        "mdmt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }


def collect(study: Study, out: Path, done) -> list[dict]:
    """Write results.csv and predictions.csv of the finished jobs; return the results' rows."""
    by_name = {c.name: c for c in study.cases}
    classes = list(dict.fromkeys(c for t in study.values["tasks"].values() for c in t["classes"]))
    results, predictions = [], []
    for job in study.jobs:
        if job.id not in done or not job.reported:
            continue
        d = job.description
        result = read_json(out / "runs" / job.id / "result.json")
        tested = read_csv(out / "runs" / job.id / "predictions.csv")
        for name in job.reported:
            place = {
                "release": d["release"],
                "validation": d["validation"],
                "fold": d["fold"],
                "backbone": d["backbone"],
                "configuration": name,
                "seed": d["seed"],
            }
            for task in d["tasks"]:
                rows = [r for r in tested if r["task"] == task["name"]]
                if not rows:
                    continue
                for r in rows:
                    predictions.append(
                        {
                            **place,
                            "task": task["name"],
                            **_case(by_name[r["dataset"]], int(r["row"])),
                            "label": r["label"],
                            "predicted": r["predicted"],
                            **{f"p_{c}": r[f"p{k}"] for k, c in enumerate(task["classes"])},
                        }
                    )
                results.append(
                    {
                        **place,
                        "task": task["name"],
                        **_metrics(rows, task),
                        "best_epoch": result["best_epoch"],
                        "epochs": result["epochs"],
                        "job": job.id,
                    }
                )
    order = {n: i for i, n in enumerate(study.values["configurations"])}
    key = _order(study.values, order)
    results.sort(key=key)
    predictions.sort(key=key)
    if not results:
        return results
    write_csv(
        out / "predictions.csv", PREDICTION_COLUMNS + [f"p_{c}" for c in classes], predictions
    )
    write_csv(out / "results.csv", RESULT_COLUMNS + MORE_COLUMNS, results)
    return results


def _order(values: dict, configurations: dict):
    validation = {v: i for i, v in enumerate(values["validation"])}
    backbone = {b: i for i, b in enumerate(values["backbones"])}
    task = {t: i for i, t in enumerate(values["tasks"])}
    return lambda r: (
        validation[r["validation"]],
        backbone[r["backbone"]],
        configurations[r["configuration"]],
        task[r["task"]],
        r["seed"],
        r["fold"],
    )


def _case(cases, row: int) -> dict:
    return {
        "patient": cases.patients[row],
        "image": cases.images[row],
        "center": cases.centers[row],
    }


def _metrics(rows: list[dict], task: dict) -> dict:
    import numpy as np

    classes = task["classes"]
    y = np.array([classes.index(r["label"]) for r in rows])
    p = np.array([[float(r[f"p{k}"]) for k in range(len(classes))] for r in rows])
    positive = classes.index(task["positive"]) if task["positive"] is not None else None
    found = metrics.summary(y, p, positive)
    return {k: (None if v != v else v) for k, v in found.items()}


def final_table(results: list[dict], values: dict) -> str:
    """The table at the end: accuracy, F1 and G-mean (percent, mean and deviation over folds)."""
    import numpy as np

    lines = []
    for validation in values["validation"]:
        for task, spec in values["tasks"].items():
            rows = [r for r in results if r["validation"] == validation and r["task"] == task]
            if not rows:
                continue
            two = len(spec["classes"]) == 2
            average = f"F1 of {spec['positive'] or spec['classes'][-1]}" if two else "F1 macro"
            folds = len({(r["fold"], r["seed"]) for r in rows})
            lines.append(
                f"{task}, {validation}, test parts: percent, mean ± standard deviation "
                f"over {folds} {'trainings' if len(values['seeds']) > 1 else 'folds'}"
                if folds > 1
                else f"{task}, {validation}, test part of one fold: percent"
            )
            lines.append(
                f"  {'backbone':<22}{'configuration':<15}{'accuracy':>14}"
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
                for column in ("accuracy", "f1", "gmean", "auc"):
                    numbers = [100 * r[column] for r in group if r[column] is not None]
                    cell = "-" if not numbers else f"{np.mean(numbers):.1f}"
                    if len(numbers) > 1:
                        cell += f" ± {np.std(numbers, ddof=1):.1f}"
                    cells.append(cell)
                lines.append(
                    f"  {backbone:<22}{name:<15}{cells[0]:>14}{cells[1]:>18}"
                    f"{cells[2]:>14}{cells[3]:>14}"
                )
            lines.append("")
    return "\n".join(lines)


def _over_backbones(groups: list[tuple]) -> list[dict]:
    """Mean over backbones of each fold's metrics."""
    import numpy as np

    columns = ("accuracy", "f1", "gmean", "auc")
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


def _introduce(study: Study, out: Path) -> None:
    values = study.values
    synthetic = " (SYNTHETIC radiographs)" if values["data"]["synthetic"] is not None else ""
    print(f"mdmt {__version__}: {values['name']}{synthetic} -> {out}", file=sys.stderr)
    for cases in study.cases:
        counts = ", ".join(
            f"{c} {int((cases.labels == k).sum())}" for k, c in enumerate(cases.classes)
        )
        centers = len({c for c in cases.centers if c})
        place = f", {centers} centers" if centers else ""
        print(
            f"  {cases.name}: {len(cases)} images of {len(set(cases.patients))} patients{place}; "
            f"{cases.task}: {counts}",
            file=sys.stderr,
        )
        for warning in cases.warnings:
            print(f"  note: {warning}", file=sys.stderr)
    plural = "s" if len(study.jobs) > 1 else ""
    print(
        f"  {len(study.jobs)} training{plural}: {', '.join(values['backbones'])}; "
        f"{', '.join(values['configurations'])}; weights: {values['weights']}",
        file=sys.stderr,
    )


def dry_run(study: Study) -> str:
    """The list of jobs, one line each, those it starts from by number."""
    numbers = {job.id: i for i, job in enumerate(study.jobs, 1)}
    lines = []
    for job in study.jobs:
        d = job.description
        after = ", ".join(str(numbers[n]) for n in job.needs)
        sizes = "+".join(str(len(r["train"])) for r in job.rows.values())
        lines.append(
            f"{numbers[job.id]:>5}  {job.id:<44}{job.label:<12} train {sizes:<10}"
            f" seed {d['seed']}" + (f"  after {after}" if after else "")
        )
    lines.append(f"{len(study.jobs)} jobs")
    return "\n".join(lines)


def run(
    values: dict,
    out=None,
    *,
    device: str = "auto",
    workers: int = 1,
    extend: bool = False,
    only_plan: bool = False,
    quiet: bool = False,
) -> list[dict]:
    """Run a resolved configuration; return the rows of results.csv.

    Raises MdmtError: BadInput for what cannot be used, Interrupted after a signal, JobsFailed
    when trainings failed (the finished ones are in the results).
    """
    from .runner import local

    device = resolve_device(device)
    if workers < 1:
        raise BadConfig(f"--workers {workers}: must be at least 1")
    out = Path(out) if out is not None else Path("results") / values["name"]
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; choose another --out")
    claim(out, values, extend)
    if only_plan:
        print(dry_run(prepare(values, None, quiet)))
        return []
    _check_names(values)
    fresh = not out.exists()
    try:
        return _run_in(make_folder(out), values, device, workers, quiet, local)
    except BadInput:
        if fresh and not (out / "config.yaml").exists():
            _remove_empty(out)
        raise


def _remove_empty(out: Path) -> None:
    """Take back a folder in which nothing but the lock was made."""
    import contextlib

    with contextlib.suppress(OSError):
        (out / ".lock").unlink(missing_ok=True)
        out.rmdir()


def _run_in(out: Path, values: dict, device: str, workers: int, quiet: bool, local) -> list[dict]:
    with folder_lock(out, "out folder"):
        study = prepare(values, out, quiet)
        if not quiet:
            _introduce(study, out)
        record = splits.as_record(study.splits, study.cases)
        _check_same_data(out, record)
        write_json(out / "splits.json", record)
        write_json(out / "environment.json", environment())
        write_atomic(out / "config.yaml", config.dump(_stored(values)))
        outcome = local.run(
            study.jobs, out / "runs", _inputs_of(study, out, device), workers, quiet
        )
        results = collect(study, out, set(outcome.done))
        if results and not quiet:
            _conclude(study, out, results)
    if outcome.failed:
        labels = {j.id: j.label for j in study.jobs}
        first = next(iter(outcome.failed))
        message, code = outcome.failed[first]
        raise JobsFailed(
            f"{len(outcome.failed)} of {len(study.jobs)} trainings failed; the first, "
            f"{labels[first]} ({out / 'runs' / first}): {message}",
            code,
        )
    return results


def _stored(values: dict) -> dict:
    """The configuration as the out folder keeps it: its data are found from any folder."""
    if values["data"]["root"] is None:
        return values
    root = str(Path(values["data"]["root"]).resolve())
    return {**values, "data": {**values["data"], "root": root}}


def _check_same_data(out: Path, record: dict) -> None:
    path = out / "splits.json"
    if not path.exists():
        return
    old = splits.read(path)
    shared = set(old["validation"]) & set(record["validation"])
    if any(old["validation"][v] != record["validation"][v] for v in shared):
        raise BadInput(f"{out}: its splits.json was made from other data; choose another --out")


def _conclude(study: Study, out: Path, results: list[dict]) -> None:
    print()
    if study.values["data"]["synthetic"] is not None:
        print("SYNTHETIC data: these figures show that the software works, nothing else.\n")
    print(final_table(results, study.values))
    print(
        f"results      {out / 'results.csv'}\npredictions  {out / 'predictions.csv'}\n"
        f"splits       {out / 'splits.json'}\ntrainings    {out / 'runs'}/",
        flush=True,
    )


def guarded(action) -> int:
    """Call `action`; print an error as one sentence to stderr and return the exit code."""
    try:
        action()
    except MdmtError as error:
        if debugging():
            import traceback

            traceback.print_exc()
        print(f"mdmt: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mdmt: interrupted; run the same command to go on", file=sys.stderr)
        return 75
    except BrokenPipeError:
        return 1
    return 0


def start(arguments) -> None:
    """Run what parsed `arguments` ask for."""
    run(
        load_values(arguments),
        arguments.out,
        device=arguments.device,
        workers=arguments.workers,
        extend=arguments.extend,
        only_plan=arguments.dry_run,
        quiet=arguments.quiet,
    )


def main(argv=None) -> int:
    """Entry of `python -m mdmt.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m mdmt.run",
        description="Train and compare the configurations STL, FT and MDMT over the folds.",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return guarded(lambda: start(arguments))


if __name__ == "__main__":
    sys.exit(main())
