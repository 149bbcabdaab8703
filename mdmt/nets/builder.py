"""What a network description appends its nodes with: one method per layer."""

import math

from mdmt import _core

# How the weights of a family's convolutions are drawn, as its original does: a distribution and its
# standard deviation or bound, for a weight (O, I, kh, kw) with area = kh kw in a number of groups.
CONV_INIT = {
    # He et al. 2015 by fan out: torchvision's ResNet and MobileNet
    "fan out": lambda o, i, area, groups: ("normal", math.sqrt(2 / (o * area))),
    # the same with the fan out of one group: timm's EfficientNet, after TensorFlow's
    "group fan out": lambda o, i, area, groups: ("normal", math.sqrt(2 / (o * area // groups))),
    # He et al. 2015 by fan in: torchvision's DenseNet
    "fan in": lambda o, i, area, groups: ("normal", math.sqrt(2 / (i * area))),
    # torchvision's GoogLeNet (truncated at +-2, which is 200 deviations away)
    "small": lambda o, i, area, groups: ("normal", 0.01),
    # PyTorch's own: torchvision's ShuffleNet
    "default": lambda o, i, area, groups: ("uniform", 1 / math.sqrt(i * area)),
}
ZEROS, ONES = ("constant", 0.0), ("constant", 1.0)


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class Builder:
    """A network being described, for a batch of one.

    Layers take and return tensors (integers). `name` is the key of the layer in the state
    dictionary, without `.weight` and so on. `entries` lists (key, role, initialisation, shape) in
    the order of the state dictionary; the role is param, buffer or counter, the initialisation a
    distribution and its number (init.py). `conv_init`, a name in CONV_INIT, says how the weights of
    the convolutions that follow are drawn.
    """

    def __init__(self, height, width, channels):
        self.graph = _core.Graph()
        self.image = self.graph.input("input", "image", (1, channels, height, width))
        self.entries = []  # (key, role, initialisation, shape), in order
        self.rows = set()  # keys of 1x1 convolutions that work on rows: (O, I) in the graph
        self.dropouts = 0
        self.dense = None  # the feature map that mask heads read, where the backbone has one
        self.conv_init = "fan out"

    def shape(self, x):
        """(1, C, H, W) of a feature map or (1, F) of rows."""
        return self.graph.shape(x)

    def _tensor(self, key, role, kind, shape, init):
        make = self.graph.param if role == "param" else self.graph.buffer
        self.entries.append((key, role, init, shape))
        return make(key, kind, shape)

    def _conv_init(self, shape, groups=1):
        return CONV_INIT[self.conv_init](*shape[:2], math.prod(shape[2:]), groups)

    def conv(self, x, name, out, kernel, stride=1, padding=0, dilation=1, groups=1, bias=False):
        """Convolution; padding an int, a pair (rows, columns), (top, left, bottom, right), or
        "same": TensorFlow's rule, which depends on the size of the input."""
        kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
        same = padding == "same"
        padding = (0, 0) if same else pair(padding)
        if len(padding) == 2:
            padding = padding * 2
        channels = self.shape(x)[1]
        kind = "w_stem" if x == self.image else "w_dense"
        if groups > 1:
            kind = "w_depth" if groups == channels == out else "w_grouped"
        shape = (out, channels // groups, *kernel)
        init = self._conv_init(shape, groups)
        inputs = [x, self._tensor(f"{name}.weight", "param", kind, shape, init)]
        if bias:
            inputs.append(self._tensor(f"{name}.bias", "param", "vector", (out,), ZEROS))
        attributes = {"stride": stride, "pad": padding, "dilation": dilation, "groups": groups}
        attributes["same"] = int(same)
        return self.graph.add("conv2d", inputs, **attributes)[0]

    def batch_norm(self, x, name, eps=1e-5, momentum=0.1):
        """Batch normalisation with PyTorch's meaning of momentum."""
        shape = (self.shape(x)[1],)
        inputs = [x]
        for key, role, init in (
            ("weight", "param", ONES),
            ("bias", "param", ZEROS),
            ("running_mean", "buffer", ZEROS),
            ("running_var", "buffer", ONES),
        ):
            inputs.append(self._tensor(f"{name}.{key}", role, "vector", shape, init))
        self.entries.append((f"{name}.num_batches_tracked", "counter", ZEROS, ()))
        return self.graph.add("batch_norm", inputs, eps=eps, momentum=momentum)[0]

    def act(self, x, kind):
        """Activation of a feature map or of rows: relu, relu6, silu, sigmoid, hardswish or
        hardsigmoid."""
        return self.graph.add("act", [x], act=kind)[0]

    def relu(self, x):
        return self.act(x, "relu")

    def add(self, a, b):
        return self.graph.add("add", [a, b])[0]

    def gate(self, x, gate):
        """x (1, C, H, W) times gate (1, C), as squeeze-excite does (Hu et al. 2018)."""
        return self.graph.add("gate", [x, gate])[0]

    def concat(self, parts):
        """Feature maps joined along their channels; nothing is copied where all but the last have
        a multiple of 16 channels."""
        return self.graph.add("concat", parts)[0]

    def slice(self, x, start, count):
        """Channels start .. start + count."""
        return self.graph.add("channel_slice", [x], **{"from": start, "count": count})[0]

    def shuffle(self, x, groups):
        """Channel shuffle (Zhang et al. 2018): channel g (C / groups) + k becomes k groups + g."""
        return self.graph.add("channel_shuffle", [x], groups=groups)[0]

    def max_pool(self, x, kernel, stride=None, padding=0, ceil_mode=False):
        kernel, padding = pair(kernel), pair(padding)
        stride = kernel if stride is None else pair(stride)
        attributes = {"kernel": kernel, "stride": stride, "pad": padding * 2}
        return self.graph.add("max_pool", [x], ceil_mode=int(ceil_mode), **attributes)[0]

    def avg_pool(self, x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
        kernel, padding = pair(kernel), pair(padding)
        attributes = {"kernel": kernel, "stride": kernel if stride is None else pair(stride)}
        attributes |= {"pad": padding * 2, "ceil_mode": int(ceil_mode)}
        return self.graph.add(
            "avg_pool", [x], count_include_pad=int(count_include_pad), **attributes
        )[0]

    def upsample(self, x, mode="bilinear"):
        """Twice as high and wide: "nearest" or "bilinear" (PyTorch's, without align_corners)."""
        return self.graph.add("upsample", [x], mode=mode)[0]

    def global_avg_pool(self, x):
        """(1, C, H, W) -> (1, C)."""
        return self.graph.add("global_avg_pool", [x])[0]

    def linear(self, x, name, out):
        shape = (out, self.shape(x)[1])
        init = ("uniform", 1 / math.sqrt(shape[1]))  # PyTorch's own
        weight = self._tensor(f"{name}.weight", "param", "matrix", shape, init)
        bias = self._tensor(f"{name}.bias", "param", "vector", (out,), init)
        return self.graph.add("linear", [x, weight, bias])[0]

    def conv_rows(self, x, name, out):
        """1x1 convolution with bias of pooled rows (1, F), which is a linear layer whose weight
        has the shape (out, F, 1, 1) in the state dictionary."""
        shape = (out, self.shape(x)[1], 1, 1)
        weight = self.graph.param(f"{name}.weight", "matrix", shape[:2])
        self.entries.append((f"{name}.weight", "param", self._conv_init(shape), shape))
        self.rows.add(f"{name}.weight")
        bias = self._tensor(f"{name}.bias", "param", "vector", (out,), ZEROS)
        return self.graph.add("linear", [x, weight, bias])[0]

    def dropout(self, x, rate):
        """Each dropout of a network draws from a stream of its own."""
        if rate == 0:
            return x
        self.dropouts += 1
        return self.graph.add("dropout", [x], rate=rate, stream=self.dropouts)[0]
