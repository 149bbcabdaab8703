"""The sensitivity section: what other tests say of the differences of the primary analysis."""

from __future__ import annotations

from .. import kinds
from ..analysis.compare import METHOD, Analysis
from ..analysis.sensitivity import EXACT_BELOW, TESTS, Sensitivity
from ..measures import MEASURES
from ..tables.grid import Cell, Row, Table, measured, pvalue, to_html
from . import words
from .page import escape, listing, paragraph

COLUMNS = ["release", "validation", "task", "method", "against", "test", "metric", "unit", "n",
           "difference", "low", "high", "statistic", "pvalue", "pvalue_holm",
           "primary_difference", "primary_pvalue_holm", "agrees", "detail", "note"]  # fmt: skip
ASSUMES = {
    "DeLong": "DeLong's test takes the tested cases as independent and the networks as given, so "
    "that it is of patients (the mean score of a patient's images), within folds; its estimate is "
    "not the image-wise one of the primary analysis.",
    "McNemar": "McNemar's test takes the calls as independent, so that each patient has one (of "
    f"the probabilities averaged over images and networks), whatever the fold, and its estimate "
    "is of patients, not the mean over folds of the primary analysis; in brackets the "
    f"patients that {METHOD} alone : the other alone has right, by the exact binomial test where "
    f"they are fewer than {EXACT_BELOW}, else χ² with continuity correction.",
    "Nadeau-Bengio": "Nadeau and Bengio's corrected resampled t-test takes the folds' differences "
    "as normal and corrects for the training cases that folds share by a rule derived for random "
    "splits, not for cross-validation.",
    "Wilcoxon": "Wilcoxon's signed-rank test takes the differences of backbones (or folds) as "
    "independent, which backbones that are tested on the same patients are not: its p-values are "
    "too small.",
}
REMAINS = (
    "The bootstrap by patient remains the primary analysis: these tests cannot replace it, and one "
    "that finds more than it does is no evidence for more. Holm's correction runs over the rows "
    "of one test."
)


def records(a: Analysis, rows: list[Sensitivity]) -> list[dict]:
    """Rows of sensitivity.csv at a place; fractions."""
    found = []
    for s in rows:
        numbers = [s.estimate, s.low, s.high, s.statistic, s.pvalue, s.holm]
        primary = (None, None) if s.primary is None else (s.primary.difference, s.primary.holm)
        agrees = None if s.agrees is None else "yes" if s.agrees else "no"
        values = [*a.matrix.place, METHOD, s.against, s.test, s.metric, s.unit, s.n,
                  *(None if v is None or v != v else v for v in (*numbers, *primary)),
                  agrees, s.detail, s.note]  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def section(analyses: list[Analysis], found: dict) -> str:
    """The section's HTML; found {place: rows}."""
    used = [t for t in TESTS if any(s.test == t for rows in found.values() for s in rows)]
    out = [
        paragraph(
            "The same differences by the tests that reviewers ask for, each where what it assumes "
            "can be had (intervals: sensitivity.csv). " + REMAINS
        ),
        listing(ASSUMES[t] for t in used),
    ]
    for a in analyses:
        rows = found.get(a.matrix.place)
        if not rows:
            continue
        m = a.matrix
        title = f"{m.task}, {m.scheme}{m.named}"
        out.append(f"<h3>{escape(title)}</h3>")
        done = [s for s in rows if not s.left_out]
        if done:
            out.append(paragraph(conclusion(done)))
            out.append(to_html(table(a, done)))
        missing = left_out(rows)
        if missing:
            out.append(paragraph("Left out:", "note") + listing(missing))
    if not any(found.values()):
        return paragraph("This run holds no comparison of MDMT with other configurations.")
    return "\n".join(out)


def conclusion(done: list[Sensitivity]) -> str:
    """How many of the tests say what the primary analysis says, and which do not."""
    known = [s for s in done if s.agrees is not None]
    other = [s for s in known if not s.agrees]
    if not known:
        return "None of these tests can be held against the primary analysis."
    same = len(known) - len(other)
    if not other and len(known) == 1:
        return "The one test that could be done comes to the conclusion of the primary analysis."
    if not other:
        return f"All of {len(known)} tests come to the conclusion of the primary analysis."
    groups: dict = {}
    for s in other:
        ours, primary = s.holm < words.ALPHA, s.primary.holm < words.ALPHA
        how = (
            "establishes the opposite of the primary analysis"
            if ours and primary
            else "alone establishes a difference"
            if ours
            else "does not establish what the primary analysis does"
        )
        names = groups.setdefault(f"{s.test} {how}", {}).setdefault(s.against, [])
        names.append(MEASURES[s.metric].title)
    said = [f"{same or 'None'} of {len(known)} test{'s' * (len(known) > 1)} "
            f"come{'s' * (same == 1)} to the conclusion of the primary analysis"]  # fmt: skip
    for how, against in groups.items():
        named = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in against.items())
        said.append(f"{how}: {named}")
    return ". ".join(said) + "."


def left_out(rows: list[Sensitivity]) -> list[str]:
    """A sentence for each test and reason."""
    found: dict = {}
    for s in rows:
        if s.left_out:
            found.setdefault((s.test, s.note), []).append(s)
    said = []
    for (test, reason), some in found.items():
        others = list(dict.fromkeys(s.against for s in some))
        every = {s.against for s in rows if s.test == test}
        against = "" if set(others) == every else f" against {words.joined(others)}"
        named = list(dict.fromkeys(MEASURES[s.metric].title for s in some))
        known = {MEASURES[s.metric].title for s in rows if s.test == test}
        of = "" if set(named) == known else f" ({words.joined(named)})"
        said.append(f"{test}{against}{of}: {reason}.")
    return said


def table(a: Analysis, done: list[Sensitivity]) -> Table:
    """The tests of a place, METHOD minus the others."""
    m = a.matrix
    rows = []
    previous = None
    for s in done:
        beside = s.primary
        cells = [
            str(s.n),
            measured(s.metric, s.estimate, True),
            pvalue(s.pvalue),
            pvalue(s.holm),
            measured(s.metric, beside.difference, True) if beside else "–",
            pvalue(beside.holm) if beside else "–",
            "–" if s.agrees is None else "yes" if s.agrees else "no",
        ]
        test = f"{s.test} ({s.detail})" if s.detail else s.test
        rows.append(Row([s.against, test, MEASURES[s.metric].title], [Cell(c) for c in cells], "",
                        bool(rows) and s.against != previous))  # fmt: skip
        previous = s.against
    used = []
    said: dict = {}
    for s in done:
        if s.note:
            said.setdefault(s.note, []).append(s.test)
    for unit in ("backbones", "folds"):
        if any(s.test == "Wilcoxon" and s.unit == unit for s in done):
            used.append(f"Wilcoxon here: over {unit}.")
    used += [f"{words.joined(dict.fromkeys(tests))} here: {note}." for note, tests in said.items()]
    return Table(
        "sensitivity",
        f"{m.task}, {m.scheme}: {METHOD} minus the others by other "
        f"tests{'' if m.kind == kinds.NUMBER else ' (points)'}",
        ["Against", "Test", "Metric"],
        [("", 4), ("primary analysis", 2), ("", 1)],
        ["n", "difference", "p", "p, Holm", "difference", "p, Holm", "same"],
        rows,
        ["n: patients (DeLong, McNemar), folds or backbones; same: both establish the same "
         "difference at 5 % after correction, or both none (which does not show that there is "
         "none).", *used],
    )  # fmt: skip
