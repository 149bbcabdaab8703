"""Which measures are shown of which kind of task, what they are called, and how they are written.

The values themselves are computed by `mdmt.metrics` and `mdmt.stats`.
"""

from __future__ import annotations

from typing import NamedTuple

from . import kinds


class Measure(NamedTuple):
    """title: heading; short: in a narrow table; share: a fraction, shown in percent, else with
    `digits` decimals in its own unit; less: less is better."""

    title: str
    short: str
    share: bool = True
    digits: int = 1
    less: bool = False

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown."""
        return 100.0 if self.share else 1.0

    @property
    def unit(self) -> str:
        """The unit of what is shown, for an axis."""
        return "percent" if self.share else ""


MEASURES = {
    "accuracy": Measure("Accuracy", "ACC"),
    "f1": Measure("F1", "F1"),
    "gmean": Measure("G-mean", "GM"),
    "auc": Measure("AUC", "AUC"),
    "brier": Measure("Brier", "Brier", False, 3, True),
    "mae": Measure("MAE", "MAE", False, 2, True),
    "rmse": Measure("RMSE", "RMSE", False, 2, True),
    "r2": Measure("R²", "R²", False, 3),
    "pearson": Measure("Pearson's r", "r", False, 3),
    "spearman": Measure("Spearman's ρ", "ρ", False, 3),
    "ccc": Measure("CCC", "CCC", False, 3),
}

_COMPARED = {
    kinds.CLASSES: ("accuracy", "f1", "gmean", "auc", "brier"),
    kinds.NUMBER: ("mae", "rmse", "r2", "pearson", "ccc"),
    kinds.FINDINGS: ("accuracy", "f1", "gmean", "auc", "brier"),
}
_DRAWN = {
    kinds.CLASSES: ("accuracy", "f1", "gmean", "auc"),
    kinds.NUMBER: ("mae", "rmse", "r2", "ccc"),
    kinds.FINDINGS: ("accuracy", "f1", "gmean", "auc"),
}
_TABLED = {
    kinds.CLASSES: ("accuracy", "f1", "gmean"),
    kinds.NUMBER: ("mae", "r2", "ccc"),
    kinds.FINDINGS: ("f1", "gmean", "auc"),
}
_LEADING = {
    kinds.CLASSES: (("auc", "ranking (AUC)"), ("accuracy", "accuracy")),
    kinds.NUMBER: (("mae", "the mean absolute error"), ("ccc", "concordance (CCC)")),
    kinds.FINDINGS: (("auc", "ranking (mean AUC)"), ("f1", "the mean F1")),
}
CUT = ("accuracy", "f1", "gmean")  # of the classes that thresholds make of a number


def compared(task: dict) -> tuple[str, ...]:
    """The measures that configurations are compared in; task: an entry of `tasks`."""
    kind = kinds.kind_of(task)
    more = CUT if kind == kinds.NUMBER and task["thresholds"] else ()
    return _COMPARED[kind] + more


def drawn(task: dict) -> tuple[str, ...]:
    """The four measures that figures show."""
    return _DRAWN[kinds.kind_of(task)]


def tabled(task: dict) -> tuple[str, ...]:
    """The three measures of the paper's tables, or what stands for them."""
    return _TABLED[kinds.kind_of(task)]


def leading(task: dict) -> tuple[tuple[str, str], ...]:
    """The two measures of the result in a sentence, with what they are called there."""
    return _LEADING[kinds.kind_of(task)]


def grouped(task: dict) -> tuple[str, ...]:
    """The measures of subgroups."""
    kind = kinds.kind_of(task)
    if kind == kinds.CLASSES:
        return ("accuracy", "auc") if len(task["classes"]) == 2 else ("accuracy",)
    return ("mae", "ccc") if kind == kinds.NUMBER else ("f1", "auc")


def f1_name(task: dict) -> str:
    """Which F1 the tables give."""
    if kinds.kind_of(task) == kinds.FINDINGS:
        return "mean over the findings of the F1 of each"
    if len(task["classes"]) == 2:
        return f"F1 of {task['classes'][kinds.positive_of(task)]}"
    return "macro F1"
