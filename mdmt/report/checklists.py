"""CLAIM 2024 and TRIPOD+AI, filled in as far as a run knows.

The numbers are those of the checklists; the words are ours, short reminders of what an item asks:
read the originals before submitting. An entry of an item is the name of an answer that `answers`
gives, or "" for what only the authors can say.
"""

from __future__ import annotations

import numpy as np

from .. import kinds
from ..analysis.cohort import groups_of
from ..analysis.compare import several_patients
from ..analysis.scheme import SCHEMES
from ..experiments import stages_of, weights_text
from . import recipe, words

CLAIM_SOURCE = (
    "Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, "
    "Radiology: Artificial Intelligence 6(4), 2024, e240300"
)
TRIPOD_SOURCE = (
    "Collins et al., TRIPOD+AI statement: updated guidance for reporting clinical prediction "
    "models that use regression or machine learning methods, BMJ 385, 2024, e078378"
)
YOURS = "To be written by the authors."

CLAIM = [
    ("1", "Title names the kind of AI method", "title"),
    ("2", "Structured summary", ""),
    ("3", "Background and clinical role", ""),
    ("4", "Aims and hypotheses", "question"),
    ("5", "Prospective or retrospective", "retrospective"),
    ("6", "Goal of the study", "question"),
    ("7", "Where the data come from", "sources"),
    ("8", "Who is in and who is out", "exclusions"),
    ("9", "Preprocessing", "preprocessing"),
    ("10", "Choice of parts of the data", "selection"),
    ("11", "De-identification", ""),
    ("12", "Missing data", "missing"),
    ("13", "How images were acquired", ""),
    ("14", "Definition of the reference standard", "outcome"),
    ("15", "Why this reference standard", ""),
    ("16", "Who made the reference labels", ""),
    ("17", "How labels of the test parts were made", "testlabels"),
    ("18", "Agreement between and within readers", "readers"),
    ("19", "How cases were put into parts", "splits"),
    ("20", "Level at which parts are disjoint", "disjoint"),
    ("21", "Intended sample size", "size"),
    ("22", "The model in detail", "model"),
    ("23", "Software and versions", "software"),
    ("24", "Initial weights", "initial"),
    ("25", "Training in detail", "training"),
    ("26", "How the final model was selected", "selected"),
    ("27", "Ensembles", "ensemble"),
    ("28", "Metrics", "metrics"),
    ("29", "Statistical measures and uncertainty", "statistics"),
    ("30", "Robustness and sensitivity analysis", "robustness"),
    ("31", "Explainability", "explain"),
    ("32", "Evaluation on internal data", "internal"),
    ("33", "Evaluation on external data", "external"),
    ("34", "Registration of a clinical trial", ""),
    ("35", "Numbers of included and excluded cases", "flow"),
    ("36", "Characteristics of the cases in each part", "characteristics"),
    ("37", "Metrics with their uncertainty", "performance"),
    ("38", "Estimates of diagnostic performance, precision", "precision"),
    ("39", "Analysis of wrongly called cases", "failures"),
    ("40", "Limitations", "limits"),
    ("41", "What it means for practice, intended use", ""),
    ("42", "Where the full protocol is", "protocol"),
    ("43", "Availability of software, models, data", "availability"),
    ("44", "Funding", ""),
]

