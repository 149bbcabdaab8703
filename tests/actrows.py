"""The part of the op table that is about activations and gates."""

import numpy as np

from tests import statements as say
from tests.opcase import ACTS, Case, label, load_size, normal, positive, viewed

SMOOTH = ("silu", "sigmoid", "hardswish", "hardsigmoid", "relu6")  # beyond none and relu
KINKS = {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3), "hardsigmoid": (-3, 3)}
EDGES = np.array([-3, 3, 0, 6, -100, 100, -88, 1e-20], np.float32)


def with_edges(rng, *shape):
    """Values of a few units, the first of them where activations have kinks or tails."""
    a = normal(rng, *shape, scale=4.0)
    a.reshape(-1)[: len(EDGES)] = EDGES[: a.size]
    return a


def act_cases(shape, act):
    kind, code = "map" if len(shape) == 4 else "rows", ACTS.index(act)
    name = label(shape, {"act": act})

    def back(rng):
        v = with_edges(rng, *shape)
        v = v if act in say.FROM_INPUT else say.activate(v.astype(np.float64), act)
        return {"dy": normal(rng, *shape), "v": v.astype(np.float32)}

    def forward(g, t):
        return {"y": g.add("act", [t["x"]], act=code)[0]}

    def backward(g, t):
        return {"dx": g.add("act_bwd", [t["dy"], t["v"]], act=code)[0]}

    def slope(a):
        if act in say.FROM_INPUT:
            return say.slope(a["v"], act)
        return say.slope_of_output(a["v"], act)

    def inplace(*names):
        return {"inplace": names, "also": ("act",)} if names else {}

    cases = []
    for over in ((), ("x",)):
        cases.append(
            Case("act", name + (",inplace=x" if over else ""),
                 lambda rng: {"x": with_edges(rng, *shape)}, {"x": kind}, forward,
                 lambda a: {"y": say.activate(a["x"], act)},
                 lambda a: {"y": 2 * np.abs(say.activate(a["x"], act))}, **inplace(*over))
        )  # fmt: skip
    for over in ((), ("dy",), ("v",)):
        cases.append(
            Case("act_bwd", name + "".join(f",inplace={v}" for v in over), back,
                 {"dy": kind, "v": kind}, backward, lambda a: {"dx": a["dy"] * slope(a)},
                 lambda a: {"dx": np.abs(a["dy"]) * (1 + np.abs(slope(a)))}, **inplace(*over))
        )  # fmt: skip
    if kind == "map":
        cases += [viewed(cases[0], ("x",), {"y": shape}), viewed(cases[0], (), {"y": shape})]
        cases += [viewed(cases[2], ("v",)), viewed(cases[2], ("dy",), {"dx": shape})]
    return cases


def add_views(shape):
    case = Case("add", label(shape, {}), lambda rng: {v: normal(rng, *shape) for v in "ab"},
                {"a": "map", "b": "map"}, lambda g, t: {"y": g.add("add", [t["a"], t["b"]])[0]},
                lambda a: {"y": a["a"] + a["b"]},
                lambda a: {"y": np.abs(a["a"]) + np.abs(a["b"])})  # fmt: skip
    return [viewed(case, ("a",)), viewed(case, ("b",), {"y": shape}), viewed(case, ("a", "b"))]


def lazily(shape, lazy):
    """make, feeds, tensor and value of an x that may be lazy."""

    def make(rng):
        a = {"x": normal(rng, *shape, scale=3.0 if lazy else 1.0)}
        vectors = {"xscale": normal(rng, shape[1]), "xshift": normal(rng, shape[1])}
        return a | (vectors if lazy else {})

    def tensor(g, t):
        return g.lazy(t["x"], t["xscale"], t["xshift"], lazy) if lazy else t["x"]

    def value(a):
        return say.lazy(a["x"], a["xscale"], a["xshift"], lazy) if lazy else a["x"]

    return make, {"x": "map"} | dict.fromkeys(("xscale", "xshift") if lazy else (), "vector"), (
        tensor
    ), value  # fmt: skip


