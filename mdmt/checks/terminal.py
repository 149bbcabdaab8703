"""The page of a check on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

import numpy as np

from .. import kinds
from ..engine import in_parts
from ..experiments import weights_text
from ..kfold import PARTS
from ..runner.display import clock
from ..runner.estimate import SURE, size_text
from ..weighting import class_weights
from .found import Report

COLOURS = {"error": "31;1", "warning": "33;1", "note": "2"}


def text(report: Report, width: int | None = None, colour: bool | None = None) -> str:
    """The report as text; width in characters, colour: with escape sequences (default: of the
    terminal)."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    colour = sys.stdout.isatty() if colour is None else colour

    def paint(grade: str, word: str) -> str:
        return f"\033[{COLOURS[grade]}m{word}\033[0m" if colour else word

    lines = [headline(report), ""]
    lines += _columns(data_table(report))
    if report.study is not None:
        lines += ["", *_columns(split_table(report))]
        lines.append("")
        for name, figure in cost_facts(report):
            body = textwrap.wrap(figure, max(width - 9, 40))
            lines += [f"{name if k == 0 else '':<9}{line}" for k, line in enumerate(body)]
    lines.append("")
    for item in report.items:
        body = textwrap.wrap(
            f"{item.topic}: {item.sentence}", max(width - 9, 40), break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        lines.append(f"{paint(item.grade, item.grade)}{' ' * (9 - len(item.grade))}{body[0]}")
        lines += [f"{'':9}{line}" for line in body[1:]]
    return "\n".join([*lines, *([""] if report.items else []), verdict(report)])


def headline(report: Report) -> str:
    """mdmt check NAME: 0 errors, 2 warnings, 3 notes (2.4 s)."""
    counts = []
    for grade in COLOURS:
        n = report.count(grade)
        counts.append(f"{n} {grade}{'' if n == 1 else 's'}")
    return f"mdmt check {report.values['name']}: {', '.join(counts)} ({report.seconds:.1f} s)"


def verdict(report: Report) -> str:
    """What the check comes to, in one sentence."""
    if report.errors:
        return "Training would fail: correct the errors above."
    return "Training can start" + (
        "; look at the warnings first." if report.count("warning") else "."
    )


def data_table(report: Report) -> list[list[str]]:
    """Header and a row per data set of each release."""
    rows = [["data", "images", "patients", "centers", "classes", "files", "store"]]
    seen = set()
    many = len(report.gathered) > 1
    for name, cases_list, stores in report.gathered:
        for cases, store in zip(cases_list, stores, strict=True):
            if (cases.name, store.key) in seen:
                continue
            seen.add((cases.name, store.key))
            counts = cases.counts()
            centers = sorted({c for c in cases.centers if c})
            files: dict[str, int] = {}
            for path in cases.paths:
                kind = path.suffix.lstrip(".").lower() or "no extension"
                files[kind] = files.get(kind, 0) + 1
            rows.append(
                [
                    f"{cases.name} ({name})" if many else cases.name,
                    str(len(cases)),
                    str(len(set(cases.patients))),
                    str(len(centers)) if centers else "-",
                    kinds.counted(cases.classes, counts),
                    ", ".join(f"{n} {k}" for k, n in sorted(files.items())),
                    size_text(store.nbytes()),
                ]
            )
    return rows


def split_table(report: Report) -> list[list[str]]:
    """Header and a row per validation scheme and data set: cases of each class in the parts."""
    rows = [["splits (images of each class, least-most)", "folds", *PARTS]]
    many = len(report.study.releases) > 1
    for r in report.study.releases:
        for validation, folds in r.splits.items():
            for cases in r.cases:
                cells = []
                for part in PARTS:
                    counts = np.array([cases.counts(f[cases.name][part]) for f in folds])
                    low, high = counts.min(0), counts.max(0)
                    cells.append(
                        " ".join(
                            f"{a}" if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True)
                        )
                    )
                release = f" ({r.name})" if many else ""
                left_out = dict.fromkeys(f[cases.name].get("center", "") for f in folds)
                if any(left_out):
                    release += f" without {', '.join(left_out)}"
                rows.append(
                    [f"{validation}, {cases.name}{release}: {'/'.join(cases.classes)}",
                     str(len(folds)), *cells]
                )  # fmt: skip
    return rows


