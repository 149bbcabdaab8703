"""Audit of splits: leaks, gaps and imbalances, in one data set and between data sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import kinds
from .kfold import PARTS
from .shown import html_table

# Findings that make every result of a run worthless.
LEAKS = ("patient_overlap", "image_overlap", "row_overlap", "unknown_row", "copy_overlap")


# What labels are that folds are balanced by.
WORDS = {
    kinds.CLASSES: ("class", "classes"),
    kinds.NUMBER: ("range", "ranges of the number"),
    kinds.FINDINGS: ("finding", "findings"),
}


class Finding(NamedTuple):
    """Something an audit found: its kind, how many times, a few examples, a sentence."""

    kind: str
    count: int
    examples: list
    message: str


class Findings(list):
    """Findings, a list that shows itself as a table in a notebook."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>The audit found nothing.</p>"
        rows = [[f.kind, f.count, f.message, "; ".join(map(str, f.examples))] for f in self]
        heads = ["kind", "count", "what", "examples"]
        return html_table("Findings of the audit", heads, rows)


def columns_of(cases) -> dict:
    """Return {"patient", "image", "label", "center": list or None} of cases in several forms."""
    wanted = {
        "patient": ("patient", "patients", "groups"),
        "image": ("image", "images"),
        "label": ("label", "labels"),
        "center": ("center", "centers"),
    }
    found = {}
    for name, spellings in wanted.items():
        value = None
        for s in spellings:
            value = cases.get(s) if isinstance(cases, dict) else getattr(cases, s, None)
            if value is not None:
                break
        found[name] = None if value is None else [str(v) for v in np.asarray(value).tolist()]
    if getattr(cases, "kind", kinds.CLASSES) != kinds.CLASSES:
        found["label"] = [cases.stratum(k) for k in cases.labels]
    return found


def _kind(cases) -> str:
    """The kind of the cases' task (`mdmt.kinds`)."""
    found = cases.get("kind") if isinstance(cases, dict) else getattr(cases, "kind", None)
    return found or kinds.CLASSES


def audit(splits: list[dict], cases, similar=()) -> list[Finding]:
    """Look for leaks and gaps in splits; an empty list means clean.

    splits: folds as from `stratified_group_kfold` (rows into the cases); cases: mapping or object
    with `patient` (and, where known, `image`, `label`, `center`), one value per case, and `kind`,
    that of the task (`mdmt.kinds`; default classes), whose labels may be ranges or findings;
    similar: (row, row, correlation, exact) of pictures that show the same (`mdmt.data.similar`).
    Kinds: patient_overlap, image_overlap, row_overlap, copy_overlap (equal pixels in two parts),
    near_duplicate, unknown_row, never_tested, tested_twice, empty_part, class_missing,
    small_training (fewer than two thirds of the cases tested), class_balance and center_balance (a
    class or center is rarer or more frequent in a test part than chance explains, in folds that
    are not by center); and center_mixed for folds that name the center they test. That nested folds
    test a case several times, and folds with a fixed test set the same ones, is as it should be.
    """
    columns = columns_of(cases)
    count = max((len(v) for v in columns.values() if v is not None), default=0)
    findings = []

    def add(kind, examples, message):
        if examples:
            findings.append(Finding(kind, len(examples), examples[:5], message))

    clean = _inside(splits, count, add)
    for name, kind in (("patient", "patient_overlap"), ("image", "image_overlap")):
        if columns[name] is not None:
            add(kind, _overlaps(clean, columns[name]), f"{name}s in two parts of one fold")
    add(
        "row_overlap",
        _overlaps(clean, [str(i) for i in range(count)]),
        "cases in two parts of one fold",
    )
    _audit_similar(clean, columns, similar, add)
    _audit_tests(splits, clean, columns, count, add)
    _audit_balance(splits, clean, columns, _kind(cases), add)
    small = [
        f"fold {n}: trains on {len(parts['train'])}, tests on {len(parts['test'])} of {count}"
        for n, parts in clean
        if 3 * len(parts["train"]) < 2 * len(parts["test"])
    ]
    add("small_training", small, "folds that train on far fewer cases than they test")
    if any("center" in fold for fold in splits):
        findings += audit_centers(splits, cases)
    return Findings(findings)


def _inside(splits, count: int, add) -> list[tuple]:
    """[(fold number, {part: rows that exist})]; adds unknown_row and empty_part."""
    unknown, empty, clean = [], [], []
    for fold in splits:
        parts = {p: np.asarray(fold[p], np.int64) for p in PARTS}
        for p, rows in parts.items():
            outside = rows[(rows < 0) | (rows >= count)]
            unknown += [f"fold {fold['fold']} {p}: row {r}" for r in outside.tolist()]
            parts[p] = rows[(rows >= 0) & (rows < count)]
            if len(rows) == 0 and p != "val":
                empty.append(f"fold {fold['fold']} {p}")
        clean.append((fold["fold"], parts))
    add("unknown_row", unknown, "rows that no case has")
    add("empty_part", empty, "parts without a case")
    return clean


def _overlaps(folds, values: list[str]) -> list[str]:
    found = []
    array = np.asarray(values, dtype=object)
    for number, parts in folds:
        sets = {p: set(array[rows].tolist()) for p, rows in parts.items()}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            found += [f"fold {number} {a}/{b}: {v}" for v in sorted(sets[a] & sets[b])]
    return found