def gate_cases(shape, lazy=None):
    make, feeds, tensor, value = lazily(shape, lazy)
    name = label(shape, {"lazy": lazy} if lazy else {})

    def per_sample(s):
        return s[:, :, None, None]

    area = shape[2] * shape[3]
    gate = Case(
        "gate", name, lambda rng: make(rng) | {"s": positive(rng, *shape[:2])},
        feeds | {"s": "rows"}, lambda g, t: {"y": g.add("gate", [tensor(g, t), t["s"]])[0]},
        lambda a: {"y": value(a) * per_sample(a["s"])},
        lambda a: {"y": load_size(a, lazy) * per_sample(np.abs(a["s"]))},
    )  # fmt: skip
    back = Case(
        "gate_bwd", name, lambda rng: make(rng) | {"dy": normal(rng, *shape)},
        feeds | {"dy": "map"},
        lambda g, t: {"ds": g.add("gate_bwd", [t["dy"], tensor(g, t)])[0]},
        lambda a: {"ds": (a["dy"] * value(a)).sum((2, 3))},
        lambda a: {"ds": (np.abs(a["dy"]) * load_size(a, lazy)).sum((2, 3))}, area,
    )  # fmt: skip
    mean = Case(
        "global_avg_pool", f"{name},acts", make, feeds,
        lambda g, t: {"y": g.add("global_avg_pool", [tensor(g, t)])[0]},
        lambda a: {"y": value(a).mean((2, 3))},
        lambda a: {"y": load_size(a, lazy).mean((2, 3))}, area,
    )  # fmt: skip
    cases = [gate, back, mean, viewed(gate, ("x",), {"y": shape}), viewed(mean, ("x",))]
    return cases + [viewed(back, ("x",)), viewed(back, ("dy",))]


def clear_of_kinks(a, act, gap=1e-2):
    """Moves x where scale x + shift is near a kink: there a rounding changes the slope."""
    scale, shift = say.per_channel(a["scale"]), say.per_channel(a["shift"])
    for kink in KINKS.get(act, ()):
        near = np.abs(scale * a["x"] + shift - kink) < gap
        away = np.where(near, 3 * gap, 0.0) / np.where(np.abs(scale) < 0.1, 1.0, scale)
        a["x"] = (a["x"] + away).astype(np.float32)
    return a


def norm_act_cases(shape, act, residual=None):
    """residual: None, "map", or the activation of a lazy one."""
    lazy = residual if residual in ACTS else None
    rmake, rfeeds, rtensor, rvalue = lazily(shape, lazy)
    code, vectors = ACTS.index(act), ("scale", "shift")
    names = {"x": "r", "xscale": "rscale", "xshift": "rshift"}

    def make(rng):
        a = {"x": normal(rng, *shape, scale=3.0)} | {v: normal(rng, shape[1]) for v in vectors}
        return a | ({names[k]: v for k, v in rmake(rng).items()} if residual else {})

    def other(a):
        return {k: a[v] for k, v in names.items() if v in a}

    def wire(g, t):
        inputs = [t[v] for v in ("x", *vectors)] + ([rtensor(g, other(t))] if residual else [])
        return {"z": g.add("norm_act", inputs, act=code)[0]}

    def expect(a):
        r = rvalue(other(a)) if residual else None
        return {"z": say.norm_act(a["x"], a["scale"], a["shift"], r, act)}

    def magnitude(a):
        size = np.abs(say.per_channel(a["scale"]) * a["x"]) + np.abs(say.per_channel(a["shift"]))
        return {"z": 1.2 * size + (load_size(other(a), lazy) if residual else 0) + 1}

    feeds = {"x": "map", **dict.fromkeys(vectors, "vector")}
    feeds |= {names[k]: v for k, v in rfeeds.items()} if residual else {}
    shown = {"act": act} | ({"residual": residual} if residual else {}) | {"acts": True}
    case = Case("norm_act", label(shape, shown), make, feeds, wire, expect, magnitude)
    ways = [case, viewed(case, ("x",)), viewed(case, (), {"z": shape})]
    return ways + ([viewed(case, ("r",), {"z": shape})] if residual else [])


