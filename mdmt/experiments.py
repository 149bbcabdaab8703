"""Experiments as data: a configuration is a list of stages, a stage is one training.

A stage says which tasks it trains and where its weights come from: the configured weights, an
earlier stage of the same list, or the average of several of them. The last stage is the one that
is tested. A job is one stage for one backbone, validation scheme, fold, release and seed; its id
is the hash of its pure description, in which earlier stages stand by their job ids. So stages that
agree are one job (FT and MDMT share the STL trainings), and a stage can only ever start from
trainings of its own fold: there is nothing in a description that could name another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from . import groups as groups_
from . import kinds
from .config import check_sampler, check_train
from .errors import BadConfig, BadInput, nearest
from .paths import digest, digest_file
from .schema import STAGE, TRAIN

_STL1 = {"tasks": ["tau1"]}
_STL2 = {"tasks": ["tau2"]}
# heads and task_weights None: those of the key `mdmt`.
_JOINT = {"tasks": ["tau1", "tau2"], "heads": None, "task_weights": None}

# The paper's four configurations for the tasks tau1 (prognosis) and tau2 (severity), FT the other
# way round, then the controls. The keys of a stage are described in `schema.STAGE`.
EXPERIMENTS = {
    "STL-tau1": [_STL1],
    "STL-tau2": [_STL2],
    "FT": [_STL2, {"tasks": ["tau1"], "init": 0}],
    "MDMT": [_STL1, _STL2, {**_JOINT, "init": [0, 1]}],
    "FT-tau2": [_STL1, {"tasks": ["tau2"], "init": 0}],
    "STL-tau1-long": [{"tasks": ["tau1"], "steps_of": "MDMT"}],
    "MDMT-plain": [_JOINT],
    "AVG": [
        _STL1,
        _STL2,
        {"tasks": ["tau1", "tau2"], "init": [0, 1], "heads": "keep", "train": {"epochs": 0}},
    ],
}
# What each control is for: the report shows them beside the paper's four.
CONTROLS = {
    "STL-tau1-long": "STL-tau1 trained for as many steps as MDMT had in all: is a gain more than "
    "longer training?",
    "MDMT-plain": "MDMT from the configured weights, without the averaging",
    "AVG": "the averaged weights with the heads of the single-task models, without joint training",
}
_BETA = re.compile(r"MDMT-beta(0|1|0?\.\d+|1\.0+)")

FORMAT = 1
# Where a job stands; what it trains does not depend on it.
PLACE = ("release", "validation", "fold")
# Keys of `train` that descriptions name only where they are not the default: trainings that were
# made before there were these keys keep their ids.
LATER = ("schedule", "lr_minimum", "lr_warmup_epochs", "groups", "clip_norm", "micro_batch")


@dataclass
class Job:
    """One training.

    description: pure, hashed to `id`. rows: {data set: {"train", "val", "test": int64 rows}};
    needs: ids of the jobs that must be finished before it: those it starts from and those whose
    steps it counts; reported: the configurations (and so the rows of the results) that this job's
    test predictions stand for; twin: id of an earlier job that is the same training in another
    place (`share`): what that one left is copied.
    """

    id: str
    label: str
    description: dict
    rows: dict
    needs: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    twin: str | None = None


def table(values: dict) -> dict[str, list[dict]]:
    """Return every known configuration of resolved `values`: {name: [stage, ...]}.

    Besides the paper's four and the controls there is an STL-tau<k> for every further task, an
    MDMT-beta<number> for every one that `configurations` names, and what the key `experiments`
    adds.
    """
    tasks = list(values["tasks"])
    known = {name: [dict(s) for s in stages] for name, stages in EXPERIMENTS.items()}
    for k in range(3, len(tasks) + 1):
        known[f"STL-tau{k}"] = [{"tasks": [f"tau{k}"]}]
    for name in values["configurations"]:
        if _BETA.fullmatch(name):
            beta = beta_of(values, name)
            shares = [beta, 1 - beta]
            known[name] = [_STL1, _STL2, {**_JOINT, "init": [0, 1], "shares": shares}]
    for name, stages in values["experiments"].items():
        if name in known:
            raise BadConfig(f"experiments.{name}: that name is built in; choose another")
        known[name] = [dict(s) for s in stages]
    aliases = {f"tau{i}": t for i, t in enumerate(tasks, 1)}
    for name, stages in known.items():
        known[name] = [
            _complete(f"experiments.{name}.{position}", position, stage, values, aliases)
            for position, stage in enumerate(stages)
        ]
    return known


def beta_of(values: dict, name: str) -> float | None:
    """The share of STL-tau1 in the average that MDMT or MDMT-beta<number> starts from; None for
    other configurations."""
    match = _BETA.fullmatch(name)
    return float(match[1]) if match else values["mdmt"]["beta"] if name == "MDMT" else None


def _complete(where: str, position: int, stage: dict, values: dict, aliases: dict) -> dict:
    """A stage with every key, task names in place of tau<k>, checked on its own."""
    full = {name: key.default for name, key in STAGE.fields.items()} | stage
    full["heads"] = full["heads"] or values["mdmt"]["heads"]
    if full["task_weights"] is None:
        full["task_weights"] = values["mdmt"]["task_weights"]
    if isinstance(full["task_weights"], dict):
        full["task_weights"] = {aliases.get(t, t): w for t, w in full["task_weights"].items()}
    _check_init(where, position, full, values["mdmt"]["beta"])
    drawn = "random" in weights_of(values).values()
    if full["freeze"] and full["init"] == "weights" and drawn:
        raise BadConfig(
            f"{where}.freeze: a backbone of random weights that never learns says nothing; set "
            "weights or init"
        )
    resolved = [aliases.get(t, t) for t in full["tasks"]]
    full["tasks"] = sorted(set(resolved), key=resolved.index)
    return full


def _check_init(where: str, position: int, stage: dict, beta: float) -> None:
    """Check `init` and `shares`; fill in the shares."""
    init, shares = stage["init"], stage["shares"]
    if isinstance(init, str) and init != "weights":
        raise BadConfig(
            f"{where}.init is '{init}'; it must be weights, the number of an earlier stage, "
            "or a list of two or more"
        )
    sources = [init] if isinstance(init, int) else init if isinstance(init, list) else []
    if isinstance(init, list) and len(init) < 2:
        raise BadConfig(f"{where}.init lists {len(init)} stages; it must be two or more")
    for source in sources:
        if not 0 <= source < position:
            raise BadConfig(
                f"{where}.init names stage {source}, which is not before stage {position}"
            )
    if shares is None:
        equal = [1 / len(sources) for _ in sources]
        stage["shares"] = [beta, 1 - beta] if len(sources) == 2 else equal
    elif len(shares) != len(sources) or abs(sum(shares) - 1) > 1e-9:
        raise BadConfig(
            f"{where}.shares is {shares}; it must be {len(sources)} numbers that sum to 1, one per "
            "averaged stage"
        )


def stages_of(values: dict, name: str) -> list[dict]:
    """Return the stages of configuration `name`; an unknown one or unknown task is an error."""
    known = table(values)
    if name.startswith("MDMT-beta") and name not in known:
        raise BadConfig(
            f"configurations: '{name}' is not MDMT-beta<number> with a number from 0 to 1, such as "
            "MDMT-beta0.25; correct it"
        )
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
        model = stage["steps_of"]
        if model is None:
            continue
        if model not in known:
            raise BadConfig(f"experiments.{name}: steps_of is '{model}'{nearest(model, known)}")
        if any(s["steps_of"] for s in known[model]):
            raise BadConfig(
                f"experiments.{name}: steps_of names '{model}', which counts another "
                "configuration's steps itself; name one that does not"
            )
    return known[name]


def weights_of(values: dict) -> dict[str, str]:
    """What the key `weights` says for each backbone of the study. Raises BadConfig."""
    given, names = values["weights"], values["backbones"]
    if not isinstance(given, dict):
        return dict.fromkeys(names, given)
    absent = [b for b in names if b not in given]
    if absent:
        raise BadConfig(
            f"weights: names no weights of the backbone '{absent[0]}'; add it, as `random` if it "
            "has none"
        )
    return {b: given[b] for b in names}


def weights_text(values: dict) -> str:
    """The same in words: one for all backbones, or those that share each."""
    groups: dict[str, list[str]] = {}
    for backbone, name in weights_of(values).items():
        groups.setdefault(name, []).append(backbone)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{name} ({', '.join(some)})" for name, some in groups.items())


def weights_source(values: dict, backbone: str) -> dict:
    """Describe the initial weights of `backbone`: {"kind": "random"} or "file" with its hash."""
    name = weights_of(values)[backbone]
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


def plan(values: dict, datasets: list, splits: dict, release: str | None = None) -> list[Job]:
    """Return the jobs of one release in an order in which every job comes after those it needs.

    values: resolved configuration; datasets: [(Cases, manifest hash)]; splits: as from
    `splits.make`; release: default `data.release`. Raises BadConfig for an unknown configuration,
    task or fold.
    """
    planner = _Planner(values, datasets)
    for validation in values["validation"]:
        count = len(splits[validation])
        for fold in values["folds"] if values["folds"] is not None else range(count):
            if fold >= count:
                raise BadConfig(
                    f"folds: there is no fold {fold} in {validation}; the folds are 0 "
                    f"to {count - 1}"
                )
            parts = planner.parts(splits[validation][fold])
            for seed in values["seeds"]:
                for backbone in values["backbones"]:
                    place = {
                        "release": values["data"]["release"] if release is None else release,
                        "validation": validation,
                        "fold": fold,
                        "backbone": backbone,
                        "seed": seed,
                    }
                    for name in values["configurations"]:
                        planner.add(place, parts, name)
    return list(planner.jobs.values())


class _Planner:
    """Makes the jobs of a release; what jobs share is made once."""

    def __init__(self, values: dict, datasets: list):
        self.values, self.datasets = values, datasets
        self.jobs: dict[str, Job] = {}
        self.stages = {n: stages_of(values, n) for n in values["configurations"]}
        for stages in list(self.stages.values()):
            for model in {s["steps_of"] for s in stages if s["steps_of"]}:
                self.stages.setdefault(model, stages_of(values, model))
        self.weights = {b: _described(weights_source(values, b)) for b in values["backbones"]}
        self.tasks = {n: _task(n, t) for n, t in values["tasks"].items()}
        self.settings = {
            n: [self._settings(f"experiments.{n}.{i}", s) for i, s in enumerate(stages)]
            for n, stages in self.stages.items()
        }
        self.entries: dict[tuple, list] = {}  # of networks, by backbone and tasks
        self._check_groups()

    def _entries(self, backbone: str, tasks: list[str]) -> list:
        """The parameters of a network, as `groups` takes them."""
        key = (backbone, *tasks)
        if key not in self.entries:
            heads = {t: kinds.head_of(self.tasks[t]) for t in tasks}
            try:
                self.entries[key] = groups_.entries(backbone, heads)
            except ValueError as error:
                raise BadConfig(str(error)) from error
        return self.entries[key]

    def _check_groups(self) -> None:
        """Every pattern must name a parameter of a network that is trained under it: those of
        `train` one of any stage, those of a stage one of its own."""
        known: dict[tuple, list] = {}
        for name, stages in self.stages.items():
            for i, (stage, settings) in enumerate(zip(stages, self.settings[name], strict=True)):
                own = "groups" in (stage["train"] or {})
                where = f"experiments.{name}.{i}.train.groups" if own else "train.groups"
                for pattern in settings["train"].get("groups", {}):
                    for backbone in self.values["backbones"]:
                        entries = self._entries(backbone, stage["tasks"])
                        known.setdefault((where, pattern), []).extend(entries)
        for (where, pattern), entries in known.items():
            if not groups_.named(pattern, entries):
                raise BadConfig(
                    f"{where}: '{pattern}' names no parameter of a network of this study"
                    f"{groups_.suggestion(pattern, entries)}"
                )

    def parts(self, fold: dict) -> dict:
        """{data set: (its rows, its part of a description)} of one fold."""
        found = {}
        for cases, manifest in self.datasets:
            rows = {p: fold[cases.name][p] for p in ("train", "val", "test")}
            named = {p: [cases.images[r] for r in rows[p]] for p in rows}
            record = {"name": cases.name, "task": cases.task, "manifest": manifest}
            found[cases.name] = (rows, {**record, "split": digest(named, 24)})
        return found

    def _settings(self, where: str, stage: dict) -> dict:
        """train and sampler of a stage."""
        values = self.values
        train = _overlaid(values["train"], stage["train"] or {})
        train = {k: v for k, v in train.items() if not k.startswith("checkpoint_")}
        check_train(train, f"{where}.train", "configuration")
        for name in ("warmup_epochs", "lr_warmup_epochs"):
            train[name] = min(train[name], max(train["epochs"] - 1, 0))
        if train["schedule"] in ("plateau", "constant"):
            del train["lr_minimum"]
        if (train["micro_batch"] or 0) >= train["batch_size"]:
            train["micro_batch"] = None
        train = {k: v for k, v in train.items() if k not in LATER or v != TRAIN.fields[k].default}
        own = stage["sampler"] or {}
        sampler = {**values["sampler"], **own}
        if own.get("mode", "ratio") != "ratio" and "ratio" not in own:
            sampler["ratio"] = None
        check_sampler(sampler, f"{where}.sampler", "configuration")
        used = [c.name for c, _ in self.datasets if c.task in stage["tasks"]]
        if len(used) == 1:
            sampler.update(mode="union", ratio=None)
        elif sampler["ratio"] is not None:
            names = [d["name"] for d in values["data"]["datasets"]]
            if len(sampler["ratio"]) != len(names):
                raise BadConfig(
                    f"sampler.ratio has {len(sampler['ratio'])} numbers for {len(names)} "
                    "data sets; give one per data set"
                )
            sampler["ratio"] = [sampler["ratio"][names.index(n)] for n in used]
        return {"train": train, "sampler": sampler}

    def add(self, place: dict, parts: dict, name: str) -> None:
        """Add the jobs of configuration `name` at one place."""
        last = self._chain(place, parts, name)[-1]
        self.jobs[last].reported.append(name)
        self.jobs[last].label = name

    def _chain(self, place: dict, parts: dict, name: str) -> list[str]:
        """Make sure of the jobs of `name`'s stages; return their ids."""
        ids: list[str] = []
        for position, stage in enumerate(self.stages[name]):
            counted = []
            if stage["steps_of"]:
                counted = sorted(set(self._chain(place, parts, stage["steps_of"])))
            job = self._job(place, parts, stage, self.settings[name][position], ids, counted)
            job = self.jobs.setdefault(job.id, job)
            job.label = job.label or "+".join(stage["tasks"])
            ids.append(job.id)
        return ids

    def _check_validation(self, place: dict, tasks: list[str], rows: dict) -> None:
        """Every task that is trained needs cases by which its epoch is selected."""
        for task in tasks:
            mine = [c.name for c, _ in self.datasets if c.task == task]
            if not any(len(rows[name]["val"]) for name in mine):
                named = " and ".join(f"'{name}'" for name in mine)
                raise BadConfig(
                    f"{place['validation']}, fold {place['fold']}: the validation part of data "
                    f"set{'s' * (len(mine) > 1)} {named} is empty; give more patients, raise "
                    "cv.validation, or take another cv.seed"
                )

    def _job(self, place, parts, stage, settings, ids, counted) -> Job:
        values, tasks, init = self.values, stage["tasks"], stage["init"]
        used = [c.name for c, _ in self.datasets if c.task in tasks]
        if init == "weights":
            start, needs = {"weights": self.weights[place["backbone"]]}, []
        elif isinstance(init, int):
            start, needs = {"jobs": [[ids[init], 1.0]]}, [ids[init]]
        else:
            needs = [ids[i] for i in init]
            start = {"jobs": [[n, s] for n, s in zip(needs, stage["shares"], strict=True)]}
        description = {
            "format": FORMAT,
            **place,
            "tasks": [self.tasks[t] for t in tasks],
            "select": tasks[0],
            "init": start,
            "heads": stage["heads"],
            "datasets": [parts[n][1] for n in used],
            "image_size": values["image_size"],
            "precision": values["precision"],
            **settings,
        }
        if patterns := settings["train"].get("groups"):
            entries = self._entries(place["backbone"], tasks)
            mine = {p: f for p, f in patterns.items() if groups_.named(p, entries)}
            train = {k: v for k, v in settings["train"].items() if k != "groups"}
            description["train"] = train | ({"groups": mine} if mine else {})
        if len(tasks) > 1 and stage["task_weights"] != "equal":
            description["task_weights"] = stage["task_weights"]
        if stage["freeze"]:
            description["freeze"] = True
        if counted:
            description["steps_of"] = counted
        number = digest(description, 12)
        name = f"{place['backbone']}-{place['validation']}{place['fold']}-s{place['seed']}-{number}"
        needs = [*needs, *counted]
        rows = {n: parts[n][0] for n in used}
        self._check_validation(place, tasks, rows)
        return Job(name, "", description, rows, sorted(set(needs), key=needs.index))


