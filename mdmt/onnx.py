"""ONNX files of trained networks: one node for each op of the network's description.

The graph has the input `image` (batch, C, H, W) float32, already normalised, and the outputs
`features` (batch, F) and one per head, under the head's name: its logits (batch, classes), of a
mask (batch, 1, H, W). The size
of the batch is free, that of the image fixed. Weights keep the names they have in the state
dictionary, batch normalisation stays a node of its own with its exact epsilon (runtimes fold it
into the convolution before it), and dropout, which does nothing in evaluation, is left out.
"""

from __future__ import annotations

import json

import numpy as np

from . import __version__
from .errors import BadInput
from .paths import write_atomic

OPSET = 13  # of 2020: what nearly every runtime in use reads
INPUT = "image"
# Numbers of the engine's activations, in order.
ACTIVATIONS = ("none", "relu", "relu6", "silu", "sigmoid", "hardswish", "hardsigmoid")


class Emitter:
    """Collects nodes and weights. graph: a network's description (batch 1); arrays: {key: array}.

    `value` gives the ONNX name of each tensor of the graph.
    """

    def __init__(self, graph, arrays):
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper = helper, numpy_helper
        self.graph, self.arrays = graph, arrays
        self.nodes, self.weights, self.value, self.outputs = [], [], {}, []
        self.known, self.count = set(), 0

    def shape(self, tensor):
        return self.graph.shape(tensor[0])

    def weight(self, name, array):
        """Name of a constant; each is stored once."""
        if name not in self.known:
            self.known.add(name)
            self.weights.append(self.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integers(self, *values):
        name = "/integers." + "_".join(map(str, values))
        return self.weight(name, np.array(values, np.int64))

    def read(self, tensor):
        """Name of an input of an op: a weight, the image, or what an earlier node gave."""
        number, name = tensor[:2]
        if number not in self.value:
            if name in self.arrays:
                array = np.asarray(self.arrays[name], np.float32).reshape(self.shape(tensor))
                self.value[number] = self.weight(name, array)
            else:
                self.value[number] = INPUT
        return self.value[number]

    def emit(self, kind, inputs, **attributes):
        """A node with one output; its name."""
        self.count += 1
        name = f"/{kind}.{self.count}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def walk(self):
        """All ops of the description."""
        for op in self.graph.describe():
            rule = getattr(self, f"_{op['op']}", None)
            if rule is None:
                raise NotImplementedError(f"the op {op['op']} has no counterpart in ONNX here")
            attributes = {k: v if len(v) > 1 else v[0] for k, v in op["attributes"].items()}
            inputs = [None if t is None else self.read(t) for t in op["inputs"]]
            number, name = op["outputs"][0][:2]
            self.value[number] = rule(op, inputs, attributes)
            if name:
                self._output(self.value[number], name)
        return self

    def _output(self, source, name):
        self.nodes.append(self.helper.make_node("Identity", [source], [name], name=f"/out.{name}"))

    # One rule per op; shapes are those of a batch of one. -------------------------------------

    def _conv2d(self, op, x, a):
        kernel = self.shape(op["inputs"][1])[2:]
        return self.emit(
            "Conv",
            [name for name in x if name is not None],
            kernel_shape=kernel,
            strides=a["stride"],
            pads=a["pad"],
            dilations=a["dilation"],
            group=a["groups"],
        )

    def _batch_norm(self, op, x, a):
        return self.emit("BatchNormalization", x, epsilon=a["eps"])

    def _act(self, op, x, a):
        kind = ACTIVATIONS[a["act"]]
        if kind in ("relu", "sigmoid"):
            return self.emit(kind.capitalize(), x)
        if kind == "relu6":
            bounds = [self.weight(f"/{v}.0", np.float32(v)) for v in (0, 6)]
            return self.emit("Clip", [*x, *bounds])
        if kind == "silu":
            return self.emit("Mul", [*x, self.emit("Sigmoid", x)])
        if kind == "none":
            return self.emit("Identity", x)
        gate = self.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        return gate if kind == "hardsigmoid" else self.emit("Mul", [*x, gate])

    def _add(self, op, x, a):
        return self.emit("Add", x)

    def _dropout(self, op, x, a):
        return x[0]

    def _pool(self, op, a, dilation=(1, 1)):
        """Attributes of a pooling whose last, partial windows are covered by more padding."""
        size, out = (self.shape(op[side][0])[2:] for side in ("inputs", "outputs"))
        extra = []
        for i in (0, 1):
            reach = (out[i] - 1) * a["stride"][i] + dilation[i] * (a["kernel"][i] - 1) + 1
            extra.append(max(0, reach - size[i] - a["pad"][i] - a["pad"][i + 2]))
        top, left, bottom, right = a["pad"]
        pads = [top, left, bottom + extra[0], right + extra[1]]
        return {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": pads}, any(extra)

    def _max_pool(self, op, x, a):
        window, _ = self._pool(op, a, a["dilation"])
        return self.emit("MaxPool", x, dilations=a["dilation"], **window)

    def _avg_pool(self, op, x, a):
        window, partial = self._pool(op, a)
        if partial and a["count_include_pad"]:
            # The windows' sizes end at the padding, which ONNX's ceil_mode does not promise.
            raise NotImplementedError(
                "an average pooling in ceil mode that counts its padding has no counterpart in ONNX"
            )
        return self.emit("AveragePool", x, count_include_pad=a["count_include_pad"], **window)

    def _upsample(self, op, x, a):
        scales = self.weight("/scales.2", np.array([1, 1, 2, 2], np.float32))
        how = {"mode": "nearest", "nearest_mode": "floor"}
        where = "half_pixel"
        if a["mode"] == 0:
            where = "asymmetric"
        else:
            how = {"mode": "linear"}
        region = self.weight("/region", np.empty(0, np.float32))
        return self.emit(
            "Resize", [*x, region, scales], coordinate_transformation_mode=where, **how
        )

    def _global_avg_pool(self, op, x, a):
        return self.emit("Flatten", [self.emit("GlobalAveragePool", x)], axis=1)

    def _flatten(self, op, x, a):
        return self.emit("Flatten", x, axis=1)

    def _linear(self, op, x, a):
        return self.emit("Gemm", [name for name in x if name is not None], transB=1)

    def _gate(self, op, x, a):
        channels = self.shape(op["inputs"][1])[1]
        gate = self.emit("Reshape", [x[1], self.integers(0, channels, 1, 1)])
        return self.emit("Mul", [x[0], gate])

    def _concat(self, op, x, a):
        return self.emit("Concat", x, axis=1)

    def _channel_slice(self, op, x, a):
        ends = a["from"], a["from"] + a["count"]
        return self.emit("Slice", [*x, *(self.integers(v) for v in (*ends, 1))])

    def _channel_shuffle(self, op, x, a):
        _, c, h, w = self.shape(op["inputs"][0])
        split = self.emit("Reshape", [*x, self.integers(0, a["groups"], c // a["groups"], h, w)])
        turned = self.emit("Transpose", [split], perm=[0, 2, 1, 3, 4])
        return self.emit("Reshape", [turned, self.integers(0, c, h, w)])


def write(path, graph, image, outputs, arrays, description):
    """Write a network in evaluation mode to the file `path`, atomically.

    graph: its description, whose image is (1, C, H, W) = `image`; outputs: {name: shape without the
    batch}; arrays: its state dictionary; description: plain data, kept as JSON in the metadata
    entry `mdmt`.
    Raises BadInput, in one sentence, when the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise BadInput(
            "export_onnx needs the package onnx; install it with: pip install 'mdmt[onnx]'"
        ) from error
    helper = onnx.helper
    emitter = Emitter(graph, arrays).walk()

    def info(name, shape, text):
        kind = onnx.TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, ["batch", *shape], doc_string=text)

    what = {"features": "pooled features of the backbone"}
    results = [
        info(name, n, what.get(name, f"logits of the head {name}")) for name, n in outputs.items()
    ]
    text = f"{description['backbone']} of mdmt {__version__}, evaluation mode"
    body = helper.make_graph(
        emitter.nodes,
        description["backbone"],
        [info(INPUT, image[1:], "images, normalised: (values in 0..1 - mean) / std")],
        results,
        emitter.weights,
        doc_string=text,
    )
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="mdmt",
        producer_version=__version__,
        doc_string=text,
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    helper.set_model_props(model, {"mdmt": json.dumps(description)})
    write_atomic(path, model.SerializeToString(deterministic=True))
