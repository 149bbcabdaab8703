"""Sentences about results: what is established, what is not, and what the limits are."""

from __future__ import annotations

import numpy as np

from .. import kinds
from ..analysis.cohort import UNKNOWN
from ..analysis.compare import METHOD, Analysis
from ..analysis.folder import Outcome
from ..experiments import beta_of, weights_of
from ..measures import MEASURES, f1_name, grouped, leading
from ..tables.grid import measured, number

ALPHA = 0.05
FEW = "percentile interval, with Student's quantiles as far as they are few"
SAME = "the same in every resample, which says nothing of other patients"
AGAIN = {
    "cv": "Every fold tests the same cases, or several do, with networks that learnt from other "
    "parts: the deviation over folds is not one between patients.",
    "nested": "Each test part belongs to several networks, which differ in their validation part: "
    "the deviation over folds mixes both.",
    "loco-all": "A center is tested once for every center of the other data set that was left out: "
    "folds are not independent.",
    "loco": "This data set has fewer folds than the other, so that they are gone through again: "
    "folds are not independent.",
}
CENTERLESS = (
    "This data set records no centers: its folds are of patients, and these figures are not "
    "leave-one-center-out."
)


def tested(outcome: Outcome) -> list[str]:
    """Names of the tasks of which there are predictions, in the configuration's order."""
    here = {p.task for p in outcome.parts}
    return [t for t in outcome.values["tasks"] if t in here]


def place(m) -> str:
    """severity, cv; with the release where there are several."""
    return f"{m.task}, {m.validation}{m.named}"


def joined(items) -> str:
    """a, b and c."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def average(values: dict, name: str) -> str | None:
    """What MDMT or MDMT-beta<number> starts from, by its beta; None for other configurations."""
    beta = beta_of(values, name)
    if beta is None:
        return None
    said = "the mean of the two single-task networks"
    if beta != 0.5:
        said = f"the single-task networks averaged with shares of {beta:g} and {1 - beta:g}"
    return said + (" with their heads" if values["mdmt"]["heads"] == "keep" else "")


def mean_of(values: dict, stages: list[int], shares) -> str:
    """The average of stages (counted from 0) of an experiment; its shares where they are not equal.
    shares: those that the stage names, or None for the default."""
    beta = values["mdmt"]["beta"]
    if shares is None and len(stages) == 2:
        shares = [beta, 1 - beta]
    said = f"mean of stages {joined(str(k + 1) for k in stages)}"
    if shares is None or max(shares) - min(shares) < 1e-9:
        return said
    return f"{said} with shares of {joined(f'{s:g}' for s in shares)}"


def interval(low: float, high: float, metric: str) -> str:
    """Ends of an interval of a difference, signed; points, or the measure's own unit."""
    return f"{measured(metric, low, True)} to {measured(metric, high, True)}"


def titled(metric: str, spec: dict) -> str:
    """The name of a measure; of a number's classes it says so."""
    title = MEASURES[metric].title
    cut = kinds.kind_of(spec) == kinds.NUMBER and MEASURES[metric].share
    return f"{title} of the classes" if cut else title


def headline(a: Analysis) -> str | None:
    """The result at a place in one sentence, against the first single-task configuration."""
    m = a.matrix
    others = [c for c in m.configurations if c != METHOD]
    if METHOD not in m.configurations or not others:
        return None
    against = others[0]
    parts = []
    for k, what in leading(m.spec):
        c = a.find(against, k)
        if c is not None and c.low == c.low:
            ends = interval(c.low, c.high, k)
            parts.append(
                f"{what} by {measured(k, c.difference, True)}{' points' * MEASURES[k].share} "
                f"({SAME if c.low == c.high else f'95 % interval {ends}'})"
            )
    if not parts:
        return None
    n = len(set(m.patient))
    return (
        f"For {m.task}{m.named} in {m.scheme} on {n} patients, {METHOD} "
        f"differed from {against} in {' and in '.join(parts)}: {verdict(a, against)}."
    )


def verdict(a: Analysis, against: str) -> str:
    """What is established against a configuration after Holm's correction."""
    tested = [c for c in a.comparisons if c.backbone == "" and c.against == against]
    spec = a.matrix.spec
    up = [_name(c.metric, spec) for c in tested if c.holm < ALPHA and c.better > 0]
    down = [_name(c.metric, spec) for c in tested if c.holm < ALPHA and c.better < 0]
    m = len([c for c in a.comparisons if c.backbone == "" and c.holm == c.holm])
    after = f"after correction for {m} comparison{'s' * (m != 1)}"
    if not up and not down:
        return f"no difference is established {after}"
    said = []
    if up:
        said.append(f"better {joined(up)}")
    if down:
        said.append(f"worse {joined(down)}")
    nets = "" if a.random_backbones else "for these networks "
    return f"{' but '.join(said)} {'are' if len(up + down) > 1 else 'is'} established {nets}{after}"


def _name(metric: str, spec: dict) -> str:
    if metric == "brier":
        return "Brier score"
    text = titled(metric, spec)
    return text.replace("Accuracy", "accuracy")


