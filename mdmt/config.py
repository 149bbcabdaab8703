"""Configurations: YAML validated against the schema of `mdmt.schema`.

YAML is read with the safe loader, duplicate keys are
refused, and an unknown key names the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
import sys
from pathlib import Path

from . import kinds
from .errors import BadConfig, nearest
from .schema import MASKS, SCHEMA, Key, describe, paths_of

__all__ = ["describe", "find", "load", "resolve", "shipped"]

SHIPPED = Path(__file__).parent / "configs"

# Keys that change neither what is trained nor how it is tested.
NEUTRAL = (
    "data.root",
    "data.store",
    "train.checkpoint_seconds",
    "train.checkpoint_steps",
    "cluster",
    "keep_weights",
)
# Keys that only choose which jobs of a study run (see `--extend`).
SELECTING = (
    "backbones",
    "configurations",
    "experiments",
    "validation",
    "folds",
    "seeds",
    "data.releases",
)
# What a name in `configurations` may stand for.
GROUPS = {"controls": ["STL-tau1-long", "MDMT-plain", "AVG"]}


def _loader():
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML loader that refuses duplicate keys."""

    def mapping(loader, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' occurs twice", key_node.start_mark
                )
            seen.add(key)
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def read_yaml(text: str, source: str):
    """Parse YAML text; `source` is named in the error."""
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadConfig(f"{source}{place}: is not valid YAML ({problem}); correct it") from error
    except (RecursionError, ValueError) as error:
        raise BadConfig(f"{source}: is not valid YAML ({error}); correct it") from error


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.yaml"))


def find(name: str) -> Path:
    """Return the file of configuration `name`: a YAML file or the name of a shipped one."""
    if name in shipped():
        return SHIPPED / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        run = (path / "config.yaml").is_file()
        remedy = f"go on with its run by --resume --out {name}" if run else "give a YAML file"
        raise BadConfig(f"{name}: is a folder, no configuration; {remedy}")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise BadConfig(
            f"{name}: no such configuration file; give an existing YAML file or one "
            f"of the shipped names {', '.join(shipped())}"
        )
    raise BadConfig(f"{name}: no such configuration{nearest(name, shipped())}")


def load(name: str = "demo", overrides=(), check: bool = True) -> dict:
    """Read configuration `name`, apply `key.sub=value` overrides, check it, fill in defaults."""
    path = find(str(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: cannot be read as UTF-8 text ({error})") from error
    raw = read_yaml(text, str(path))
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise BadConfig(f"{path}: must hold `key: value` lines, not a {_kind(raw)}")
    return overridden(raw, overrides, str(path)) if check else _changed(raw, overrides)


def overridden(raw: dict, overrides, source: str) -> dict:
    """Return `raw` with the `key.sub=value` overrides, resolved; an error names `source`, or --set
    where what `source` holds is right without them."""
    changed = _changed(raw, overrides)
    try:
        return resolve(changed, source)
    except BadConfig:
        if not overrides:
            raise
        resolve(raw, source)
        return resolve(changed, "--set")


def _changed(raw: dict, overrides) -> dict:
    raw = copy.deepcopy(raw)
    for text in overrides:
        override(raw, text)
    return raw


def resolve(raw: dict, source: str = "configuration") -> dict:
    """Check `raw` against the schema, return a new mapping with every default filled in."""
    if is_masks(raw):
        _check_masks(raw, source)
        values = _check(MASKS, copy.deepcopy(raw), "", source)
        _check_train(values, source)
        return values
    values = _check(SCHEMA, copy.deepcopy(raw), "", source)
    _cross_check(values, source)
    return values


def _check_masks(raw: dict, source: str) -> None:
    """A key that only studies have, and that a user may look for here."""
    if isinstance(raw.get("data"), dict) and "colour" in raw["data"]:
        raise BadConfig(
            f"{source}: data.colour is given, but a configuration of kind masks trains on grey "
            "pictures; leave it out"
        )


def is_masks(values: dict) -> bool:
    """Whether a configuration trains a network for masks (`kind: masks`)."""
    return "kind" in values


def pictured(values: dict) -> str:
    """What one of a study's images is called in sentences."""
    return "photograph" if values["data"]["colour"] else "radiograph"


def override(raw: dict, text: str) -> None:
    """Apply one `key.sub=value`; the value is read as YAML."""
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise BadConfig(f"--set {text}: must look like key.sub=value")
    parts = key.split(".")
    node = raw
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise BadConfig(
                    f"--set {text}: '{'.'.join(parts[:position])}' is a list of "
                    f"{len(node)} items, '{part}' is not one of them"
                )
            part = int(part)
        if last:
            node[part] = read_yaml(value, f"--set {text}")
            return
        child = node[part] if isinstance(node, list) else node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, (dict, list)):
            raise BadConfig(
                f"--set {text}: '{'.'.join(parts[: position + 1])}' is a single value "
                "and has no keys below it"
            )
        node = child


def _kind(value) -> str:
    names = {
        bool: "yes/no value",
        int: "number",
        float: "number",
        str: "text",
        list: "list",
        dict: "mapping",
        type(None): "empty value",
    }
    return names.get(type(value), type(value).__name__)


LARGEST = sys.float_info.max

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "text": "a text",
    "list": "a list",
    "map": "a mapping of keys",
    "table": "a mapping of names",
}


