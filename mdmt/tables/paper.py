"""Tables 1, 2 and S1 in the paper's form, from the rows of results.csv.

Percent; of tasks of numbers and findings other measures stand in the paper's places
(`mdmt.measures.tabled`). A backbone's value is its mean over the test folds (seeds averaged first);
Table 1 is the mean of that over backbones. The paper's own values stand beside where it prints any.
"""

from __future__ import annotations

import numpy as np

from .. import kinds, stats
from ..analysis.folder import Outcome, is_control
from ..analysis.scheme import PATIENTS, without_centers
from ..data import paper_values
from ..experiments import CONTROLS
from ..measures import MEASURES, tabled
from ..results import fewer_folds
from .grid import Cell, Row, Table, marks, number

SCHEMES = {"cv": "CV", "nested": "nested CV", "loco": "LOCO", "loco-all": "LOCO, all pairs"}


def label(configuration: str) -> str:
    """The name of a configuration in a table; what is not the paper's is marked."""
    if configuration in CONTROLS:
        return f"{configuration} (control)"
    return f"{configuration} (added)" if is_control(configuration) else configuration


def _means(results: list[dict]) -> dict:
    """{(release, task, validation, backbone, configuration): {measure: [per fold]}}, percent or its
    own unit, seeds averaged; only folds that have it."""
    cells: dict = {}
    for row in results:
        place = tuple(row[c] for c in ("release", "task", "validation", "backbone"))
        cell = cells.setdefault((*place, row["configuration"]), {}).setdefault(row["fold"], [])
        cell.append(row)
    found = {}
    for place, folds in cells.items():
        found[place] = {
            k: [
                one.scale * float(np.mean(v))
                for _, rows in sorted(folds.items())
                if (v := [r[k] for r in rows if r.get(k) is not None])
            ]
            for k, one in MEASURES.items()
        }
    return found


def _release_title(outcome: Outcome, release: str, task: str) -> str:
    kind = "SYNTHETIC data" if outcome.synthetic else f"release {release}"
    return f"{task}, {kind}"


def _pairs(outcome: Outcome) -> list[tuple[str, str, list[str]]]:
    """(release, task, validation schemes) in order."""
    found: dict = {}
    for release, validation, task in outcome.places:
        found.setdefault((release, task), []).append(validation)
    return [(*k, sorted(v)) for k, v in found.items()]


def has_paper_values(outcome: Outcome, release: str, task: str) -> bool:
    """True where the paper's values belong beside: its task, on its last release or other data."""
    if task != paper_values.TASK or kinds.kind_of(outcome.task(task)) != kinds.CLASSES:
        return False
    readers = {d.get("reader") for d in outcome.values["data"]["datasets"] if d["task"] == task}
    releases = sorted({p.release for p in outcome.parts})
    return release == (paper_values.RELEASE if "aiforcovid" in readers else releases[-1])


def _paper_note(outcome: Outcome, task: str) -> str:
    readers = {d.get("reader") for d in outcome.values["data"]["datasets"] if d["task"] == task}
    other = "" if "aiforcovid" in readers else "; its data are not those of this run"
    return (
        f"Rows 'paper': {paper_values.SOURCE}, Table 1: {paper_values.CASES} cases of AIforCOVID, "
        f"{paper_values.BACKBONES} backbones, F1 average not stated{other}."
    )


def _note(outcome: Outcome, task: str) -> str:
    """What the columns of a task's table are."""
    spec = outcome.task(task)
    kind = kinds.kind_of(spec)
    if kind == kinds.NUMBER:
        return (
            "MAE: mean absolute error, in the label's unit; R²: coefficient of determination; CCC: "
            "Lin's concordance. results.csv has further measures."
        )
    if kind == kinds.FINDINGS:
        return "Means over the findings; results.csv has F1 and AUC of each."
    which = "macro average"
    if len(spec["classes"]) == 2:
        which = f"of the positive class, {spec['classes'][kinds.positive_of(spec)]}"
    return f"F1: {which}; results.csv has the three averages."