def _audit_similar(folds, columns, similar, add) -> None:
    """Pairs of the same picture in two parts of a fold; each pair counts once."""
    names = columns["image"] or columns["patient"]
    copies, close = {}, {}
    for number, parts in folds:
        part_of = {r: p for p, rows in parts.items() for r in rows.tolist()}
        for a, b, value, exact in similar:
            one, two = part_of.get(a), part_of.get(b)
            if one is None or two is None or one == two:
                continue
            where = f"{names[a]} ({one}) and {names[b]} ({two}) of fold {number}"
            if exact:
                copies.setdefault((a, b), where)
            else:
                close.setdefault((a, b), f"{where}, correlation {value:.3f}")
    add("copy_overlap", list(copies.values()), "pairs of equal pictures in two parts of one fold")
    add("near_duplicate", list(close.values()), "pairs of near-duplicates in two parts of one fold")


def _audit_tests(splits, folds, columns, count: int, add) -> None:
    if any(fold.get("fixed_test") for fold in splits):
        return
    tested = np.zeros(count, np.int64)
    seen = set()
    for fold, (_, parts) in zip(splits, folds, strict=True):
        if "outer" in fold and fold["outer"] in seen:
            continue
        seen.add(fold.get("outer"))
        np.add.at(tested, parts["test"], 1)
    names = columns["image"] or columns["patient"] or [str(i) for i in range(count)]
    add("never_tested", [names[i] for i in np.flatnonzero(tested == 0)], "cases that no fold tests")
    add(
        "tested_twice",
        [names[i] for i in np.flatnonzero(tested > 1)],
        "cases that several folds test",
    )


def _audit_balance(splits, folds, columns, kind, add) -> None:
    by_center = any("center" in fold for fold in splits)
    chosen = any(fold.get("fixed_test") for fold in splits)
    if columns["label"] is not None:
        labels, classes = np.asarray(columns["label"]), sorted(set(columns["label"]))
        what, plural = WORDS.get(kind, WORDS[kinds.CLASSES])
        missing = [
            f"fold {n} {p}: class {c}"
            for n, parts in folds
            for p in ("train", "test")
            for c in classes
            if c not in set(labels[parts[p]].tolist())
        ]
        if kind == kinds.CLASSES:  # of others each part need not have all
            add("class_missing", missing, "classes without a case in a part")
        if not by_center and not chosen:
            found = _unbalanced(folds, labels, classes, what)
            add("class_balance", found, f"{plural} out of balance")
    if columns["center"] is not None and not by_center and not chosen:
        centers = np.asarray(columns["center"])
        named = sorted(set(columns["center"]) - {""})
        found = _unbalanced(folds, centers, named, "center")
        add("center_balance", found, "centers out of balance")


def _unbalanced(folds, values, names, what: str) -> list[str]:
    """Values whose share in a test part is 0.1 and four standard errors off the training's."""
    found = []
    for number, parts in folds:
        train, test = values[parts["train"]], values[parts["test"]]
        if min(len(train), len(test)) == 0:
            continue
        for name in names:
            a, b = float((train == name).mean()), float((test == name).mean())
            p = (a * len(train) + b * len(test)) / (len(train) + len(test))
            error = (p * (1 - p) * (1 / len(train) + 1 / len(test))) ** 0.5
            if abs(a - b) > max(0.1, 4 * error):
                found.append(
                    f"fold {number}: {what} {name} is {b:.0%} of test, {a:.0%} of training"
                )
    return found


def audit_centers(splits: list[dict], cases) -> list[Finding]:
    """Findings of kind `center_mixed`: folds of a leave-one-center-out whose test part holds
    several centers, or a center that is in training too."""
    center = columns_of(cases)["center"]
    if center is None:
        return []
    center = np.asarray(center, dtype=object)
    mixed = []
    for fold in splits:
        inside = set(center[np.asarray(fold["test"], np.int64)].tolist())
        rest = np.concatenate([np.asarray(fold[p], np.int64) for p in ("train", "val")])
        both = inside & set(center[rest].tolist())
        if len(inside) > 1 or both:
            mixed.append(
                f"fold {fold['fold']}: tests {', '.join(sorted(inside))}"
                + (f"; trains on {', '.join(sorted(both))} too" if both else "")
            )
    if not mixed:
        return []
    return [
        Finding(
            "center_mixed", len(mixed), mixed[:5], "folds that do not leave exactly one center out"
        )
    ]


def audit_across(made: dict, cases_list: list, alike=()) -> list[tuple[str, Finding]]:
    """Pictures of two data sets that show the same, one tested where the other is trained on.

    made: as from `splits.make`; alike: `mdmt.data.similar.Alike` over the data sets. Returns
    (validation, finding of kind copy_overlap or near_duplicate); each pair counts once.
    """
    found = []
    for validation, folds in made.items():
        copies, close = {}, {}
        for number, entry in enumerate(folds):
            parts = [
                {int(r): p for p in PARTS for r in entry[c.name][p]} if c.name in entry else {}
                for c in cases_list
            ]
            for pair in alike:
                (n, i), (m, j) = pair.one, pair.two
                one, two = parts[n].get(i), parts[m].get(j)
                if n == m or one is None or two is None or (one == "test") == (two == "test"):
                    continue
                a, b = cases_list[n], cases_list[m]
                where = (
                    f"{a.images[i]} of {a.name} ({one}) and {b.images[j]} of {b.name} ({two}) in "
                    f"fold {number}"
                )
                if pair.exact:
                    copies.setdefault(pair[:2], where)
                else:
                    close.setdefault(pair[:2], f"{where}, correlation {pair.correlation:.3f}")
        for kind, pairs, what in (
            ("copy_overlap", copies, "equal pictures"),
            ("near_duplicate", close, "near-duplicates"),
        ):
            if pairs:
                examples = list(pairs.values())
                message = f"pairs of {what} in two data sets, one tested and one trained on"
                found.append((validation, Finding(kind, len(pairs), examples[:5], message)))
    return found