def bn_bwd_acts(shape, act, *, dz=True, gate=False, pooled=False, addend=False, residual=False,
                dpre=False, training=1, inplace=(), views=()):  # fmt: skip
    """The backward pass with each of its optional inputs; views: tuples for `viewed`."""
    (n, c, h, w), code = shape, ACTS.index(act)
    vectors = ("scale", "shift", "mean", "invstd")
    flags = {"dz": dz, "gate": gate, "pooled": pooled, "addend": addend, "z": residual}
    flags |= {"dpre": dpre, "eval": not training, "inplace": inplace and "+".join(inplace)}
    shown = {"act": act} | {k: v for k, v in flags.items() if v}

    def make(rng):
        a = {"x": normal(rng, *shape, scale=2.0, shift=0.5)} | {v: normal(rng, c) for v in vectors}
        a["invstd"] = positive(rng, c)
        a |= {k: normal(rng, *shape) for k, on in (("dz", dz), ("addend", addend)) if on}
        a |= {"gate": positive(rng, n, c)} if gate else {}
        a |= {"pooled": normal(rng, n, c)} if pooled else {}
        if residual:
            return a | {"z": say.norm_act(a["x"], a["scale"], a["shift"], normal(rng, *shape), act)}
        return clear_of_kinks(a, act)

    inputs = ("dz", "x", *vectors, "z", "gate", "pooled", "addend")

    def wire(g, t):
        out = g.add("bn_bwd", [t.get(v) for v in inputs], act=code, training=training,
                    want_dpre=int(dpre))  # fmt: skip
        return dict(zip(("dx", "dgamma", "dbeta", "dpre"), out[: 3 + dpre]))

    def expect(a):
        found = say.bn_bwd(**{v: a.get(v) for v in inputs}, act=act, training=training)
        return found if dpre else {k: v for k, v in found.items() if k != "dpre"}

    def magnitude(a):
        size = np.abs(say.gradient_at_output(a.get("dz"), a.get("gate"), a.get("pooled"), shape))
        if act in SMOOTH:  # the slope's own rounding, and that of where it is taken
            pre = np.abs(say.per_channel(a["scale"]) * a["x"])
            size = size * (1.5 + pre + np.abs(say.per_channel(a["shift"])))
        xhat = (np.abs(a["x"]) + say.per_channel(np.abs(a["mean"]))) * say.per_channel(a["invstd"])
        dgamma, dbeta = (size * xhat).sum((0, 2, 3)), size.sum((0, 2, 3))
        mean_terms = say.per_channel(dbeta) + xhat * say.per_channel(dgamma)
        dx = say.per_channel(np.abs(a["scale"])) * (size + mean_terms / (n * h * w))
        dx = dx + np.abs(a["addend"]) if addend else dx
        return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta, "dpre": size}

    feeds = dict.fromkeys(("dz", "x", "z", "addend"), "map") | dict.fromkeys(vectors, "vector")
    feeds |= {"gate": "rows", "pooled": "rows"}
    absent = {"dz": not dz, "z": not residual, "addend": not addend, "gate": not gate}
    absent |= {"pooled": not pooled}
    feeds = {k: v for k, v in feeds.items() if not absent.get(k)}
    case = Case(
        op="bn_bwd", name=label(shape, shown) + ",acts", make=make, feeds=feeds, wire=wire,
        expect=expect, magnitude=magnitude, length=n * h * w, inplace=inplace,
        also=("act",) if inplace else (),
    )  # fmt: skip
    return [case] + [viewed(case, *view) for view in views]


def bn_bwd_table():
    ragged, wide, cases = (3, 22, 13, 11), (2, 32, 56, 56), []
    for act in ACTS:
        cases += bn_bwd_acts(ragged, act)
        cases += bn_bwd_acts(ragged, act, gate=True, pooled=True)
        cases += bn_bwd_acts((5, 29, 7, 7), act, dz=False, pooled=True)
        cases += bn_bwd_acts((2, 58, 5, 3), act, addend=True, views=[(("x",), {"dx": (2, 58, 5, 3)},
                                                                      "addend")])  # fmt: skip
        cases += bn_bwd_acts((2, 3, 9, 8), act, inplace=("dz",))
        cases += bn_bwd_acts((2, 3, 9, 8), act, training=0)
    cases += bn_bwd_acts(ragged, "silu", gate=True)
    cases += bn_bwd_acts(ragged, "hardswish", pooled=True, inplace=("dz",))
    cases += bn_bwd_acts(ragged, "silu", gate=True, pooled=True, addend=True, inplace=("addend",))
    cases += bn_bwd_acts(ragged, "silu", gate=True, pooled=True, addend=True)
    cases += bn_bwd_acts(ragged, "relu", addend=True, inplace=("addend",))
    cases += bn_bwd_acts(ragged, "relu", addend=True, inplace=("dz",), training=0)
    cases += bn_bwd_acts(ragged, "relu", residual=True, addend=True)
    cases += bn_bwd_acts(ragged, "relu", residual=True, addend=True, dpre=True)
    cases += bn_bwd_acts(ragged, "relu", residual=True, addend=True, dpre=True,
                         inplace=("dz",))  # fmt: skip
    cases += bn_bwd_acts(ragged, "relu6", residual=True)
    cases += bn_bwd_acts(ragged, "relu6", residual=True, dpre=True)
    cases += bn_bwd_acts(ragged, "relu6", dpre=True) + bn_bwd_acts(ragged, "none", dpre=True)
    cases += bn_bwd_acts(wide, "silu") + bn_bwd_acts(wide, "relu6")
    cases += bn_bwd_acts(wide, "silu", gate=True, pooled=True)
    # dense blocks: x a prefix of the block's maps, the addend and dx one of their gradients
    for x in [(16, 32, 7, 7), (2, 64, 14, 14), (4, 32, 28, 28), (16, 272, 7, 7)]:
        cases += bn_bwd_acts(x, "relu", addend=True, views=[(("x",), {"dx": x}, "addend")])
    views = [(("dz",),), (("dz", "x", "z"), {"dpre": ragged}), ((), {"dx": ragged})]
    cases += bn_bwd_acts(ragged, "relu", residual=True, dpre=True, views=views)
    cases += bn_bwd_acts(ragged, "silu", gate=True, pooled=True,
                         views=[(("dz", "x"), {"dx": ragged})])[1:]  # fmt: skip
    return cases