def _few_notes(outcome, results, release: str, task: str, schemes) -> list[str]:
    """Which means are not over all folds, or not over centers, by validation scheme."""
    found = []
    for v in schemes:
        if without_centers(outcome, release, v, task):
            found.append(f"{SCHEMES.get(v, v)}: {PATIENTS}; {task} records none.")
        place = (release, task, v)
        rows = [r for r in results if (r["release"], r["task"], r["validation"]) == place]
        few = fewer_folds(rows, tabled(outcome.task(task)))
        if few:
            found.append(f"{SCHEMES.get(v, v)}: {few}")
    return found


def _unit(outcome: Outcome, task: str) -> str:
    number_ = kinds.kind_of(outcome.task(task)) == kinds.NUMBER
    return "Mean" if number_ else "Percent; mean"


MARKED = "Best in bold, second best underlined."


def table1(outcome: Outcome, results: list[dict]) -> list[Table]:
    """Table 1: mean over backbones of accuracy, F1 and G-mean per configuration."""
    means = _means(results)
    tables = []
    for release, task, schemes in _pairs(outcome):
        names = outcome.configurations(release=release, task=task)
        columns = tabled(outcome.task(task))
        values: dict = {}
        counts: dict = {}
        for v in schemes:
            for c in names:
                found = [m for p, m in means.items() if p[:3] == (release, task, v) and p[4] == c]
                counts[v, c] = len(found)
                for k in columns:
                    each = [np.mean(m[k]) for m in found if m[k]]
                    values[v, c, k] = float(np.mean(each)) if each else None
        mark = {}
        for v in schemes:
            for k in columns:
                column = _marks(k, [values[v, c, k] for c in names])
                mark.update({(v, c, k): x for c, x in zip(names, column, strict=True)})
        beside = has_paper_values(outcome, release, task)
        rows, records = [], []
        for c in names:
            cells = [
                Cell(_scaled(k, values[v, c, k]), mark[v, c, k]) for v in schemes for k in columns
            ]
            first = is_control(c) and not any(r.kind == "control" for r in rows)
            rows.append(Row([label(c)], cells, "control" if is_control(c) else "", first))
            records.append(_record1(outcome, release, task, c, schemes, values, mark, counts))
            if beside and any(paper_values.table1(v, c, "accuracy") for v in schemes):
                printed = [paper_values.table1(v, c, k) for v in schemes for k in columns]
                rows.append(Row([f"{c}, paper"], [Cell(number(p)) for p in printed], "paper"))
                records.append(_paper1(release, task, c, schemes))
        backbones = max(counts.values())
        notes = [
            f"{_unit(outcome, task)} over test folds, then over {backbones} "
            f"backbone{'s' if backbones > 1 else ''}.",
            _note(outcome, task),
            MARKED,
            *_few_notes(outcome, results, release, task, schemes),
        ]
        if any(r.kind == "paper" for r in rows):
            notes.append(_paper_note(outcome, task))
        tables.append(
            Table(
                "table1",
                f"Table 1: {_release_title(outcome, release, task)}",
                ["Experiment"],
                [(SCHEMES.get(v, v), len(columns)) for v in schemes],
                [MEASURES[k].short for _ in schemes for k in columns],
                rows,
                notes,
                records,
            )
        )
    return tables


def _average(spec: dict) -> str:
    kind = kinds.kind_of(spec)
    if kind != kinds.CLASSES:
        return "mean over findings" if kind == kinds.FINDINGS else ""
    return "positive class" if len(spec["classes"]) == 2 else "macro"


def _scaled(name: str, value: float | None) -> str:
    """Text of a value that is in percent already, or in its own unit."""
    return number(value, MEASURES[name].digits)


def _marks(name: str, values: list) -> list[str]:
    return marks(values, MEASURES[name].digits, MEASURES[name].less)


def _record1(outcome, release, task, name, schemes, values, mark, counts) -> dict:
    record = {
        "release": release,
        "task": task,
        "experiment": name,
        "source": "this run",
        "f1_average": _average(outcome.task(task)),
    }
    for v in schemes:
        record[f"{v}_backbones"] = counts[v, name]
        for k in tabled(outcome.task(task)):
            value = values[v, name, k]
            record[f"{v}_{k}"] = None if value is None else round(value, 4)
            record[f"{v}_{k}_mark"] = mark[v, name, k]
    return record


