"""What repeated trainings (several seeds) change: a table and a sentence of the report."""

from __future__ import annotations

from ..analysis.compare import METHOD, Analysis
from ..analysis.trainings import Spread
from ..measures import MEASURES, compared, leading
from ..tables.grid import Cell, Row, Table, measured, to_html
from ..tables.paper import label
from . import words
from .page import paragraph

COLUMNS = ["release", "validation", "task", "configuration", "against", "metric", "mean",
           "deviation", "standard_error", "share", "seeds", "folds"]  # fmt: skip


def records(a: Analysis, rows: list[Spread]) -> list[dict]:
    """Rows of trainings.csv at a place; fractions, or the number's unit."""
    found = []
    for s in rows:
        numbers = [s.mean, s.deviation, s.error, s.share]
        values = [*a.matrix.place, s.configuration, s.against, s.metric,
                  *(None if v is None or v != v else v for v in numbers),
                  s.seeds, s.folds]  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def section(a: Analysis, rows: list[Spread]) -> str:
    """The part of a place, "" where every network was trained once."""
    return paragraph(sentence(a, rows)) + to_html(table(a, rows)) if rows else ""


def sentence(a: Analysis, rows: list[Spread]) -> str:
    """How far a repeated training lies from another, and what that means for the intervals."""
    m = a.matrix
    first = next((c for c in m.configurations if c != METHOD), None)
    said = []
    for k, what in leading(m.spec):
        s = next((s for s in rows if (s.against, s.metric) == (first, k)), None)
        if s is None or s.deviation != s.deviation:
            continue
        share = "" if s.share is None else f", {100 * s.share:.0f} % of the variance of its mean"
        unit = " points" * MEASURES[k].share
        said.append(f"in {what} by {measured(k, s.deviation)}{unit}{share}")
    one = "network" if m.external else "training of a fold"
    start = (
        f"A configuration has {rows[0].seeds} networks, of the run's folds and seeds."
        if m.external
        else f"Every network was trained with {rows[0].seeds} seeds."
    )
    if not said:
        return start
    return (
        f"{start} From one {one} to the next, the difference between {METHOD} and "
        f"{first} varies (standard deviation) {'; '.join(said)}."
    )


def table(a: Analysis, rows: list[Spread]) -> Table:
    """Deviation of a repeated training, of configurations and of differences."""
    m = a.matrix
    names = compared(m.spec)
    lines, ruled = [], False
    for who in dict.fromkeys((s.configuration, s.against) for s in rows):
        mine = {s.metric: s for s in rows if (s.configuration, s.against) == who}
        name = f"{METHOD} minus {label(who[1])}" if who[1] else label(who[0])
        first = bool(who[1]) and not ruled  # of the differences
        lines.append(Row([name], [Cell(_cell(mine[k])) for k in names], "", first))
        ruled = ruled or first
    counted = f"{rows[0].seeds} {'networks' if m.external else f'seeds, {rows[0].folds} folds'}."
    one = "network" if m.external else "training of a fold"
    return Table(
        "trainings",
        f"{m.task}, {m.scheme}{m.named}: repeated trainings, mean ± standard deviation of one "
        f"{one} from the next",
        ["Configuration"],
        [],
        [words.titled(k, m.spec) for k in names],
        lines,
        [
            f"{counted} In brackets: part of the variance of the mean that the "
            f"{'networks' if m.external else 'trainings'} make; the rest is that of the patients."
            if any(s.share is not None for s in rows)
            else counted
        ],
    )


def _cell(s: Spread) -> str:
    if s.deviation != s.deviation:
        return "–"
    text = f"{measured(s.metric, s.mean, bool(s.against))} ± {measured(s.metric, s.deviation)}"
    return text if s.share is None else f"{text} ({100 * s.share:.0f} %)"