def _convert(kind: str, value):
    """Return (True, value in `kind`) or (False, None)."""
    if kind == "int":
        if isinstance(value, bool):
            return False, None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return True, int(value)
        return isinstance(value, int), value
    if kind == "float":
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                return False, None
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = good and -LARGEST <= value <= LARGEST
        if good and float(value) == int(value if abs(value) < 2**53 else 0):
            return True, int(value) if isinstance(value, int) else float(value)
        return good, value
    if kind == "bool":
        return isinstance(value, bool), value
    if kind == "text":
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return True, str(value)
        return isinstance(value, str), value
    if kind == "list":
        return isinstance(value, list), value
    return isinstance(value, dict), value


def _check(key: Key, value, where: str, source: str):
    """Return `value` checked against `key` with defaults filled in; `where` is its dotted name."""
    if value is None:
        if key.optional:
            return None
        if key.required:
            raise BadConfig(f"{source}: the key '{where}' is missing; set it")
        value = copy.deepcopy(key.default)
    for kind in key.kind.split("|"):
        good, converted = _convert(kind, value)
        if good:
            break
    else:
        wanted = " or ".join(_WANTED[k] for k in key.kind.split("|"))
        raise BadConfig(
            f"{source}: {where} is {reprlib.repr(value)}, a {_kind(value)}; it must be {wanted}"
        )
    value = converted
    if kind == "map":
        return _check_map(key, value, where, source)
    if kind == "table":
        return {
            _name(k, where, source): _check(key.item, v, f"{where}.{k}", source)
            for k, v in value.items()
        }
    if kind == "list":
        if key.nonempty and not value:
            raise BadConfig(f"{source}: {where} is empty; give at least one")
        return [_check(key.item, v, f"{where}.{i}", source) for i, v in enumerate(value)]
    if key.choices and value not in key.choices:
        raise BadConfig(f"{source}: {where} is '{value}'{nearest(value, key.choices)}")
    if key.low is not None and value < key.low:
        raise BadConfig(f"{source}: {where} is {value}; it must be at least {key.low}")
    if key.high is not None and value > key.high:
        raise BadConfig(f"{source}: {where} is {value}; it must be at most {key.high}")
    return value


def _name(name, where: str, source: str) -> str:
    if isinstance(name, bool) or not isinstance(name, (str, int, float)) or name == "":
        raise BadConfig(f"{source}: {where} has the key {name!r}; write it in quotes")
    return str(name)


def _check_map(key: Key, value: dict, where: str, source: str) -> dict:
    for name in value:
        if name not in key.fields:
            full = f"{where}.{name}" if where else str(name)
            prefix = f"{where}." if where else ""
            same = difflib.get_close_matches(str(name), key.fields, n=1, cutoff=0.75)
            elsewhere = [p for p in paths_of(SCHEMA) if p.split(".")[-1] == str(name)]
            if same or elsewhere:
                hint = f"; did you mean '{prefix + same[0] if same else elsewhere[0]}'?"
            else:
                hint = nearest(full, [prefix + known for known in key.fields])
            raise BadConfig(f"{source}: unknown key '{full}'{hint}")
    checked = {}
    for name, sub in key.fields.items():
        full = f"{where}.{name}" if where else name
        present = name in value
        given = value.get(name)
        if key.partial and not present:
            continue
        if not present and not sub.required:
            given = copy.deepcopy(sub.default)
            if given is None and sub.optional:
                checked[name] = None
                continue
        checked[name] = _check(sub, given, full, source)
    return checked


