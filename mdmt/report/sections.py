"""The parts of the report, top-down: question, data, results, calibration, subgroups, audit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .. import config, kinds, stats
from ..analysis import calibration, operating
from ..analysis.cohort import people
from ..analysis.compare import METHOD, Analysis, fewer_folds
from ..analysis.describe import Subgroup, by_finding
from ..analysis.folder import Outcome, is_control
from ..experiments import CONTROLS, stages_of
from ..measures import MEASURES, compared, drawn, grouped, leading
from ..tables.grid import Cell, Row, Table, measured, number, percent, pvalue, to_html
from ..tables.paper import label
from . import words
from .page import escape, facts, listing, paragraph, text_table

MEANING = {
    "STL-tau1": "first task alone",
    "STL-tau2": "second task alone",
    "FT": "first task, starting from the network of the second task of the same fold",
    "FT-tau2": "second task, starting from the network of the first task of the same fold",
}


def question(outcome: Outcome) -> str:
    """What was asked and what was compared."""
    values = outcome.values
    named = "; ".join(f"{n} ({_kind(t)})" for n, t in values["tasks"].items())
    first, *others = values["tasks"]
    together = [s["tasks"] for c in values["configurations"] for s in stages_of(values, c)[-1:]]
    rest = [t for t in others if any(first in some and t in some for some in together)]
    seen = "images in colour" if values["data"]["colour"] else "chest radiographs"
    text = paragraph(
        f"Does a network that learns {first} from {seen} become better when it learns "
        f"{words.joined(rest)} from {'another data set' if len(rest) == 1 else 'other data sets'} "
        "at the same time?"
        if rest
        else f"How well do networks predict {words.joined(words.tested(outcome))} from {seen}?"
    )
    rows = []
    for name in outcome.values["configurations"]:
        meaning = MEANING.get(name) or _control(outcome, name)
        rows.append([label(name), meaning])
    return (
        text
        + paragraph(f"Tasks: {named}.")
        + text_table("Configurations compared", ["Name", "What it is"], rows)
    )


def _kind(task: dict) -> str:
    """What a task asks for: classes, findings, or a number."""
    kind, named = kinds.kind_of(task), ", ".join(task["classes"])
    if kind == kinds.FINDINGS:
        return f"any of {named}"
    if kind == kinds.CLASSES:
        return named + (", in this order" if task["head"]["loss"] == "ordinal" else "")
    cuts = ", ".join(f"{t:g}" for t in task["thresholds"] or [])
    return "a number" + (f"; cut at {cuts} into {named}" if cuts else "")


def _control(outcome: Outcome, name: str) -> str:
    if name in CONTROLS:
        return CONTROLS[name]
    if (start := words.average(outcome.values, name)) is not None:
        return f"both tasks together on mixed batches, starting from {start} of the same fold"
    if alone := re.fullmatch(r"STL-tau(\d+)", name):
        return f"task {alone[1]} alone"
    stages = outcome.values["experiments"].get(name)
    if not stages:
        return "a further configuration"
    said = []
    for k, s in enumerate(stages):
        start = s.get("init", "weights")
        if start == "weights":
            start = "initial weights"
        elif isinstance(start, list):
            start = words.mean_of(outcome.values, start, s.get("shares"))
        else:
            start = f"stage {start + 1}"
        own = [f"{n} {v}" for n, v in config.flatten(s["train"]).items()] if s["train"] else []
        own = f" with {words.joined(own)}" if own else ""
        said.append(f"stage {k + 1}: {' + '.join(s['tasks'])} from {start}{own}")
    return "; ".join(said)


def data(outcome: Outcome) -> str:
    """Flow of the cases into the parts, counts, exclusions."""
    sets = (outcome.cohort or {}).get("datasets", [])
    if not sets:
        return paragraph(
            "The out folder holds no cohort.json: counts before the test parts are not known. "
            "Running `mdmt run --resume` again writes it."
        ) + _tested(outcome)
    notes = [f"{d['name']}: {w}" for d in sets for w in d["warnings"]]
    out = ""
    several = len(outcome.values["data"]["releases"] or []) > 1
    for releases in dict.fromkeys(tuple(d["releases"]) for d in sets):
        if several:
            which = "Release " if len(releases) == 1 else "Releases "
            out += f"<h3>{escape(which + words.joined(releases))}</h3>"
        some = [d for d in sets if tuple(d["releases"]) == releases]
        flows = "".join(f"<li>{_flow(outcome, d, 4 if several else 3)}</li>" for d in some)
        out += f'<ul class="flow" aria-label="Flow of cases, a list per data set">{flows}</ul>'
    if notes:
        out += "<h3>Notes while reading</h3>" + listing(notes[:40])
        if len(notes) > 40:
            out += paragraph(f"... and {len(notes) - 40} more.")
    return out + _tested(outcome)


def _flow(outcome: Outcome, d: dict, level: int) -> str:
    counts = kinds.counted(d["counts"], d["counts"].values())
    centers = sorted({c for c in d["cases"]["center"] if c})
    place = f", {len(centers)} centers" if centers else ""
    boxes = [f"<li>{d['rows']} rows in the table</li>"]
    if d["missing_labels"]:
        boxes.append(f'<li class="out">{d["missing_labels"]} without a label: left out</li>')
    if d["excluded"]:
        names = "".join(f"<li>{escape(_excluded(e))}</li>" for e in d["excluded"])
        images = "1 image" if len(d["excluded"]) == 1 else f"{len(d['excluded'])} images"
        boxes.append(
            f'<li class="out">{images} excluded<details>'
            f'<summary>file and reason</summary><ul class="folds">{names}</ul></details></li>'
        )
    boxes.append(
        f"<li>{d['images']} images of {d['patients']} patients{place}<br>{escape(d['task'])}: "
        f"{escape(counts)}</li>"
    )
    folds = "".join(
        f"<li>{escape(text)}</li>" for text in _folds(outcome, d["name"], d["releases"])
    )
    if folds:
        boxes.append(f'<li>Training / validation / test<ul class="folds">{folds}</ul></li>')
    return f"<h{level}>{escape(d['name'])}</h{level}><ol>{''.join(boxes)}</ol>"


def _excluded(text: str) -> str:
    """`folder/file: reason` without the folder."""
    path, mark, reason = text.partition(": ")
    return f"{Path(path).name}{mark}{reason}"


def _folds(outcome: Outcome, name: str, releases: list) -> list[str]:
    found = []
    for validation, folds in (outcome.splits or {"validation": {}})["validation"].items():
        for entry in folds:
            part = entry["datasets"].get(name)
            if part is None or entry.get("release") not in (None, *releases):
                continue
            sizes = " / ".join(str(len(part[p])) for p in ("train", "val", "test"))
            center = f" ({part['center']})" if "center" in part else ""
            release = f"release {entry['release']}, " if len(releases) > 1 else ""
            found.append(f"{release}{validation} fold {entry['fold']}{center}: {sizes}")
    return found


def _tested(outcome: Outcome) -> str:
    rows = []
    for release, validation, task in outcome.places:
        parts = outcome.select(release=release, validation=validation, task=task)
        images = {i for p in parts for i in p.image.tolist()}
        patients = {i for p in parts
                    for i in people(outcome.cohort, release, task, p.image, p.patient)}  # fmt: skip
        nets = len({(p.backbone, p.seed, p.configuration, p.fold) for p in parts})
        cells = [release, task, validation, str(len(images)), str(len(patients)), str(nets)]
        rows.append(Row(cells[:3], [Cell(c) for c in cells[3:]]))
    return to_html(
        Table("tested", "Tested cases", ["Release", "Task", "Validation"], [],
              ["images", "patients", "networks tested"], rows)
    )  # fmt: skip


def differences(a: Analysis) -> Table:
    """The primary analysis of a place as a table."""
    m = a.matrix
    rows = []
    for against in (c for c in m.configurations if c != METHOD):
        for k in compared(m.spec):
            c = a.find(against, k)
            if c is None:
                continue
            ours, theirs = a.estimates[METHOD, k][0], a.estimates[against, k][0]
            cells = [
                Cell(measured(k, ours)),
                Cell(measured(k, theirs)),
                Cell(measured(k, c.difference, True)),
                Cell(words.interval(c.low, c.high, k) if c.low == c.low else "–"),
                Cell(pvalue(c.pvalue)),
                Cell(pvalue(c.holm), ""),
                *([] if m.external else [Cell(pvalue(c.corrected_t))]),
            ]
            title = words.titled(k, m.spec) + " (less is better)" * MEASURES[k].less
            rows.append(Row([label(against), title], cells, "",
                            k == compared(m.spec)[0] and bool(rows)))  # fmt: skip
    return Table(
        "differences",
        f"{m.task}, {m.scheme}: {METHOD} minus the others "
        f"({_units(m)}), "
        f"n = {len(set(m.image))} images of {len(set(m.patient))} patients",
        ["Against", "Metric"],
        [],
        [
            METHOD,
            "other",
            "difference",
            "95 % interval",
            "p",
            "p, Holm",
            *([] if m.external else ["p, corrected t"]),
        ],
        rows,
        list(filter(None, [words.method(a), fewer_folds(m)])),
    )


def _units(m) -> str:
    if m.kind != kinds.NUMBER:
        return "percent and points"
    return "MAE and RMSE in the label's unit" + (", classes in percent" if m.classes else "")


def ranking(a: Analysis) -> Table | None:
    """Mean ranks over backbones, or None."""
    if not a.ranks:
        return None
    names = a.matrix.configurations
    if len(a.matrix.backbones) < 3:
        return None
    rows = [
        Row([MEASURES[r.metric].title], [Cell(number(v, 2)) for v in r.ranks]
            + [Cell(number(r.critical_difference, 2)), Cell(pvalue(r.friedman))])
        for r in a.ranks
    ]  # fmt: skip
    return Table(
        "ranks",
        f"Mean ranks over {a.ranks[0].n} backbones (1 is best)",
        ["Metric"],
        [],
        [*names, "critical difference", "p (Friedman)"],
        rows,
        ["A description: backbones that share patients are not independent observations."],
    )


OPERATING = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1 positive",
    "f1_macro": "F1 macro",
    "f1_weighted": "F1 weighted",
    "gmean": "G-mean",
    "mcc": "MCC",
    "auc": "AUC",
    "brier": "Brier",
    "quadratic_weighted_kappa": "weighted kappa",
    "mae": "MAE (classes)",
    "rmse": "RMSE (root mean squared error)",
    "r2": "R² (coefficient of determination)",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's rank correlation",
    "ccc": "Lin's concordance (CCC)",
    "bias": "predicted minus label, mean",
    "correlation": "correlation of the expected class",
}


def all_metrics(a: Analysis) -> Table:
    """Every metric and the calibration of every configuration at a place."""
    m = a.matrix
    found = {c: operating(m, c) for c in m.configurations}
    names = list(found[m.configurations[0]])
    rows = [
        Row([_operating(k, m)], [Cell(_plain(k, found[c][k])) for c in m.configurations])
        for k in names
    ]  # fmt: skip
    if m.kind != kinds.NUMBER:
        rows += _calibrated(m)
    note = f"MAE, RMSE and the difference in the label's unit; means over {m.over}."
    if m.kind != kinds.NUMBER:
        note = (
            "Percent, except MCC, Brier, kappa, MAE, correlation, slope, intercept; means over "
            f"{m.over}. Calibration: {'' if m.external else 'all folds pooled, '}mean over "
            "networks; an ECE is "
            "above 0 by chance alone, the more so the fewer cases."
        )
        if m.two or m.kind == kinds.FINDINGS:
            note += " Slope and intercept with 95 % intervals by patient; '–': the probabilities "
            note += "hardly differ."
    elif m.classes:
        note += " Accuracy to weighted kappa: of the classes that the thresholds make; percent "
        note += "but for MCC and kappa."
    return Table(
        "metrics",
        f"{m.task}, {m.scheme}: all metrics",
        ["Metric"],
        [],
        [label(c) for c in m.configurations],
        rows,
        [note, _baseline(m), *filter(None, [words.one_class(m), fewer_folds(m)])],
    )


PLAIN = {"mcc", "brier", "quadratic_weighted_kappa", "correlation", "bias", "spearman"}


def _operating(name: str, m) -> str:
    if m.kind == kinds.FINDINGS:
        mean = {"f1": "F1, mean of the findings", "f1_weighted": "F1, weighted by cases"}
        return mean.get(name, f"{OPERATING[name]}, mean of the findings")
    if m.kind == kinds.NUMBER and name == "mae":
        return "MAE (mean absolute error)"
    return OPERATING[name]


def _plain(name: str, value: float) -> str:
    if name in MEASURES and not MEASURES[name].share:
        return measured(name, value)
    return number(value, 3, name == "bias") if name in PLAIN else percent(value)


def _calibrated(m) -> list[Row]:
    """Rows of calibration."""
    cal = {c: calibration(m, c) for c in m.configurations}
    rows = [
        Row([title], [Cell(percent(getattr(cal[c], name))) for c in m.configurations], "",
            name == "ece")
        for name, title in (("ece", "ECE, bins of equal count"),
                            ("ece_width", "ECE, bins of equal width"))
    ]  # fmt: skip
    if m.two or m.kind == kinds.FINDINGS:
        rows.append(Row(["calibration slope (1 is perfect)"],
                        [Cell(_slope(cal[c])) for c in m.configurations]))  # fmt: skip
        rows.append(Row(["calibration intercept (0 is perfect)"],
                        [Cell(_ends(cal[c].intercept, *cal[c].intercept_interval, True))
                         for c in m.configurations]))  # fmt: skip
    return rows


def _ends(value: float, low: float, high: float, signed: bool = False) -> str:
    text = number(value, 2, signed)
    if low != low:
        return text
    return f"{text} ({number(low, 2, signed)} to {number(high, 2, signed)})"


def _slope(c) -> str:
    """A slope with its interval; "–" where the probabilities hardly differ."""
    if np.isfinite(c.slope) and max(np.abs([c.slope, *c.slope_interval])) >= 100:
        return "–"
    return _ends(c.slope, *c.slope_interval)


def _baseline(m) -> str:
    """What a network that does not look would reach."""
    y = m.y[m.once]
    if m.kind == kinds.NUMBER:
        middle = float(np.median(y))
        error = float(np.mean(np.abs(y - middle)))
        return (
            f"Always saying the median, {middle:g}, would have an MAE of {number(error, 2)}; "
            "always the mean an R² of 0."
        )
    if m.kind == kinds.FINDINGS:
        yes = np.nanmean(y[:, ~np.isnan(y).all(0)], 0)  # of the findings that have labels
        share = float(np.mean(np.maximum(yes, 1 - yes)))
        return (
            f"Always saying of each finding what is more frequent would have an accuracy of "
            f"{percent(share)} %."
        )
    most = int(np.bincount(y).argmax())
    share = float(np.mean(y == most))
    return f"Always calling {m.classes[most]} would have an accuracy of {percent(share)} %."


def finding_table(a: Analysis) -> Table:
    """AUC and F1 of each finding."""
    m = a.matrix
    found = {c: by_finding(m, c) for c in m.configurations}
    rows = []
    for k, name in enumerate(m.classes):
        known = m.y[m.once, k][~np.isnan(m.y[m.once, k])]
        cells = [Cell(f"{int(known.sum())} of {len(known)}")]
        cells += [Cell(percent(found[c][x][k])) for x in ("auc", "f1") for c in m.configurations]
        rows.append(Row([name], cells))
    names = [label(c) for c in m.configurations]
    return Table(
        "findings",
        f"{m.task}, {m.scheme}: each finding, percent",
        ["Finding"],
        [("", 1), ("AUC", len(names)), ("F1", len(names))],
        ["cases", *names, *names],
        rows,
        [f"Means over {m.over}; '–': no test part has cases with the finding and "
         "without. A finding is called above a probability of one half: F1 of a rare one is then "
         "often 0 however well it is ranked."],
    )  # fmt: skip


def reader_table(a: Analysis, found) -> Table:
    """The second reader and the networks, against the first reader; found: analysis.Readers."""
    m = a.matrix

    def spread(i):
        return f"{number(i.estimate, 2)} ({number(i.low, 2)} to {number(i.high, 2)})"

    rows = []
    for r in found.readings:
        people = r is found.readings[0]
        beyond = (
            "–"
            if people
            else f"{number(r.beyond.difference, 2, True)} ({number(r.beyond.low, 2, True)} to "
            f"{number(r.beyond.high, 2, True)})"
        )
        exact = "–" if m.kind == kinds.NUMBER and not people else percent(r.exact)
        cells = [exact, spread(r.kappa), beyond, number(r.mae, 2),
                 number(r.spearman, 2), "–" if people else number(r.other, 2)]  # fmt: skip
        name = r.name if people else label(r.name)
        rows.append(Row([name], [Cell(c) for c in cells], "mean" if people else "", len(rows) == 1))
    return Table(
        "readers",
        f"{m.task}, {m.scheme}: agreement with the first reader, "
        f"n = {found.n} images of {found.patients} patients that both scored",
        ["Who"],
        [],
        ["equal, %", "CCC", "minus the second's", "MAE", "Spearman", "CCC with second"]
        if m.kind == kinds.NUMBER else
        ["equal, %", "weighted kappa", "minus the second's", "MAE, classes", "Spearman",
         "kappa with second"],
        rows,
        ["All images pooled; 95 % intervals by patient; networks: means, each image by the network "
         "that did not train on it. The labels are the first reader's, so that agreement beyond "
         "the second reader's may be no more than learning the first one's habits."],
    )  # fmt: skip


def region_table(found) -> Table | None:
    """Agreement of the two readers by region, or None."""
    if not found.regions:
        return None
    titles = {"right": "right lung (0-9)", "left": "left lung (0-9)", "global": "global (0-18)"}
    rows = [
        Row([titles.get(name, f"region {name} (0-3)")],
            [Cell(c) for c in (percent(x.exact), number(x.weighted_kappa, 2), number(x.icc, 2),
                               number(x.mae, 2), number(x.bias, 2, True), number(x.pearson, 2))],
            "", name == "right")
        for name, x in found.regions.items()
    ]  # fmt: skip
    n = found.regions["global"].n
    return Table(
        "regions",
        f"The two readers by region, n = {n} images",
        ["Score"],
        [],
        ["equal, %", "weighted kappa", "ICC(2,1)", "MAE, points", "second minus first", "Pearson"],
        rows,
    )


def release_table(analyses: list[Analysis]) -> Table:
    """One task and validation scheme over the releases: estimates and differences."""
    m = analyses[-1].matrix
    shown, first = drawn(m.spec), [k for k, _ in leading(m.spec)]
    rows = []
    for a in analyses:
        for c in a.matrix.configurations:
            cells = []
            for k in shown:
                i = [measured(k, v, digits=0) for v in a.estimates[c, k]]
                cells.append(Cell(f"{i[0]} ({i[1]} to {i[2]})"))
            for k in first:
                d = a.find(c, k)
                text = "–"
                if d is not None and d.low == d.low:
                    ends = words.interval(d.low, d.high, k)
                    text = f"{measured(k, d.difference, True)} ({ends})"
                cells.append(Cell(text))
            name = f"{a.matrix.release} (n = {len(set(a.matrix.image))})"
            rows.append(Row([name, label(c)], cells,
                            "control" if is_control(c) else "",
                            bool(rows) and c == a.matrix.configurations[0]))  # fmt: skip
    return Table(
        "releases",
        f"{m.task}, {m.scheme}: the releases side by side"
        f"{', percent' if m.kind != kinds.NUMBER else ''} (95 % interval)",
        ["Release", "Configuration"],
        [("", len(shown)),
         (f"{METHOD} minus this{', points' if m.kind != kinds.NUMBER else ''}", len(first))],
        [MEASURES[k].title for k in (*shown, *first)],
        rows,
        ["Intervals by patient. Releases that contain one another share patients: their rows are "
         "not independent."],
    )  # fmt: skip


def subgroup_table(a: Analysis, groups: list[Subgroup]) -> Table:
    """The measures `mdmt.measures.grouped` within subgroups."""
    m = a.matrix
    names = next((list(g.found) for g in groups if g.found), [])
    shown = grouped(m.spec)
    rows, previous = [], None
    for g in groups:
        events = [Cell(str(g.positive))] if m.two else []
        cells = [Cell(str(g.n)), Cell(str(g.patients)), *events]
        for k in shown:
            for c in names:
                i = g.found.get(c, {}).get(k)
                text = "–"
                if i is not None:
                    value, low, high = (measured(k, v, digits=0) for v in i)
                    text = f"{value} ({low} to {high})"
                cells.append(Cell(text))
        rows.append(Row([g.variable, g.level], cells, "", g.variable != previous and bool(rows)))
        previous = g.variable
    columns = ["images", "patients"] + ([m.classes[m.positive]] if m.two else [])
    return Table(
        "subgroups",
        f"{m.task}, {m.scheme}: subgroups"
        f"{', percent' if m.kind != kinds.NUMBER else ''} (95 % interval)",
        ["Variable", "Level"],
        [("", len(columns)), *((MEASURES[k].title, len(names)) for k in shown)],
        [*columns, *(c for _ in shown for c in names)],
        rows,
        [f"{'' if m.external else 'Cases of all folds pooled. '}Intervals by patient; '–': fewer "
         "than 10 images or 5 patients, or one class only. No correction for the number of "
         "subgroups."],
    )  # fmt: skip


def false_positives(outcome: Outcome, a: Analysis, n_simulations: int = 400) -> str:
    """How often the paper's test would claim a difference in a null study of this size."""
    m = a.matrix
    backbones = len(m.backbones) if len(m.backbones) > 1 else 18
    known = a.estimates.get((m.configurations[0], "accuracy"), (0.67,))[0]  # else the paper's
    accuracy = float(np.clip(known, 0.51, 0.95))
    folds = max(2, len(m.folds))
    cases = max(min(2000, len(m.y)), 2 * folds)
    arguments = (
        f"n_simulations={n_simulations}, shared=0.3, accuracy={accuracy:.2f}, cases={cases}, "
        f"backbones={backbones}, folds={folds}"
    )
    rates = stats.false_positive_rate_of_paper_test(
        n_simulations, shared=0.3, accuracy=round(accuracy, 2), cases=cases, backbones=backbones,
        folds=folds,
    )  # fmt: skip
    size = f"{cases} cases, {folds} folds{' (this run has one)' * (len(m.folds) < 2)} and "
    size += f"{backbones} backbones"
    if len(m.backbones) < 2:
        size += " (the paper's; this run has one)"
    return (
        paragraph(
            f"In {n_simulations} simulated studies of {size} in which no configuration is better, "
            f"the paper's one-tailed test at 5 % claims a higher mean in {100 * rates.mu:.0f} % "
            f"(standard error {100 * rates.standard_error:.0f} points); a test over the cases "
            f"claims one in {100 * rates.case_level:.0f} %. To repeat it:"
        )
        + f'<pre tabindex="0" aria-label="Command"><code>python -c "from mdmt import stats; '
        f"print(stats.false_positive_rate_of_paper_test({arguments}))&quot;</code></pre>"
    ).replace('python -c "', "python -c &quot;")