def share(jobs: list[Job]) -> None:
    """Give each job that is the same training as an earlier one in another place (release,
    validation, fold) that one as its `twin`, which it then needs and nothing else.

    So it is where a data set has the same folds in two places: without centers in cv and loco, with
    fewer centers than the other in loco, or unchanged in a later release. Description, seed and so
    every bit are the same. jobs: each after those it needs.
    """
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for job in jobs:
        content = {k: v for k, v in job.description.items() if k not in PLACE}
        if "jobs" in content["init"]:
            content["init"] = {"jobs": [[same[n], s] for n, s in content["init"]["jobs"]]}
        if "steps_of" in content:
            content["steps_of"] = sorted(same[n] for n in content["steps_of"])
        same[job.id] = first.setdefault(digest(content), job.id)
        if same[job.id] != job.id:
            job.twin, job.needs = same[job.id], [same[job.id]]


def _task(name: str, task: dict) -> dict:
    """A task in a description. Keys that came later are left out at their default, so that the jobs
    of an earlier study keep their ids."""
    number = kinds.kind_of(task) == kinds.NUMBER
    head = {k: v for k, v in task["head"].items() if k != "smoothing" or v}
    described = {
        "name": name,
        "classes": [] if number else task["classes"],
        "positive": None if number else task["positive"],
        "head": head,
    }
    if task["class_weights"] != "none":
        described["class_weights"] = task["class_weights"]
    return described


def _overlaid(base: dict, changed: dict) -> dict:
    """`base` with the keys of `changed` in their place; mappings inside are merged."""
    out = dict(base)
    for name, value in changed.items():
        merge = isinstance(value, dict) and isinstance(base.get(name), dict) and name == "plateau"
        out[name] = _overlaid(base[name], value) if merge else value
    return out


def waves(jobs: list[Job], done=()) -> list[Job]:
    """Return the jobs that can start once those in `done` are finished, in order."""
    done = set(done)
    return [j for j in jobs if j.id not in done and all(n in done for n in j.needs)]