def others(a: Analysis) -> list[str]:
    """A sentence for each configuration that MDMT was compared with."""
    m = a.matrix
    found = []
    for against in m.configurations:
        tested = [c for c in a.comparisons if c.backbone == "" and c.against == against]
        if tested:
            known = [c for c in tested if c.metric != "brier" and c.low == c.low]
            shown = [
                f"{titled(c.metric, m.spec)} {measured(c.metric, c.difference, True)} "
                f"({interval(c.low, c.high, c.metric)})"
                for c in known
                if c.low < c.high
            ]
            same = [titled(c.metric, m.spec) for c in known if c.low == c.high]
            if same:
                shown.append(f"{joined(same)} {SAME}")
            points = "" if m.kind == kinds.NUMBER else ", points"
            found.append(
                f"{METHOD} against {against}{points} (95 % interval): {', '.join(shown)}; "
                f"{verdict(a, against)}."
            )
    return found


def method(a: Analysis) -> str:
    """How the intervals were made."""
    m = a.matrix
    seeds = max(len(m.trainings(b)) for b in m.backbones)
    over = ""
    if len(m.backbones) > 1:
        how = (
            "which are resampled too (percentile interval)"
            if a.random_backbones
            else f"which are taken as given{' (BCa interval)' * (seeds == 1)}"
        )
        over += f" Means over {len(m.backbones)} backbones, {how}."
    if seeds > 1 and m.external:
        over += f" Means over {seeds} networks of a configuration"
        over += "." if a.random_backbones else f", which are resampled, too ({FEW})."
    elif seeds > 1:
        again = (
            "the seeds of a backbone are averaged first; for single backbones the trainings of "
            "each fold are resampled, too"
            if a.random_backbones
            else f"the trainings of each fold are resampled, too ({FEW})"
        )
        over += f" Means over {seeds} seeds: {again}."
    bca = " BCa interval." if len(m.nets) == 1 else ""
    return (
        f"Paired bootstrap by patient, {a.n:,} resamples: all images of a patient are drawn "
        f"together, for every network the same."
        f"{'' if m.external else ' Metrics are means over the folds.'}{bca}{over} "
        f"Holm's correction runs over all comparisons and metrics of this table. "
        f"{'' if m.kind == kinds.NUMBER and not m.classes else f'F1 is the {f1_name(m.spec)}. '}"
        + (
            ""
            if m.external
            else "Nadeau & Bengio's corrected t-test over folds stands beside for cross-validation."
        )
    )


def one_class(m) -> str:
    """Which configurations call every case the same class, as a sentence; "" for none."""
    found: dict = {}
    for c in m.configurations if m.kind == kinds.CLASSES else []:
        called = {k for net in m.nets for k in kinds.called(m.kind, m.p[(*net, c)]).tolist()}
        if len(called) == 1:
            found.setdefault(m.classes[called.pop()], []).append(c)
    said = [
        f"{joined(names)} call{'s' * (len(names) == 1)} every case {name}."
        for name, names in found.items()
    ]
    return " ".join(said)


def calibration(found: list) -> str | None:
    """What the calibration of the configurations is, of two classes or findings only; a fault is
    named where the 95 % interval leaves what is perfect out."""
    known = [c for c in found if np.isfinite([*c.slope_interval, *c.intercept_interval]).all()]
    if not known:
        return None
    said = []
    for c in known:
        (low, high), (least, most) = c.slope_interval, c.intercept_interval
        faults = []
        if low <= 0 <= high < 1:
            faults.append("not related to the outcome as far as can be told")
        elif high < 0:
            faults.append("lower where they should be higher")
        elif high < 1:
            faults.append("too extreme")
        elif low > 1:
            faults.append("too timid")
        if least > 0 or most < 0:
            faults.append("too low on average" if least > 0 else "too high on average")
        said.append(
            f"{c.configuration} {joined(faults) if faults else 'no fault established'} (slope "
            f"{sloped(c.slope, *c.slope_interval)}, intercept {number(c.intercept, 2, True)}, "
            f"{number(least, 2, True)} to {number(most, 2, True)})"
        )
    return (
        "Probabilities (95 % intervals by patient; slope 1 and intercept 0 are perfect): "
        + "; ".join(said) + "."
    )  # fmt: skip


def sloped(slope: float, low: float, high: float) -> str:
    """A calibration slope with its interval; one that has no size, since the probabilities hardly
    differ, says so."""
    if max(abs(slope), abs(low), abs(high)) >= 100:
        return "not determined: the probabilities hardly differ"
    if low != low:
        return number(slope, 2)
    return f"{number(slope, 2)}, {number(low, 2)} to {number(high, 2)}"


def agreement(m) -> str:
    """What the agreement of readers is measured by."""
    return "concordance (CCC)" if m.kind == kinds.NUMBER else "weighted kappa"


