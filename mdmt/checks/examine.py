"""Looks at everything that can be known before training, and grades what it finds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .. import kinds, splits, study
from ..data.table import plain_id
from ..errors import BadInput
from . import pictures, plan
from .found import GRADES, Report

WORDS = {kinds.CLASSES: "class", kinds.NUMBER: "range", kinds.FINDINGS: "finding"}
FEW = 10  # patients of a class in a training part below which it is hard to learn
# Words of the readers' sentences that a person should look at.
DOUBTFUL = ("own patient", "same picture", "count as different", "counts as one")
KINDS = {"never_tested": "warning", "tested_twice": "warning", "class_missing": "warning",
         "small_training": "warning", "class_balance": "note", "center_balance": "note",
         "center_mixed": "warning", "near_duplicate": "warning", "empty_part": "error"}  # fmt: skip
REMEDIES = {
    "never_tested": "give these cases a fold, or report the results as of fewer cases",
    "tested_twice": "a case should be tested in one fold",
    "class_missing": "use fewer folds; what such a part leaves undefined (AUC, F1, G-mean) is left "
    "empty and counts in no mean",
    "small_training": "read the results of such a fold with care, or use cv",
    "class_balance": "use fewer folds or other seeds",
    "center_balance": "use fewer folds, or loco to test centers",
    "center_mixed": "this is no leave-one-center-out; do not report it as one",
    "copy_overlap": "set data.near_duplicates: together, or name one of each pair in leave_out",
    "near_duplicate": "look at them in the page; set data.near_duplicates: together, or name one "
    "of each pair in leave_out",
    "empty_part": "give more patients or fewer folds",
}


def examine(values: dict, out=None, quiet: bool = False, costs: bool = True) -> Report:
    """Check a configuration; what is wrong is in the report, nothing is raised for it.

    out: out folder of the run; quiet: no progress; costs: measure a step of the backbones. Raises
    what is not about the input: no space for the store, an interruption.
    """
    begin = time.perf_counter()
    report = Report(values)
    try:
        study.check_names(values)
        _read(report, None if out is None else Path(out), quiet)
        if report.gathered:
            alike = study.find_alike(values, report.gathered)
            _look(report, alike)
            report.study = study.plan(values, report.gathered, alike)
            _splits(report)
            if costs:
                plan.forecast(report, out, quiet)
    except BadInput as error:
        report.add("error", "input", str(error))
    report.items.sort(key=lambda i: GRADES.index(i.grade))
    report.seconds = time.perf_counter() - begin
    return report


def _read(report: Report, out, quiet: bool) -> None:
    """Tables and stores; a data set that cannot be read does not hide what is wrong with others."""
    values, found = report.values, []
    try:
        found = study.gather(values, out, quiet, report.surveys)
    except BadInput as error:
        report.add("error", "data", str(error))
        for spec in values["data"]["datasets"]:
            one = {**values, "data": {**values["data"], "datasets": [spec]}}
            try:
                study.gather(one, out, quiet, report.surveys)
            except BadInput as other:
                report.add("error", "data", str(other))
    for survey in {id(s): s for s in report.surveys.values()}.values():
        _refused(report, survey)
    for _, cases, _ in found:
        _said(report, cases)
    if all(len(one) for _, cases, _ in found for one in cases):
        report.gathered = found


def _said(report: Report, cases_list) -> None:
    """What the readers found."""
    for one in cases_list:
        for sentence in one.warnings:
            doubtful = any(words in sentence for words in DOUBTFUL)
            grade = "warning" if doubtful or sentence.startswith("excluded") else "note"
            report.add(grade, one.name, sentence)
    _shared_patients(report, cases_list)


def before(ready: study.Study, memory: bool = True, quiet: bool = False) -> Report:
    """What `mdmt run` checks when its data are read and its splits are made, before any training.

    memory: a step must fit into this machine's. Raises BadInput for errors.
    """
    begin = time.perf_counter()
    gathered = [(r.name, r.cases, r.stores) for r in ready.releases]
    report = Report(ready.values, study=ready, gathered=gathered)
    for r in ready.releases:
        _said(report, r.cases)
    _look(report, [r.alike for r in ready.releases])
    _splits(report)
    if memory:
        plan.fits(report, quiet)
    report.items.sort(key=lambda i: GRADES.index(i.grade))
    report.seconds = time.perf_counter() - begin
    if report.errors:
        more = len(report.errors) - 1
        raise BadInput(
            f"{report.errors[0].topic}: {report.errors[0].sentence}"
            + (f" (and {more} more errors, see `mdmt check`)" if more else "")
        )
    return report


def _refused(report: Report, survey) -> None:
    """Images that cannot be used, or whose lungs are doubted."""
    doubted = survey.doubtful()
    if doubted:
        named = ", ".join(Path(file).name for _, file, _ in doubted[:5])
        report.add(
            "note", survey.cases.name,
            f"{len(doubted)} images in use have doubtful lungs ({named}"
            f"{', ...' if len(doubted) > 5 else ''}); look at the contact sheets",
        )  # fmt: skip
    if not survey.refused:
        return
    listed = survey.listed()
    error = report.values["data"]["on_bad_image"] == "error"
    kinds: dict[str, list[str]] = {}
    for text in listed:
        lungs = "no plausible lungs" in text or "shows no lungs" in text
        kinds.setdefault("lungs" if lungs else "unreadable", []).append(text)
    for kind, texts in kinds.items():
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        remedy = (
            "look at the contact sheets of `mdmt prepare` and decide in `accept` or `corrections`"
            if kind == "lungs"
            else "replace the file or remove the row"
        )
        if error:
            remedy += ", or set data.on_bad_image to exclude"
        report.add(
            "error" if error else "warning", survey.cases.name,
            f"{len(texts)} of {len(survey.cases)} images {'is' if len(texts) == 1 else 'are'} "
            f"refused: {texts[0]}{more}; {remedy}",
        )  # fmt: skip
    if not len(survey.usable):
        report.add("error", survey.cases.name, "no image of it can be used; correct the files")


def _shared_patients(report: Report, cases_list) -> None:
    """Patient ids that two data sets have: only a person knows whether they mean the same."""
    for a in range(len(cases_list)):
        for b in range(a + 1, len(cases_list)):
            one, two = cases_list[a], cases_list[b]
            _written_otherwise(report, one, two)
            if report.values["data"]["same_patients"]:
                continue
            shared = sorted(set(one.patients) & set(two.patients))
            same = {str(p) for p in one.paths} & {str(p) for p in two.paths}
            if shared and not same:
                report.add(
                    "warning", f"{one.name} and {two.name}",
                    f"{len(shared)} patient ids are in both ({', '.join(shared[:5])}"
                    f"{', ...' if len(shared) > 5 else ''}); if they are the same people, set "
                    "data.same_patients to true",
                )  # fmt: skip


def _written_otherwise(report: Report, one, two) -> None:
    """Ids that would be equal had a spreadsheet not taken their leading zeros, say: they count as
    different patients, who may be tested in one data set and learnt from in the other."""
    mine, known = set(one.patients), {}
    for name in sorted(set(two.patients) - mine):
        known.setdefault(plain_id(name), name)
    pairs = [(n, known[plain_id(n)]) for n in sorted(mine - set(two.patients))
             if plain_id(n) in known]  # fmt: skip
    if pairs:
        shown = "; ".join(f"{x!r} and {y!r}" for x, y in pairs[:3])
        report.add(
            "warning", f"{one.name} and {two.name}",
            f"{len(pairs)} patient ids differ only in case, blanks or leading zeros ({shown}"
            f"{'; ...' if len(pairs) > 3 else ''}) and count as different patients; write them "
            "alike if they are the same, and set data.same_patients to true",
        )  # fmt: skip


def _look(report: Report, alike: list[list]) -> None:
    """What the pictures show."""
    looks = report.looks = pictures.look(report.values, report.gathered, alike)
    for grade, topic, sentence in looks.findings():
        report.add(grade, topic, sentence)


def _splits(report: Report) -> None:
    """Findings in the folds of every release."""
    values, many = report.values, len(report.study.releases) > 1
    for cases in report.study.cases:
        _unseen(report, cases)
    for r in report.study.releases:
        where = f" of release {r.name}" if many else ""
        for validation, folds in r.splits.items():
            for k, cases in enumerate(r.cases):
                own = {f[cases.name]["fold"]: f[cases.name] for f in folds}
                own = list(own.values())
                topic = f"{validation}, {cases.name}{where}"
                for f in splits.audit(own, cases, splits.alone(r.alike, k)):
                    _finding(report, topic, f)
                _few(report, topic, own, cases)
        for validation, f in splits.audit_across(r.splits, r.cases, r.alike):
            _finding(report, f"{validation}, data sets{where}", f)
    _batches(report, values)


def _finding(report: Report, topic: str, f) -> None:
    shown = "; ".join(f.examples[:3]) + ("; ..." if f.count > 3 else "")
    report.add(
        KINDS.get(f.kind, "error"), topic,
        f"{f.message}: {f.count} ({shown}); {REMEDIES.get(f.kind, 'correct them')}",
    )  # fmt: skip


def _few(report: Report, topic: str, folds, cases) -> None:
    """Classes or findings of which a training part has few patients, a validation part nobody."""
    if cases.kind == kinds.NUMBER:
        return
    what = WORDS[cases.kind]
    patients = np.array(cases.patients, dtype=object)
    members = cases.members
    few, absent = {}, []
    for fold in folds:
        for k, name in enumerate(cases.classes):
            if not members[:, k].any():
                continue
            rows = fold["train"][members[fold["train"], k]]
            count = len(set(patients[rows]))
            if count < FEW:
                few[name] = min(count, few.get(name, FEW))
            if len(fold["val"]) and not members[fold["val"], k].any():
                absent.append(f"{what} {name} in fold {fold['fold']}")
    if few:
        named = ", ".join(f"{name} ({count})" for name, count in few.items())
        join = "join classes" if cases.kind == kinds.CLASSES else "leave it out"
        report.add(
            "warning", topic,
            f"a training part has fewer than {FEW} patients of {what} {named}; give more, {join} "
            "or use fewer folds",
        )  # fmt: skip
    if absent:
        plural = {kinds.CLASSES: "classes"}.get(cases.kind, "findings")
        report.add(
            "note", topic,
            f"{len(absent)} {plural} without a case in a validation part ({', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}): the validation loss does not see them",
        )  # fmt: skip


def _unseen(report: Report, cases) -> None:
    """Classes or findings of the task of which a data set has no case, or nothing else."""
    what, counts = WORDS[cases.kind], cases.counts()
    if cases.kind == kinds.NUMBER:
        if np.ptp(cases.target) == 0:
            report.add(
                "error", cases.name,
                f"every case has the number {cases.texts[0]}, so there is nothing to learn; "
                "correct the labels",
            )  # fmt: skip
        return
    names = ", ".join(c for c, n in zip(cases.classes, counts, strict=True) if not n)
    if cases.kind == kinds.CLASSES and np.count_nonzero(counts) == 1:
        report.add(
            "error", cases.name,
            f"every case has the class {cases.classes[int(counts.argmax())]}, so there is nothing "
            f"to tell apart; give cases of {names}, or correct the labels",
        )  # fmt: skip
    elif not counts.any():
        report.add("error", cases.name, "no case has any finding, so there is nothing to learn; "
                   "correct the labels")  # fmt: skip
    elif names:
        report.add(
            "warning", cases.name,
            f"no case has the {what} {names}; a network cannot learn it: correct the labels, or "
            f"take it out of the classes of task {cases.task}",
        )  # fmt: skip
    if cases.kind == kinds.FINDINGS:
        always = ", ".join(
            c
            for k, c in enumerate(cases.classes)
            if counts[k] and not (cases.values[:, k] == 0).any()
        )
        if always:
            report.add(
                "warning", cases.name,
                f"no case is labelled to be without {always}; a network cannot learn it: give 0 in "
                f"its column where it is not there, or take it out of the classes of task "
                f"{cases.task}",
            )  # fmt: skip


def _batches(report: Report, values: dict) -> None:
    """A training with fewer images than a batch does one step per epoch."""
    size = values["train"]["batch_size"]
    counts = [sum(len(r["train"]) for r in j.rows.values()) for j in report.study.jobs]
    short = [n for n in counts if n < size]
    if short:
        report.add(
            "warning", "plan",
            f"{len(short)} of {len(counts)} trainings have fewer images ({min(short)} at least) "
            f"than train.batch_size ({size}), so that an epoch is one step; lower it",
        )  # fmt: skip
