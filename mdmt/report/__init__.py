"""Tables, figures and one page from an out folder: `mdmt report OUT`.

Everything is computed again from predictions.csv; splits.json, cohort.json and the trainings'
histories add what they know. An incomplete run gives a report of what is there, and says so.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from .. import analysis, kinds, plots, tables
from ..analysis.cohort import findings
from ..analysis.compare import METHOD, defined_folds
from ..analysis.folder import Outcome
from ..errors import BadInput
from ..measures import compared
from ..paths import folder_lock, read_csv, remove_unfinished, write_atomic, write_csv
from ..results import MORE_COLUMNS, RESULT_COLUMNS, columns_of
from . import checklists, external, points, recipe, sections, sensitivity, trainings, words
from .page import escape, listing, page, paragraph, picture, text_table

RESAMPLES = 10000
NONE_HERE = "No comparison of MDMT with another configuration here."
NO_CURVES = "No learning curves: no histories are here, or no figures were drawn."
LIMIT = 14 * 2**20  # bytes of report.html; figures beyond are left in figures/
MEANING = {
    kinds.CLASSES: "Ranking (AUC) says whether sicker cases get higher scores; accuracy, F1 and "
    "G-mean say how good the calls are at the threshold that the network itself sets. The two can "
    "differ, so both are given.",
    kinds.NUMBER: "Of a number, the mean absolute error (MAE) and the root of the mean squared "
    "error (RMSE) say how far predictions are off, in the label's unit; R² how much of the spread "
    "they explain; correlation whether higher labels get higher predictions; concordance (CCC) "
    "whether they get the same ones.",
    kinds.FINDINGS: "An image has any number of findings, each with a probability of its own. "
    "Measures are means over the findings of which a test part has cases; where a finding is not "
    "labelled, the case does not count for it.",
}
COMPARED = ["release", "validation", "task", "backbone", "method", "against", "metric",
            "difference", "low", "high", "pvalue", "pvalue_holm", "pvalue_nadeau_bengio",
            "resamples", "images", "patients", "folds"]  # fmt: skip
MOST = 1_000_000  # resamples: 15 measures of them are 120 MB for each pair of configurations


def make(
    out,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    figures: bool = True,
    samples: bool = True,
    verify: bool = True,
    locked: bool = False,
) -> dict:
    """Write results.csv, tables, comparisons.csv, sensitivity.csv, figures/ and report.html.

    resamples of the bootstrap; figures: draw them; samples: show the best and worst predicted
    images; verify: compare the predictions with the trainings' own; locked: the caller holds the
    folder's lock.
    Returns {"headlines": sentences, "notes": sentences, "written": paths}. Raises BadInput.
    """
    out = Path(out)
    if not 100 <= resamples <= MOST:
        bound = "at least 100" if resamples < 100 else f"at most {MOST}"
        raise BadInput(f"--resamples {resamples}: must be {bound}")
    if not 0 <= seed < 1 << 63:
        raise BadInput(f"--seed {seed}: must be 0 to 2**63 - 1")
    if not (out / "config.yaml").is_file():
        analysis.read(out)  # says what is wrong
    if locked:
        return _make(out, resamples, seed, (figures, samples), verify)
    with folder_lock(out, "out folder"):
        for folder in (out, out / "figures"):
            remove_unfinished(folder)
        return _make(out, resamples, seed, (figures, samples), verify)


def _make(out: Path, resamples: int, seed: int, wanted: tuple, verify: bool) -> dict:
    outcome = analysis.read(out, verify)
    rows = analysis.results(outcome)
    columns = columns_of(outcome.values)
    notes = list(outcome.notes) + _replace_results(out, rows, columns)
    made = None if outcome.external else tables.paper_tables(outcome, rows)
    written = [out / "results.csv", *(tables.write(out, made) if made else [])]
    analyses = analysis.compare(outcome, resamples, seed)
    joint = {}
    if outcome.external:
        joint = {a.matrix.place: analysis.together(a.matrix, resamples, seed) for a in analyses}
        made_of = [r for a in analyses for r in external.rows_of(a, joint[a.matrix.place])]
        written.append(out / "external.csv")
        write_csv(written[-1], external.COLUMNS, made_of)
    written.append(_write_comparisons(out, analyses))
    others = {a.matrix.place: analysis.sensitivity(outcome, a) for a in analyses}
    made_of = [r for a in analyses for r in sensitivity.records(a, others[a.matrix.place])]
    written.append(out / "sensitivity.csv")
    write_csv(written[-1], sensitivity.COLUMNS, made_of)
    repeats = {a.matrix.place: analysis.spreads(a) for a in analyses}
    if any(repeats.values()):
        made_of = [r for a in analyses for r in trainings.records(a, repeats[a.matrix.place])]
        written.append(out / "trainings.csv")
        write_csv(written[-1], trainings.COLUMNS, made_of)
    operating = {
        a.matrix.place: analysis.operating_points(outcome, a.matrix, max(200, resamples // 5), seed)
        for a in analyses
    }
    if any(operating.values()):
        made_of = [r for a in analyses for r in points.records(a, operating[a.matrix.place])]
        written.append(out / "operating.csv")
        write_csv(written[-1], points.COLUMNS, made_of)
    for a in analyses:
        notes += a.notes
    groups = {
        a.matrix.place: analysis.subgroups(a.matrix, outcome.cohort, max(100, resamples // 10))
        for a in analyses
    }
    people = {
        a.matrix.place: analysis.readers(a.matrix, outcome.cohort, max(200, resamples // 5))
        for a in analyses
    }
    problem = plots.available() if wanted[0] else None
    draw = wanted[0] and not problem
    figures = plots.draw(outcome, analyses, groups, wanted[1]) if draw else []
    if problem:
        notes.append(problem)
    found = (analyses, groups, people, others, repeats, operating)
    made = joint if outcome.external else made
    text = _page(outcome, made, found, figures, notes, (resamples, seed))
    write_atomic(out / "report.html", text)
    written += [out / "figures"] if figures else []
    said = [h for h in map(words.headline, analyses) if h]
    if outcome.external:
        said = [external.headline(a, joint[a.matrix.place]) for a in analyses] + said
    return {"headlines": said, "notes": notes, "written": [*written, out / "report.html"]}


def _replace_results(out: Path, rows: list[dict], columns: list[str]) -> list[str]:
    """Write results.csv; one that says something else is kept under another name."""
    path = out / "results.csv"
    notes = []
    if path.is_file():
        old = _text(path)
        new = [{c: "" if r.get(c) is None else str(r[c]) for c in columns} for r in rows]
        key = RESULT_COLUMNS[:7]
        before = {tuple(r.get(c) for c in key): r for r in old}
        changed = [
            (r, c)
            for r in new
            for c in columns[7 : -len(MORE_COLUMNS)]
            if tuple(r[k] for k in key) in before
            and not _equal(before[tuple(r[k] for k in key)].get(c), r[c])
        ]
        if changed:
            row, column = changed[0]
            kept = out / "results.changed.csv"
            write_atomic(kept, path.read_bytes())
            notes.append(
                f"results.csv said something else than predictions.csv in {len(changed)} cells "
                f"(the first: {column} of {row['backbone']} {row['configuration']} {row['task']} "
                f"fold {row['fold']}); it was computed again, the changed file is kept as "
                f"{kept.name}."
            )
    write_csv(path, columns, rows)
    return notes


def _text(path: Path) -> list[dict]:
    try:
        return read_csv(path)
    except (OSError, UnicodeDecodeError, ValueError):
        return []


def _equal(a, b) -> bool:
    if a == b:
        return True
    try:
        return abs(float(a) - float(b)) < 1e-12
    except (TypeError, ValueError):
        return False


def _write_comparisons(out: Path, analyses: list) -> Path:
    rows = []
    for a in analyses:
        m = a.matrix
        folds = {k: len(defined_folds(m, k)) for k in compared(m.spec)}
        for c in a.comparisons:
            numbers = [c.difference, c.low, c.high, c.pvalue, c.holm, c.corrected_t]
            numbers = [None if v != v else v for v in numbers]
            values = [*m.place, c.backbone or "mean", METHOD, c.against, c.metric,
                      *numbers, a.n, len(set(m.image)), len(set(m.patient)),
                      folds[c.metric]]  # fmt: skip
            rows.append(dict(zip(COMPARED, values, strict=True)))
    path = out / "comparisons.csv"
    write_csv(path, COMPARED, rows)
    return path


class _Pictures:
    """Puts figures into the page, each once, up to LIMIT bytes in all."""

    def __init__(self, folder: Path, figures: list):
        self.folder, self.left = folder, list(figures)
        self.room, self.dropped = LIMIT, []

    def __call__(self, place, *kinds: str) -> str:
        found = []
        for kind in kinds:
            for figure in list(self.left):
                if figure.place != place or not figure.name.startswith(kind):
                    continue
                self.left.remove(figure)
                text = picture(self.folder, figure)
                if len(text) > self.room:
                    self.dropped.append(figure)
                    found.append(paragraph(
                        f"{figure.title}: figures/{figure.name}.png (left out of this page, which "
                        "would become too large)", "note"))  # fmt: skip
                    continue
                self.room -= len(text)
                found.append(text)
        return "\n".join(found)


def _ordered(analyses: list) -> list:
    """The last release first, whose first place is the one that the answer is about."""
    releases = list(dict.fromkeys(a.matrix.release for a in analyses))
    return sorted(analyses, key=lambda a: -releases.index(a.matrix.release))


def _page(outcome: Outcome, made, found, figures, notes, drawn) -> str:
    """The content of report.html; found: analyses; subgroups, readers, sensitivity, repeated
    trainings and operating points by place."""
    show = _Pictures(outcome.out / "figures", figures)
    by_release = found[0]
    analyses = _ordered(by_release)
    said = [h for h in map(words.headline, analyses) if h]
    name = outcome.values["name"]
    lead = ""
    if outcome.synthetic:
        lead += (
            '<p class="banner" role="note">SYNTHETIC data: these figures show that the software '
            "works, nothing else.</p>"
        )
    for note in notes:
        if note.startswith("INCOMPLETE"):
            lead += f'<p class="banner" role="note">{escape(note)}</p>'
    if outcome.external:
        said = [external.headline(a, made[a.matrix.place]) for a in analyses] + said
    answer = said[0] if said else "This run holds no comparison of MDMT with other configurations."
    lead += f'<p class="answer"><strong>Result.</strong> {escape(answer)}</p>'
    made_of = _external if outcome.external else _own
    parts = made_of(outcome, made, found, analyses, notes, drawn, show)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    foot = paragraph(
        f"Made by mdmt on {now} from predictions.csv. Not a medical device: nothing here is meant "
        "for the diagnosis or treatment of patients."
    )
    trained = outcome.values["configurations"]
    what = "configurations compared" if len(trained) > 1 else "results"
    if any(name.split("-")[0] == METHOD for name in trained):
        what = "multi-data-set multi-task training compared"
    what = "external validation" if outcome.external else what
    return page(f"{name}: {what}", lead, parts, foot)


def _own(outcome, made, found, analyses, notes, drawn, show) -> list[tuple]:
    """The sections of a run."""
    by_release, groups, people, others, repeats, operating = found
    return [
        ("question", "Question", sections.question(outcome)),
        ("data", "Data", sections.data(outcome)),
        ("results", "Results", _results(made, by_release, repeats, show)),
        ("sensitivity", "Sensitivity analyses", sensitivity.section(analyses, others)),
        ("calibration", "Operating points and calibration",
         _calibration(analyses, operating, people, show)),
        ("subgroups", "Subgroups and centers", _subgroups(analyses, groups, show)),
        ("paper", "The paper's statistics", _paper(outcome, made, analyses)),
        ("training", "Training", show(None, "learning") or paragraph(NO_CURVES)),
        ("cases", "Single cases", _cases(analyses, show)),
        ("audit", "Audit", sections.audit(
            outcome, findings(outcome.cohort, outcome.splits), notes)),
        ("limits", "Limits", listing(words.limits(outcome, analyses))),
        ("reproduction", "Reproduction", sections.reproduction(outcome, *drawn)),
        ("checklists", "Reporting checklists", _checklists(outcome, analyses, people)),
    ]  # fmt: skip


def _external(outcome, joint, found, analyses, notes, drawn, show) -> list[tuple]:
    """The sections of an external validation; joint: `analysis.together` by place."""
    _, groups, people, others, repeats, operating = found
    results = [
        *(paragraph(MEANING[k]) for k in dict.fromkeys(a.matrix.kind for a in analyses)),
        *(tables.to_html(external.table(a, joint[a.matrix.place])) for a in analyses),
        "<h3>Differences</h3>",
        *(_differences(a, repeats, show) for a in analyses),
    ]
    return [
        ("question", "Question", external.question(outcome)),
        ("data", "Data", sections.data(outcome)),
        ("results", "Results", "\n".join(results)),
        ("sensitivity", "Sensitivity analyses", sensitivity.section(analyses, others)),
        (
            "calibration",
            "Operating points and calibration",
            _calibration(analyses, operating, people, show),
        ),
        ("subgroups", "Subgroups and centers", _subgroups(analyses, groups, show)),
        ("cases", "Single cases", _cases(analyses, show)),
        ("audit", "Audit", external.audit(outcome, notes)),
        ("limits", "Limits", listing(external.limits(outcome, analyses))),
        ("reproduction", "Reproduction", external.reproduction(outcome, *drawn)),
    ]


def _title(a) -> str:
    m = a.matrix
    return f"{m.task}, {m.scheme}{m.named}"


def _releases(by_release: list, show) -> str:
    """The releases side by side, where there are several."""
    out: list[str] = []
    for validation, task in dict.fromkeys(a.matrix.place[1:] for a in by_release):
        some = [a for a in by_release if a.matrix.place[1:] == (validation, task)]
        if len(some) > 1:
            out.append(tables.to_html(sections.release_table(some)))
            out.append(show((validation, task), "releases"))
    return "\n".join(["<h3>Releases side by side</h3>", *out]) if out else ""


def _results(made, by_release, repeats, show) -> str:
    analyses = _ordered(by_release)
    last = (
        [a for a in analyses if a.matrix.release == analyses[0].matrix.release] if analyses else []
    )
    more = [h for h in map(words.headline, last) if h][1:]
    out = [
        "<h3>In short, beside the result above</h3>" + listing(more) if more else "",
        *(paragraph(MEANING[k]) for k in dict.fromkeys(a.matrix.kind for a in analyses)),
        *map(tables.to_html, made["table1"]),
        _releases(by_release, show),
        "<h3>Differences (primary analysis)</h3>",
    ]
    out += [_differences(a, repeats, show) for a in analyses]
    return "\n".join(out)


def _differences(a, repeats, show) -> str:
    """The primary analysis of a place."""
    out = [f"<h4>{escape(_title(a))}</h4>", listing(words.others(a))]
    table = sections.differences(a)
    out.append(tables.to_html(table) if table.rows else paragraph(NONE_HERE))
    out.append(trainings.section(a, repeats[a.matrix.place]))
    ranks = sections.ranking(a)
    if ranks is not None:
        out.append(tables.to_html(ranks))
    if a.matrix.kind == kinds.FINDINGS:
        out.append(tables.to_html(sections.finding_table(a)))
    out.append(show(a.matrix.place, "forest", "slope", "critical", "folds", "roc_pr",
                    "findings", "scatter"))  # fmt: skip
    return "\n".join(out)


def _calibration(analyses, operating, people, show) -> str:
    out = []
    for a in analyses:
        m = a.matrix
        out.append(f"<h3>{escape(_title(a))}</h3>")
        some = m.configurations if m.kind != kinds.NUMBER else []
        said = words.calibration([analysis.calibration(m, c) for c in some])
        if said:
            out.append(paragraph(said))
        if expected := recipe.reweighted(m.task, m.spec):
            out.append(paragraph(expected, "note"))
        out.append(tables.to_html(sections.all_metrics(a)))
        if operating[m.place]:
            out.append(tables.to_html(points.table(a, operating[m.place])))
        out.append(show(m.place, "reliability", "decision", "bland_altman", "confusion"))
        out += _human(a, people.get(m.place))
    return "\n".join(out)


def _human(a, found) -> list[str]:
    """The second reader beside the networks, where there is one."""
    if found is None:
        return []
    regions = sections.region_table(found)
    said = words.human(a.matrix, found)
    return [
        "<h4>The human reference</h4>",
        paragraph(said) if said else "",
        tables.to_html(sections.reader_table(a, found)),
        tables.to_html(regions) if regions is not None else "",
    ]


def _subgroups(analyses, groups, show) -> str:
    out = []
    for a in analyses:
        found = groups.get(a.matrix.place, [])
        if not found:
            continue
        out.append(f"<h3>{escape(_title(a))}</h3>")
        said = words.subgroup(found, METHOD, a.matrix.spec)
        if said:
            out.append(paragraph(said))
        out.append(tables.to_html(sections.subgroup_table(a, found)))
        out.append(show(a.matrix.place, "centers", "subgroups"))
    return "\n".join(out) or paragraph(
        "The tables of this run record no center, sex, age, view or manufacturer."
    )


def _paper(outcome, made, analyses) -> str:
    out = [paragraph("Repeated here as the paper has them, beside our own analysis above.")]
    if made["table2"]:
        out += map(tables.to_html, made["table2"])
        first = next((a for a in analyses if a.estimates), None)
        if first is not None:
            out.append(sections.false_positives(outcome, first))
    else:
        out.append(paragraph("Table 2 needs MDMT and another configuration."))
    out += map(tables.to_html, made["tableS1"])
    return "\n".join(out)


def _cases(analyses, show) -> str:
    out = [
        f"<h3>{escape(_title(a))}</h3>{text}"
        for a in analyses
        if (text := show(a.matrix.place, "cases"))
    ]
    return "\n".join(out) or paragraph("The preprocessed images are not here, or were not wanted.")


def _checklists(outcome, analyses, people) -> str:
    known = checklists.answers(outcome, analyses, people)
    heads = ["Item", "What it asks", "From this run"]
    return (
        paragraph(
            "Filled in from what the run knows, in our own short words; the originals decide. "
            f"“{checklists.YOURS}” marks what no software can know."
        )
        + "<h3>CLAIM 2024</h3>"
        + paragraph("Source: " + checklists.CLAIM_SOURCE + ".", "note")
        + text_table("CLAIM 2024", heads, checklists.filled(checklists.CLAIM, known))
        + "<h3>TRIPOD+AI</h3>"
        + paragraph("Source: " + checklists.TRIPOD_SOURCE + ".", "note")
        + text_table("TRIPOD+AI", heads, checklists.filled(checklists.TRIPOD, known))
    )
