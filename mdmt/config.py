"""Configurations: YAML validated against one documented schema.

`SCHEMA` is the only place where keys, types, ranges, choices and defaults are written down;
`describe()` prints it (`mdmt show keys`). YAML is read with the safe loader, duplicate keys are
refused, and an unknown key names the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadConfig, nearest

SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    kind: int, float, bool, text, list, map (fixed keys), table (free keys), or several joined
    by "|". `item` is the Key of a list's items or a table's values; `fields` a map's keys.
    """

    kind: str
    default: Any = None
    doc: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    optional: bool = False
    required: bool = False
    nonempty: bool = False
    item: Key | None = None
    fields: dict = field(default_factory=dict)


def _map(doc: str, optional: bool = False, **fields: Key) -> Key:
    return Key("map", None if optional else {}, doc, optional=optional, fields=fields)


COLUMNS = _map(
    "columns of the table",
    image=Key("text", "image", "image file name, with or without extension"),
    patient=Key("text", "patient", "patient id (text); splits never cut a patient", optional=True),
    label=Key("text", "label", "class name, or the score that the task's thresholds cut"),
    center=Key("text", None, "center (hospital), needed for loco", optional=True),
)

DATASET = _map(
    "one data set with the label of one task",
    name=Key("text", required=True, doc="name of the data set"),
    reader=Key(
        "text",
        "table",
        "table, or the layout of a published data set as downloaded",
        choices=("table", "aiforcovid", "brixia"),
    ),
    folder=Key("text", None, "folder of the data set, relative to data.root", optional=True),
    table=Key(
        "text",
        None,
        "CSV, TSV or XLSX file in that folder (brixia: metadata_global_v2.csv)",
        optional=True,
    ),
    images=Key(
        "text", None, "image folder in it (default: images; brixia: dicom_clean)", optional=True
    ),
    columns=COLUMNS,
    task=Key("text", required=True, doc="the task (a key of `tasks`) that its label belongs to"),
    delimiter=Key(
        "text",
        "auto",
        "auto, comma, semicolon or tab",
        choices=("auto", "comma", "semicolon", "tab"),
    ),
    keep=Key(
        "text",
        None,
        "text file with a header line whose first column names the images to use (default: all)",
        optional=True,
    ),
    leave_out=Key("list", [], "names of images that are not used", item=Key("text")),
    published=Key(
        "text",
        None,
        "folder of published fold files (with 5/ and loCo/): exactly these folds are used",
        optional=True,
    ),
    target=Key(
        "text",
        "global",
        "brixia: the score that the task's thresholds cut: all six regions, the right lung (A, B, "
        "C), the left lung (D, E, F) or one region",
        choices=("global", "right", "left", "A", "B", "C", "D", "E", "F"),
    ),
    consensus=Key(
        "text",
        "keep",
        "brixia: what happens to the 150 images that five radiologists scored",
        choices=("keep", "exclude", "only"),
    ),
    groups=Key(
        "table",
        None,
        "brixia: manufacturer -> center (default: SIEMENS, AGFA and CARESTREAM, each by the "
        "first word of the name; others have no center)",
        optional=True,
        item=Key("text"),
    ),
)

HEAD = _map(
    "fully connected head on the pooled feature",
    hidden=Key(
        "list",
        [128, 32],
        "widths of the hidden layers; [] is one linear layer",
        item=Key("int", low=1),
    ),
    dropout=Key("float", 0.5, "dropout probability after each hidden layer", low=0, high=0.99),
    loss=Key("text", "ce", "loss of the task", choices=("ce",)),
)

TASK = _map(
    "one task",
    classes=Key(
        "list", required=True, doc="class names, in order", item=Key("text"), nonempty=True
    ),
    labels=Key(
        "table",
        None,
        "label in the table -> class name, where they differ",
        optional=True,
        item=Key("text"),
    ),
    thresholds=Key(
        "list",
        None,
        "scores t1 < t2 < ...: class k is t_k <= score < t_k+1 "
        "(equation 4 of the paper: [5, 9, 14])",
        optional=True,
        item=Key("float"),
    ),
    positive=Key(
        "text", None, "positive class of a two-class task (default: the last one)", optional=True
    ),
    head=HEAD,
)

