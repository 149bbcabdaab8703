"""The op table: every op with attributes, shapes with tails, 1, primes and strides.

One table, four uses (tests/test_optable.py and benchmarks/ops.py): every instruction set and
kernel against the reference and the reference against float64 statements; gradients; the same
bits for any number of threads; benchmark. One case by hand:

    python -m tests.optable CASE [--isa ref|avx2|avx512|neon] [--kernel NAME] [--threads N]

MDMT_TABLE_FEW=n takes n cases of every kernel in place of all (a processor under emulation).
"""

import argparse
import os
import zlib

import numpy as np

from tests import statements as say
from tests.actrows import act_table
from tests.opcase import (
    ACTS,
    RELU,
    Case,
    available,
    check,
    label,
    load_size,
    normal,
    positive,
    rounds,
    viewed,
)
from tests.opdense import dense_table
from tests.opdepth import depth_table
from tests.oprows import (
    avg_pool_cases,
    gather_table,
    global_cases,
    loss_table,
    max_pool_cases,
    pool_table,
    row_table,
)

# ---------------------------------------------------------------- convolution


def factor(a, v):
    """v as a kernel multiplies it: rounded to bfloat16 where the case is stated so."""
    return say.bfloat16(v) if "rounded" in a else v


def weight_kind(image, groups, c, k):
    if groups == 1:
        return "w_stem" if image else "w_dense"
    return "w_depth" if groups == c == k else "w_grouped"