def human(m, found) -> str | None:
    """What the second reader says about the networks, in a sentence; found: analysis.Readers."""
    if found is None:
        return None
    people, ours = found.readings[0], found.readings[-1]
    ours = next((r for r in found.readings if r.name == METHOD), ours)
    if not np.isfinite([people.kappa.estimate, ours.beyond.low]).all():
        return None
    if ours.beyond.high < 0:
        verdict = "less than a second person does"
    elif ours.beyond.low > 0:
        verdict = "more than a second person does"
    else:
        verdict = "as far as can be told like a second person"
    return (
        f"Two people scored {found.n} of these images. They agree with a {agreement(m)} of "
        f"{number(people.kappa.estimate, 2)} ({number(people.kappa.low, 2)} to "
        f"{number(people.kappa.high, 2)}); {ours.name} and the first reader with "
        f"{number(ours.kappa.estimate, 2)} ({number(ours.kappa.low, 2)} to "
        f"{number(ours.kappa.high, 2)}): the networks agree with the labels {verdict} "
        f"(difference {number(ours.beyond.difference, 2, True)}, "
        f"{number(ours.beyond.low, 2, True)} to {number(ours.beyond.high, 2, True)})."
    )


def subgroup(groups: list, name: str, spec: dict) -> str | None:
    """Where a configuration is worst and best, with the intervals."""
    metric = grouped(spec)[0]
    one = MEASURES[metric]
    scored = [
        (g, g.found[name][metric])
        for g in groups
        if g.found.get(name, {}).get(metric) is not None and g.level != UNKNOWN
    ]
    if len(scored) < 2:
        return None
    low = min(scored, key=lambda s: s[1].estimate)
    high = max(scored, key=lambda s: s[1].estimate)

    def told(g, i):
        unit = " %" if one.share else ""
        return (
            f"{g.variable} {g.level}: {measured(metric, i.estimate)}{unit} "
            f"({measured(metric, i.low)} to {measured(metric, i.high)}{unit}; n = {g.n} images)"
        )

    extremes = "The extremes of several groups differ by chance, too"
    extremes += ", and accuracy follows how frequent the classes are." if one.share else "."
    if metric == "accuracy":
        said = f"{name} is least accurate in {told(*low)} and most in {told(*high)}."
    else:
        said = f"The {one.title} of {name} is lowest in {told(*low)} and highest in {told(*high)}."
    return f"{said} {extremes}"


def few_patients(m) -> list[str]:
    """That there are few patients, where there are."""
    n = len(set(m.patient))
    if n >= 200:
        return []
    return [
        f"{place(m)}: {n} patients: intervals are wide, and small true differences cannot be seen."
    ]


def limits(outcome: Outcome, analyses: list[Analysis]) -> list[str]:
    """What the results cannot show, from what the run knows."""
    values = outcome.values
    found = []
    if outcome.synthetic:
        found.append(
            "The radiographs were drawn by the software itself. Nothing here says anything about "
            "patients, or about which method is better on real images."
        )
    drawn = [b for b, name in weights_of(values).items() if name == "random"]
    if drawn:
        some = f" of {', '.join(drawn)}" if len(drawn) < len(values["backbones"]) else ""
        found.append(
            f"Networks{some} started from random weights; published studies start from ImageNet, "
            "so that figures are not comparable with theirs."
        )
    seeds = len(values["seeds"])
    if seeds < 3:
        found.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} per training: the spread between repeated "
            f"trainings is {'hardly' if seeds > 1 else 'not'} measured"
            f"{'' if seeds > 1 else ' and not part of the intervals'} (at least three are "
            "advised)."
        )
    if len(values["backbones"]) < 5:
        n = len(values["backbones"])
        found.append(f"{n} backbone{'s' if n > 1 else ''}: others may behave differently.")
    longer = [c for c in ("FT", METHOD) if c in values["configurations"]]
    if longer:
        one = len(longer) == 1
        found.append(
            f"{joined(longer)} start{'s' * one} from networks that are trained already: part of "
            f"{'its' if one else 'their'} gain may be longer training. Only a control with as many "
            "steps tells them apart"
            + ("; see the rows marked (control)." if "STL-tau1-long" in values["configurations"]
               else ", such as STL-tau1-long, which was not trained here.")
        )  # fmt: skip
    if not any(a.matrix.validation.startswith("loco") for a in analyses):
        found.append(
            "No leave-one-center-out validation was run: how the networks do in a hospital that "
            "they have not seen is unknown."
        )
    for a in analyses:
        m = a.matrix
        found += few_patients(m)
        if len(m.y) > len(set(m.image)):
            found.append(
                f"{place(m)}: its {len(set(m.image))} images are tested "
                f"{len(m.y)} times. {AGAIN[m.validation]}"
            )
        if m.centerless:
            found.append(f"{place(m)}: {CENTERLESS}")
    found.append(
        f"The bootstrap resamples tested patients{' and trainings' * (seeds > 1)}, not training "
        "sets: that others would give other networks is only in the spread over folds. All data "
        "come from the same sources as the training data; nothing was tested prospectively or "
        "outside them (mdmt evaluate tests on other data)."
    )
    return found