STAGE = _map(
    "one training of an experiment",
    tasks=Key(
        "list", required=True, doc="task names, or tau1, tau2, ...", item=Key("text"), nonempty=True
    ),
    init=Key(
        "int|list|text",
        "weights",
        "weights (the configured ones), the number of an "
        "earlier stage, or a list of two of them to average (mdmt.beta)",
        item=Key("int", low=0),
    ),
    heads=Key("text", "new", "heads at the start", choices=("new", "keep")),
)

SCHEMA = _map(
    "configuration",
    name=Key("text", "run", "name of the study; names the default out folder"),
    data=_map(
        "data",
        root=Key(
            "text",
            None,
            "folder of the data; relative paths start at the working directory",
            optional=True,
        ),
        release=Key("text", "1", "name of the data release, copied into the results"),
        datasets=Key("list", [], "the data sets", item=DATASET),
        synthetic=_map(
            "draw the demo's synthetic data instead of reading data.root",
            optional=True,
            patients=Key("int", 120, "patients per data set", low=10, high=100000),
            size=Key("int", 128, "side of the drawn images in pixels", low=32, high=2048),
            noise=Key(
                "float",
                1.0,
                "standard deviation of the noise in the prognosis, in units of severity classes",
                low=0,
                high=20,
            ),
            seed=Key("int", 0, "seed of the drawing", low=0),
        ),
        store=Key(
            "text",
            None,
            "folder of the preprocessed images (default: the user's cache)",
            optional=True,
        ),
        square=Key(
            "text",
            "pad",
            "how an image becomes square, never by stretching",
            choices=("pad", "crop"),
        ),
        clip=Key(
            "list",
            [2, 98],
            "percentiles that become black and white",
            item=Key("float", low=0, high=100),
        ),
        voi=Key("bool", True, "apply the window or lookup table that a DICOM file carries"),
        on_bad_image=Key(
            "text",
            "error",
            "an unreadable image stops the run, or is excluded and listed",
            choices=("error", "exclude"),
        ),
    ),
    tasks=Key("table", {}, "the tasks: tau1 is the first, tau2 the second, ...", item=TASK),
    backbones=Key("list", ["resnet18"], "backbones", item=Key("text"), nonempty=True),
    configurations=Key(
        "list",
        ["STL-tau1", "STL-tau2", "FT", "MDMT"],
        "configurations to train",
        item=Key("text"),
        nonempty=True,
    ),
    experiments=Key(
        "table",
        {},
        "further configurations as lists of stages; the last stage is the one that is tested",
        item=Key("list", item=STAGE, nonempty=True),
    ),
    validation=Key(
        "list",
        ["cv"],
        "validation schemes",
        item=Key("text", choices=("cv", "loco")),
        nonempty=True,
    ),
    cv=_map(
        "cross-validation",
        folds=Key("int", 5, "number of folds", low=2, high=100),
        validation=Key(
            "float", 0.2, "share of the training part kept for validation", low=0.01, high=0.9
        ),
        seed=Key("int", 0, "seed of the splits", low=0),
    ),
    folds=Key(
        "list",
        None,
        "fold numbers to run (default: all)",
        optional=True,
        item=Key("int", low=0),
        nonempty=True,
    ),
    image_size=Key("int", 224, "side of the network's input in pixels", low=32, high=4096),
    weights=Key("text", "random", "random, imagenet, or a file or folder of weights"),
    seeds=Key("list", [0], "seeds of the training", item=Key("int", low=0), nonempty=True),
    train=_map(
        "training",
        epochs=Key("int", 300, "most epochs", low=1),
        warmup_epochs=Key(
            "int",
            40,
            "epochs before a model may be selected and early stopping "
            "counts (not a learning-rate warm-up); at most epochs - 1",
            low=0,
        ),
        patience=Key("int", 40, "epochs without improvement before stopping", low=1),
        batch_size=Key("int", 128, "samples per step", low=1),
        lr=Key("float", 0.001, "learning rate of Adam", low=0),
        betas=Key(
            "list", [0.9, 0.999], "Adam's beta1 and beta2", item=Key("float", low=0, high=0.999999)
        ),
        eps=Key("float", 1e-8, "Adam's epsilon", low=0),
        weight_decay=Key("float", 0.0001, "L2 term", low=0),
        decoupled=Key("bool", False, "decoupled weight decay instead of L2 in the gradient"),
        plateau=_map(
            "learning rate reduced when the validation loss stands still",
            patience=Key("int", 15, "epochs", low=0),
            factor=Key("float", 0.65, "factor", low=0.01, high=1),
            minimum=Key("float", 1e-8, "smallest learning rate", low=0),
        ),
        augment=_map(
            "random changes of the training images, each with its probability",
            optional=True,
            probability=Key("float", 0.5, "probability of each", low=0, high=1),
            shift=Key("float", 0.1, "largest shift, share of the side", low=0, high=1),
            zoom=Key("float", 0.1, "zoom between 1 - zoom and 1 + zoom", low=0, high=0.9),
            flip=Key("bool", True, "mirror left and right"),
            rotation=Key("float", 10, "largest angle in degrees", low=0, high=180),
            elastic_alpha=Key(
                "list",
                [20, 40],
                "range of the elastic strength; [0, 0] is off",
                item=Key("float", low=0),
            ),
            elastic_sigma=Key(
                "float",
                7,
                "smoothness of the elastic field; both in pixels of an image of 256 pixels",
                low=0.1,
            ),
        ),
        checkpoint_seconds=Key(
            "float", 60, "seconds between checkpoints; 0: only when stopped", low=0
        ),
        checkpoint_steps=Key("int", 0, "steps between checkpoints; 0: off", low=0),
    ),
    sampler=_map(
        "mixed batches",
        mode=Key(
            "text", "union", "union, balanced or ratio", choices=("union", "balanced", "ratio")
        ),
        ratio=Key(
            "list",
            None,
            "share of each data set, for mode ratio",
            optional=True,
            item=Key("float", low=0),
        ),
        epoch=Key("int|text", "union", "length of an epoch: union, longest, shortest or steps"),
        drop_last=Key("bool", False, "leave out a last batch that is not full"),
    ),
    mdmt=_map(
        "the MDMT configuration",
        beta=Key("float", 0.5, "share of the STL-tau1 weights in the average", low=0, high=1),
        heads=Key(
            "text",
            "new",
            "heads at the start: new, or those of the STL models",
            choices=("new", "keep"),
        ),
    ),
    precision=Key("text", "fp32", "arithmetic", choices=("fp32", "fp32-direct")),
)

