"""The main job: `python -m mdmt.run [CONFIG] [--set key.sub=value ...] [--out DIR] ...`.

Reads the data sets, makes the splits, trains the configurations over the folds and writes
results.csv, predictions.csv, splits.json and runs/<job id>/ to the out folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path

from . import __version__, apart, checks, config, kinds
from .analysis import cohort
from .errors import BadConfig, BadInput, Interrupted, JobsFailed, MdmtError, debugging
from .experiments import weights_text
from .paths import (
    folder_lock,
    make_folder,
    read_json,
    remove_unfinished,
    write_atomic,
    write_json,
)
from .results import RESULT_COLUMNS, collect, final_table
from .study import (
    Inputs,
    Study,
    check_names,
    check_same_data,
    claim,
    environment,
    prepare,
    split_record,
    stored_form,
)

__all__ = ["RESULT_COLUMNS", "Study", "final_table", "guarded", "main", "prepare", "run", "start"]


@dataclass
class Options:
    """How a study runs, as opposed to what it is."""

    device: str = "auto"
    workers: int = 1
    dask: str | None = None
    retries: int = 2
    extend: bool = False
    mix_versions: bool = False
    only_plan: bool = False
    only_collect: bool = False
    emit_slurm: bool = False
    tensorboard: bool = False
    report: bool = True
    quiet: bool = False
    where: str = field(default="", init=False)  # what is said of the device


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The option --set."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a configuration key, e.g. --set train.epochs=10 (mdmt show keys lists them)",
    )


def add_config(parser: argparse.ArgumentParser, default: str | None = "demo") -> None:
    """The argument CONFIG and the option --set."""
    parser.add_argument(
        "config",
        nargs="?",
        default=default,
        metavar="CONFIG",
        help="YAML file or shipped name: " + ", ".join(config.shipped()) + " (default: demo)",
    )
    add_overrides(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mdmt run`."""
    add_config(parser, default=None)
    parser.add_argument("--out", metavar="DIR", help="out folder (default: results/<name>)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:i]")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="trainings at the same time, on this machine or on each Dask worker (default: 1)",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on a Dask cluster: the scheduler's address or scheduler file, or `slurm` for "
        "workers that dask-jobqueue starts as the key `cluster` says",
    )
    parser.add_argument(
        "--emit-slurm",
        action="store_true",
        help="write sbatch array scripts to DIR/slurm instead of running",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="times that a training which died is tried again (default: 2)",
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
    parser.add_argument(
        "--mix-versions",
        action="store_true",
        help="go on with a run that another version of mdmt began",
    )
    parser.add_argument(
        "--collect",
        action="store_true",
        help="write the results of the trainings that are finished, and train nothing",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the jobs, estimate time, memory and disk from a measured step, and stop",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write the histories for TensorBoard"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="end with the results, without tables and figures"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def load_values(arguments) -> dict:
    """Return the resolved configuration that the arguments ask for."""
    if arguments.config is None and arguments.resume and arguments.out:
        stored = Path(arguments.out) / "config.yaml"
        if stored.is_file():
            raw = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
            return config.overridden(raw, arguments.overrides, str(stored))
        raise BadInput(
            f"{arguments.out}: there is no run to go on with (no config.yaml); name its CONFIG"
        )
    return config.load(arguments.config or "demo", arguments.overrides)


def resolve_device(name: str, values: dict | None = None, elsewhere: bool = False) -> str:
    """Return the device that --device names, for trainings as in `values`. Those on other machines
    (`elsewhere`) find out there, since this one may have no GPU. Raises BadConfig."""
    from .system import device_for

    if elsewhere and re.fullmatch("auto|cpu|cuda(:[0-9]+)?", name):
        return name
    try:
        return device_for(name, "fp32" if values is None else values["precision"])
    except (ValueError, NotImplementedError) as error:
        raise BadConfig(f"--device {name}: {error}") from error


def device_line(name: str, device: str, precision: str, elsewhere: bool = False) -> str:
    """Return what a run's introduction says of the device that resolve_device made of `name`."""
    from .system import device_text

    if elsewhere:
        return f"on the machines of the workers, --device {name}"
    return device_text(name, device, precision)


def _say(text: str, stream=None, indent: str = "") -> None:
    """Print to standard output or `stream`; on a terminal, lines break between words."""
    stream = stream or sys.stdout
    if stream.isatty():
        text = textwrap.fill(
            text,
            max(shutil.get_terminal_size().columns, 20),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    print(text, file=stream)


def _introduce(study: Study, out: Path, found: checks.Report, where: str) -> None:
    def say(text: str) -> None:
        _say(text, sys.stderr, "    ")

    values = study.values
    synthetic = " (SYNTHETIC radiographs)" if values["data"]["synthetic"] is not None else ""
    say(f"mdmt {__version__}: {values['name']}{synthetic} -> {out}")
    grades = {item.sentence: item.grade for item in found.items}
    for cases in study.cases:
        counts = kinds.counted(cases.classes, cases.counts())
        centers = len({c for c in cases.centers if c})
        place = f", {centers} centers" if centers else ""
        say(
            f"  {cases.name}: {len(cases)} images of {len(set(cases.patients))} patients{place}; "
            f"{cases.task}: {counts}"
        )
        for warning in cases.warnings:
            say(f"  {grades.get(warning, 'note')}: {warning}")
    for item in found.items:
        if item.grade == "warning" and not any(item.sentence in c.warnings for c in study.cases):
            say(f"  warning: {item.topic}: {item.sentence}")
    plural = "s" if len(study.jobs) > 1 else ""
    names = [release.name for release in study.releases]
    releases = f"; releases {', '.join(names)}" if len(names) > 1 else ""
    say(
        f"  {len(study.jobs)} training{plural}: {', '.join(values['backbones'])}; "
        f"{', '.join(values['configurations'])}; weights: {weights_text(values)}{releases}"
    )
    if where:
        say(f"  {where}")


def run(values: dict, out=None, **options) -> list[dict]:
    """Run a resolved configuration; return the rows of results.csv.

    options: the fields of `Options`. Raises MdmtError: BadInput for what cannot be used,
    Interrupted after a signal, JobsFailed when trainings failed (the finished ones are in the
    results).
    """
    chosen = Options(**options)
    elsewhere = bool(chosen.dask or chosen.emit_slurm)
    asked = chosen.device
    chosen.device = resolve_device(asked, values, elsewhere)
    if not chosen.only_collect:
        chosen.where = device_line(asked, chosen.device, values["precision"], elsewhere)
    if chosen.dask is not None and not chosen.dask.strip():
        raise BadConfig("--dask: is empty; give the scheduler's address, its file, or slurm")
    if chosen.workers < 1:
        raise BadConfig(f"--workers {chosen.workers}: must be at least 1")
    if chosen.retries < 0:
        raise BadConfig(f"--retries {chosen.retries}: must be at least 0")
    if chosen.tensorboard and not elsewhere:
        from .runner.job import check_tensorboard

        check_tensorboard()
    out = Path(out) if out is not None else Path("results") / values["name"]
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; choose another --out")
    claim(out, values, chosen.extend, chosen.mix_versions)
    if chosen.only_plan:
        from .runner import estimate

        study = prepare(values, None, chosen.quiet)
        print(estimate.listing(study.jobs))
        print(
            estimate.estimate(values, study.jobs, out, chosen.workers, chosen.dask, chosen.device)
        )
        print(estimate.size(study.jobs))
        return []
    check_names(values)
    fresh = not out.exists()
    try:
        return _run_in(make_folder(out), values, chosen)
    except BadInput:
        if fresh and not (out / "config.yaml").exists():
            _remove_empty(out)
        raise


def _remove_empty(out: Path) -> None:
    """Take back a folder in which nothing but the lock was made."""
    with contextlib.suppress(OSError):
        (out / ".lock").unlink(missing_ok=True)
        out.rmdir()


def ready(out: str, values: dict, quiet: bool, memory: bool, where: str) -> Study:
    """Read and check the data, make the splits and plan the jobs of the out folder; say what there
    is and write what is known before any training. memory: whether this machine's must do; where:
    the line on the device."""
    out = Path(out)
    study = prepare(values, out, quiet)
    found = checks.before(study, memory=memory, quiet=quiet)
    if not quiet:
        _introduce(study, out, found, where)
    record = split_record(study)
    check_same_data(out, record)
    # First, since it is what makes the folder a run's: whatever is killed after it is resumed.
    write_atomic(out / "config.yaml", config.dump(stored_form(values)))
    write_json(out / "splits.json", record)
    if not (out / "environment.json").exists():
        write_json(out / "environment.json", environment())
    write_json(out / cohort.COHORT, cohort.record(study.releases, values, found.said))
    write_atomic(out / "check.html", checks.page.page(found))
    return study


def _run_in(out: Path, values: dict, options: Options) -> list[dict]:
    with folder_lock(out, "out folder") as lock:
        for folder in (out, out / "figures", out / "inputs"):
            remove_unfinished(folder)
        elsewhere = bool(options.dask or options.emit_slurm or options.only_collect)
        # Decoders, spreadsheets, checks and large images leave no trace in this process.
        study = apart.call(
            "mdmt.run:ready",
            str(out),
            values,
            options.quiet,
            not elsewhere,
            options.where,
            holding=(lock,),
        )
        if options.emit_slurm:
            from .runner import slurm

            inputs = Inputs(study, out, options.device)
            print(slurm.emit(study, out, inputs, _more(options)))
            return []
        outcome = _train(study, out, options)
        results = collect(study, out, set(outcome.done))
        _note_paths(study, out, outcome.done)
        if results and not options.quiet:
            _conclude(study, out, results)
        if results and options.report:
            made = make_report(out)
            if made and not options.quiet:
                tell(made)
    if outcome.failed:
        first = next(iter(outcome.failed))
        message, code = outcome.failed[first]
        raise JobsFailed(
            f"{len(outcome.failed)} of {len(study.jobs)} trainings failed; the first "
            f"({out / 'runs' / first}): {message}",
            code,
        )
    return results


def _more(options: Options) -> dict[str, str]:
    """What trainings are told by their environment."""
    return {"MDMT_TENSORBOARD": "1"} if options.tensorboard else {}


def _train(study: Study, out: Path, options: Options):
    """Run the jobs on what the options name; return the Outcome."""
    from .runner import kept, sweep

    keep = study.values["keep_weights"]
    if options.only_collect:
        done = [j.id for j in study.jobs if kept.finished(out / "runs" / j.id)]
        kept.Kept(study.jobs, out / "runs", done, keep)
        return sweep.Outcome(done)
    more = _more(options)
    if options.dask:
        from .runner.cluster import Cluster

        where = Cluster(options.dask, options.workers, study.values["cluster"], more)
    else:
        from .runner.local import Slots

        where = Slots(options.workers, more=more)
    inputs = Inputs(study, out, options.device)
    return sweep.run(study.jobs, out / "runs", inputs, where, options.quiet, options.retries, keep)


def _note_paths(study: Study, out: Path, done) -> None:
    """Say so when trainings ran on several CPU paths: their bits differ, by rounding."""
    counts: dict[str, int] = {}
    done = set(done)
    for job in study.jobs:
        if job.id in done:
            path = "+".join(read_json(out / "runs" / job.id / "result.json").get("cpu", []))
            counts[path or "unknown"] = counts.get(path or "unknown", 0) + 1
    written = read_json(out / "environment.json")
    if written.get("paths") != counts:
        write_json(out / "environment.json", {**written, "paths": counts})
    if len(counts) > 1:
        each = ", ".join(f"{n} on {path}" for path, n in sorted(counts.items()))
        print(
            f"  note: trainings ran on several CPU paths ({each}): the same results within "
            "rounding, but repeated on one machine they will not have the same bits",
            file=sys.stderr,
        )


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


def make_report(out: Path) -> dict | None:
    """Tables, figures and report.html; a failure of these is a sentence and loses no result."""
    from .report import make

    try:
        return make(out, locked=True)
    except BadInput as error:
        print(f"mdmt: report: {error}", file=sys.stderr)
    except Exception as error:  # the trainings are done: nothing may spoil them now
        if debugging():
            raise
        print(
            f"mdmt: report: {type(error).__name__}: {error}; the results are complete, `mdmt "
            f"report {out}` tries again",
            file=sys.stderr,
        )
    return None


def tell(made: dict) -> None:
    """Print what a report found and where it is."""
    for note in made["notes"]:
        _say(f"note: {note}", sys.stderr, "  ")
    for sentence in made["headlines"]:
        _say(sentence)
    shown = [str(p) for p in made["written"] if p.name.startswith("table") and p.suffix == ".csv"]
    if shown:
        _say("tables       " + ", ".join(shown), indent=" " * 13)
    names = {"external.csv": "external", "comparisons.csv": "comparisons",
             "sensitivity.csv": "sensitivity", "trainings.csv": "trainings",
             "operating.csv": "operating", "figures": "figures",
             "report.html": "report"}  # fmt: skip
    for path in made["written"]:
        if path.name in names:
            print(f"{names[path.name]:<13}{path}")
    sys.stdout.flush()


def _check_environment() -> None:
    """Variables that the engine reads: a wrong one is told before anything is done."""
    from . import _core
    from .system import cpu_path, winograd

    try:
        _core.get_num_threads()
        cpu_path()
        winograd()
    except ValueError as error:
        raise BadConfig(str(error)) from error


@contextlib.contextmanager
def _signals(program: bool):
    """Let SIGTERM and SIGUSR1 raise KeyboardInterrupt, in the main thread. Where an interrupted
    action was the whole program, further signals do not change how it ends."""

    def stop(number, frame):
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGUSR1)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    old = {number: signal.signal(number, stop) for number in numbers}
    interrupted = False
    try:
        yield
    except (KeyboardInterrupt, MdmtError) as error:
        interrupted = getattr(error, "exit_code", Interrupted.exit_code) == Interrupted.exit_code
        raise
    finally:
        if interrupted and program and numbers:
            old = dict.fromkeys((*numbers, signal.SIGINT), signal.SIG_IGN)
        for number, handler in old.items():
            signal.signal(number, handler)


def guarded(action, program: bool = False) -> int:
    """Call `action`; print an error as one sentence to stderr and return the exit code. What asks a
    process to end (SIGTERM, SIGUSR1 of a batch system) ends it as Ctrl-C does, unless the action
    has handlers of its own. program: the action is all that this process does."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # what a terminal cannot show stops nothing
    try:
        _check_environment()
        with _signals(program):
            action()
        sys.stdout.flush()
    except MdmtError as error:
        if debugging():
            import traceback

            traceback.print_exc()
        _say(f"mdmt: {error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mdmt: interrupted; run the same command to go on", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader (`head`, a pager) has left; Python must not flush into its pipe at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _masks(values: dict, arguments) -> None:
    """A study of `kind: masks`, which is one process: no workers, cluster or report."""
    from . import mask_study

    for name in ("dask", "emit_slurm", "dry_run", "collect", "extend", "tensorboard"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise BadConfig(f"--{option}: is not for a configuration of kind masks; leave it out")
    if arguments.workers != 1:
        raise BadConfig(
            f"--workers {arguments.workers}: a study of kind masks is one process; leave it out"
        )
    device = resolve_device(arguments.device, values)
    where = device_line(arguments.device, device, values["precision"])
    mask_study.run(values, arguments.out, device=device, quiet=arguments.quiet, where=where)


def start(arguments) -> None:
    """Run what parsed `arguments` ask for."""
    values = load_values(arguments)
    if config.is_masks(values):
        _masks(values, arguments)
        return
    run(
        values,
        arguments.out,
        device=arguments.device,
        workers=arguments.workers,
        dask=arguments.dask,
        retries=arguments.retries,
        extend=arguments.extend,
        mix_versions=arguments.mix_versions,
        only_plan=arguments.dry_run,
        only_collect=arguments.collect,
        emit_slurm=arguments.emit_slurm,
        tensorboard=arguments.tensorboard,
        report=not arguments.no_report,
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
    return guarded(lambda: start(arguments), program=argv is None)


if __name__ == "__main__":
    sys.exit(main())
