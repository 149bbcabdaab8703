"""What a table says of each image: one class, a number, or any of several findings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import kinds
from ..errors import BadData, nearest

_MISSING = {"", "nan", "na", "n/a", "#n/a", "none", "null"}
_UNCERTAIN = ("-1", "-1.0")  # what CheXpert writes for a finding that is not certain
_MARKS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0,
          "yes": 1.0, **dict.fromkeys(_UNCERTAIN, np.nan)}  # fmt: skip


class Labels(NamedTuple):
    """classes: names of what is counted: classes, ranges of a number, findings; numbers (M,) int64:
    by which the folds are balanced; scores (M,) float64 or NaN; values (M, k) float64: what is
    learnt where it is no class: the number, or findings (1, 0, NaN: not labelled), else None."""

    classes: list[str]
    numbers: np.ndarray
    scores: np.ndarray
    values: np.ndarray | None


def missing(text: str, legal=()) -> bool:
    """True for an empty cell and for what programs write for one, unless it is a legal value."""
    return text not in legal and text.strip().lower() in _MISSING


def stated(row: dict, columns: dict, task: dict) -> bool:
    """Whether a row has a label: of findings with columns of their own, at least one."""
    own = columns.get("findings")
    if own:
        return not all(missing(row[c]) or row[c].strip() in _UNCERTAIN for c in own.values())
    return not missing(row[columns["label"]], {*task["classes"], *(task["labels"] or {})})


def read(where, rows: list[dict], columns: dict, name: str, task: dict) -> Labels:
    """The labels of rows that have one. where: function from a row and a column to the beginning of
    a sentence; name: the task's. Raises BadData that names file, row and value."""
    kind = kinds.kind_of(task)
    if kind == kinds.FINDINGS:
        return _findings(where, rows, columns, name, task)
    if kind == kinds.CLASSES and task["thresholds"] is None:
        numbers = np.array([_class(where, r, columns["label"], name, task) for r in rows], np.int64)
        return Labels(list(task["classes"]), numbers, np.full(len(rows), np.nan), None)
    scores = np.array([_score(where, r, columns["label"], name, task) for r in rows])
    values = scores[:, None] if kind == kinds.NUMBER else None
    if task["thresholds"] is None:
        numbers, ranges = kinds.strata(scores)
        return Labels(ranges, numbers, scores, values)
    return Labels(list(task["classes"]), kinds.cut(scores, task["thresholds"]), scores, values)


def _class(where, row: dict, column: str, name: str, task: dict) -> int:
    classes = list(task["classes"])
    mapping = {c: i for i, c in enumerate(classes)}
    if task["labels"]:
        mapping = {label: classes.index(target) for label, target in task["labels"].items()}
    text = row[column]
    text = text if text in mapping else _number(text, mapping)
    if text not in mapping:
        raise BadData(
            f"{where(row, column)}: unknown label '{text}' for task '{name}'"
            f"{nearest(text, mapping)}"
        )
    return mapping[text]


def _score(where, row: dict, column: str, name: str, task: dict) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        does = f"cuts a score at {task['thresholds']}"
        if kinds.kind_of(task) == kinds.NUMBER:
            does = "learns a number"
        raise BadData(
            f"{where(row, column)}: '{row[column]}' is not a number, and task '{name}' {does}; "
            "correct the cell or leave it empty"
        )
    return value


def _number(text: str, known) -> str:
    """The one of `known` that is the same whole number ("2.0" and "02" are "2"), else `text`."""
    same = [k for k in known if _whole(k) is not None and _whole(k) == _whole(text)]
    return same[0] if len(same) == 1 else text


def _whole(text: str) -> int | None:
    found = re.fullmatch(r"([+-]?\d{1,15})(?:\.0*)?", text)
    return int(found[1]) if found else None


def finding_columns(table: Path, header: list[str], columns: dict, task: dict) -> dict | None:
    """{finding: column} where findings have columns of their own, or None. Raises BadData."""
    if kinds.kind_of(task) != kinds.FINDINGS:
        return None
    if columns.get("findings"):
        return columns["findings"]
    if columns["label"] in header:
        return None
    absent = [c for c in task["classes"] if c not in header]
    if absent:
        raise BadData(
            f"{table}: has neither a column '{columns['label']}' of findings nor one that is "
            f"called '{absent[0]}'{nearest(absent[0], header)}; name them in columns.label or "
            "columns.findings"
        )
    return {c: c for c in task["classes"]}


def _findings(where, rows: list[dict], columns: dict, name: str, task: dict) -> Labels:
    classes, own = list(task["classes"]), columns.get("findings")
    values = np.zeros((len(rows), len(classes)))
    for row, found in zip(rows, values, strict=True):
        if own:
            found[:] = [_mark(where, row, own[c]) for c in classes]
        else:
            for text in re.split(r"[;|]", row[columns["label"]]):
                k = _finding(where, row, columns["label"], text.strip(), name, task)
                found[k if k is not None else []] = 1
    return Labels(classes, rarest(values), np.full(len(rows), np.nan), values)


def _mark(where, row: dict, column: str) -> float:
    text = row[column].strip().lower()
    if text in _MISSING:
        return np.nan
    if text not in _MARKS:
        raise BadData(
            f"{where(row, column)}: '{row[column]}' must be 1 (there), 0 (not there) or empty (not "
            "labelled); correct the cell"
        )
    return _MARKS[text]


def _finding(where, row: dict, column: str, text: str, name: str, task: dict) -> int | None:
    """Number of a finding, None where the text says that there is none."""
    known = {c.lower(): c for c in (*task["classes"], kinds.NO_FINDING)}
    known |= {label.lower(): target for label, target in (task["labels"] or {}).items()}
    found = known.get(text.lower())
    if found is None:
        raise BadData(
            f"{where(row, column)}: unknown finding '{text}' for task '{name}'"
            f"{nearest(text, [*task['classes'], kinds.NO_FINDING])}; add it to classes, or write "
            f"'{text}: {kinds.NO_FINDING}' into labels to ignore it"
        )
    return None if found == kinds.NO_FINDING else task["classes"].index(found)


def rarest(values: np.ndarray) -> np.ndarray:
    """For each case of findings (M, K) the number of its finding that is rarest in all of them, K
    where it has none: (M,) int64. Folds that are balanced over these hold each finding about as
    often, the rare ones first."""
    there = values == 1
    rank = np.argsort(np.argsort(there.sum(0), kind="stable"), kind="stable")
    order = np.where(there, rank, values.shape[1])
    return np.where(there.any(1), order.argmin(1), values.shape[1]).astype(np.int64)