# Keys that change neither what is trained nor how it is tested.
NEUTRAL = ("data.root", "data.store", "train.checkpoint_seconds", "train.checkpoint_steps")
# Keys that only choose which jobs of a study run (see `--extend`).
SELECTING = ("backbones", "configurations", "validation", "folds", "seeds")


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
    for text_ in overrides:
        override(raw, text_)
    return resolve(raw, str(path)) if check else raw


def resolve(raw: dict, source: str = "configuration") -> dict:
    """Check `raw` against the schema, return a new mapping with every default filled in."""
    values = _check(SCHEMA, copy.deepcopy(raw), "", source)
    _cross_check(values, source)
    return values


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
        if good and float(value) == int(value if abs(value) < 2**53 else 0):
            return True, int(value) if isinstance(value, int) else float(value)
        return good and value == value and abs(value) != float("inf"), value
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
            elsewhere = [p for p in _paths(SCHEMA) if p.split(".")[-1] == str(name)]
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
        if not present and not sub.required:
            given = copy.deepcopy(sub.default)
            if given is None and sub.optional:
                checked[name] = None
                continue
        checked[name] = _check(sub, given, full, source)
    return checked


def _paths(key: Key, where: str = "") -> list[str]:
    found = []
    for name, sub in key.fields.items():
        full = f"{where}.{name}" if where else name
        found.append(full)
        if sub.kind == "map":
            found += _paths(sub, full)
    return found


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
        if dataset["reader"] == "table" and dataset["table"] is None:
            raise BadConfig(
                f"{source}: the key 'data.datasets.{position}.table' is missing; set it"
            )
    for name in ("backbones", "configurations", "validation", "folds", "seeds"):
        _unique(values[name] or [], name, source)
    clip = values["data"]["clip"]
    if len(clip) != 2 or clip[0] >= clip[1]:
        raise BadConfig(f"{source}: data.clip is {clip}; it must be two percentiles, low < high")
    if len(values["train"]["betas"]) != 2:
        raise BadConfig(f"{source}: train.betas must be two numbers")
    if values["train"]["lr"] <= 0:
        raise BadConfig(f"{source}: train.lr is {values['train']['lr']}; it must be above 0")
    # A model must be selectable in the last epoch at least: a short run has a shorter warm-up.
    train = values["train"]
    train["warmup_epochs"] = min(train["warmup_epochs"], train["epochs"] - 1)
    augment = values["train"]["augment"]
    if augment and (
        len(augment["elastic_alpha"]) != 2
        or augment["elastic_alpha"][0] > augment["elastic_alpha"][1]
    ):
        raise BadConfig(f"{source}: train.augment.elastic_alpha must be two numbers, low <= high")
    sampler = values["sampler"]
    if (sampler["mode"] == "ratio") != (sampler["ratio"] is not None):
        raise BadConfig(
            f"{source}: sampler.ratio must be given with sampler.mode ratio, and only then"
        )
    if isinstance(sampler["epoch"], str) and sampler["epoch"] not in (
        "union",
        "longest",
        "shortest",
    ):
        raise BadConfig(
            f"{source}: sampler.epoch is '{sampler['epoch']}'"
            f"{nearest(sampler['epoch'], ('union', 'longest', 'shortest'))}"
        )


