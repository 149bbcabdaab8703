"""Experiments as data: a configuration is a list of stages, a stage is one training.

A stage says which tasks it trains and where its weights come from: the configured weights, an
earlier stage of the same list, or the average of two of them. The last stage is the one that is
tested. A job is one stage for one backbone, validation scheme, fold, release and seed; its id is
the hash of its pure description, in which earlier stages stand by their job ids. So stages that
agree are one job (FT and MDMT share the STL trainings), and a stage can only ever start from
trainings of its own fold: there is nothing in a description that could name another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .errors import BadConfig, BadInput, nearest
from .paths import digest, digest_file

# The paper's four configurations for the tasks tau1 (prognosis) and tau2 (severity).
# init: "weights" | k (stage k of this list) | [j, k] (their average: beta * j + (1 - beta) * k).
EXPERIMENTS = {
    "STL-tau1": [{"tasks": ["tau1"], "init": "weights", "heads": "new"}],
    "STL-tau2": [{"tasks": ["tau2"], "init": "weights", "heads": "new"}],
    "FT": [
        {"tasks": ["tau2"], "init": "weights", "heads": "new"},
        {"tasks": ["tau1"], "init": 0, "heads": "new"},
    ],
    "MDMT": [
        {"tasks": ["tau1"], "init": "weights", "heads": "new"},
        {"tasks": ["tau2"], "init": "weights", "heads": "new"},
        {"tasks": ["tau1", "tau2"], "init": [0, 1], "heads": None},  # heads: mdmt.heads
    ],
}

FORMAT = 1


@dataclass
class Job:
    """One training.

    description: pure, hashed to `id`. rows: {data set: {"train", "val", "test": int64 rows}};
    needs: ids of the jobs it starts from; reported: the configurations (and so the rows of the
    results) that this job's test predictions stand for.
    """

    id: str
    label: str
    description: dict
    rows: dict
    needs: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)


def table(values: dict) -> dict[str, list[dict]]:
    """Return every known configuration of resolved `values`: {name: [stage, ...]}.

    Besides the paper's four there is an STL-tau<k> for every further task, and what the key
    `experiments` adds.
    """
    tasks = list(values["tasks"])
    known = {name: [dict(s) for s in stages] for name, stages in EXPERIMENTS.items()}
    for k in range(3, len(tasks) + 1):
        known[f"STL-tau{k}"] = [{"tasks": [f"tau{k}"], "init": "weights", "heads": "new"}]
    for name, stages in values["experiments"].items():
        if name in known:
            raise BadConfig(f"experiments.{name}: that name is built in; choose another")
        known[name] = [dict(s) for s in stages]
    aliases = {f"tau{i}": t for i, t in enumerate(tasks, 1)}
    for name, stages in known.items():
        for position, stage in enumerate(stages):
            stage["heads"] = stage["heads"] or values["mdmt"]["heads"]
            _check_init(name, position, stage)
            resolved = [aliases.get(t, t) for t in stage["tasks"]]
            stage["tasks"] = sorted(set(resolved), key=resolved.index)
    return known


def _check_init(name: str, position: int, stage: dict) -> None:
    init = stage["init"]
    where = f"experiments.{name}.{position}.init"
    if isinstance(init, str) and init != "weights":
        raise BadConfig(
            f"{where} is '{init}'; it must be weights, the number of an earlier stage, "
            "or a list of two"
        )
    sources = [init] if isinstance(init, int) else init if isinstance(init, list) else []
    if isinstance(init, list) and len(init) != 2:
        raise BadConfig(f"{where} lists {len(init)} stages; it must be two")
    for source in sources:
        if source >= position:
            raise BadConfig(f"{where} names stage {source}, which is not before stage {position}")


def stages_of(values: dict, name: str) -> list[dict]:
    """Return the stages of configuration `name`; an unknown one or unknown task is an error."""
    known = table(values)
    if name not in known:
        raise BadConfig(f"configurations: '{name}' is unknown{nearest(name, known)}")
    used = {d["task"] for d in values["data"]["datasets"]}
    for stage in known[name]:
        for task in stage["tasks"]:
            if task not in values["tasks"]:
                raise BadConfig(
                    f"configuration '{name}' needs the task '{task}'"
                    f"{nearest(task, values['tasks'])}"
                )
            if task not in used:
                raise BadConfig(
                    f"configuration '{name}' needs the task '{task}', which no data "
                    "set has; add a data set or leave the configuration out"
                )
    return known[name]


def weights_source(values: dict, backbone: str) -> dict:
    """Describe the initial weights of `backbone`: {"kind": "random"} or "file" with its hash."""
    name = values["weights"]
    if name == "random":
        return {"kind": name}
    if name == "imagenet":
        from .weights import fetch

        try:
            path = fetch.obtain(backbone)
        except BadInput as error:
            raise BadConfig(f"weights: {error}") from error
        return {"kind": "file", "sha256": fetch.digest(path), "path": str(path.resolve())}
    path = Path(name)
    if path.is_dir():
        path = path / f"{backbone}.safetensors"
        if not path.is_file():
            raise BadConfig(f"weights: there is no {path}; add it or use random")
    elif not path.is_file():
        raise BadConfig(
            f"weights: '{name}' is neither random nor imagenet nor a file or folder; correct it"
        )
    return {"kind": "file", "sha256": digest_file(path), "path": str(path.resolve())}


def _described(weights: dict) -> dict:
    """The part of a weights source that says what it is, not where."""
    return {k: v for k, v in weights.items() if k != "path"}


def plan(values: dict, datasets: list, splits: dict) -> list[Job]:
    """Return the jobs of a run in an order in which every job comes after those it needs.

    values: resolved configuration; datasets: [(Cases, manifest hash)]; splits: as from
    `splits.make`. Raises BadConfig for an unknown configuration, task or fold.
    """
    jobs: dict[str, Job] = {}
    stages = {name: stages_of(values, name) for name in values["configurations"]}
    weights = {b: weights_source(values, b) for b in values["backbones"]}
    for validation in values["validation"]:
        count = len(splits[validation])
        for fold in values["folds"] if values["folds"] is not None else range(count):
            if fold >= count:
                raise BadConfig(
                    f"folds: there is no fold {fold} in {validation}; the folds are 0 "
                    f"to {count - 1}"
                )
            for seed in values["seeds"]:
                for backbone in values["backbones"]:
                    place = {
                        "release": values["data"]["release"],
                        "validation": validation,
                        "fold": fold,
                        "backbone": backbone,
                        "seed": seed,
                    }
                    for name in values["configurations"]:
                        _plan_one(
                            jobs,
                            values,
                            datasets,
                            splits[validation][fold],
                            place,
                            name,
                            stages[name],
                            weights[backbone],
                        )
    return list(jobs.values())


def _plan_one(jobs, values, datasets, parts, place, name, stages, weights) -> None:
    """Add the jobs of one configuration at one place to `jobs`."""
    ids: list[str] = []
    for position, stage in enumerate(stages):
        job = _job(values, datasets, parts, place, stage, ids, weights)
        job = jobs.setdefault(job.id, job)
        ids.append(job.id)
        if position == len(stages) - 1:
            job.reported.append(name)
            job.label = name
        elif not job.label:
            job.label = "+".join(stage["tasks"])


def _job(values, datasets, parts, place, stage, ids, weights) -> Job:
    tasks = stage["tasks"]
    used = [(c, m) for c, m in datasets if c.task in tasks]
    init = stage["init"]
    beta = values["mdmt"]["beta"]
    if init == "weights":
        start, needs = {"weights": _described(weights)}, []
    elif isinstance(init, int):
        start, needs = {"jobs": [[ids[init], 1.0]]}, [ids[init]]
    else:
        needs = [ids[i] for i in init]
        start = {"jobs": [[needs[0], beta], [needs[1], 1 - beta]]}
    sampler = dict(values["sampler"])
    if len(used) == 1:
        sampler.update(mode="union", ratio=None)
    elif sampler["ratio"] is not None:
        names = [d["name"] for d in values["data"]["datasets"]]
        if len(sampler["ratio"]) != len(names):
            raise BadConfig(
                f"sampler.ratio has {len(sampler['ratio'])} numbers for {len(names)} "
                "data sets; give one per data set"
            )
        sampler["ratio"] = [sampler["ratio"][names.index(c.name)] for c, _ in used]
    train = {k: v for k, v in values["train"].items() if not k.startswith("checkpoint_")}
    description = {
        "format": FORMAT,
        **place,
        "tasks": [
            {
                "name": t,
                "classes": values["tasks"][t]["classes"],
                "positive": values["tasks"][t]["positive"],
                "head": values["tasks"][t]["head"],
            }
            for t in tasks
        ],
        "select": tasks[0],
        "init": start,
        "heads": stage["heads"],
        "datasets": [
            {
                "name": c.name,
                "task": c.task,
                "manifest": m,
                "split": digest(
                    {p: [c.images[r] for r in parts[c.name][p]] for p in ("train", "val", "test")},
                    24,
                ),
            }
            for c, m in used
        ],
        "image_size": values["image_size"],
        "precision": values["precision"],
        "train": train,
        "sampler": sampler,
    }
    number = digest(description, 12)
    name = f"{place['backbone']}-{place['validation']}{place['fold']}-s{place['seed']}-{number}"
    rows = {c.name: {p: parts[c.name][p] for p in ("train", "val", "test")} for c, _ in used}
    return Job(name, "", description, rows, sorted(set(needs), key=needs.index))


def waves(jobs: list[Job], done=()) -> list[Job]:
    """Return the jobs that can start once those in `done` are finished, in order."""
    done = set(done)
    return [j for j in jobs if j.id not in done and all(n in done for n in j.needs)]
