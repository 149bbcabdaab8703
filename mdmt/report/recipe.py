"""What of the training recipe differs from the plain one: class weights, smoothing, batches in
parts, groups of parameters, clipping, sampling, weights of tasks, arithmetic, single stages."""

from __future__ import annotations

from .. import groups as groups_
from .. import kinds
from ..analysis.folder import Outcome
from ..paths import read_json
from ..tables.grid import number
from .words import joined

# Keys of `train` that are said of a stage, too.
OWN = ("micro_batch", "groups", "clip_norm")
ARITHMETIC = {"bf16": "bfloat16, mixed with float32", "tf32": "TensorFloat-32"}


def weighted(spec: dict) -> bool:
    """Whether a task of a configuration was trained with class weights."""
    return spec.get("class_weights", "none") != "none"


def used(outcome: Outcome) -> dict[str, dict[str, list[float]]]:
    """{task: {class: its weight in every training}}, from runs/<job>/result.json."""
    found: dict = {}
    for job in outcome.jobs:
        path = outcome.out / "runs" / job / "result.json"
        given = read_json(path).get("class_weights", {}) if path.is_file() else {}
        for task, weights in given.items():
            for name, weight in weights.items():
                found.setdefault(task, {}).setdefault(name, []).append(float(weight))
    return found


def imbalance(outcome: Outcome) -> str:
    """What was done about rare classes, as sentences."""
    tasks = {t: spec for t, spec in outcome.values["tasks"].items() if weighted(spec)}
    if not tasks:
        return "No resampling by class, no class weights; metrics beside accuracy are given."
    known, said = used(outcome), []
    for task, spec in tasks.items():
        balanced = spec["class_weights"] == "balanced"
        how = "balanced over each training part" if balanced else "fixed"
        spans = {name: _span(w) for name, w in known.get(task, {}).items()}
        named = kinds.counted(spans, spans.values())
        of = "positives of " if kinds.kind_of(spec) == kinds.FINDINGS else ""
        said.append(f"{task}, {how}{f' ({of}{named})' if named else ''}")
    return (
        "Class weights in the loss, in training and in the validation loss that selects the epoch: "
        f"{'; '.join(said)}. No resampling by class; metrics beside accuracy are given."
    )


def _span(weights: list[float]) -> str:
    """0.71, or 0.68 to 0.74 over the trainings."""
    low, high = (number(v, 2) for v in (min(weights), max(weights)))
    return low if low == high else f"{low} to {high}"


def smoothing(values: dict) -> str:
    """ ", label smoothing 0.1 (prognosis)", or "" where there is none."""
    some = {t: spec["head"].get("smoothing", 0) for t, spec in values["tasks"].items()}
    said = [f"{share:g} ({task})" for task, share in some.items() if share]
    return f", label smoothing {joined(said)}" if said else ""


def optimiser(values: dict) -> str:
    """ ", gradients clipped to a norm of 1" and the like, or "" where Adam is plain; then what is
    different in a stage of an experiment that was run."""
    said = [_optimiser(values["train"])]
    for name in values["configurations"]:
        for i, stage in enumerate(values["experiments"].get(name, [])):
            own = {k: v for k, v in (stage["train"] or {}).items() if k in OWN}
            if own:
                said.append(f" (in stage {i} of {name}{_optimiser(own, plain=True)})")
    return "".join(said)


def _optimiser(train: dict, plain: bool = False) -> str:
    """Of the keys that are there; plain: says so where there is nothing."""
    said = []
    most = train.get("micro_batch")
    if most is not None and most < train.get("batch_size", most + 1):
        said.append(f"batches in parts of at most {most}, whose gradients are added up")
    elif most is None and plain and "micro_batch" in train:
        said.append("whole batches at once")
    if "groups" in train and (train["groups"] or plain):
        some = groups_.text(train["groups"])
        said.append(f"factors by parameters ({some})" if some else "no factors by parameters")
    clip = train.get("clip_norm")
    if clip is not None:
        said.append(f"gradients clipped to a norm of {clip:g}")
    elif plain and "clip_norm" in train:
        said.append("no clipping of gradients")
    return "".join(f", {s}" for s in said)


def sampling(sampler: dict) -> list[str]:
    """ "equally many samples of each data set in a batch" and the like, of the keys that are there;
    nothing where batches are drawn from the union of the data sets and none is left out."""
    said, mode, epoch = [], sampler.get("mode"), sampler.get("epoch", "union")
    if mode == "balanced":
        said.append("equally many samples of each data set in a batch")
    elif mode == "ratio":
        shares = " : ".join(f"{share:g}" for share in sampler["ratio"])
        said.append(f"samples of the data sets as {shares} in a batch")
    if epoch in ("longest", "shortest"):
        said.append(f"an epoch as long as the {epoch} data set at its share")
    elif epoch != "union":
        said.append(f"{epoch} steps an epoch")
    if sampler.get("drop_last"):
        said.append("last batches that are not full left out")
    return said


def balance(weights) -> str:
    """How the losses of tasks that are trained together count; "" where all count alike."""
    if weights == "equal":
        return ""
    if weights == "uncertainty":
        return "losses of the tasks over their means in the epoch before"
    each = ", ".join(f"{task} x {weight:g}" for task, weight in weights.items())
    return f"losses of the tasks weighed ({each}; scaled to a mean of 1)"


def joint(values: dict) -> str:
    """Sampling, and the weights of tasks that are trained together."""
    said, weights = sampling(values["sampler"]), balance(values["mdmt"]["task_weights"])
    mine = [c for c in values["configurations"] if c.startswith("MDMT")]
    said += [f"{weights} ({', '.join(mine)})"] if weights and mine else []
    return "".join(f", {s}" for s in said)


def stages(values: dict) -> str:
    """What stages of the study's own configurations do otherwise than the keys of all say, beside
    what `optimiser` tells: sentences, each with a space before it."""
    said = []
    for name in values["configurations"]:
        for i, stage in enumerate(values["experiments"].get(name, [])):
            own = {k: v for k, v in (stage.get("train") or {}).items() if k not in OWN}
            some = ["the backbone frozen"] if stage.get("freeze") else []
            some += [f"{key} {value}" for key, value in own.items() if not isinstance(value, dict)]
            some += [f"{key} as in config.yaml" for key, v in own.items() if isinstance(v, dict)]
            some += sampling(stage.get("sampler") or {})
            if len(stage.get("tasks", ())) > 1:
                some += filter(None, [balance(stage.get("task_weights", "equal"))])
            if some:
                said.append(f" Stage {i} of {name}: {', '.join(some)}.")
    return "".join(said)


def arithmetic(values: dict) -> str:
    """ ", computed in bfloat16, mixed with float32", or "" where it is float32."""
    name = ARITHMETIC.get(values["precision"])
    return f", computed in {name}" if name else ""


def reweighted(task: str, spec: dict) -> str:
    """What class weights mean for a task's probabilities; "" where it has none."""
    if not weighted(spec):
        return ""
    findings = kinds.kind_of(spec) == kinds.FINDINGS
    whose = "positives count by their weight" if findings else "every class counts by its weight"
    back = (
        "A finding's odds divided by that weight are"
        if findings
        else "The probability of each class divided by its weight, scaled to a sum of 1, is"
    )
    return (
        f"The networks learnt {task} with class weights: their probabilities are those of a "
        f"population in which {whose}, so that calibration is expected to be off. {back} what a "
        "network without weights would be calibrated to (Elkan 2001)."
    )