TRIPOD = [
    ("1", "Title: model, population, outcome", "title"),
    ("2", "Abstract (own checklist)", ""),
    ("3a", "Clinical context and reason", ""),
    ("3b", "Target population and use", ""),
    ("3c", "Known inequalities in health", ""),
    ("4", "Objectives: development or evaluation", "question"),
    ("5a", "Data sources", "sources"),
    ("5b", "Dates of the data", ""),
    ("6a", "Setting and centers", "centers"),
    ("6b", "Eligibility", "exclusions"),
    ("6c", "Treatments received", ""),
    ("7", "Data preparation and quality checks", "preprocessing"),
    ("8a", "Outcome and its time horizon", "outcome"),
    ("8b", "Who assessed the outcome", ""),
    ("8c", "Blinding of that assessment", ""),
    ("9a", "Choice of predictors", "predictors"),
    ("9b", "Definition of predictors", "predictors"),
    ("9c", "Who assessed subjective predictors", "predictors"),
    ("10", "Sample size", "size"),
    ("11", "Missing data", "missing"),
    ("12a", "How the data were used", "splits"),
    ("12b", "How predictors were handled", "preprocessing"),
    ("12c", "Kind of model, building, validation", "model"),
    ("12d", "Differences between clusters", "centers"),
    ("12e", "Measures of performance", "metrics"),
    ("12f", "Updating after evaluation", "updating"),
    ("12g", "How predictions were computed", "predictions"),
    ("13", "Class imbalance", "imbalance"),
    ("14", "Fairness", "fairness"),
    ("15", "Output of the model, thresholds", "output"),
    ("16", "Development against evaluation data", "internal"),
    ("17", "Ethical approval", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Protocol", "protocol"),
    ("18d", "Registration", ""),
    ("18e", "Availability of data", "availability"),
    ("18f", "Availability of code", "availability"),
    ("19", "Involvement of patients and the public", ""),
    ("20a", "Flow of participants", "flow"),
    ("20b", "Characteristics of participants", "characteristics"),
    ("20c", "Development and evaluation data compared", "characteristics"),
    ("21", "Participants and events in each analysis", "events"),
    ("22", "The full model", "weights"),
    ("23a", "Performance with intervals, subgroups", "precision"),
    ("23b", "Performance across clusters", "clusters"),
    ("24", "Results of updating", "updating"),
    ("25", "Interpretation", ""),
    ("26", "Limitations", "limits"),
    ("27a", "Poor or missing input in use", ""),
    ("27b", "Interaction with the user", ""),
    ("27c", "Next steps", ""),
]


def _parts(outcome) -> str:
    if outcome.splits is None:
        return "splits.json is missing."
    said = []
    for validation, folds in outcome.splits["validation"].items():
        releases = {f.get("release") for f in folds}
        each = " in each release" if len(releases) > 1 else ""
        said.append(f"{validation}: {len({f['fold'] for f in folds})} folds{each}")
    share = f"{100 * outcome.values['cv']['validation']:.0f} %"
    held = {"a part" if v == "nested" else share for v in outcome.splits["validation"]}
    kept = share if held == {share} else "a part" if len(held) == 1 else f"{share} (nested: a part)"
    published = any(d.get("published") for d in outcome.values["data"]["datasets"])
    how = {kinds.CLASSES: "class", kinds.NUMBER: "quarters of the number",
           kinds.FINDINGS: "the rarest finding"}  # fmt: skip
    tasks = outcome.values["tasks"].values()
    strata = " or ".join(
        dict.fromkeys("class" if t["thresholds"] else how[kinds.kind_of(t)] for t in tasks)
    )
    return (
        f"{', '.join(said)}; "
        + (
            "published folds"
            if published
            else f"stratified by {strata}, by patient; "
            f"{kept} of each training part is kept for validation"
        )
        + ". Who is where: splits.json."
    )


def _start(values: dict, name: str) -> str | None:
    """Which trained networks a configuration of the software's own starts from; None for none."""
    known = {"FT": "the network of the second task", "FT-tau2": "the network of the first task"}
    return known.get(name) or words.average(values, name)


CHANGES = ("shift", "zoom", "flip", "rotation", "elastic_alpha", "gamma", "contrast", "brightness",
           "invert", "noise")  # fmt: skip


def _augmented(train: dict) -> str:
    """The changes of the training images that are on."""
    given = train["augment"] or {}
    some = [k.removesuffix("_alpha") for k in CHANGES if np.any(given.get(k))]
    return ", ".join(some) or "none"


def _rate(train: dict) -> str:
    """The learning rate with its schedule."""
    said = str(train["lr"])
    if train["lr_warmup_epochs"]:
        said += f" (reached in {train['lr_warmup_epochs']} epochs of linear warm-up)"
    if train["schedule"] in ("cosine", "linear"):
        said += f", {train['schedule']} schedule to {train['lr_minimum']:g} at the end"
    elif train["schedule"] == "plateau":
        p = train["plateau"]
        said += (
            f" (times {p['factor']:g} after more than {p['patience']} epochs without a lower "
            f"validation loss, at least {p['minimum']:g})"
        )
    return said + (", constant" if train["schedule"] == "constant" else "")


def _internal(values: dict) -> str:
    """The schemes of validation that were run."""
    named = words.joined(SCHEMES[v] for v in values["validation"])
    return f"{named[0].upper()}{named[1:]}, inside the data sets"


def _events(m) -> str:
    """How many of the tested images have each class or finding."""
    _, first = np.unique(m.image.astype(str), return_index=True)
    y = m.y[first]
    if m.kind == kinds.NUMBER:
        return ""
    each = (y[:, k] == 1 if y.ndim == 2 else y == k for k in range(len(m.classes)))
    return f" ({kinds.counted(m.classes, [int(e.sum()) for e in each])})"


def _of_releases(d: dict) -> str:
    """ " (releases 1 and 2)" of a data set in cohort.json."""
    return f" (release{'s' * (len(d['releases']) > 1)} {words.joined(d['releases'])})"


def _data(outcome, known: dict) -> None:
    """Answers about the data."""
    values = outcome.values
    sets = (outcome.cohort or {}).get("datasets", [])
    several = len({r for d in sets for r in d["releases"]}) > 1
    known["sources"] = "; ".join(
        f"{d['name']}{_of_releases(d) * several}: {d['images']} images of {d['patients']} "
        f"patients, task {d['task']}"
        for d in sets
    ) or ", ".join(d["name"] for d in values["data"]["datasets"])
    known["sources"] += ". Origin and dates: " + YOURS.lower()
    counted = []  # of each release by itself, since one contains another
    for release in dict.fromkeys(r for d in sets for r in d["releases"]):
        some = [d for d in sets if release in d["releases"]]
        excluded = sum(len(d["excluded"]) for d in some)
        missing = sum(d["missing_labels"] for d in some)
        counted.append(
            f"{f'release {release}: ' * several}{missing} row{'s' * (missing != 1)} without a "
            f"label left out, {excluded} image{'s' * (excluded != 1)} excluded"
        )
    said = "; ".join(counted)
    known["exclusions"] = known["flow"] = (
        f"{said[0].upper()}{said[1:]}; see Data. Eligibility before that: {YOURS.lower()}"
        if sets
        else YOURS
    )
    known["missing"] = (
        "A missing label leaves the row out of that task; labels are never filled in. The only "
        "input is the image."
    )
    known["characteristics"] = "Counts by class and center: Data. More: " + YOURS.lower()
    centers = sorted({c for p in outcome.parts for c in p.center.tolist() if c})
    known["centers"] = (
        f"{len(centers)} centers: {', '.join(centers[:12])}{', ...' if len(centers) > 12 else ''}."
        if centers
        else "Centers are not recorded."
    )
    known["outcome"] = (
        "; ".join(
            f"{name}: {'a number' * (kinds.kind_of(t) == kinds.NUMBER and not t['classes'])}"
            f"{', '.join(t['classes'])}"
            + (f" from a score cut at {t['thresholds']}" if t["thresholds"] else "")
            for name, t in values["tasks"].items()
        )
        + ". How and by whom it was determined: "
        + YOURS.lower()
    )
    known["preprocessing"] = _preprocessing(values)


def _preprocessing(values: dict) -> str:
    """The steps from an image file to the network's input, as a sentence."""
    data = values["data"]
    clip = data["clip"]
    steps, levels = [], "grey levels"
    if data["colour"]:
        steps = ["images kept in colour (RGB), grey ones with three equal channels"]
        levels = "values of all three channels together"
    steps.append(
        f"{levels} clipped at percentiles {clip[0]} and {clip[1]}"
        if clip
        else f"{levels} spread over the full range"
    )
    if data["crop"] != "whole":
        steps.append(
            "lungs segmented by the U-Net of mdmt; the box of the two largest regions with a "
            f"border of {100 * data['border']:g} %"
        )
        if data["crop"] == "masked":
            steps.append("everything but the lungs black")
    steps += [
        f"made square ({'taking more of the image, ' * (data['crop'] != 'whole')}"
        f"{'padded' if data['square'] == 'pad' else 'cropped'} where it ends)",
        f"resized to {values['image_size']} pixels",
    ]
    if data["minmax"]:
        steps.append(f"{levels} spread to the full range again")
    bad = "that cannot be read" + " or show no plausible lungs" * (data["crop"] != "whole")
    how = "stop the run" if data["on_bad_image"] == "error" else "are excluded and listed"
    return f"{steps[0][0].upper()}{'; '.join(steps)[1:]}. Images {bad} {how}."


def _readers(people: dict, tasks: dict) -> str:
    """What is known of a second reader."""
    known = [(place, r) for place, r in people.items() if r is not None]
    if not known:
        return "No second reader's labels are in the tables. " + YOURS
    (_, _, task), found = known[0]
    number = kinds.kind_of(tasks[task]) == kinds.NUMBER
    measure = "concordance" if number else "weighted kappa"
    kappa = found.readings[0].kappa
    return (
        f"Two readers of {task} on {found.n} images: {measure} {kappa.estimate:.2f} (95 % "
        f"interval {kappa.low:.2f} to {kappa.high:.2f}); see Operating points and calibration. "
        "Within a reader: " + YOURS.lower()
    )


def _selection(data: dict) -> str:
    """Which parts of the data are used, and whether a person chose them."""
    part = {
        "whole": "The whole image is used",
        "box": "The box around the lungs, found by a network, is used",
        "masked": "The lungs alone, found by a network, are used",
    }[data["crop"]]
    named = [d for d in data["datasets"] if d.get("corrections") or d.get("accept")]
    tables = [d["corrections"] for d in named if d.get("corrections")]
    if not named:
        return f"{part}; no region was chosen by hand."
    accepted = sum(len(d.get("accept") or []) for d in named)
    said = [f"the tables {', '.join(tables)}"] * bool(tables)
    said += [f"accepted as found: {accepted}"] * bool(accepted)
    return f"{part}; a person decided otherwise for single images ({'; '.join(said)})."


METRICS = {
    kinds.CLASSES: "Accuracy, F1 (three averages), G-mean, AUC, Brier score, calibration.",
    kinds.NUMBER: "Mean absolute and root mean squared error, R², Pearson's and Spearman's "
    "correlation, Lin's concordance, Bland-Altman.",
    kinds.FINDINGS: "AUC and F1 of each finding; means over findings of these, accuracy, G-mean "
    "and Brier score.",
}
PREDICTIONS = {
    kinds.CLASSES: "Softmax of the head; the class of the largest probability is called.",
    kinds.NUMBER: "The head's output, in the label's unit.",
    kinds.FINDINGS: "Logistic function of each of the head's outputs; a finding is called above a "
    "probability of one half.",
}
OUTPUT = {
    kinds.CLASSES: "A probability per class; the most probable is called. Operating points of two "
    "classes: thresholds chosen on the validation parts, see there.",
    kinds.NUMBER: "A number; classes only by the thresholds of the configuration.",
    kinds.FINDINGS: "A probability per finding; no threshold was tuned.",
}


def _of_kinds(values: dict, texts: dict) -> str:
    """The texts of the kinds of tasks that a study has; of several, each with its tasks."""
    tasks = values["tasks"]
    found: dict[str, list[str]] = {}
    for name, task in tasks.items():
        found.setdefault(kinds.kind_of(task), []).append(name)
    if len(found) == 1:
        return texts[next(iter(found))]
    return " ".join(f"{', '.join(names)}: {texts[kind]}" for kind, names in found.items())


def _compared(outcome, analyses: list) -> dict:
    """Answers about what was compared, from which start, and how."""
    values, names = outcome.values, ", ".join(outcome.values["configurations"])
    resamples = analyses[0].n if analyses else 0
    loco = any(a.matrix.validation.startswith("loco") for a in analyses)
    starts = [f"{c} from {s}" for c in values["configurations"] if (s := _start(values, c))]
    several = [w for w, n in (("folds", max([len(a.matrix.folds) for a in analyses], default=1)),
                              ("backbones", len(values["backbones"])),
                              ("seeds", len(values["seeds"]))) if n > 1]  # fmt: skip
    robust = ["subgroups"] * bool(_groups(outcome, analyses))
    robust += [f"spread over {words.joined(several)}"] if several else []
    robust += ["leave one center out"] * loco
    return {
        "question": (
            "Does joint training on a second data set and task improve the first? "
            if any(a.comparisons for a in analyses)
            else ""
        )
        + f"Comparison of {names}."
        if len(values["configurations"]) > 1
        else f"Evaluation of {names}.",
        "initial": f"Weights: {weights_text(values)}"
        + (f"; {', '.join(starts)}, of the same fold" if starts else "")
        + ".",
        "statistics": "No intervals and no tests: all tested cases are of one patient."
        if analyses and not any(several_patients(a.matrix) for a in analyses)
        else f"Paired bootstrap by patient, {resamples:,} resamples, 95 % intervals, "
        "Holm's correction; see Results. Other tests beside: Sensitivity analyses."
        if any(a.comparisons for a in analyses)
        else f"Bootstrap by patient, {resamples:,} resamples, 95 % intervals.",
        "robustness": ", ".join(robust).capitalize() + "." if robust else "",
    }


def _groups(outcome, analyses: list) -> list[str]:
    """The variables of the subgroups that the report has."""
    found = [groups_of(outcome.cohort, a.matrix.task, a.matrix.image, a.matrix.center)
             for a in analyses]  # fmt: skip
    return list(dict.fromkeys(name for some in found for name in some))


def answers(outcome, analyses: list, people: dict | None = None) -> dict:
    """{name: what the run knows}, for the entries of CLAIM and TRIPOD.

    people: {place: analysis.Readers or None}.
    """
    values, train = outcome.values, outcome.values["train"]
    names, nets = ", ".join(values["configurations"]), ", ".join(values["backbones"])
    loco = any(a.matrix.validation.startswith("loco") for a in analyses)
    joint = any(len(s["tasks"]) > 1 for c in values["configurations"] for s in stages_of(values, c))
    called = any(a.matrix.kind != kinds.FINDINGS and a.matrix.classes for a in analyses)
    groups = _groups(outcome, analyses)
    known = {
        "readers": _readers(people or {}, values["tasks"]),
        "title": f"Convolutional networks{', multi-data-set multi-task learning' * joint} on "
        f"{'images in colour' if values['data']['colour'] else 'chest radiographs'}.",
        "retrospective": "Retrospective use of existing images."
        if not outcome.synthetic
        else "Neither: the images were drawn by software.",
        "selection": _selection(values["data"]),
        "splits": _parts(outcome),
        "disjoint": "Patient. What the check of the parts found: Audit.",
        "size": "Not computed in advance; all labelled cases were used.",
        "model": f"Backbones {nets}; one head per task; input {values['image_size']} pixels. "
        f"Configurations: {names}.",
        "software": "mdmt "
        + str(outcome.environment.get("mdmt", "?"))
        + ", Python "
        + str(outcome.environment.get("python", "?"))
        + "; see Reproduction.",
        "training": f"Adam, learning rate {_rate(train)}, batch {train['batch_size']}, at most "
        f"{train['epochs']} epochs, weight decay {train['weight_decay']}"
        f"{' (decoupled, AdamW)' * train['decoupled']}{recipe.optimiser(values)}"
        f"{recipe.joint(values)}{recipe.arithmetic(values)}, augmentation: "
        f"{_augmented(train)}{recipe.smoothing(values)}; seeds "
        f"{', '.join(map(str, values['seeds']))}.{recipe.stages(values)} All of it: config.yaml.",
        "selected": "Epoch with the lowest validation loss of the training's first task"
        + (f", after {train['warmup_epochs']} epochs" if train["warmup_epochs"] else "")
        + f"; patience {train['patience']}.",
        "ensemble": "None: every network is tested by itself.",
        "metrics": _of_kinds(values, METRICS),
        "explain": "Not part of this report.",
        "internal": f"{_internal(values)}; test cases come from the same sources.",
        "external": "Leave one center out; no data set of another origin."
        if loco
        else "None in this run.",
        "performance": "Test parts, with 95 % intervals: Results. Training and validation: "
        "learning curves.",
        "testlabels": "As those of the training parts: cross-validation tests on cases of the same "
        "data sets.",
        "precision": "Tables and figures of Results and Subgroups, with 95 % intervals.",
        "failures": f"{'confusion matrices, ' * called}worst predicted cases.".capitalize(),
        "limits": "See Limits.",
        "protocol": "config.yaml in the out folder is the full configuration.",
        "availability": "Software: mdmt (Apache-2.0). Weights and predictions: out folder. Data: "
        + YOURS.lower(),
        "predictors": "The image alone.",
        "updating": "None.",
        "predictions": _of_kinds(values, PREDICTIONS),
        "imbalance": recipe.imbalance(outcome),
        "fairness": f"Performance by {words.joined(groups)}: Subgroups."
        if groups
        else "The tables record no center, sex or age.",
        "output": _of_kinds(values, OUTPUT),
        "events": "; ".join(
            f"{words.place(a.matrix)}: {len(set(a.matrix.image))} images of "
            f"{len(set(a.matrix.patient))} patients{_events(a.matrix)}"
            for a in analyses
        ),
        "weights": "runs/<job>/model.safetensors, one per training."
        if values["keep_weights"]
        else "Not kept (keep_weights: false); config.yaml trains them again.",
        "clusters": "Centers are not recorded."
        if "center" not in groups
        else "By center: Subgroups."
        if loco
        else "Subgroups by center, pooled folds.",
    }
    _data(outcome, known)
    return known | _compared(outcome, analyses)


def filled(items: list, known: dict) -> list[list[str]]:
    """Rows [number, item, answer] of a checklist."""
    return [[number, words, known.get(key, "") or YOURS] for number, words, key in items]
