"""The parts of the report, top-down: question, data, results, calibration, subgroups, audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import stats
from ..analysis import calibration, operating
from ..analysis.compare import METHOD, TITLES, Analysis, fewer_folds
from ..analysis.describe import Subgroup
from ..analysis.folder import Outcome, is_control
from ..experiments import CONTROLS
from ..tables.grid import Cell, Row, Table, number, percent, pvalue, to_html
from ..tables.paper import label
from . import words
from .page import escape, facts, listing, paragraph, text_table

MEANING = {
    "STL-tau1": "first task alone",
    "STL-tau2": "second task alone",
    "FT": "first task, starting from the network of the second task of the same fold",
    "MDMT": "both tasks together on mixed batches, starting from the mean of the two single-task "
    "networks of the same fold",
}


def question(outcome: Outcome) -> str:
    """What was asked and what was compared."""
    tasks = list(outcome.values["tasks"].items())
    named = "; ".join(f"{n} ({', '.join(t['classes'])})" for n, t in tasks)
    first, rest = tasks[0][0], words.joined([n for n, _ in tasks[1:]]) if len(tasks) > 1 else ""
    text = paragraph(
        f"Does a network that learns {first} from chest radiographs become better when it learns "
        f"{rest} from another data set at the same time?"
        if rest
        else f"How well do networks predict {first} from chest radiographs?"
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


def _control(outcome: Outcome, name: str) -> str:
    if name in CONTROLS:
        return CONTROLS[name]
    stages = outcome.values["experiments"].get(name)
    if not stages:
        return "a further configuration"
    said = []
    for k, s in enumerate(stages):
        start = s.get("init", "weights")
        if start == "weights":
            start = "initial weights"
        elif isinstance(start, list):
            start = f"mean of stages {' and '.join(str(k + 1) for k in start)}"
        else:
            start = f"stage {start + 1}"
        said.append(f"stage {k + 1}: {' + '.join(s['tasks'])} from {start}")
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
    counts = ", ".join(f"{c} {n}" for c, n in d["counts"].items())
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
        patients = {i for p in parts for i in p.patient.tolist()}
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
        for k in TITLES:
            c = a.find(against, k)
            if c is None:
                continue
            ours, theirs = a.estimates[METHOD, k][0], a.estimates[against, k][0]
            brier = k == "brier"
            show = (lambda v: number(v, 3)) if brier else percent
            signed = number(c.difference, 3, True) if brier else percent(c.difference, 1, True)
            cells = [
                Cell(show(ours)),
                Cell(show(theirs)),
                Cell(signed),
                Cell(words.interval(c.low, c.high, k) if c.low == c.low else "–"),
                Cell(pvalue(c.pvalue)),
                Cell(pvalue(c.holm), ""),
                Cell(pvalue(c.corrected_t)),
            ]
            title = TITLES[k] + (" (less is better)" if brier else "")
            rows.append(Row([label(against), title], cells, "",
                            k == "accuracy" and bool(rows)))  # fmt: skip
    return Table(
        "differences",
        f"{m.task}, {words.scheme(m.validation, len(m.folds))}: {METHOD} minus the others "
        f"(percent and points), n = {len(set(m.image))} images of {len(set(m.patient))} patients",
        ["Against", "Metric"],
        [],
        [METHOD, "other", "difference", "95 % interval", "p", "p, Holm", "p, corrected t"],
        rows,
        list(filter(None, [words.method(a), fewer_folds(m)])),
    )


def ranking(a: Analysis) -> Table | None:
    """Mean ranks over backbones, or None."""
    if not a.ranks:
        return None
    names = a.matrix.configurations
    if len(a.matrix.backbones) < 3:
        return None
    rows = [
        Row([TITLES[r.metric]], [Cell(number(v, 2)) for v in r.ranks]
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
    "correlation": "correlation of the expected class",
}


def all_metrics(a: Analysis) -> Table:
    """Every metric and the calibration of every configuration at a place."""
    m = a.matrix
    found = {c: operating(m, c) for c in m.configurations}
    cal = {c: calibration(m, c) for c in m.configurations}
    names = list(found[m.configurations[0]])
    plain = {"mcc", "brier", "quadratic_weighted_kappa", "mae", "correlation"}
    rows = [
        Row([OPERATING[k]], [
            Cell(number(found[c][k], 3) if k in plain else percent(found[c][k]))
            for c in m.configurations
        ])
        for k in names
    ]  # fmt: skip
    rows.append(Row(["ECE, bins of equal count"],
                    [Cell(percent(cal[c].ece)) for c in m.configurations], "", True))  # fmt: skip
    rows.append(Row(["ECE, bins of equal width"],
                    [Cell(percent(cal[c].ece_width)) for c in m.configurations]))  # fmt: skip
    if len(m.classes) == 2:
        rows.append(Row(["calibration slope (1 is perfect)"],
                        [Cell(number(cal[c].slope, 2)) for c in m.configurations]))  # fmt: skip
        rows.append(Row(["calibration intercept (0 is perfect)"],
                        [Cell(number(cal[c].intercept, 2, True))
                         for c in m.configurations]))  # fmt: skip
    most = int(np.bincount(m.y).argmax())
    share = float(np.mean(m.y == most))
    return Table(
        "metrics",
        f"{m.task}, {words.scheme(m.validation, len(m.folds))}: all metrics",
        ["Metric"],
        [],
        [label(c) for c in m.configurations],
        rows,
        ["Percent, except MCC, Brier, kappa, MAE, correlation, slope, intercept; means over folds "
         "and networks. Calibration: all folds pooled, mean over networks.",
            f"Always calling {m.classes[most]} would have an accuracy of {percent(share)} %.",
            *filter(None, [fewer_folds(m)])],
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
        cells = [percent(r.exact), spread(r.kappa), beyond, number(r.mae, 2),
                 number(r.spearman, 2), "–" if people else number(r.other, 2)]  # fmt: skip
        name = r.name if people else label(r.name)
        rows.append(Row([name], [Cell(c) for c in cells], "mean" if people else "", len(rows) == 1))
    return Table(
        "readers",
        f"{m.task}, {words.scheme(m.validation, len(m.folds))}: agreement with the first reader, "
        f"n = {found.n} images of {found.patients} patients that both scored",
        ["Who"],
        [],
        ["equal, %", "weighted kappa", "minus the second's", "MAE, classes", "Spearman",
         "kappa with second"],
        rows,
        ["95 % intervals by patient; networks: means, each image by the network that did not train "
         "on it. The labels are the first reader's, so that agreement beyond the second reader's "
         "may be no more than learning the first one's habits."],
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
    kinds = ("accuracy", "f1", "gmean", "auc")
    rows = []
    for a in analyses:
        for c in a.matrix.configurations:
            cells = []
            for k in kinds:
                i = a.estimates[c, k]
                cells.append(Cell(f"{percent(i[0], 0)} ({percent(i[1], 0)} to {percent(i[2], 0)})"))
            for k in ("accuracy", "auc"):
                d = a.find(c, k)
                text = "–"
                if d is not None and d.low == d.low:
                    text = f"{percent(d.difference, 1, True)} ({words.interval(d.low, d.high)})"
                cells.append(Cell(text))
            name = f"{a.matrix.release} (n = {len(set(a.matrix.image))})"
            rows.append(Row([name, label(c)], cells,
                            "control" if is_control(c) else "",
                            bool(rows) and c == a.matrix.configurations[0]))  # fmt: skip
    return Table(
        "releases",
        f"{m.task}, {words.scheme(m.validation, len(m.folds))}: the releases side by side, percent "
        "(95 % interval)",
        ["Release", "Configuration"],
        [("", len(kinds)), (f"{METHOD} minus this, points", 2)],
        [*(TITLES[k] for k in kinds), TITLES["accuracy"], TITLES["auc"]],
        rows,
        ["Intervals by patient. Releases that contain one another share patients: their rows are "
         "not independent."],
    )  # fmt: skip


def subgroup_table(a: Analysis, groups: list[Subgroup]) -> Table:
    """Accuracy and AUC within subgroups."""
    m = a.matrix
    names = next((list(g.found) for g in groups if g.found), [])
    kinds = ["accuracy", "auc"] if len(m.classes) == 2 else ["accuracy"]
    rows, previous = [], None
    for g in groups:
        events = [Cell(str(g.positive))] if len(m.classes) == 2 else []
        cells = [Cell(str(g.n)), Cell(str(g.patients)), *events]
        for k in kinds:
            for c in names:
                i = g.found.get(c, {}).get(k)
                text = "–"
                if i is not None:
                    ends = f"{percent(i.low, 0)} to {percent(i.high, 0)}"
                    text = f"{percent(i.estimate, 0)} ({ends})"
                cells.append(Cell(text))
        rows.append(Row([g.variable, g.level], cells, "", g.variable != previous and bool(rows)))
        previous = g.variable
    columns = ["images", "patients"] + ([m.classes[m.positive]] if len(m.classes) == 2 else [])
    return Table(
        "subgroups",
        f"{m.task}, {words.scheme(m.validation, len(m.folds))}: subgroups, percent (95 % interval)",
        ["Variable", "Level"],
        [("", len(columns)), *((TITLES[k], len(names)) for k in kinds)],
        [*columns, *(c for _ in kinds for c in names)],
        rows,
        ["Cases of all folds pooled; intervals by patient; '–': fewer than 10 images or 5 "
         "patients, or one class only. No correction for the number of subgroups."],
    )  # fmt: skip


def false_positives(outcome: Outcome, a: Analysis, n_simulations: int = 400) -> str:
    """How often the paper's test would claim a difference in a null study of this size."""
    m = a.matrix
    backbones = len(m.backbones) if len(m.backbones) > 1 else 18
    accuracy = float(np.clip(a.estimates[m.configurations[0], "accuracy"][0], 0.51, 0.95))
    cases, folds = min(2000, len(m.y)), max(2, len(m.folds))
    arguments = (
        f"n_simulations={n_simulations}, shared=0.3, accuracy={accuracy:.2f}, cases={cases}, "
        f"backbones={backbones}, folds={folds}"
    )
    rates = stats.false_positive_rate_of_paper_test(
        n_simulations, shared=0.3, accuracy=round(accuracy, 2), cases=cases, backbones=backbones,
        folds=folds,
    )  # fmt: skip
    size = f"{cases} cases, {folds} folds and {backbones} backbones"
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


