"""What a network is made of, as text: layers, shapes, parameters, multiply-adds, planned memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import _core, nets
from .nets import heads as heads_
from .nets.builder import Builder, pair
from .shown import html_table, html_text
from .weights import catalogue, read_description

BATCH = 16
HEADS = {"prognosis": 2, "severity": 4}
ACTIVATIONS = ("", "ReLU", "ReLU6", "SiLU", "sigmoid", "hard swish", "hard sigmoid")
# Ops that are named with the layer before them.
FOLLOWING = ("batch_norm", "act", "dropout")
NAMES = {
    "add": "sum",
    "gate": "gate",
    "concat": "concat",
    "channel_shuffle": "shuffle",
    "global_avg_pool": "mean",
    "upsample": "upsample x2",
    "flatten": "flatten",
}
PARTS = ("parameters", "gradients", "optimizer", "activations", "workspace")


@dataclass
class Layer:
    """One line: a layer with the norm and the activation after it. shape: of its output, without
    the batch; macs: multiply-adds of one image."""

    name: str
    kind: str
    shape: tuple
    parameters: int
    macs: int
    tensor: int  # of its output


@dataclass
class Network:
    """A network for one image size, with heads."""

    backbone: str
    heads: dict
    size: tuple[int, int]
    channels: int
    layers: list[Layer]
    features: int
    graph: object

    def memory(self, batch: int, training: bool) -> dict:
        """Planned bytes for a batch: {"parameters", "gradients", ...}."""
        mode = {"batch": batch, "height": self.size[0], "width": self.size[1], "training": training}
        if training:
            tasks = [(task, head["loss"], 1.0) for task, head in self.heads.items()]
            width = heads_.target_width(self.heads)
            mode |= {"gradients": 1, "target_width": width, "tasks": tasks, "reduction": "mean"}
        return _core.Network(self.graph).memory(mode)

    def sums(self, heads: bool) -> tuple[int, int]:
        """(parameters, multiply-adds of an image) of the heads or of the backbone."""
        mine = [one for one in self.layers if one.name.startswith("heads.") == heads]
        return sum(one.parameters for one in mine), sum(one.macs for one in mine)

    def head(self, task: str) -> tuple[int, int]:
        """(parameters, multiply-adds of an image) of one head."""
        mine = [one for one in self.layers if one.name.startswith(f"heads.{task}.")]
        return sum(one.parameters for one in mine), sum(one.macs for one in mine)

    def _repr_html_(self) -> str:
        return html_text(f"{self.backbone}: layers", text(self))


def build(backbone: str, heads=None, size=None, channels: int = 3) -> Network:
    """Describe a backbone with heads, without weights. size: side or (height, width); by default
    that of the images its ImageNet weights were trained with. ValueError in one sentence."""
    family = nets.family(backbone)
    size = pair(size or catalogue.default_size(backbone))
    heads = heads_.normalise(HEADS if heads is None else heads)
    b = Builder(*size, channels)
    features = family.build(b, backbone)
    b.graph.output(features, "features")
    for task, head in heads.items():
        b.graph.output(heads_.build(b, features, task, head), task)
    layers = _layers(b.graph, {key for key, role, *_ in b.entries if role == "param"})
    return Network(backbone, heads, size, channels, layers, b.shape(features)[1], b.graph)


def _layers(graph, trained) -> list[Layer]:
    found: list[Layer] = []
    for op in graph.describe():
        inputs = [t for t in op["inputs"] if t is not None]
        own = [name for _, name, *_ in inputs if name in trained]
        parameters = sum(math.prod(graph.shape(t[0])) for t in inputs if t[1] in trained)
        number = op["outputs"][0][0]
        name = own[0].rpartition(".")[0] if own else ""
        last = found[-1] if found else None
        alone = op["op"] == "batch_norm" and last and "pool" in last.kind
        if op["op"] in FOLLOWING and last and last.tensor == inputs[0][0] and not alone:
            last.kind += _following(op)
            last.name = last.name or name
            last.parameters += parameters
            last.tensor = number
            continue
        kind = _kind(op, graph).lstrip(", ")
        shape = graph.shape(number)[1:]
        found.append(Layer(name, kind, shape, parameters, int(op["macs"]), number))
    return found


def _following(op) -> str:
    if op["op"] == "batch_norm":
        return ", norm"
    if op["op"] == "dropout":
        return f", dropout {op['attributes']['rate'][0]:.2g}"
    return f", {ACTIVATIONS[op['attributes']['act'][0]]}"


def _kind(op, graph) -> str:
    kind, attributes = op["op"], op["attributes"]
    if kind in FOLLOWING:
        return _following(op)
    if kind in ("max_pool", "avg_pool"):
        return f"{kind[:3]} pool {_window(attributes['kernel'], attributes)}"
    if kind == "channel_slice":
        start = attributes["from"][0]
        return f"channels {start}-{start + attributes['count'][0] - 1}"
    if kind != "conv2d":
        return NAMES.get(kind, kind)
    shape = graph.shape(op["inputs"][1][0])
    groups = attributes["groups"][0]
    depthwise = groups > 1 and groups == shape[0] and shape[1] == 1
    text = f"{'depthwise' if depthwise else 'conv'} {_window(shape[2:], attributes)}"
    return text if groups == 1 or depthwise else f"{text} in {groups} groups"


def _window(kernel, attributes) -> str:
    """3x3, or 3x3 /2 with a stride of 2."""
    stride = attributes["stride"]
    steps = f" /{stride[0]}" if stride[0] == stride[1] else f" /{stride[0]}x{stride[1]}"
    return f"{kernel[0]}x{kernel[1]}{'' if set(stride) == {1} else steps}"


# Text ---------------------------------------------------------------------------------------------


def count(value: float) -> str:
    """1,814,083,584 -> 1.814 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3f} {unit}"
    return str(int(value))


