"""Figures, drawn with Matplotlib, which is imported only when one is drawn.

`draw` makes all figures of an out folder as PNG and SVG and says what each shows.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np

from .. import kinds
from ..analysis.compare import METHOD, Analysis, Matrix
from ..analysis.folder import Outcome
from ..errors import BadInput
from ..measures import MEASURES, drawn, grouped, leading
from ..paths import make_folder, read_csv, write_atomic
from ..tables.grid import measured
from . import cases, comparisons, curves, numbers, style

ENOUGH = 5  # backbones from which on a critical-difference diagram says anything
LOSSES = {
    kinds.CLASSES: "nats per case",
    kinds.NUMBER: "shares of the variance",
    kinds.FINDINGS: "nats per finding",
}
SHEETS = {
    kinds.CLASSES: "true class got the highest and the lowest probability",
    kinds.NUMBER: "number was predicted with the least and the largest error",
    kinds.FINDINGS: "findings (and their absence) got the highest and the lowest mean probability",
}


class Figure(NamedTuple):
    """A figure that was drawn: file name without ending, title, what a reader who cannot see it
    should know, what it shows; place is (release, validation, task), or None for the whole run."""

    name: str
    title: str
    alt: str
    caption: str
    place: tuple | None


def available() -> str | None:
    """None when figures can be drawn, else one sentence that says why not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        return (
            f"figures: Matplotlib is not usable here ({error}), so none were drawn; "
            "`pip install matplotlib` and `mdmt report OUT` draws them"
        )
    return None


def describe(m: Matrix) -> str:
    """The cases and networks of a place, in words."""
    nets = len(m.nets)
    return (
        f"{m.task}, {m.scheme}: n = {len(set(m.image))} images of {len(set(m.patient))} patients, "
        f"{nets} network{'s' if nets > 1 else ''} per "
        f"{'configuration' if m.external else 'fold and configuration'}"
    )


class _Saver:
    """Writes figures to OUT/figures and keeps the list of them."""

    def __init__(self, outcome: Outcome):
        self.folder = make_folder(outcome.out / "figures")
        self.outcome = outcome
        self.releases = len({p.release for p in outcome.parts})
        self.figures: list[Figure] = []

    def __call__(
        self, fig, kind: str, title: str, alt: str, caption: str, m=None, across: bool = False
    ) -> None:
        """Write `fig` as <kind>_<place>.png and .svg; None is passed over. across: the figure is
        of all releases, and its place is (validation, task) alone."""
        if fig is None:
            return
        place = m.place if m is not None else None
        if across:
            place = place[1:]
        name = kind
        if m is not None:
            shown = place if self.releases > 1 or across else place[1:]
            name = "_".join([kind, *("".join(c if c.isalnum() else "-" for c in x) for x in shown)])
        heading = [title]
        if m is not None:
            heading.append(describe(m) if not across else f"{m.task}, {m.scheme}")
        if self.outcome.synthetic:
            heading.append("SYNTHETIC data")
        elif self.releases > 1 and m is not None and not across:
            heading.append(f"release {place[0]}")
        width = int(13 * fig.get_figwidth())  # characters of 9 points
        heading = [line for text in heading for line in textwrap.wrap(text, width)]
        fig.suptitle("\n".join(heading), fontsize=9, x=0.01, ha="left")
        for kind_, content in style.render(fig).items():
            write_atomic(self.folder / f"{name}.{kind_}", content)
        self.figures.append(Figure(name, title, alt, caption, place))


def draw(outcome: Outcome, analyses: list[Analysis], groups: dict, samples: bool = True):
    """Draw every figure to OUT/figures; return the list of `Figure`.

    groups: {place: [Subgroup]}; samples: also the sheet of best and worst cases.
    """
    with style.drawing():
        save = _Saver(outcome)
        stages = learning_curves(outcome)
        if stages:
            least = outcome.values["train"]["warmup_epochs"]
            from_ = f", after {least} epochs of warm-up," if least else ""
            units = {n: LOSSES[kinds.kind_of(t)] for n, t in outcome.values["tasks"].items()}
            save(
                curves.learning(stages, units),
                "learning_curves",
                "Learning curves by stage",
                "Training and validation loss over epochs, a panel per stage and task.",
                "Thin lines are single trainings, thick ones their mean. The weights of the epoch "
                f"with the lowest validation loss of the first task{from_} are the ones that are "
                "tested.",
            )
        for kind in dict.fromkeys(a.matrix.place[1:] for a in analyses):
            some = [a for a in analyses if a.matrix.place[1:] == kind]
            if len(some) > 1:
                _across(save, some)
        for a in analyses:
            _place(save, a, groups.get(a.matrix.place, []), samples)
    return save.figures