def _check_task(name: str, task: dict, source: str) -> None:
    classes = task["classes"]
    _unique(classes, f"tasks.{name}.classes", source)
    if len(classes) < 2:
        raise BadConfig(f"{source}: tasks.{name}.classes has one class; give at least two")
    if task["positive"] is not None and task["positive"] not in classes:
        raise BadConfig(
            f"{source}: tasks.{name}.positive is '{task['positive']}'"
            f"{nearest(task['positive'], classes)}"
        )
    for label, target in (task["labels"] or {}).items():
        if target not in classes:
            raise BadConfig(
                f"{source}: tasks.{name}.labels.{label} is '{target}'{nearest(target, classes)}"
            )
    cuts = task["thresholds"]
    if cuts is not None:
        if task["labels"]:
            raise BadConfig(f"{source}: tasks.{name} has labels and thresholds; keep one")
        if len(cuts) != len(classes) - 1 or sorted(set(cuts)) != cuts:
            raise BadConfig(
                f"{source}: tasks.{name}.thresholds is {cuts}; it must be "
                f"{len(classes) - 1} rising numbers, one fewer than the classes"
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
    paths = [p for p in dict.fromkeys([*a, *b]) if p not in ignore]
    found = [(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]
    order = [list(v.get("tasks") or {}) for v in (old, new)]  # it says which is tau1, tau2, ...
    if not found and order[0] != order[1]:
        found.append(("tasks", order[0], order[1]))
    return found


def dump(values: dict) -> str:
    """Return the resolved configuration as YAML text."""
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def describe(key: Key = SCHEMA, indent: int = 0) -> str:
    """Return the schema as text: every key with its type, default and meaning."""
    lines = []
    for name, sub in key.fields.items():
        pad = "  " * indent
        if sub.kind == "map":
            lines.append(f"{pad}{name}:  # {sub.doc}{' (optional)' if sub.optional else ''}")
            lines.append(describe(sub, indent + 1))
            continue
        limits = ""
        if sub.choices:
            limits = f" [{' | '.join(map(str, sub.choices))}]"
        elif sub.low is not None or sub.high is not None:
            low, high = ("" if v is None else v for v in (sub.low, sub.high))
            limits = f" [{low} .. {high}]"
        default = "required" if sub.required else f"default {sub.default!r}"
        lines.append(f"{pad}{name}: {sub.kind}{limits}, {default}  # {sub.doc}")
        item = sub.item
        while item is not None and item.kind == "list":
            item = item.item
        if item is not None and item.kind == "map":
            lines.append(describe(item, indent + 2))
    return "\n".join(lines)