def text(network: Network, batch: int = BATCH) -> str:
    """The table of layers and what is below it."""
    rows = [("layer", "kind", "output", "parameters", "MACs")]
    for one in network.layers:
        numbers = (f"{one.parameters:,}" if one.parameters else "", count(one.macs))
        shape = "x".join(map(str, one.shape))
        rows.append((one.name, one.kind, shape, numbers[0], numbers[1] if one.macs else ""))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = []
    for row in rows:
        left = [cell.ljust(w) for cell, w in zip(row[:3], widths[:3])]
        right = [cell.rjust(w) for cell, w in zip(row[3:], widths[3:])]
        lines.append("  ".join((*left, *right)).rstrip())
    rule = "-" * max(map(len, lines))
    head = f"{network.backbone}, images of {network.size[0]} x {network.size[1]} pixels, " + (
        f"{network.channels} channel{'s' if network.channels > 1 else ''}"
    )
    return "\n".join([head, "", lines[0], rule, *lines[1:], rule, *_totals(network, batch)])


def _totals(network, batch) -> list[str]:
    parameters, macs = network.sums(heads=False)
    original = parameters + 1000 * (network.features + 1)
    heads, head_macs = network.sums(heads=True)
    names = ", ".join(f"{task} ({head['classes']})" for task, head in network.heads.items())
    lines = [
        f"backbone  {parameters:,} parameters, {count(macs)} multiply-adds (MACs) per image, "
        f"{network.features} features",
        f"          ({original:,} parameters with the original classifier of 1,000 classes)",
        f"heads     {names}: {heads:,} parameters, {count(head_macs)} multiply-adds",
        "",
        f"Memory as planned for a batch of {batch}, in MiB",
    ]
    step, forward = network.memory(batch, True), network.memory(batch, False)
    lines.append("            " + "".join(f"{part:>13}" for part in (*PARTS, "sum")))
    for name, plan in (("training", step), ("prediction", forward)):
        values = [plan.get(part, 0) for part in PARTS]
        cells = [f"{value / 2**20:>13,.1f}" for value in (*values, sum(values))]
        lines.append(f"{name:<12}" + "".join(cells))
    return lines


def show(what: str, size=None, batch=None) -> str:
    """Text for a backbone's name or the file of a saved model."""
    batch = BATCH if batch is None else batch
    if what in nets.FAMILIES or what in nets.SEGMENTERS:
        heads = {"lungs": {"loss": heads_.MASK}} if what in nets.SEGMENTERS else None
        return text(build(what, heads, size), batch)
    kept = read_description(what)
    network = build(kept["backbone"], kept["heads"], size or kept["image_size"], kept["channels"])
    return f"{what}: a model of mdmt\n{text(network, batch)}"


def html(title: str, backbone: str, heads: dict, size, channels: int) -> str:
    """What notebooks show of a model: its parts in a table, its layers as text to unfold."""
    known = build(backbone, heads, size, channels)
    rows = [
        [part, f"{parameters:,}", count(macs)]
        for part, (parameters, macs) in (
            ("backbone", known.sums(heads=False)),
            *((f"head {task}", known.head(task)) for task in heads),
        )
    ]
    names = ["part", "parameters", "multiply-adds per image"]
    return html_table(title, names, rows) + html_text("layers", text(known))