def moments_case(shape):
    """Mean and variance from partial statistics, and the fold that takes them."""
    count, vectors = shape[0] * shape[2] * shape[3], ("gamma", "beta", "rmean", "rvar")
    norm = {"eps": 1e-3, "momentum": 0.3, "training": 1}
    names = ("scale", "shift", "fold_mean", "invstd")

    def make(rng):
        a = {"x": normal(rng, *shape, shift=2.0)}
        return a | {v: positive(rng, shape[1]) for v in vectors}

    def wire(g, t):
        mean, var = g.add("stats_moments", [g.add("channel_stats", [t["x"]])[0]])
        inputs = [None, *(t[v] for v in vectors), mean, var]
        fold = g.add("bn_fold", inputs, count=count, **norm)
        return {"mean": mean, "var": var, **dict(zip(names, fold))}

    def expect(a):
        fold = say.bn_fold(a["x"], *(a[v] for v in vectors), **norm)
        found = {"mean": fold["mean"], "var": a["x"].var((0, 2, 3)), "fold_mean": fold["mean"]}
        return found | {k: v for k, v in fold.items() if k != "mean"}

    def magnitude(a):  # the variances are of order 1, and so are all derivatives
        size = 2 + np.abs(a["x"]).max((0, 2, 3))
        return dict.fromkeys(expect(a), size**2)

    feeds = {"x": "map", "gamma": "vector:param", "beta": "vector:param"}
    feeds |= {"rmean": "vector:buffer", "rvar": "vector:buffer"}
    return Case("stats_moments", label(shape, {}), make, feeds, wire, expect, magnitude, count,
                reads=("rmean", "rvar"), also=("channel_stats", "bn_fold"))  # fmt: skip


def zeros_cases(shape):
    case = Case("zeros", label(shape, {}), lambda rng: {"x": normal(rng, *shape)}, {"x": "map"},
                lambda g, t: {"y": g.add("zeros", [t["x"]])[0]},
                lambda a: {"y": np.zeros(shape)})  # fmt: skip
    return [case, viewed(case, (), {"y": shape})]


def act_table():
    cases = zeros_cases((2, 32, 5, 7)) + zeros_cases((3, 21, 4, 4))
    cases += [moments_case((2, 32, 9, 7)), moments_case((3, 22, 13, 11))]
    for act in SMOOTH:
        for shape in [(2, 32, 14, 14), (3, 22, 13, 11), (2, 58, 3, 5), (1, 3, 1, 1), (5, 29)]:
            cases += act_cases(shape, act)
    for act in ("none", "relu"):
        cases += act_cases((2, 29, 5, 6), act)
    cases += add_views((2, 32, 14, 14)) + add_views((3, 22, 5, 7))
    for lazy in (None, *ACTS):
        cases += gate_cases((2, 32, 14, 14), lazy) + gate_cases((3, 22, 13, 11), lazy)
        cases += gate_cases((2, 140, 7, 7), lazy)[1:3]  # many packs of few pixels, and so on
        cases += gate_cases((2, 72, 29, 9), lazy)[1:3] + gate_cases((1, 35, 35, 33), lazy)[1:3]
    cases += gate_cases((1, 19, 71, 73), "silu")[1:3]
    for act in ACTS:
        cases += norm_act_cases((3, 22, 13, 11), act) + norm_act_cases((2, 58, 3, 5), act, "map")
        for into in ("none", "relu"):
            cases += norm_act_cases((2, 29, 6, 5), into, act)
    cases += norm_act_cases((4, 32, 56, 56), "silu") + norm_act_cases((4, 32, 56, 56), "relu6")
    cases += norm_act_cases((4, 24, 56, 56), "none", "silu")
    return cases + bn_bwd_table()
