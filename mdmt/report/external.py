"""The parts of the report that an external validation has in place of a run's own."""

from __future__ import annotations

from pathlib import Path

from .. import kinds
from ..analysis.compare import METHOD, Analysis
from ..analysis.folder import Outcome
from ..config import pictured
from ..measures import MEASURES, compared, leading
from ..paths import read_json
from ..tables.grid import Cell, Row, Table, measured
from ..tables.paper import label
from . import sections, words
from .page import facts, listing, paragraph

COLUMNS = ["release", "task", "backbone", "configuration", "networks", "metric", "value", "low",
           "high", "n_images", "n_patients"]  # fmt: skip
ALONE, TOGETHER = "one", "together"


def record(outcome: Outcome) -> dict:
    """evaluation.json."""
    return read_json(outcome.out / "evaluation.json")


def question(outcome: Outcome) -> str:
    """What was asked, and of which networks."""
    found = record(outcome)
    tested = words.joined(words.tested(outcome))
    return paragraph(
        f"How well do the networks of the run {Path(found['run']).name} predict {tested} in cases "
        "that are none of that run's? Nothing was trained or chosen here."
    ) + facts(
        [
            ("Networks", f"of {found['run']}, release {found['release']}, "
                         f"{found['validation']}: one for each fold and seed (networks.csv)"),
            ("Their predictions", f"SHA-256 {found['run_predictions'] or 'not here any more'}"),
        ]
    )  # fmt: skip


def headline(a: Analysis, joint: dict) -> str:
    """How well the networks do together at a place: those of METHOD, or of the last configuration,
    of the first backbone."""
    m = a.matrix
    c = METHOD if METHOD in m.configurations else m.configurations[-1]
    nets = len(m.trainings(m.backbones[0]))
    who = f"the {nets} networks" if nets > 1 else "the network"
    of = f" ({m.backbones[0]})" if len(m.backbones) > 1 else ""
    parts = []
    for k, what in leading(m.spec):
        found = joint[m.backbones[0], c, k]
        if found is not None:
            low, high = (measured(k, v) for v in found[1:3])
            unit = " %" * MEASURES[k].share
            parts.append(
                f"{what} {measured(k, found.estimate)}{unit} (95 % interval {low} to {high})"
            )
    patients, images = (len(set(ids)) for ids in (m.patient, m.image))
    where = (
        f"For {m.task}{m.named} in external validation on {patients} patient{'s' * (patients > 1)} "
        f"({images} image{'s' * (images > 1)})"
    )
    if not parts:
        return f"{where} there is nothing to say with an interval: test on more."
    return (
        f"{where}, {who} of {label(c)}{of} together reach"
        f"{'es' * (nets == 1)}: {words.joined(parts)}."
    )


def rows_of(a: Analysis, joint: dict) -> list[dict]:
    """Rows of external.csv at a place; joint: as from `analysis.together`."""
    m = a.matrix
    found = []
    for c in m.configurations:
        for k in compared(m.spec):
            given = [("mean" if len(m.backbones) > 1 else m.backbones[0], ALONE, a.estimates[c, k])]
            given += [(b, TOGETHER, joint[b, c, k]) for b in m.backbones]
            for backbone, which, interval in given:
                ends = (None,) * 3 if interval is None else interval[:3]
                values = [m.release, m.task, backbone, c, which, k,
                          *(None if v is None or v != v else v for v in ends),
                          len(set(m.image)), len(set(m.patient))]  # fmt: skip
                found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def table(a: Analysis, joint: dict) -> Table:
    """Every configuration's measures with intervals: of one network and of all together."""
    m, names = a.matrix, compared(a.matrix.spec)
    several = len(m.backbones) > 1
    lines = []
    for c in m.configurations:
        first = [Cell(_cell(k, a.estimates[c, k])) for k in names]
        lines.append(Row([label(c), "one"], first, "", bool(lines)))
        for b in m.backbones:
            cells = [Cell(_cell(k, joint[b, c, k])) for k in names]
            lines.append(Row(["", f"together{f', {b}' * several}"], cells))
    nets = max(len(m.trainings(b)) for b in m.backbones)
    units = "the label's unit" if m.kind == kinds.NUMBER else "percent"
    one = "the mean over the backbones of what each one's network reaches alone"
    if nets > 1:
        one = f"the mean over the {nets} networks{' and the backbones' * several} of what each "
        one += "reaches alone; its interval has the networks resampled, too"
    elif not several:
        one = "the network, which is taken as given"
    return Table(
        "external",
        f"{m.task}{m.named}: n = {len(set(m.image))} images of {len(set(m.patient))} patients",
        ["Configuration", "Networks"],
        [],
        [words.titled(k, m.spec) for k in names],
        lines,
        [
            f"In {units} (Brier: of the probabilities), 95 % intervals by patient. One: {one}. "
            "Together: of the mean of what they say, "
            "as `mdmt predict` gives it."
        ],
    )


def _cell(metric: str, interval) -> str:
    if interval is None or interval[0] != interval[0]:
        return "–"
    value, low, high = interval[:3]
    text = measured(metric, value)
    return text if low != low else f"{text} ({measured(metric, low)} to {measured(metric, high)})"


def limits(outcome: Outcome, analyses: list[Analysis]) -> list[str]:
    """What the results cannot show."""
    found = []
    if outcome.synthetic:
        found.append(
            "The radiographs were drawn by the software itself. Nothing here says anything about "
            "patients."
        )
    for a in analyses:
        m = a.matrix
        found += words.few_patients(m)
        if m.two:
            share = float((m.target() == 1).mean())
            found.append(
                f"{m.task}{m.named}: {100 * share:.0f} % of the cases are "
                f"{m.classes[m.positive]}. Where that differs from the run's data, the most "
                "probable class is no longer the best call, and accuracy, F1 and calibration "
                "change with it; sensitivity, specificity and AUC do not by that alone."
            )
    found += [
        "Networks of different folds share most of their training patients: their spread is "
        "smaller than that of networks trained on other patients.",
        "That the cases are none of the run's was checked by their pictures, and by patient ids "
        "only where data.same_patients says that equal ones mean the same person.",
        "How the cases were chosen decides what the figures speak for; the software does not know "
        "it.",
    ]
    return found


def audit(outcome: Outcome, notes: list[str]) -> str:
    """What was checked and what was noted."""
    lost = [
        e
        for d in (outcome.cohort or {}).get("datasets", [])
        for e in d["excluded"]
        if "the run" in e
    ]
    out = "<h3>Checked</h3>" + listing(
        [
            f"No network has learnt from a picture that shows the same {pictured(outcome.values)} "
            "as one of the tested, as far as pictures tell (files, pixels, near-duplicates).",
            f"{len(lost)} image{'s' * (len(lost) != 1)} left out for it (see Data).",
            "Classes and numbers of predictions.csv follow from its probabilities.",
        ]
    )
    notes = [*record(outcome)["notes"], *notes]
    return out + ("<h3>Notes</h3>" + listing(notes) if notes else "")


def reproduction(outcome: Outcome, n: int, seed: int) -> str:
    """As a run's, with the commands of an evaluation."""
    found = record(outcome)
    commands = (
        f"mdmt evaluate {found['run']} config.yaml --out NEW   # predicts everything again\n"
        f"mdmt report OUT --resamples {n} --seed {seed}   # this report from the predictions"
    )
    return sections.reproduction(outcome, n, seed, commands)