def _across(save: _Saver, analyses: list[Analysis]) -> None:
    """A task and validation scheme over the releases."""
    spec = analyses[-1].matrix.spec
    first = leading(spec)[0][0]
    save(
        comparisons.releases(analyses), "releases", "The releases side by side",
        f"{_listed(drawn(spec))} of every configuration by release. {MEASURES[first].title}: "
        + "; ".join(f"release {a.matrix.release}: {_words(a, first)}" for a in analyses) + ".",
        "95 % intervals by patient. Releases that contain one another share patients.",
        analyses[-1].matrix, across=True,
    )  # fmt: skip


def _listed(names) -> str:
    titles = [MEASURES[k].title for k in names]
    return ", ".join(titles[:-1]) + " and " * (len(titles) > 1) + titles[-1]


def _words(a: Analysis, metric: str) -> str:
    """Estimates of a metric in words, for the alternative text."""
    return ", ".join(
        f"{c} {a.estimates[c, metric][0]:.2f}"
        for c in a.matrix.configurations
        if a.estimates[c, metric][0] == a.estimates[c, metric][0]
    )


def _place(save: _Saver, a: Analysis, groups: list, samples: bool) -> None:
    """The figures of one place."""
    m = a.matrix
    (_numbers if m.kind == kinds.NUMBER else _probabilities)(save, a)
    if m.kind != kinds.FINDINGS and m.classes:
        save(curves.confusions(m), "confusion", "Confusion matrices",
             f"True against predicted class. Accuracy: {_words(a, 'accuracy')}.",
             f"{_tested(m)} (mean over networks{' and the tests of an image' * m.repeated}); "
             "percent of the true class.",
             m)  # fmt: skip
    if METHOD in m.configurations and len(m.configurations) > 1:
        number = m.kind == kinds.NUMBER
        save(comparisons.forest(a), "forest",
             f"{METHOD} minus the others{'' if number else ', in points'}", _forest_words(a),
             f"95 % intervals from {a.n:,} resamples of the {_resampled(a)}; right of 0 {METHOD} "
             f"is better{' (the axes of errors run backwards)' * number}. An interval that covers "
             "0 leaves the direction open.", m)  # fmt: skip
        known = [c for c in m.configurations if c in style.KNOWN]
        if len(known) > 1:
            save(comparisons.slope(m), "slope", "From single-task to MDMT, by backbone",
                 f"A line per backbone over {' to '.join(known)}.",
                 "Full green lines end at least as well as they begin, broken orange ones worse"
                 + ("; black: their mean." if len(m.backbones) > 1 else "."), m)  # fmt: skip
    if len(m.folds) > 1:
        save(comparisons.fold_values(m), "folds", "Every fold's value",
             f"Metrics of each of {len(m.folds)} folds by configuration.",
             "A mark per fold (mean over networks); the bar is their mean.", m)  # fmt: skip
    ranks = [r for r in a.ranks if r.metric in drawn(m.spec)]
    if ranks and len(m.backbones) >= ENOUGH:
        save(comparisons.critical_difference(ranks), "critical_difference",
             "Mean ranks over backbones",
             "; ".join(f"{MEASURES[r.metric].title}: " + ", ".join(
                 f"{c} {v:.2f}" for c, v in zip(r.configurations, r.ranks, strict=True))
                 for r in ranks) + ".",
             "Bars join configurations whose mean ranks differ by less than Nemenyi's critical "
             "difference. A description: backbones that share patients are not independent.",
             m)  # fmt: skip
    center = [g for g in groups if g.variable == "center"]
    if m.validation.startswith("loco") and center:
        save(comparisons.centers(m, center), "centers", "Each center, left out",
             f"{_listed(grouped(m.spec))} of every center when it was left out of training.",
             "95 % intervals by patient within the center.", m)  # fmt: skip
        groups = [g for g in groups if g.variable != "center"]
    if groups:
        save(comparisons.subgroups(m, groups), "subgroups", "Subgroups",
             f"{_listed(grouped(m.spec))} by "
             + ", ".join(dict.fromkeys(g.variable for g in groups)) + ".",
             f"{'' if m.external else 'Cases of all folds pooled; '}95 % intervals by patient. "
             "Subgroups are small: read the "
             "intervals, not the points.", m)  # fmt: skip
    if samples:
        sheet = cases.sheet(m, cases.find_images(save.outcome.cohort, m.task))
        save(sheet, "cases", "Best and worst predicted cases",
             f"Images of the cases whose {SHEETS[m.kind]}.",
             f"{METHOD if METHOD in m.configurations else m.configurations[-1]}, mean over "
             "networks, as preprocessed; one image per patient.", m)  # fmt: skip