def audit(outcome: Outcome, findings: list[str], notes: list[str]) -> str:
    """What was checked, and what was found."""
    checks = [
        "Every test case of every fold has exactly one prediction per network, and no other case "
        "has one (splits.json)."
        if outcome.splits is not None
        else "splits.json is missing: test parts could not be checked.",
        "All predictions are those that the trainings left in runs/."
        if outcome.jobs and not any("compared with the trainings" in n for n in outcome.notes)
        else "Predictions could not all be compared with the trainings' own files.",
        "Probabilities add up to 1, and the predicted class has the largest.",
    ]
    out = "<h3>Checked</h3>" + listing(checks) + "<h3>Findings in the splits</h3>"
    out += listing(findings) if findings else paragraph("None.")
    if notes:
        out += "<h3>Notes</h3>" + listing(notes)
    return out


def reproduction(outcome: Outcome, n: int, seed: int) -> str:
    """Command, seeds, versions, hashes."""
    from .. import __version__, config

    commands = (
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
        ("Training seeds", ", ".join(map(str, outcome.values["seeds"]))),
        ("Seed of the splits", outcome.values["cv"]["seed"]),
        ("Bootstrap", f"{n:,} resamples, seed {seed}"),
        ("Trainings", len(outcome.jobs)),
        *((f"Trained with {k}", v) for k, v in outcome.environment.items()),
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
