"""The console script `mdmt` (also `python -m mdmt`): run, report, prepare, check, splits,
predict, explain, evaluate, show, weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__, config, run
from . import splits as splits_
from .errors import BadInput, nearest
from .paths import check_replaced, write_atomic, write_json
from .study import refuse_masks, split_record, stored_values

NO_DEVICE = "Not a medical device: not for the diagnosis or treatment of patients."
MOST = 1 << 24  # images or pixels that can be asked for


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdmt", description="Multi-data-set multi-task training of chest X-ray networks."
    )
    parser.add_argument("--version", action="version", version=f"mdmt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run.add_arguments(
        commands.add_parser("run", help="train and compare the configurations over the folds")
    )
    report = commands.add_parser(
        "report", help="tables, statistics, figures and report.html from predictions.csv"
    )
    report.add_argument("out", metavar="OUT", help="out folder of a run")
    report.add_argument(
        "--resamples", type=int, default=10000, metavar="N", help="of the bootstrap (10000)"
    )
    report.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    report.add_argument("--no-figures", action="store_true", help="tables and page alone")
    report.add_argument(
        "--no-images", action="store_true", help="leave the best and worst predicted images out"
    )
    prepare = commands.add_parser(
        "prepare", help="preprocess the images once, into the store, with contact sheets of all"
    )
    prepare.add_argument(
        "--out", metavar="DIR", help="folder of the contact sheets (results/<name>-prepare)"
    )
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    check = commands.add_parser("check", help="check data, labels and splits before any training")
    check.add_argument(
        "--out", metavar="FILE", help="the page, one HTML file (results/<name>-check.html)"
    )
    check.add_argument(
        "--quick", action="store_true", help="measure no step: no time, memory and disk"
    )
    check.add_argument("--quiet", action="store_true", help="no progress")
    splits = commands.add_parser("splits", help="make the splits and show what is in them")
    splits.add_argument("--out", metavar="FILE", help="also write them to this JSON file")
    for sub in (prepare, check, splits):
        run.add_config(sub)
    _add_predicting(
        commands, "predict", "what the networks of a finished run say of further pictures",
        "FILE", "also write all to this CSV file",
    )  # fmt: skip
    _add_predicting(
        commands, "explain", "draw which places of a picture its predicted class hangs on",
        "DIR", "folder of the drawings (default: explained)",
    )  # fmt: skip
    _add_evaluating(commands)
    show = commands.add_parser(
        "show", help="show a backbone, a saved model, a configuration or an out folder's results"
    )
    show.add_argument(
        "what",
        nargs="?",
        default="configs",
        help="a backbone, the file of a saved model, name or file of a configuration, an out "
        "folder, or one of configs, keys, backbones",
    )
    show.add_argument(
        "--image-size", type=int, metavar="S", help="of a backbone or model: side in pixels"
    )
    show.add_argument(
        "--batch", type=int, metavar="N", help="of a backbone or model: images, for its memory"
    )
    run.add_overrides(show)
    weights = commands.add_parser("weights", help="published ImageNet weights, and weight files")
    tasks = weights.add_subparsers(dest="task", required=True, metavar="TASK")
    listed = tasks.add_parser("list", help="the file of each backbone, and whether it is here")
    listed.add_argument("--urls", action="store_true", help="print the addresses and nothing else")
    fetched = tasks.add_parser("fetch", help="fetch the files of backbones")
    fetched.add_argument("names", nargs="+", metavar="NAME", help="a backbone, or all")
    checked = tasks.add_parser("check", help="read a weight file and say which backbones it fits")
    checked.add_argument("path", metavar="PATH", help="a .pth or .safetensors file")
    tasks.add_parser("where", help="print the folder of the files")
    return parser


def _add_predicting(commands, name: str, what: str, metavar: str, out: str) -> None:
    """A command that applies the networks of a run to pictures."""
    sub = commands.add_parser(name, help=what)
    sub.add_argument("run", metavar="OUT", help="out folder of a run")
    sub.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files, or folders with all below them"
    )
    sub.add_argument("--configuration", metavar="NAME", help="default: MDMT, or the run's last")
    sub.add_argument("--backbone", metavar="NAME", help="needed where the run has several")
    sub.add_argument("--release", metavar="NAME", help="default: the last one")
    sub.add_argument("--validation", metavar="NAME", help="scheme (default: the first one)")
    sub.add_argument("--fold", type=int, metavar="N", help="one fold (default: mean over all)")
    sub.add_argument("--seed", type=int, metavar="N", help="one seed (default: mean over all)")
    sub.add_argument("--out", metavar=metavar, help=out)
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda[:i]")
    sub.add_argument(
        "--skip", action="store_true", help="go on without pictures that cannot be used"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress")


def _add_evaluating(commands) -> None:
    """`mdmt evaluate`."""
    evaluate = commands.add_parser(
        "evaluate", help="test the networks of a finished run on other, labelled data"
    )
    evaluate.add_argument("run", metavar="OUT", help="out folder of a run")
    evaluate.add_argument(
        "config",
        metavar="CONFIG",
        help="name or YAML file of a configuration, of which the key data is used (and labels and "
        "thresholds of tasks): where the cases are",
    )
    run.add_overrides(evaluate)
    evaluate.add_argument("--out", metavar="DIR", help="results/<name of the run>-external")
    evaluate.add_argument("--release", metavar="NAME", help="of the run; default: the last one")
    evaluate.add_argument(
        "--validation", metavar="NAME", help="whose networks (default: the run's first scheme)"
    )
    evaluate.add_argument("--device", default="auto", help="auto, cpu or cuda[:i]")
    evaluate.add_argument("--no-figures", action="store_true", help="tables and page alone")
    evaluate.add_argument("--quiet", action="store_true", help="no progress")


def _study(arguments) -> run.Study:
    return run.prepare(config.load(arguments.config, arguments.overrides))


def prepare(arguments) -> None:
    """Build the stores and write contact sheets."""
    from .prepare import prepare as start

    values = config.load(arguments.config, arguments.overrides)
    refuse_masks(values)
    start(values, arguments.out, arguments.quiet)


def _fold_lines(release) -> list[str]:
    lines = []
    for validation, folds in release.splits.items():
        for cases in release.cases:
            lines.append(
                f"{validation}, {cases.name}: cases of {', '.join(cases.classes)} (patients)"
            )
            for i, fold in enumerate(folds):
                part = fold[cases.name]
                cells = []
                for name in ("train", "val", "test"):
                    rows = part[name]
                    counts = cases.counts(rows)
                    patients = len({cases.patients[r] for r in rows})
                    cells.append(f"{name} {'/'.join(map(str, counts))} ({patients})")
                center = f" {part['center']}" if "center" in part else ""
                lines.append(f"  fold {i}{center}: " + "  ".join(cells))
    return lines


def splits(arguments) -> None:
    """Print the class counts of every part; write the JSON file if asked to."""
    if arguments.out:
        check_replaced(arguments.out, splits_.START, "file of splits")
    study = _study(arguments)
    for release in study.releases:
        if len(study.releases) > 1:
            print(f"release {release.name}")
        print("\n".join(_fold_lines(release)))
    if arguments.out:
        record = split_record(study)
        write_json(arguments.out, record)
        print(f"{arguments.out}: written, hash {record['hash'][:16]}")


def check(arguments) -> None:
    """Check everything that can be checked without training; exit status 2 if it would fail."""
    from . import checks
    from .report.page import START

    values = config.load(arguments.config, arguments.overrides)
    refuse_masks(values)
    path = Path(arguments.out or Path("results") / f"{values['name']}-check.html")
    check_replaced(path, START, "page")
    report = checks.examine(values, None, arguments.quiet, not arguments.quick)
    write_atomic(path, checks.page.page(report))
    print(checks.terminal.text(report))
    print(f"page     {path}", flush=True)
    if report.errors:
        raise BadInput(f"{values['name']}: {checks.terminal.headline(report).split(': ', 1)[1]}")


def show(arguments) -> None:
    """Show a network, a configuration, the results of an out folder, or what is known."""
    from .nets import FAMILIES, SEGMENTERS

    networks = {**FAMILIES, **SEGMENTERS}
    what = arguments.what
    network = what in networks or what.endswith(".safetensors")
    for name in ("image_size", "batch"):
        value = getattr(arguments, name)
        if value is not None and not (network and 1 <= value <= MOST):
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"show: {option} goes with a network and must be 1 to {MOST}")
    if network:
        _show_network(what, arguments.image_size, arguments.batch)
    elif what == "configs":
        for name in config.shipped():
            first = config.find(name).read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:<12}{first.lstrip('# ')}")
    elif what == "keys":
        print(config.describe(), "\n\n# of a configuration of kind masks\n", sep="")
        print(config.describe(config.MASKS))
    elif what == "backbones":
        from .nets import backbones

        print("\n".join(backbones()))
    elif (Path(what) / "config.yaml").is_file():
        _show_results(Path(what))
    elif what in config.shipped() or Path(what).is_file():
        print(config.dump(config.load(what, arguments.overrides)), end="")
    else:
        known = [*config.shipped(), "configs", "keys", "backbones", *networks]
        raise BadInput(
            f"show: '{what}' is neither a network nor a configuration nor an out folder"
            f"{nearest(what, known)}"
        )


def _show_network(what, size, batch) -> None:
    from . import summary

    try:
        text = summary.show(what, size, batch)
    except (ValueError, OSError, MemoryError) as error:
        raise BadInput(f"show: {what}: {error}") from error
    print(text)


def _show_results(out: Path) -> None:
    from .paths import read_csv
    from .results import MORE_COLUMNS, columns_of

    values = stored_values(out)
    if not (out / "results.csv").is_file():
        raise BadInput(f"{out}: has no results yet; run `mdmt run --resume --out {out}`")
    rows = read_csv(out / "results.csv")
    try:
        if config.is_masks(values):
            from .mask_study import text

            print(text([{"fold": int(r["fold"]), "dice": float(r["dice"])} for r in rows]))
            return
        for row in rows:
            row["fold"], row["seed"] = int(row["fold"]), int(row["seed"])
            for column in columns_of(values)[8 : -len(MORE_COLUMNS)]:
                row[column] = float(row[column]) if row.get(column) else None
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{out / 'results.csv'}: is not as it was written ({error}); delete it and `mdmt run "
            f"--resume --out {out}` writes it again"
        ) from error
    if values["data"]["synthetic"] is not None:
        print("SYNTHETIC data: these figures show that the software works, nothing else.\n")
    print(run.final_table(rows, values), end="")


def predict(arguments) -> None:
    """Predict pictures by the networks of a run; print a table, write the CSV if asked to."""
    from . import predict as predictor
    from .paths import write_csv

    if arguments.out:
        check_replaced(arguments.out, ",".join(predictor.COLUMNS), "table of predictions")
    rows, notes = predictor.predict(arguments.run, arguments.images, **_applied(arguments))
    if arguments.out:
        write_csv(arguments.out, predictor.columns_of(rows), rows)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(predictor.text(rows))
    if arguments.out:
        print(f"predictions  {arguments.out}")
    print(NO_DEVICE, flush=True)


def explain(arguments) -> None:
    """Draw what the predictions of pictures hang on."""
    from . import explain as explainer

    folder = arguments.out or "explained"
    images, more = arguments.images, _applied(arguments)
    written, notes = explainer.explain(arguments.run, images, folder, **more)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for path in written:
        print(path)
    print(NO_DEVICE, flush=True)


def evaluate(arguments) -> None:
    """Test a run's networks on other data; say what was found and written."""
    from . import evaluate as evaluator

    to = arguments.out or Path("results") / f"{Path(arguments.run).resolve().name}-external"
    names = ("overrides", "release", "validation", "quiet")
    made = evaluator.evaluate(
        arguments.run,
        arguments.config,
        to,
        device=run.resolve_device(arguments.device),
        figures=not arguments.no_figures,
        **{name: getattr(arguments, name) for name in names},
    )
    run.tell(made)
    print(NO_DEVICE, flush=True)


def _applied(arguments) -> dict:
    """What the options of predict and explain say."""
    names = ("configuration", "backbone", "release", "validation", "fold", "seed", "skip", "quiet")
    return {
        "device": run.resolve_device(arguments.device),
        **{name: getattr(arguments, name) for name in names},
    }


def report(arguments) -> None:
    """Compute everything after the training again; say what was found and written."""
    from .report import make

    run.tell(
        make(
            arguments.out,
            resamples=arguments.resamples,
            seed=arguments.seed,
            figures=not arguments.no_figures,
            samples=not arguments.no_images,
        )
    )


def weights(arguments) -> None:
    """List, fetch or check weight files, or print where they are."""
    from .weights import commands

    commands.start(arguments)


def main(argv=None) -> int:
    """Entry of `mdmt`: returns the exit code."""
    arguments = _parser().parse_args(argv)
    actions = {
        "run": run.start,
        "report": report,
        "prepare": prepare,
        "check": check,
        "splits": splits,
        "predict": predict,
        "explain": explain,
        "evaluate": evaluate,
        "show": show,
        "weights": weights,
    }
    return run.guarded(lambda: actions[arguments.command](arguments), program=argv is None)


if __name__ == "__main__":
    sys.exit(main())