def _paper1(release, task, name, schemes) -> dict:
    record = {
        "release": release,
        "task": task,
        "experiment": name,
        "source": paper_values.SOURCE,
        "f1_average": "not stated",
    }
    for v in schemes:
        record[f"{v}_backbones"] = paper_values.BACKBONES
        for k in tabled({"head": {"loss": "ce"}}):
            record[f"{v}_{k}"] = paper_values.table1(v, name, k)
    return record


def table2(outcome: Outcome, results: list[dict]) -> list[Table]:
    """Table 2: the paper's one-tailed t-tests over backbones, with its stars."""
    against = {
        t: tuple(c for c in outcome.configurations(task=t) if c != stats.paper.METHOD)
        for t in outcome.values["tasks"]
    }
    tests = {t[:6]: t for task in against for t in _tests(outcome, results, task, against)}
    tables = []
    for release, task, schemes in _pairs(outcome):
        others = [c for c in against[task] if any(k[4] == c and k[2] == task for k in tests)]
        if not others:
            continue
        columns = tabled(outcome.task(task))
        rows, records = [], []
        for quantity, symbol in (("mu", "μ"), ("sigma", "σ")):
            for position, c in enumerate(others):
                row, record = _row2(tests, release, task, schemes, quantity, symbol, c, columns)
                row.rule = position == 0 and quantity == "sigma"
                rows.append(row)
                records.append(record)
                printed = _paper2(outcome, release, task, schemes, quantity, symbol, c)
                if printed is not None:
                    rows.append(printed[0])
                    records.append(printed[1])
        notes = [
            "The paper's tests, not ours: * p < 0.05, ** p < 0.01, *** p < 0.001, one-tailed; "
            "'ns' is not significant, '–' needs two backbones (σ also two folds).",
            stats.PAPER_TEST_WARNING,
        ]
        if any(MEASURES[k].less for k in columns):
            notes.append("Of errors (MAE) MDMT's must be the lower ones.")
        if any(r.kind == "paper" for r in rows):
            illegible = any(c.text == "?" for r in rows for c in r.cells if r.kind == "paper")
            notes.append(
                f"Rows 'paper': {paper_values.SOURCE}, Table 2"
                + ("; '?' where the print that we have is not legible." if illegible else ".")
            )
        tables.append(
            Table(
                "table2",
                f"Table 2: {_release_title(outcome, release, task)}: the paper's t-tests",
                ["Statistic", "Test"],
                [(SCHEMES.get(v, v), len(columns)) for v in schemes],
                [MEASURES[k].short for _ in schemes for k in columns],
                rows,
                notes,
                records,
            )
        )
    return tables


def _tests(outcome: Outcome, results: list[dict], task: str, against: dict) -> list:
    """The paper's tests of a task; of measures of which less is better MDMT's must be less."""
    columns = tabled(outcome.task(task))
    less = [k for k in columns if MEASURES[k].less]
    rows = [
        {**r, **{k: None if r[k] is None else -r[k] for k in less}}
        for r in results
        if r["task"] == task
    ]
    found = stats.paper_t_tests(rows, columns, against=against)
    turned = [t.metric in less and t.quantity == "mu" for t in found]
    return [t._replace(difference=-t.difference) if x else t
            for t, x in zip(found, turned, strict=True)]  # fmt: skip


def _row2(tests, release, task, schemes, quantity, symbol, name, columns) -> tuple[Row, dict]:
    cells = []
    test = f"{stats.paper.METHOD} vs {name}"
    record = {"release": release, "task": task, "statistic": quantity, "test": test,
              "source": "this run"}  # fmt: skip
    for v in schemes:
        for k in columns:
            t = tests.get((release, v, task, quantity, name, k))
            defined = t is not None and t.pvalue == t.pvalue
            cells.append(Cell((t.stars or "ns") if defined else "–"))
            record[f"{v}_{k}"] = (t.stars or "ns") if defined else None
            record[f"{v}_{k}_p"] = t.pvalue if defined else None
            record[f"{v}_{k}_difference"] = (
                MEASURES[k].scale * t.difference
                if t is not None and t.difference == t.difference
                else None
            )
            record[f"{v}_{k}_backbones"] = t.n if t is not None else 0
    return Row([symbol, test], cells, "control" if is_control(name) else ""), record