DECIDED = {
    kinds.CLASSES: "Probabilities of classes add up to 1, and the predicted class has the largest.",
    kinds.FINDINGS: "Probabilities of findings lie in 0 to 1, and those above a half are called.",
    kinds.NUMBER: "Labels and predictions of numbers are finite.",
}


def audit(outcome: Outcome, findings: list[str], notes: list[str]) -> str:
    """What was checked, and what was found."""
    found = {kinds.kind_of(t) for t in outcome.values["tasks"].values()}
    checks = [
        "Every test case of every fold has exactly one prediction per network, and no other case "
        "has one (splits.json)."
        if outcome.splits is not None
        else "splits.json is missing: test parts could not be checked.",
        "All predictions are those that the trainings left in runs/."
        if outcome.jobs and not any("compared with the trainings" in n for n in outcome.notes)
        else "Predictions could not all be compared with the trainings' own files.",
        *(text for kind, text in DECIDED.items() if kind in found),
    ]
    out = "<h3>Checked</h3>" + listing(checks) + "<h3>Findings in the splits</h3>"
    out += listing(findings) if findings else paragraph("None.")
    if notes:
        out += "<h3>Notes</h3>" + listing(notes)
    return out


def reproduction(outcome: Outcome, n: int, seed: int, commands: str = "") -> str:
    """Command, seeds, versions, hashes."""
    from .. import __version__, config

    commands = commands or (
        "mdmt run config.yaml --out NEW      # trains everything again\n"
        f"mdmt report OUT --resamples {n} --seed {seed}   # this report from the predictions"
    )
    manifests = sorted(
        {
            f"{d['name']} {d['manifest']}"
            for j in outcome.jobs.values()
            for d in j["description"]["datasets"]
        }
    )
    pairs = [
        ("Study", outcome.values["name"]),
        *(
            []
            if outcome.external
            else [
                ("Training seeds", ", ".join(map(str, outcome.values["seeds"]))),
                ("Seed of the splits", outcome.values["cv"]["seed"]),
                ("Trainings", len(outcome.jobs)),
            ]
        ),
        ("Bootstrap", f"{n:,} resamples, seed {seed}"),
        *(
            (f"{'Predicted' if outcome.external else 'Trained'} with {k}", v)
            for k, v in outcome.environment.items()
        ),
        ("Reported with mdmt", __version__),
        ("Reported with numpy", np.__version__),
        *((f"SHA-256, {k}", v) for k, v in outcome.hashes.items()),
        *(("Data manifest", m) for m in manifests),
    ]
    text = escape(config.dump(outcome.values))
    return (
        f'<pre tabindex="0" aria-label="Commands"><code>{escape(commands)}</code></pre>'
        + facts(pairs)
        + "<details><summary>The whole configuration (config.yaml)</summary>"
        f'<pre tabindex="0" aria-label="config.yaml"><code>{text}</code></pre></details>'
    )


def controls(outcome: Outcome) -> list[str]:
    """Names of the configurations beyond the paper's four."""
    return [c for c in outcome.values["configurations"] if is_control(c)]