def _probabilities(save: _Saver, a: Analysis) -> None:
    """Figures of classes and findings."""
    m = a.matrix
    aucs = {c: a.estimates[c, "auc"] for c in m.configurations}
    save(curves.discrimination(m, aucs), "roc_pr", "ROC and precision-recall",
         f"ROC and precision-recall curves of {', '.join(m.configurations)}. AUC: "
         f"{_words(a, 'auc')}.",
         f"Curves are means over the {_owners(m)} own curves; bands and intervals are "
         "95 % by patient.", m)  # fmt: skip
    if m.kind == kinds.FINDINGS:
        save(curves.findings(m), "findings", "ROC of each finding",
             f"ROC curves of {', '.join(m.classes)}. Mean AUC: {_words(a, 'auc')}.",
             f"Means over the {_owners(m)} own curves and AUC; below the name: cases with "
             "the finding of those that are labelled for it.", m)  # fmt: skip
    pooled = " All findings together." if m.kind == kinds.FINDINGS else ""
    save(curves.reliability(m), "reliability", "Reliability",
         f"Observed share against predicted probability. Brier score: {_words(a, 'brier')}.",
         "On the diagonal probabilities can be taken at their word. Bins of equal count with 95 % "
         "Wilson intervals, which take images as independent; grey: how often each probability "
         f"occurs.{pooled}", m)  # fmt: skip
    if m.two:
        save(curves.decisions(m), "decision", "Decision curves",
             f"Net benefit of {', '.join(m.configurations)} against the threshold, beside treating "
             "everybody and nobody.",
             "Net benefit of treating whoever reaches the threshold: true positives per case, a "
             "false one costing threshold / (1 - threshold) of a true one (Vickers & Elkin 2006); "
             f"bands are 95 % by patient, {_tested(m).lower()}, mean over networks. A model is of "
             "use at thresholds where it lies above both grey lines, and only those at which one "
             "might treat matter.", m)  # fmt: skip


def _resampled(a: Analysis) -> str:
    m = a.matrix
    if a.random_backbones:
        return "patients and backbones"
    several = any(len(m.trainings(b)) > 1 for b in m.backbones)
    return f"patients and {'networks' if m.external else 'trainings'}" if several else "patients"


def _tested(m: Matrix) -> str:
    return "All cases" if m.external else "Cases of all test folds"


def _owners(m: Matrix) -> str:
    return "networks'" if m.external else "folds' (and networks')"


def _numbers(save: _Saver, a: Analysis) -> None:
    """Figures of numbers."""
    m = a.matrix
    means = " (mean over networks)" if len(m.nets) > 1 else ""
    save(numbers.scatter(m), "scatter", "Predicted against label",
         f"A point per case. Mean absolute error: {_words(a, 'mae')}; concordance: "
         f"{_words(a, 'ccc')}.",
         f"{_tested(m)}{means}. Grey: equality; black: mean prediction of each fifth of "
         "the cases by label. A black line flatter than the grey one says that high numbers are "
         "called too low and low ones too high.", m)  # fmt: skip
    save(numbers.limits(m), "bland_altman", "Bland-Altman: predicted minus label",
         "A point per case: difference of predicted and label against their mean.",
         f"{_tested(m)}{means}. Full line: mean difference; broken: mean ± 1.96 "
         "standard deviations, between which 95 % of differences would lie if they were normal.",
         m)  # fmt: skip


def _forest_words(a: Analysis) -> str:
    found = []
    names = [k for k, _ in leading(a.matrix.spec)]
    for c in a.comparisons:
        if c.backbone == "" and c.metric in names and c.low == c.low:
            value, low, high = (measured(c.metric, v, True) for v in (c.difference, c.low, c.high))
            found.append(
                f"{MEASURES[c.metric].title} against {c.against} {value} ({low} to {high})"
            )
    unit = " in points" if MEASURES[names[0]].share else ""
    return f"Differences {METHOD} minus the others{unit}: " + "; ".join(found) + "."


def learning_curves(outcome: Outcome) -> list[dict]:
    """What `curves.learning` draws, from the runs' histories; runs without one are passed over."""
    order = list(outcome.values["configurations"])
    stages: dict = {}
    for number, job in outcome.jobs.items():
        path = outcome.out / "runs" / number / "history.csv"
        names = [c for c in job.get("configurations") or [] if c in order]
        if not path.is_file():
            continue
        try:
            rows = read_csv(path)
            tasks = [t["name"] for t in job["description"]["tasks"]]
            losses = {
                t: {
                    "training": np.array([float(r[f"loss_{t}"]) for r in rows]),
                    "validation": np.array([float(r[f"val_loss_{t}"]) for r in rows]),
                }
                for t in tasks
            }
            rates = np.array([float(r["lr"]) for r in rows])
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise BadInput(
                f"{path}: is not a history that mdmt wrote ({error}); delete that folder and "
                "`mdmt run --resume` trains it again"
            ) from error
        if not rows:
            continue
        title = " = ".join(names) or " + ".join(tasks) + " (first stage)"
        empty = {t: {"training": [], "validation": []} for t in tasks}
        stage = stages.setdefault(title, {"title": title, "tasks": empty, "rates": []})
        for t in tasks:
            for kind in ("training", "validation"):
                stage["tasks"][t][kind].append(losses[t][kind])
        stage["rates"].append(rates)

    def position(title: str) -> int:
        return min((order.index(n) for n in title.split(" = ") if n in order), default=-1)

    titles = sorted(stages, key=position)
    return [stages[t] for t in titles]
