"""Small backbones that train in a moment at 32 pixels: for experiments about experiments.

`register()` adds them to mdmt's backbones in this process. They differ in what the paper's families
differ in: width, kernel, skip connections, depthwise and dense layers.
"""

import sys
import types

from mdmt import nets


def _unit(b, x, name, out, kernel=3, stride=1, groups=1, act=True):
    x = b.conv(x, f"c{name}", out, kernel, stride=stride, padding=kernel // 2, groups=groups)
    x = b.batch_norm(x, f"n{name}")
    return b.relu(x) if act else x


def plain(b, widths, kernel):
    """Convolutions of stride 2."""
    x = b.image
    for i, width in enumerate(widths):
        x = _unit(b, x, i, width, kernel, 2)
    return b.global_avg_pool(x)


def residual(b, widths):
    """One residual block behind each convolution of stride 2 (He et al. 2016)."""
    x = b.image
    for i, width in enumerate(widths):
        x = _unit(b, x, f"{i}s", width, 3, 2)
        y = _unit(b, _unit(b, x, f"{i}a", width), f"{i}b", width, act=False)
        x = b.relu(b.add(x, y))
    return b.global_avg_pool(x)


def separable(b, widths):
    """Depthwise and pointwise convolutions in turn."""
    x = _unit(b, b.image, "s", widths[0], 3, 2)
    for i, width in enumerate(widths[1:]):
        x = _unit(b, x, f"{i}d", b.shape(x)[1], 3, 2, groups=b.shape(x)[1])
        x = _unit(b, x, f"{i}p", width, 1)
    return b.global_avg_pool(x)


def dense(b, first, growth, layers):
    """A dense block (Huang et al. 2017) behind a convolution of stride 2 and a pooling."""
    x = b.max_pool(_unit(b, b.image, "s", first, 3, 2), 3, 2, 1)
    for i in range(layers):
        x = b.concat([x, _unit(b, x, i, growth)])
    return b.global_avg_pool(_unit(b, x, "z", 64, 1))


NETS = {
    "small_plain": lambda b: plain(b, (8, 16, 32), 3),
    "small_wide": lambda b: plain(b, (16, 32, 64), 3),
    "small_five": lambda b: plain(b, (12, 24, 48), 5),
    "small_residual": lambda b: residual(b, (8, 16, 32)),
    "small_separable": lambda b: separable(b, (16, 32, 64)),
    "small_dense": lambda b: dense(b, 16, 8, 3),
}


def register():
    """Add NETS to the backbones that mdmt knows, in this process; return their names."""
    for name, build in NETS.items():
        if name not in nets.FAMILIES:
            family = types.ModuleType(f"mdmt.nets.{name}")
            family.build = lambda b, _, build=build: build(b)
            sys.modules[family.__name__] = family
            nets.FAMILIES[name] = name
    return list(NETS)