def cost_facts(report: Report) -> list[tuple[str, str]]:
    """(what, figure) of what the plan takes."""
    values, jobs, costs = report.values, report.study.jobs, report.costs
    many = len(report.study.releases)
    copies = sum(j.twin is not None for j in jobs)
    same = f" ({copies} the same as another, and copied)" if copies else ""
    plan = (
        f"{len(jobs)} trainings{same}: {_counted(values['backbones'], 'backbone')}, "
        f"{_counted(values['configurations'], 'configuration')}, "
        f"{', '.join(values['validation'])}"
        + (f", {many} releases" if many > 1 else "")
        + f"; weights: {weights_text(values)}"
    )
    found = [("plan", plan), *loss_facts(report), ("store", store_size(report))]
    if costs is None:
        return found
    train = values["train"]
    guessed = f" ({_counted(costs['guessed'], 'backbone')} not measured)" * bool(costs["guessed"])
    return [
        *found,
        (
            "time",
            f"about {clock(costs['seconds'])} one after the other on this machine{guessed}, {SURE}",
        ),
        (
            "memory",
            f"{size_text(costs['memory'])} for a step of the largest backbone, batch "
            f"{train['batch_size']}{in_parts(train['batch_size'], train.get('micro_batch'))}",
        ),
        (
            "disk",
            f"about {size_text(costs['disk'])} in {costs['out']}, where "
            f"{size_text(costs['free'])} are free",
        ),
    ]


def loss_facts(report: Report) -> list[tuple[str, str]]:
    """("loss", sentence) for each task whose classes do not count alike: the weight of every class,
    least to most over the training parts."""
    found = []
    for task, spec in report.values["tasks"].items():
        given, findings = spec["class_weights"], kinds.kind_of(spec) == kinds.FINDINGS
        if given == "none":
            continue
        if given == "balanced":
            kind = len(spec["classes"]), spec["head"]["loss"]
            every = _training_labels(report, task, findings)
            drawn = [class_weights(labels, *kind) for labels in every]
            if not drawn:
                continue
            spans = zip(np.min(drawn, 0), np.max(drawn, 0), strict=True)
            weights = [f"{a:.2f}" if f"{a:.2f}" == f"{b:.2f}" else f"{a:.2f}-{b:.2f}"
                       for a, b in spans]  # fmt: skip
            how = "balanced over each training part"
        else:
            weights, how = [f"{given.get(c, 1):g}" for c in spec["classes"]], "fixed"
        of = "positives of " if findings else ""
        named = kinds.counted(spec["classes"], weights)
        found.append(("loss", f"{task}: {of}{named}, class weights {how}"))
    return found


def _training_labels(report: Report, task: str, findings: bool):
    """The labels of a task in the training part of every fold of every scheme and release."""
    for release in report.study.releases:
        sets = [c for c in release.cases if c.task == task]
        for folds in release.splits.values():
            for fold in folds:
                mine = [(c.values if findings else c.labels)[fold[c.name]["train"]] for c in sets]
                if mine and sum(map(len, mine)):
                    yield np.concatenate(mine)


def _counted(items, name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def store_size(report: Report) -> str:
    """Bytes of all stores, each counted once."""
    stores = {s.key: s for _, _, stores in report.gathered for s in stores}
    return size_text(sum(s.nbytes() for s in stores.values()))


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows as aligned text; numbers to the right."""
    if len(rows) < 2:
        return []
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = []
        for k, cell in enumerate(r):
            right = all(row[k].isdigit() or row[k] == "-" for row in rows[1:])
            cells.append(cell.rjust(widths[k]) if right else cell.ljust(widths[k]))
        lines.append("  ".join(cells).rstrip())
    return lines