def _unique(values: list, what: str, source: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise BadConfig(f"{source}: {what} names '{value}' twice; keep one")


def _cross_check(values: dict, source: str) -> None:
    """Checks that need more than one key."""
    if not values["tasks"]:
        raise BadConfig(f"{source}: the key 'tasks' is missing; describe at least one task")
    for name, task in values["tasks"].items():
        _check_task(name, task, source)
    datasets = values["data"]["datasets"]
    if not datasets:
        raise BadConfig(f"{source}: data.datasets is empty; describe at least one data set")
    _unique([d["name"] for d in datasets], "data.datasets", source)
    for position, dataset in enumerate(datasets):
        if dataset["task"] not in values["tasks"]:
            raise BadConfig(
                f"{source}: data.datasets.{position}.task is '{dataset['task']}'"
                f"{nearest(dataset['task'], values['tasks'])}"
            )
        _check_columns(f"{source}: data.datasets.{position}.columns", dataset, values["tasks"])
        if dataset["reader"] == "table" and dataset["table"] is None:
            raise BadConfig(
                f"{source}: the key 'data.datasets.{position}.table' is missing; set it"
            )
    names = [GROUPS.get(name, [name]) for name in values["configurations"]]
    values["configurations"] = [name for group in names for name in group]
    for name in ("backbones", "configurations", "validation", "folds", "seeds"):
        _unique(values[name] or [], name, source)
    _unique(values["data"]["releases"] or [], "data.releases", source)
    _check_task_weights(values["mdmt"]["task_weights"], "mdmt.task_weights", values, source)
    for name, stages in values["experiments"].items():
        for i, stage in enumerate(stages):
            where = f"experiments.{name}.{i}.task_weights"
            _check_task_weights(stage["task_weights"], where, values, source)
    clip = values["data"]["clip"]
    if clip is not None and (len(clip) != 2 or clip[0] >= clip[1]):
        raise BadConfig(f"{source}: data.clip is {clip}; it must be two percentiles, low < high")
    if values["data"]["colour"] and values["data"]["crop"] != "whole":
        raise BadConfig(
            f"{source}: data.crop is '{values['data']['crop']}' and data.colour true, but lungs "
            "are found in X-rays, which are grey; set data.crop to whole or data.colour to false"
        )
    _check_train(values, source)
    check_sampler(values["sampler"], "sampler", source)


def _check_columns(where: str, dataset: dict, tasks: dict) -> None:
    """Columns that only some kinds of tasks have."""
    task, columns = tasks[dataset["task"]], dataset["columns"]
    findings = kinds.kind_of(task) == kinds.FINDINGS
    for key, wrong in (("findings", not findings), ("second", findings)):
        if columns[key] is not None and wrong:
            raise BadConfig(
                f"{where}.{key} is given, but the task '{dataset['task']}' has the loss "
                f"{task['head']['loss']}; leave it out"
            )
    for name in columns["findings"] or {}:
        if name not in task["classes"]:
            raise BadConfig(f"{where}.findings names '{name}'{nearest(name, task['classes'])}")
    absent = (
        [c for c in task["classes"] if c not in columns["findings"]] if columns["findings"] else []
    )
    if absent:
        raise BadConfig(f"{where}.findings names no column of '{absent[0]}'; add it")


def _check_train(values: dict, source: str) -> None:
    """Checks of the keys of `train` that depend on each other."""
    # A model must be selectable in the last epoch at least: a short run has a shorter warm-up.
    train = values["train"]
    for name in ("warmup_epochs", "lr_warmup_epochs"):
        train[name] = min(train[name], train["epochs"] - 1)
    check_train(train, "train", source)
    stages = [s for some in values.get("experiments", {}).values() for s in some]
    falls = [train["schedule"], *((s["train"] or {}).get("schedule") for s in stages)]
    if train["lr_minimum"] and not {"cosine", "linear"} & set(falls):
        raise BadConfig(
            f"{source}: train.lr_minimum is {train['lr_minimum']}, which only the schedules cosine "
            f"and linear reach; leave it out, or with plateau set train.plateau.minimum"
        )


def check_train(train: dict, where: str, source: str) -> None:
    """Checks of the keys of `train`, whole or as a stage has them, that no range can say."""
    for name in ("lr", "eps"):
        if train[name] <= 0:
            raise BadConfig(f"{source}: {where}.{name} is {train[name]}; it must be above 0")
    if len(train["betas"]) != 2:
        raise BadConfig(f"{source}: {where}.betas must be two numbers")
    alpha = (train["augment"] or {}).get("elastic_alpha", [0, 0])
    if len(alpha) != 2 or alpha[0] > alpha[1]:
        raise BadConfig(f"{source}: {where}.augment.elastic_alpha must be two numbers, low <= high")
    if train["schedule"] in ("cosine", "linear") and train["lr_minimum"] > train["lr"]:
        raise BadConfig(
            f"{source}: {where}.lr_minimum is {train['lr_minimum']} and lr {train['lr']}; the "
            "learning rate falls from lr to lr_minimum, so lower the one or raise the other"
        )


def check_sampler(sampler: dict, where: str, source: str) -> None:
    """Checks of the keys of `sampler` that depend on each other."""
    if (sampler["mode"] == "ratio") != (sampler["ratio"] is not None):
        raise BadConfig(f"{source}: {where}.ratio must be given with mode ratio, and only then")
    if not all(share > 0 for share in sampler["ratio"] or ()):
        raise BadConfig(f"{source}: {where}.ratio is {sampler['ratio']}; shares must be above 0")
    epoch, known = sampler["epoch"], ("union", "longest", "shortest")
    if isinstance(epoch, str) and epoch not in known:
        raise BadConfig(f"{source}: {where}.epoch is '{epoch}'{nearest(epoch, known)}")
    if isinstance(epoch, int) and not 1 <= epoch < 1 << 31:
        raise BadConfig(
            f"{source}: {where}.epoch is {epoch}; it must be {', '.join(known)} or a number of "
            "steps from 1 to 2147483647"
        )


def _check_task_weights(weights, where: str, values: dict, source: str) -> None:
    if isinstance(weights, str):
        if weights not in ("equal", "uncertainty"):
            hint = nearest(weights, ("equal", "uncertainty"))
            raise BadConfig(f"{source}: {where} is '{weights}'{hint}")
        return
    known = [*values["tasks"], *(f"tau{i}" for i in range(1, len(values["tasks"]) + 1))]
    for task in weights:
        if task not in known:
            raise BadConfig(f"{source}: {where} names '{task}'{nearest(task, values['tasks'])}")
    if not any(weights.values()):
        raise BadConfig(f"{source}: {where} gives every task 0; give one more")


def _check_task(name: str, task: dict, source: str) -> None:
    where, classes, cuts = f"{source}: tasks.{name}", task["classes"], task["thresholds"]
    kind, loss = kinds.kind_of(task), task["head"]["loss"]
    _unique(classes, f"tasks.{name}.classes", source)
    if kind == kinds.NUMBER:
        _check_number(where, task)
    elif not classes:
        raise BadConfig(f"{source}: the key 'tasks.{name}.classes' is missing; set it")
    if kind == kinds.FINDINGS:
        _check_findings(where, task)
    elif len(classes) == 1:
        raise BadConfig(f"{where}.classes has one class; give at least two")
    if task["positive"] is not None and task["positive"] not in classes:
        raise BadConfig(
            f"{where}.positive is '{task['positive']}'{nearest(task['positive'], classes)}"
        )
    targets = [*classes, kinds.NO_FINDING] if kind == kinds.FINDINGS else classes
    for label, target in (task["labels"] or {}).items():
        if target not in targets:
            raise BadConfig(f"{where}.labels.{label} is '{target}'{nearest(target, targets)}")
    _check_recipe(where, task)
    if cuts is not None:
        if task["labels"]:
            raise BadConfig(f"{where} has labels and thresholds; keep one")
        if len(cuts) != len(classes) - 1 or sorted(set(cuts)) != cuts:
            raise BadConfig(
                f"{where}.thresholds is {cuts}; it must be {len(classes) - 1} rising numbers, one "
                f"fewer than the classes{' (loss ' + loss + ')' if kind == kinds.NUMBER else ''}"
            )


def _check_recipe(where: str, task: dict) -> None:
    """Label smoothing and class weights."""
    loss, weights = task["head"]["loss"], task["class_weights"]
    if task["head"]["smoothing"] and loss != "ce":
        raise BadConfig(
            f"{where}.head.smoothing is {task['head']['smoothing']}, but its loss {loss} has no "
            "target that is spread over classes; leave smoothing out, or take the loss ce"
        )
    if weights == "none":
        return
    if kinds.kind_of(task) == kinds.NUMBER:
        raise BadConfig(
            f"{where}.class_weights is given, but its loss mse learns a number, which has no "
            "classes to weigh; leave it out"
        )
    if isinstance(weights, str):
        if weights != "balanced":
            hint = nearest(weights, ("none", "balanced"))
            raise BadConfig(f"{where}.class_weights is '{weights}'{hint}")
        return
    for name in weights:
        if name not in task["classes"]:
            raise BadConfig(f"{where}.class_weights names '{name}'{nearest(name, task['classes'])}")
    if not any(weights.get(name, 1) for name in task["classes"]) or not weights:
        raise BadConfig(
            f"{where}.class_weights gives {'every class 0' if weights else 'no class a weight'}; "
            "give one more, or leave it out"
        )


def _check_number(where: str, task: dict) -> None:
    """A number is learnt as it stands: classes are only what thresholds make of it."""
    if task["thresholds"] is None:
        for key in ("classes", "labels", "positive"):
            if task[key]:
                raise BadConfig(
                    f"{where}.{key} is given, but its loss mse learns a number; leave {key} out, "
                    "or take the loss ce or ordinal"
                    + ("; with thresholds they are reported" if key == "classes" else "")
                )
    elif not task["classes"]:
        raise BadConfig(
            f"{where}.thresholds makes {len(task['thresholds']) + 1} classes of the number; name "
            "them in classes, or leave thresholds out"
        )


def _check_findings(where: str, task: dict) -> None:
    for key in ("thresholds", "positive"):
        if task[key] is not None:
            raise BadConfig(
                f"{where}.{key} is given, but its loss bce is for findings, of which an image has "
                f"any; leave {key} out"
            )
    for name in task["classes"]:
        if re.search(r"[;|]", name) or name.startswith(kinds.UNKNOWN) or not name.strip():
            raise BadConfig(f"{where}.classes: '{name}' must not be empty, hold ; or |, or begin "
                            "with ?; rename the finding")  # fmt: skip
        if name.lower() == kinds.NO_FINDING.lower():
            raise BadConfig(
                f"{where}.classes: '{name}' is what an image without any finding has; leave it out"
            )


def get(values: dict, path: str):
    """Return the value at a dotted path."""
    for part in path.split("."):
        values = values[part]
    return values


def flatten(values, where: str = "") -> dict:
    """Return {dotted path: scalar or list of scalars}."""
    if isinstance(values, dict) and values:
        found = {}
        for name, value in values.items():
            found.update(flatten(value, f"{where}.{name}" if where else str(name)))
        return found
    if isinstance(values, list) and any(isinstance(v, (dict, list)) for v in values):
        found = {}
        for i, value in enumerate(values):
            found.update(flatten(value, f"{where}.{i}"))
        return found
    return {where: values}


def differences(old: dict, new: dict, ignore=NEUTRAL) -> list[tuple]:
    """Return (path, old value, new value) of every key that differs, leaving out `ignore`."""
    a, b = flatten(old), flatten(new)
    below = tuple(f"{name}." for name in ignore)
    paths = [p for p in dict.fromkeys([*a, *b]) if p not in ignore and not p.startswith(below)]
    found = [(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]
    order = [list(v.get("tasks") or {}) for v in (old, new)]  # it says which is tau1, tau2, ...
    if not found and order[0] != order[1]:
        found.append(("tasks", order[0], order[1]))
    return found


def dump(values: dict) -> str:
    """Return the resolved configuration as YAML text."""
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