def _paper2(outcome, release, task, schemes, quantity, symbol, name):
    """The paper's stars in the row of this test, or None."""
    columns = tabled(outcome.task(task))
    printed = [paper_values.table2(v, quantity, name, k) for v in schemes for k in columns]
    if not has_paper_values(outcome, release, task) or all(p is None for p in printed):
        return None
    test = f"{stats.paper.METHOD} vs {name}"
    keys = [f"{v}_{k}" for v in schemes for k in columns]
    record = {"release": release, "task": task, "statistic": quantity, "test": test,
              "source": paper_values.SOURCE}  # fmt: skip
    record.update((k, None if p is None else p or "ns") for k, p in zip(keys, printed, strict=True))
    cells = [Cell("?" if p is None else p or "ns") for p in printed]
    return Row([symbol, f"{test}, paper"], cells, "paper"), record


def mean_sd(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) over folds; None where there are too few."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def table_s1(outcome: Outcome, results: list[dict]) -> list[Table]:
    """Table S1: every backbone and configuration, mean and standard deviation over folds."""
    means = _means(results)
    tables = []
    for release, task, schemes in _pairs(outcome):
        names = outcome.configurations(release=release, task=task)
        backbones = outcome.backbones(release=release, task=task)
        columns = tabled(outcome.task(task))
        cell = {
            (b, c, v, k): mean_sd(means.get((release, task, v, b, c), {}).get(k, []))
            for b in backbones
            for c in names
            for v in schemes
            for k in columns
        }
        rows, records = [], []
        for b in backbones:
            mark = {}
            for v in schemes:
                for k in columns:
                    column = _marks(k, [cell[b, c, v, k][0] for c in names])
                    mark.update({(c, v, k): x for c, x in zip(names, column, strict=True)})
            for position, c in enumerate(names):
                cells, record = [], {"release": release, "task": task, "backbone": b,
                                     "experiment": c}  # fmt: skip
                for v in schemes:
                    for k in columns:
                        mean, sd = cell[b, c, v, k]
                        text = _scaled(k, mean) + ("" if sd is None else f" ± {_scaled(k, sd)}")
                        cells.append(Cell(text, mark[c, v, k]))
                        record[f"{v}_{k}_mean"] = None if mean is None else round(mean, 4)
                        record[f"{v}_{k}_sd"] = None if sd is None else round(sd, 4)
                        record[f"{v}_{k}_mark"] = mark[c, v, k]
                rule = position == 0 and b != backbones[0]
                kind = "control" if is_control(c) else ""
                rows.append(Row([b, label(c)], cells, kind, rule))
                records.append(record)
        folds = {
            v: len(
                {
                    r["fold"]
                    for r in results
                    if (r["release"], r["task"], r["validation"]) == (release, task, v)
                }
            )
            for v in schemes
        }
        over = ", ".join(f"{SCHEMES.get(v, v)} {n}" for v, n in folds.items())
        tables.append(
            Table(
                "tableS1",
                f"Table S1: {_release_title(outcome, release, task)}",
                ["Backbone", "Experiment"],
                [(SCHEMES.get(v, v), len(columns)) for v in schemes],
                [MEASURES[k].short for _ in schemes for k in columns],
                rows,
                [
                    f"{_unit(outcome, task)} ± standard deviation over test folds ({over})."
                    if max(folds.values()) > 1
                    else f"{_unit(outcome, task)} over one test fold, which has no deviation.",
                    _note(outcome, task),
                    "Within each backbone: best in bold, second best underlined.",
                    *_few_notes(outcome, results, release, task, schemes),
                ],
                records,
            )
        )
    return tables
