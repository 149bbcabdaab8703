"""Operating points: a table and a sentence of the report, rows of operating.csv."""

from __future__ import annotations

import numpy as np

from ..analysis.compare import Analysis
from ..analysis.points import MEASURES, Point
from ..points import POINTS
from ..tables.grid import Cell, Row, Table, number, percent
from ..tables.paper import label

COLUMNS = ["release", "validation", "task", "configuration", "chosen_for", "measure", "value",
           "low", "high", "lowest_threshold", "median_threshold", "highest_threshold"]  # fmt: skip
TITLES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
}


def records(a: Analysis, rows: list[Point]) -> list[dict]:
    """Rows of operating.csv at a place; fractions."""
    found = []
    for p in rows:
        cuts = [float(f(p.thresholds)) for f in (np.min, np.median, np.max)]
        for k in MEASURES:
            ends = [None] * 3 if p.found[k] is None else p.found[k]
            values = [*a.matrix.place, p.configuration, p.name, k, *ends, *cuts]
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def table(a: Analysis, rows: list[Point]) -> Table:
    """Every point and measure, a column per configuration."""
    m = a.matrix
    at = {(p.configuration, p.name): p for p in rows}
    lines = []
    for name, words in POINTS.items():
        mine = [at[c, name] for c in m.configurations]
        for i, k in enumerate(MEASURES):
            cells = [Cell(_cell(p.found[k])) for p in mine]
            lines.append(Row([words if i == 0 else "", TITLES[k]], cells, "", i == 0))
        cells = [Cell(_span(p.thresholds)) for p in mine]
        lines.append(Row(["", f"thresholds on p of {m.classes[m.positive]}"], cells))
    share = float(np.mean(m.target()))
    return Table(
        "operating",
        f"{m.task}, {m.scheme}{m.named}: operating points that each "
        f"{'training' if m.external else 'fold'}'s validation part chose",
        ["Chosen for", "Here" if m.external else "On the test parts"],
        [],
        [label(c) for c in m.configurations],
        lines,
        [
            "Percent with 95 % intervals by patient (of 0 and 100 % Wilson's), networks and "
            "thresholds as they are; "
            f"{'' if m.external else 'cases of all test folds, '}mean over networks. A threshold "
            "chosen on few cases holds what it was chosen for but roughly. Predictive values are "
            f"those where {percent(share)} % are {m.classes[m.positive]}, as here."
        ],
    )


def _cell(interval) -> str:
    if interval is None:
        return "–"
    value, low, high = map(percent, interval)
    return f"{value} ({low} to {high})"


def _span(thresholds: np.ndarray) -> str:
    low, high = (number(abs(float(f(thresholds))), 2) for f in (np.min, np.max))
    return low if low == high else f"{low} to {high}"
