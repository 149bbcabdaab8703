"""EfficientNet (Tan & Le 2019), its Edge TPU and Lite versions, and a pruned one (Aflalo et al.
2020), with the keys of timm.

A stage is (kind, kernel, stride of the first block, channels, blocks), a block (expanded channels,
channels of the squeeze-excite or 0). Kinds: "ds" depthwise separable, "ir" inverted residual
(depthwise), "er" with a plain convolution instead ("edge residual").
"""


def _even(expansion, squeeze, stages):
    """Blocks as the unpruned networks have them: channels times a number, a quarter of the block's
    input for squeeze-excite. stages: (kind, kernel, stride, channels, count)."""
    inputs, full = 32, []
    for i, (kind, kernel, stride, out, count) in enumerate(stages):
        blocks = []
        for _ in range(count):
            factor = expansion[min(i, len(expansion) - 1)]
            blocks.append((inputs * factor, inputs // 4 if squeeze else 0))
            inputs = out
        full.append((kind, kernel, stride, out, tuple(blocks)))
    return tuple(full)


B0 = (
    ("ds", 3, 1, 16, 1),
    ("ir", 3, 2, 24, 2),
    ("ir", 5, 2, 40, 2),
    ("ir", 3, 2, 80, 3),
    ("ir", 5, 1, 112, 3),
    ("ir", 5, 2, 192, 4),
    ("ir", 3, 1, 320, 1),
)
ES = (
    ("er", 3, 1, 24, 1),
    ("er", 3, 2, 32, 2),
    ("er", 3, 2, 48, 4),
    ("ir", 5, 2, 96, 5),
    ("ir", 5, 1, 144, 4),
    ("ir", 5, 2, 192, 2),
)
B1_PRUNED = (
    ("ds", 3, 1, 16, ((32, 8), (16, 4))),
    ("ir", 3, 2, 12, ((48, 4), (62, 6), (48, 6))),
    ("ir", 5, 2, 35, ((70, 6), (61, 10), (51, 10))),
    ("ir", 3, 2, 74, ((175, 10), (188, 20), (137, 20), (164, 20))),
    ("ir", 5, 1, 67, ((399, 20), (201, 28), (160, 28), (213, 28))),
    ("ir", 5, 2, 192, ((637, 27), (806, 48), (798, 48), (891, 48), (990, 48))),
    ("ir", 3, 1, 320, ((1152, 48), (1912, 80))),
)
# name: (stages, activation, epsilon of the batch norms, TensorFlow's padding)
VARIANTS = {
    "efficientnet_b0": (_even((1, 6), True, B0), "silu", 1e-5, False),
    "efficientnet_b1_pruned": (B1_PRUNED, "silu", 1e-3, True),
    "efficientnet_es": (_even((3, 8), False, ES), "relu", 1e-5, False),
    "efficientnet_es_pruned": (_even((3, 8), False, ES), "relu", 1e-5, False),
    "efficientnet_lite0": (_even((1, 6), False, B0), "relu6", 1e-5, False),
}


class _Net:
    """The layers of one variant."""

    def __init__(self, b, act, eps, same):
        self.b, self.act, self.eps, self.same = b, act, eps, same

    def unit(self, x, conv, norm, out, kernel=1, stride=1, groups=1, act=True):
        padding = "same" if self.same else kernel // 2
        x = self.b.conv(x, conv, out, kernel, stride, padding=padding, groups=groups)
        x = self.b.batch_norm(x, norm, eps=self.eps)
        return self.b.act(x, self.act) if act else x

    def squeeze_excite(self, x, name, squeezed):
        """The gate of each channel from the means of all (Hu et al. 2018)."""
        b, channels = self.b, self.b.shape(x)[1]
        s = b.conv_rows(b.global_avg_pool(x), f"{name}.conv_reduce", squeezed)
        s = b.conv_rows(b.act(s, self.act), f"{name}.conv_expand", channels)
        return b.gate(x, b.act(s, "sigmoid"))

    def block(self, x, name, kind, kernel, stride, out, wide, squeezed, skip):
        y, n = x, 1
        if kind == "er":
            y = self.unit(y, f"{name}.conv_exp", f"{name}.bn1", wide, kernel, stride)
        else:
            if kind == "ir":
                y, n = self.unit(y, f"{name}.conv_pw", f"{name}.bn1", wide), 2
            y = self.unit(y, f"{name}.conv_dw", f"{name}.bn{n}", wide, kernel, stride, wide)
        if squeezed:
            y = self.squeeze_excite(y, f"{name}.se", squeezed)
        last = "conv_pw" if kind == "ds" else "conv_pwl"
        y = self.unit(y, f"{name}.{last}", f"{name}.bn{n + 1}", out, act=False)
        return self.b.add(y, x) if skip else y


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    stages, act, eps, same = VARIANTS[variant]
    b.conv_init = "group fan out"
    net = _Net(b, act, eps, same)
    x = net.unit(b.image, "conv_stem", "bn1", 32, 3, 2)
    for i, (kind, kernel, stride, out, blocks) in enumerate(stages):
        for j, (wide, squeezed) in enumerate(blocks):
            name, step = f"blocks.{i}.{j}", 1 if j else stride
            x = net.block(x, name, kind, kernel, step, out, wide, squeezed, skip=j > 0)
    return b.global_avg_pool(net.unit(x, "conv_head", "bn2", 1280))