def convolutions(x, k, kernel, *, image=False, lazy=None, gate=False, bias=False, stats=False,
                 addend=False, backward=True, **attrs):  # fmt: skip
    """The cases of one convolution: forward and both gradients. x (N,C,H,W), k outputs."""
    n, c, h, w = x
    attrs = {"stride": (1, 1), "pad": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1} | attrs
    stride, pad, dilation, groups = (attrs[a] for a in ("stride", "pad", "dilation", "groups"))
    oh = say.pooled(h, kernel[0], stride[0], pad[0], pad[2], dilation[0])
    ow = say.pooled(w, kernel[1], stride[1], pad[1], pad[3], dilation[1])
    y, weight = (n, k, oh, ow), (k, c // groups, *kernel)
    shown = {a: v for a, v in attrs.items() if v not in ((1, 1), (0, 0, 0, 0), 1)}
    flags = {"image": image, "lazy": lazy, "gate": gate, "bias": bias, "stats": stats}
    flags |= {"addend": addend}
    shown |= {a: v for a, v in flags.items() if v}
    name = label((*x, k, *kernel), shown)
    xkind, wkind = "image" if image else "map", weight_kind(image, groups, c, k)
    macs = float(n * oh * ow) * np.prod(weight)
    width = np.sqrt(1.0 / np.prod(weight[1:]))

    def loaded(a):
        v = say.lazy(a["x"], a["xscale"], a["xshift"], lazy) if lazy else a["x"]
        return factor(a, v * a["xgate"][:, :, None, None] if gate else v)

    def inputs(rng):
        a = {"x": normal(rng, *x, shift=0.3, scale=4.0 if lazy not in (None, *RELU) else 1.0)}
        if lazy:
            a |= {"xscale": normal(rng, c), "xshift": normal(rng, c, scale=0.5)}
        return a | ({"xgate": positive(rng, n, c)} if gate else {})

    def tensors(g, t):
        if not lazy:
            return t["x"]
        return g.lazy(t["x"], t["xscale"], t["xshift"], lazy, t.get("xgate", -1))

    lazy_feeds = {"xscale": "vector", "xshift": "vector"} if lazy else {}
    lazy_feeds |= {"xgate": "rows"} if gate else {}
    cases = [forward_case(name, inputs, tensors, loaded, y, weight, xkind, wkind, lazy,
                          lazy_feeds, bias, stats, attrs, macs, width)]  # fmt: skip
    if not backward:
        return cases

    cases.append(
        Case(
            op="conv2d_bwd_weight",
            name=name,
            make=lambda rng: inputs(rng) | {"dy": normal(rng, *y)},
            feeds={"x": xkind, **lazy_feeds, "dy": "map"},
            wire=lambda g, t: {
                "dw": g.add(
                    "conv2d_bwd_weight",
                    [tensors(g, t), t["dy"]],
                    kernel=kernel,
                    plain=int(image),
                    **attrs,
                )[0]
            },
            expect=lambda a: {
                "dw": say.conv2d_bwd_weight(loaded(a), factor(a, a["dy"]), kernel, **attrs)
            },
            magnitude=lambda a: {
                "dw": say.conv2d_bwd_weight(load_size(a, lazy), np.abs(a["dy"]), kernel, **attrs)
            },
            length=n * oh * ow,
            macs=macs,
        )
    )
    if not lazy:
        cases += data_cases(name, x, y, weight, wkind, image, addend, attrs, macs, width)
    return cases


def forward_case(name, inputs, tensors, loaded, y, weight, xkind, wkind, lazy, lazy_feeds, bias,
                 stats, attrs, macs, width):  # fmt: skip
    k, count = y[1], y[0] * y[2] * y[3]
    norm = {"eps": 1e-5, "momentum": 0.1, "training": 1}
    vectors = ("gamma", "beta", "rmean", "rvar")

    def make(rng):
        a = inputs(rng) | {"w": normal(rng, *weight, scale=width)}
        if bias:
            a["bias"] = normal(rng, k)
        if stats:
            a |= {v: positive(rng, k) for v in vectors}
        return a

    def wire(g, t):
        more = {"want_stats": 1} if stats else {}
        out = g.add("conv2d", [tensors(g, t), t["w"], t.get("bias")], **more, **attrs)
        if not stats:
            return {"y": out[0]}
        fold = g.add("bn_fold", [out[1], *(t[v] for v in vectors)], count=count, **norm)
        return {"y": out[0], **dict(zip(("scale", "shift", "mean", "invstd"), fold))}

    def expect(a):
        values = {"y": say.conv2d(loaded(a), factor(a, a["w"]), a.get("bias"), **attrs)}
        if stats:
            values |= say.bn_fold(values["y"], *(a[v] for v in vectors), **norm)
        return values

    def magnitude(a):
        size = np.abs(a["bias"]) if bias else None
        size = say.conv2d(load_size(a, lazy), np.abs(a["w"]), size, **attrs)
        found = {"y": size}
        if stats:
            found |= fold_size(expect(a), size, count)
        return found

    feeds = {"x": xkind, **lazy_feeds, "w": f"{wkind}:param"}
    feeds |= {"bias": "vector:param"} if bias else {}
    if stats:
        feeds |= {"gamma": "vector:param", "beta": "vector:param"}
        feeds |= {"rmean": "vector:buffer", "rvar": "vector:buffer"}
    return Case(
        op="conv2d", name=name, make=make, feeds=feeds, wire=wire, expect=expect,
        magnitude=magnitude, length=int(np.prod(weight[1:])), macs=macs,
        reads=("rmean", "rvar") if stats else (), also=("bn_fold",) if stats else (),
    )  # fmt: skip


def fold_size(v, size, count):
    """Magnitudes of what bn_fold gives for values of magnitude `size` (N,C,H,W)."""
    mean = size.mean((0, 2, 3))
    var = 1 / v["invstd"] ** 2
    # d(invstd)/invstd = -dvar / (2 var), and dvar = mean of 2 (x - mean) dx: Cauchy-Schwarz.
    relative = 1 + np.sqrt((size**2).mean((0, 2, 3)) / var) + np.sqrt(count) * 0.25
    return {
        "mean": mean,
        "invstd": np.abs(v["invstd"]) * relative,
        "scale": np.abs(v["scale"]) * relative,
        "shift": np.abs(v["shift"]) + np.abs(v["scale"]) * mean * relative,
        "rmean": np.abs(v["rmean"]) + mean,
        "rvar": np.abs(v["rvar"]) + var * relative,
    }


def data_cases(name, x, y, weight, wkind, image, addend, attrs, macs, width):
    def make(rng):
        a = {"dy": normal(rng, *y), "w": normal(rng, *weight, scale=width)}
        return a | ({"addend": normal(rng, *x)} if addend else {})

    def wire(g, t):
        found = g.add("conv2d_bwd_data", [t["dy"], t["w"], t.get("addend")], size=x[2:],
                      plain=int(image), **attrs)  # fmt: skip
        return {"dx": found[0]}

    def expect(a):
        dx = say.conv2d_bwd_data(factor(a, a["dy"]), factor(a, a["w"]), x[2:], **attrs)
        return {"dx": dx + a["addend"] if addend else dx}

    def magnitude(a):
        return expect({k: np.abs(v) for k, v in a.items()})

    xkind = "image" if image else "map"
    case = {
        "op": "conv2d_bwd_data",
        "make": make,
        "feeds": {"dy": "map", "w": f"{wkind}:param"} | ({"addend": xkind} if addend else {}),
        "wire": wire,
        "expect": expect,
        "magnitude": magnitude,
        "length": int(weight[0] // attrs["groups"] * weight[2] * weight[3]),
        "macs": macs,
    }
    cases = [Case(name=name, **case)]
    if addend and not image:
        cases.append(Case(name=f"{name},inplace", inplace=("addend",), also=("act",), **case))
    return cases


def convolution_table():
    same = {"pad": (1, 1, 1, 1)}
    rows = [
        # the shapes of residual networks, with tails
        convolutions((2, 16, 14, 14), 32, (3, 3), **same),
        convolutions((1, 64, 28, 28), 64, (3, 3), addend=True, **same),
        convolutions((2, 64, 28, 28), 64, (3, 3), lazy="relu", stats=True, **same),
        convolutions((3, 128, 14, 14), 128, (3, 3), lazy="relu", stats=True, **same),
        convolutions((2, 256, 7, 7), 272, (3, 3), stats=True, addend=True, **same),
        convolutions((3, 48, 7, 7), 80, (3, 3), lazy="relu", **same),
        convolutions((1, 32, 56, 56), 32, (3, 3), stats=True, **same),
        convolutions((2, 32, 15, 17), 48, (3, 3), stride=(2, 2), stats=True, addend=True, **same),
        convolutions((2, 64, 28, 28), 128, (3, 3), stride=(2, 2), lazy="relu", **same),
        convolutions((2, 64, 28, 28), 128, (1, 1), stride=(2, 2), addend=True),
        convolutions((2, 64, 27, 25), 48, (1, 1), stride=(2, 2), lazy="relu", stats=True),
        convolutions((2, 64, 14, 14), 256, (1, 1), lazy="relu", stats=True),
        convolutions((2, 256, 14, 14), 64, (1, 1), addend=True, stats=True),
        convolutions((1, 512, 7, 7), 128, (1, 1), bias=True),
        # images
        convolutions((2, 3, 37, 41), 64, (7, 7), image=True, stride=(2, 2), pad=(3, 3, 3, 3),
                     stats=True),
        convolutions((1, 3, 64, 64), 64, (7, 7), image=True, stride=(2, 2), pad=(3, 3, 3, 3)),
        convolutions((2, 1, 23, 19), 17, (3, 3), image=True, stride=(2, 2), pad=(0, 0, 1, 1)),
        convolutions((1, 2, 9, 8), 24, (3, 3), image=True, bias=True, **same),
        # of 3 x 3 taps in steps of 2: one tile, ragged ones, more than 32 outputs, many samples
        convolutions((2, 3, 16, 20), 32, (3, 3), image=True, stride=(2, 2), stats=True, **same),
        convolutions((1, 3, 69, 75), 24, (3, 3), image=True, stride=(2, 2), bias=True, stats=True,
                     **same),
        convolutions((1, 3, 20, 268), 40, (3, 3), image=True, stride=(2, 2), stats=True,
                     pad=(0, 0, 1, 1)),
        convolutions((1, 2, 13, 10), 11, (3, 3), image=True, stride=(2, 2), pad=(2, 2, 0, 1)),
        convolutions((2, 3, 9, 12), 64, (3, 3), image=True, stride=(2, 2), bias=True),
        convolutions((801, 1, 4, 5), 8, (3, 3), image=True, stride=(2, 2), stats=True, **same),
        # 1, primes and tails of channels
        convolutions((1, 1, 1, 1), 1, (1, 1), addend=True),
        convolutions((3, 17, 13, 11), 19, (3, 3), bias=True, stats=True, addend=True, **same),
        convolutions((1, 31, 5, 3), 7, (3, 3), lazy="none", **same),
        convolutions((5, 13, 1, 1), 29, (1, 1), lazy="relu", bias=True),
        convolutions((1, 16, 1, 1), 16, (3, 3), **same),
        convolutions((1, 20, 2, 3), 33, (3, 3), addend=True, stats=True, **same),
        convolutions((2, 37, 29, 31), 41, (1, 1), stats=True),
        convolutions((1, 16, 97, 5), 16, (3, 3), lazy="relu", **same),
        convolutions((1, 16, 4, 101), 16, (3, 3), **same),
        # kernels, strides, padding, dilation
        convolutions((2, 19, 12, 13), 23, (5, 5), pad=(2, 2, 2, 2), lazy="relu"),
        convolutions((2, 16, 12, 13), 16, (1, 7), pad=(0, 3, 0, 3)),
        convolutions((2, 16, 13, 12), 32, (7, 1), pad=(3, 0, 3, 0), addend=True),
        convolutions((1, 18, 11, 14), 21, (2, 4), stride=(2, 3), pad=(0, 1, 2, 3), lazy="relu"),
        convolutions((2, 16, 10, 9), 16, (3, 3), pad=(0, 1, 2, 0), addend=True),
        convolutions((2, 16, 9, 10), 16, (3, 3), stride=(2, 2), pad=(0, 0, 1, 1), lazy="relu"),
        convolutions((1, 24, 12, 12), 16, (3, 3), pad=(3, 3, 3, 3)),
        convolutions((1, 16, 12, 11), 16, (3, 3)),
        convolutions((2, 16, 15, 14), 20, (3, 3), dilation=(2, 2), pad=(2, 2, 2, 2), lazy="relu"),
        convolutions((1, 9, 17, 16), 16, (3, 2), dilation=(3, 2), stride=(2, 1), pad=(1, 0, 2, 1)),
        convolutions((1, 16, 20, 20), 16, (3, 3), stride=(4, 3), **same),
        convolutions((1, 16, 7, 7), 16, (1, 1), stride=(3, 3), pad=(1, 1, 1, 1), lazy="relu"),
        convolutions((2, 19, 13, 11), 21, (1, 1), pad=(2, 0, 1, 0)),
        convolutions((1, 16, 4, 61), 16, (1, 1), pad=(2, 1, 3, 1), lazy="relu"),
        # lazy inputs of every activation and with a gate
        *(convolutions((2, 40, 9, 7), 24, (1, 1), lazy=act, gate=act != "relu6", stats=True)
          for act in ACTS if act != "relu"),
        convolutions((3, 35, 14, 14), 16, (1, 1), lazy="silu", gate=True),
        convolutions((2, 96, 8, 8), 24, (1, 1), lazy="relu6"),
        convolutions((2, 19, 10, 9), 35, (3, 3), lazy="silu", stride=(2, 2), **same),
        convolutions((2, 24, 9, 8), 16, (3, 3), lazy="relu", gate=True, **same),
        convolutions((2, 18, 11, 9), 16, (3, 3), lazy="sigmoid", gate=True, **same),
        # groups
        convolutions((2, 6, 9, 8), 10, (3, 3), groups=2, bias=True, addend=True, **same),
        convolutions((2, 48, 8, 9), 48, (3, 3), groups=3, lazy="relu", stats=True, **same),
        convolutions((1, 32, 7, 7), 64, (1, 1), groups=4, addend=True),
        convolutions((2, 12, 10, 11), 12, (3, 3), groups=6, stride=(2, 2), pad=(0, 1, 1, 0)),
        convolutions((2, 32, 14, 15), 32, (3, 3), groups=32, lazy="relu", stats=True, **same),
        convolutions((2, 19, 13, 11), 19, (5, 5), groups=19, stride=(2, 2), pad=(2, 2, 2, 2),
                     addend=True, bias=True),
        convolutions((1, 8, 9, 9), 16, (3, 3), groups=8, **same),
    ]  # fmt: skip
    return [case for row in rows for case in row]


def views_of(x, k, kernel, **how):
    """The cases of a convolution with each argument a view, and with all of them."""
    attrs = {"stride": (1, 1), "pad": (0, 0, 0, 0), "dilation": (1, 1)} | how
    stride, pad, dilation = (attrs[a] for a in ("stride", "pad", "dilation"))
    y = (x[0], k) + tuple(
        say.pooled(x[2 + i], kernel[i], stride[i], pad[i], pad[i + 2], dilation[i]) for i in (0, 1)
    )
    map_x = () if how.get("image") else ("x",)
    cases = []
    for case in convolutions(x, k, kernel, **how):
        if case.op == "conv2d":
            cases += [viewed(case, inputs, {"y": y}) for inputs in sorted({map_x, ()})]
        elif case.op == "conv2d_bwd_weight":
            cases += [viewed(case, (*inputs, "dy")) for inputs in sorted({map_x, ()})]
        elif not case.inplace and map_x:
            addend = "addend" if how.get("addend") else None
            cases += [viewed(case, ("dy",), {"dx": x}, addend)]
        if map_x and case.op in ("conv2d", "conv2d_bwd_weight"):
            cases.append(viewed(case, ("x",)))
    return cases


def view_table():
    same = {"pad": (1, 1, 1, 1)}
    first = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1, 1, 1)}
    rows = [
        # the shapes of DenseNet
        views_of((2, 128, 14, 14), 32, (3, 3), lazy="relu", stats=True, **same),
        views_of((3, 128, 7, 7), 48, (3, 3), addend=True, stats=True, **same),
        views_of((2, 80, 14, 14), 128, (1, 1), lazy="relu", stats=True),
        views_of((3, 96, 7, 7), 128, (1, 1), addend=True),
        views_of((2, 272, 9, 5), 32, (3, 3), addend=True, **same),  # by output channels
        views_of((5, 19, 3, 2), 37, (1, 1), addend=True, stats=True),
        views_of((2, 37, 15, 13), 27, (3, 3), stride=(2, 2), addend=True, **same),
        views_of((2, 33, 9, 8), 21, (5, 5), pad=(2, 2, 2, 2), lazy="relu", bias=True),
        views_of((2, 16, 13, 12), 32, (1, 1), stride=(2, 2), lazy="none"),
        views_of((2, 3, 19, 23), 24, (7, 7), image=True, stride=(2, 2), pad=(3, 3, 3, 3),
                 stats=True),
        views_of((2, 3, 17, 12), 24, (3, 3), image=True, stride=(2, 2), stats=True, **same),
    ]  # fmt: skip
    for x in [(2, 32, 13, 11), (3, 19, 8, 9)]:
        y = (*x[:2], (x[2] + 1) // 2, (x[3] + 1) // 2)
        unit = {"kernel": (3, 3), "stride": (1, 1), "pad": (1, 1, 1, 1)}
        for lazy, how, of in [(None, first, y), ("relu", first, y), (None, unit, x)]:
            down, up = max_pool_cases(x, lazy, **how)
            rows.append([viewed(down, ("x",), {"y": of}), viewed(down, ("x",))])
            rows.append([viewed(up, ("x", "dy"), {"y": of, "dx": x}), viewed(up, (), {"dx": x})])
        down, up = avg_pool_cases(x, count_include_pad=1, **first)
        rows.append([viewed(down, ("x",), {"y": y}), viewed(up, ("dy",), {"dx": x})])
        rows.append([viewed(c, ("x",)) for c in global_cases(x) if c.op == "channel_sum"])
    return [case for row in rows for case in row]


# ---------------------------------------------------------------- normalisation


def clear_of_zero(a, x="x", residual=None, gap=1e-2):
    """Moves x where scale x + shift [+ residual] is near zero: there a rounding flips a mask."""
    scale, shift = say.per_channel(a["scale"]), say.per_channel(a["shift"])
    pre = scale * a[x] + shift + (a[residual] if residual else 0.0)
    away = np.where(np.abs(pre) < gap, 3 * gap, 0.0) / np.where(np.abs(scale) < 0.1, 1.0, scale)
    a[x] = (a[x] + away).astype(np.float32)
    return a


def norm_act_case(x, act, residual=None, inplace=()):
    """residual: None, "map", or the activation of a lazy one."""
    n, c, h, w = x
    lazy = residual if residual in RELU else None
    shown = {"act": act, "residual": residual, "inplace": "+".join(inplace)}

    def make(rng):
        a = {"x": normal(rng, *x), "scale": normal(rng, c), "shift": normal(rng, c)}
        a |= {"r": normal(rng, *x)} if residual else {}
        return a | ({"rscale": normal(rng, c), "rshift": normal(rng, c)} if lazy else {})

    def wire(g, t):
        r = g.lazy(t["r"], t["rscale"], t["rshift"], lazy) if lazy else t.get("r")
        inputs = [t["x"], t["scale"], t["shift"]] + ([r] if residual else [])
        return {"z": g.add("norm_act", inputs, act=RELU[act])[0]}

    def shortcut(a):
        return say.lazy(a["r"], a["rscale"], a["rshift"], lazy) if lazy else a.get("r")

    def magnitude(a):
        size = np.abs(say.per_channel(a["scale"]) * a["x"]) + np.abs(say.per_channel(a["shift"]))
        if lazy:
            size = size + np.abs(say.per_channel(a["rscale"]) * a["r"])
            return {"z": size + np.abs(say.per_channel(a["rshift"]))}
        return {"z": size + np.abs(a["r"]) if residual else size}

    feeds = {"x": "map", "scale": "vector", "shift": "vector"}
    feeds |= {"r": "map"} if residual else {}
    feeds |= {"rscale": "vector", "rshift": "vector"} if lazy else {}
    return Case(
        op="norm_act", name=label(x, {k: v for k, v in shown.items() if v}), make=make,
        feeds=feeds, wire=wire, magnitude=magnitude, inplace=inplace,
        also=("act",) if inplace else (),
        expect=lambda a: {"z": say.norm_act(a["x"], a["scale"], a["shift"], shortcut(a), act)},
    )  # fmt: skip


def bn_bwd_case(x, act, *, residual=False, dpre=False, training=1, inplace=()):
    c, count = x[1], x[0] * x[2] * x[3]
    shown = {"act": act, "residual": residual, "dpre": dpre, "eval": not training}
    shown |= {"inplace": bool(inplace)}
    vectors = ("scale", "shift", "mean", "invstd")

    def make(rng):
        a = {"dz": normal(rng, *x), "x": normal(rng, *x, shift=0.5), "scale": normal(rng, c)}
        a |= {"shift": normal(rng, c), "mean": normal(rng, c, scale=0.2)}
        a["invstd"] = positive(rng, c)
        if not residual:
            return clear_of_zero(a)
        a["z"] = say.norm_act(a["x"], a["scale"], a["shift"], normal(rng, *x), act)
        return a

    def wire(g, t):
        inputs = [t["dz"], t["x"], *(t[v] for v in vectors)] + ([t["z"]] if residual else [])
        out = g.add("bn_bwd", inputs, act=RELU[act], training=training, want_dpre=int(dpre))
        names = ("dx", "dgamma", "dbeta") + (("dpre",) if dpre else ())
        return dict(zip(names, out))

    def expect(a):
        a = [a[k] for k in ("dz", "x", *vectors)] + [a.get("z")]
        found = say.bn_bwd(*a, act=act, training=training)
        return found if dpre else {k: v for k, v in found.items() if k != "dpre"}

    def magnitude(a):
        dz = np.abs(a["dz"])
        xhat = (np.abs(a["x"]) + say.per_channel(np.abs(a["mean"]))) * say.per_channel(a["invstd"])
        dgamma, dbeta = (dz * xhat).sum((0, 2, 3)), dz.sum((0, 2, 3))
        dx = dz + say.per_channel(dbeta / count) + xhat * say.per_channel(dgamma / count)
        return {"dx": say.per_channel(np.abs(a["scale"])) * dx, "dgamma": dgamma, "dbeta": dbeta}

    feeds = {"dz": "map", "x": "map", **dict.fromkeys(vectors, "vector")}
    return Case(
        op="bn_bwd", name=label(x, {k: v for k, v in shown.items() if v}), make=make,
        feeds=feeds | ({"z": "map"} if residual else {}), wire=wire, expect=expect,
        magnitude=magnitude, length=count, inplace=inplace, also=("act",) if inplace else (),
    )  # fmt: skip


def stats_case(x, *, mean=0.0, std=1.0, training=1):
    """channel_stats and bn_fold together; in evaluation bn_fold alone."""
    c, count = x[1], x[0] * x[2] * x[3]
    vectors = ("gamma", "beta", "rmean", "rvar")
    norm = {"eps": 1e-3, "momentum": 0.3, "training": training}
    names = ("scale", "shift", "mean", "invstd")

    def make(rng):
        a = {v: positive(rng, c) for v in vectors}
        return a | ({"x": normal(rng, *x, scale=std, shift=mean)} if training else {})

    def wire(g, t):
        stats = g.add("channel_stats", [t["x"]])[0] if training else None
        count_of = {"count": count} if training else {}
        out = g.add("bn_fold", [stats, *(t[v] for v in vectors)], **count_of, **norm)
        return dict(zip(names, out))

    def expect(a):
        return say.bn_fold(a.get("x"), *(a[v] for v in vectors), **norm)

    def magnitude(a):
        if not training:
            v = expect(a)
            return {"shift": np.abs(a["beta"]) + np.abs(v["mean"] * v["scale"])}
        return fold_size(expect(a), np.abs(a["x"]), count)

    feeds = {"gamma": "vector:param", "beta": "vector:param"}
    feeds |= {"rmean": "vector:buffer", "rvar": "vector:buffer"}
    feeds |= {"x": "map"} if training else {}
    shown = {"mean": mean, "std": std} if training else {"eval": True}
    return Case(
        op="channel_stats" if training else "bn_fold", name=label(x, shown), make=make,
        feeds=feeds, wire=wire, expect=expect, magnitude=magnitude, length=count,
        reads=("rmean", "rvar"), also=("bn_fold",) if training else (),
    )  # fmt: skip


def norm_table():
    shapes = [(2, 64, 28, 28), (3, 17, 13, 11), (1, 1, 1, 1), (2, 16, 7, 7), (5, 31, 1, 3)]
    cases = []
    for x in shapes:
        cases += [norm_act_case(x, "relu"), norm_act_case(x, "relu", "map")]
        cases += [bn_bwd_case(x, "relu"), bn_bwd_case(x, "relu", residual=True, dpre=True)]
        cases += [stats_case(x)]
    wide, odd = (4, 32, 56, 56), (3, 17, 13, 11)
    cases += [norm_act_case(odd, act, r) for act in RELU for r in ("none", "relu")]
    cases += [norm_act_case(odd, "none"), norm_act_case(odd, "none", "map")]
    cases += [norm_act_case(wide, "relu", "relu"), norm_act_case(wide, "none", "none")]
    cases += [norm_act_case(odd, "relu", "map", inplace=(p,)) for p in ("x", "r")]
    cases += [norm_act_case(odd, "relu", inplace=("x",))]
    cases += [bn_bwd_case(odd, "none"), bn_bwd_case(odd, "none", training=0)]
    cases += [bn_bwd_case(odd, "relu", training=0), bn_bwd_case(wide, "relu")]
    cases += [bn_bwd_case(odd, "relu", residual=True), bn_bwd_case(odd, "relu", dpre=True)]
    cases += [bn_bwd_case(wide, "relu", residual=True, dpre=True)]
    cases += [bn_bwd_case(odd, "relu", residual=True, dpre=True, training=0)]
    cases += [bn_bwd_case(odd, "relu", residual=True, dpre=True, inplace=("dz",))]
    cases += [bn_bwd_case(odd, "relu", inplace=("dz",))]
    cases += [stats_case(wide), stats_case(odd, mean=300.0), stats_case(wide, mean=-40.0, std=0.1)]
    cases += [stats_case((1, 21, 1, 1), training=0), stats_case((1, 64, 1, 1), training=0)]
    return cases


TABLES = (
    act_table,
    convolution_table,
    view_table,
    lambda: depth_table(convolutions, views_of),
    dense_table,
    gather_table,
    norm_table,
    pool_table,
    row_table,
    loss_table,
)
CASES = [case for table in TABLES for case in table()]
# What the table cannot hold, and where it is proven instead.
ELSEWHERE = {
    "batch_norm": "test_oracle.py",  # replaced by its pieces before a graph runs
    "concat": "test_oracle.py",  # likewise, with the two below: DenseNet, GoogLeNet, ShuffleNetV2
    "channel_slice": "test_oracle.py",
    "channel_shuffle": "test_oracle.py",
    "images": "test_images.py",  # reads data sets, not tensors
    "dropout": "test_optable.py",  # random: proven by its properties
}


def few(count):
    """For every op, and for every kernel of this processor in float32, the first `count` cases it
    takes: those that an emulator can do in a second before the others, and otherwise in the order
    of their names' checksums, which nobody has chosen."""
    from mdmt import _core

    chosen, isas = {}, available()
    for op in sorted({case.op for case in CASES}):
        cases = [case for case in CASES if case.op == op]
        cases.sort(key=lambda case: (case.macs > 1e7, zlib.crc32(case.id.encode())))
        for kernel, needs in _core.op_kernels(op):
            left = 0 if needs not in isas or rounds(kernel) else count
            for case in cases:
                if not left:
                    break
                try:
                    case.program(_core, isa=isas[-1], threads=1, kernel=kernel)
                except NotImplementedError:
                    continue  # a kernel may refuse a shape
                chosen[case.id] = case
                left -= 1
    return list(chosen.values())


def chosen():
    """The cases that a session runs: all, or those of MDMT_TABLE_FEW."""
    count = os.environ.get("MDMT_TABLE_FEW")
    return few(int(count)) if count else CASES


def find(name):
    for case in CASES:
        if case.id == name:
            return case
    raise SystemExit(f"there is no case {name}; see tests/optable.py")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.optable")
    parser.add_argument("case")
    parser.add_argument("--isa")
    parser.add_argument("--kernel")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    from mdmt import _core

    case = find(options.case)
    how = {"isa": options.isa, "kernel": options.kernel, "threads": options.threads}
    check(case, *case.run(_core, **how))
    print(f"{case.id}: ok")


if __name__ == "__main__":
    main()
