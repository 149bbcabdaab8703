"""The part of the op table that has no convolution and no normalisation."""

import numpy as np

from tests import statements as say
from tests.opcase import RELU, Case, label, load_size, normal, positive, viewed

# ---------------------------------------------------------------- pooling


def max_pool_cases(x, lazy=None, **attrs):
    """Forward, and the gradient through the forward's own argmax. Values are far enough apart that
    rounding cannot change a winner; zeros after a ReLU tie, and the first of them wins."""
    n, c, h, w = x

    def make(rng):
        distinct = rng.permutation(int(np.prod(x))).reshape(x) / 64.0 - np.prod(x) / 128.0
        a = {"x": distinct.astype(np.float32)}
        if lazy:
            a |= {"xscale": positive(rng, c), "xshift": normal(rng, c)}
        return a

    def tensors(g, t):
        return g.lazy(t["x"], t["xscale"], t["xshift"], lazy) if lazy else t["x"]

    def loaded(a):
        return say.lazy(a["x"], a["xscale"], a["xshift"], lazy) if lazy else a["x"]

    def backward(rng):
        a = make(rng)
        return a | {"dy": normal(rng, *say.max_pool(a["x"], **attrs)[0].shape)}

    def wire(g, t):
        y, argmax = g.add("max_pool", [tensors(g, t)], want_argmax=1, **attrs)[:2]
        if "dy" not in t:
            return {"y": y}
        return {"y": y, "dx": g.add("max_pool_bwd", [t["dy"], argmax], size=(h, w), **attrs)[0]}

    def expect(a):
        y, where = say.max_pool(loaded(a), **attrs)
        if "dy" not in a:
            return {"y": y}
        return {"y": y, "dx": say.max_pool_bwd(a["dy"], where, (h, w), **attrs)}

    def magnitude(a):
        found = {"y": np.full_like(expect(a)["y"], load_size(a, lazy).max())} if lazy else {}
        if "dy" in a:
            where = say.max_pool(loaded(a), **attrs)[1]
            found["dx"] = say.max_pool_bwd(np.abs(a["dy"]), where, (h, w), **attrs)
        return found

    feeds = {"x": "map"} | ({"xscale": "vector", "xshift": "vector"} if lazy else {})
    name = label(x, attrs | ({"lazy": lazy} if lazy else {}))

    def forward(g, t):
        return {"y": g.add("max_pool", [tensors(g, t)], **attrs)[0]}

    taps = int(np.prod(attrs["kernel"]))
    return [
        Case("max_pool", name, make, feeds, forward, expect, magnitude),
        Case("max_pool_bwd", name, backward, feeds | {"dy": "map"}, wire, expect, magnitude,
             length=taps, also=("max_pool",)),
    ]  # fmt: skip


def avg_pool_cases(x, **attrs):
    def make(rng):
        return {"x": normal(rng, *x)}

    def backward(rng):
        return {"dy": normal(rng, *say.avg_pool(np.zeros(x), **attrs).shape)}

    def absolute(say_it, name):
        return lambda a: {name: say_it(np.abs(next(iter(a.values()))))}

    def down(v):
        return say.avg_pool(v, **attrs)

    def up(v):
        return say.avg_pool_bwd(v, x[2:], **attrs)

    name, taps = label(x, attrs), int(np.prod(attrs["kernel"]))
    return [
        Case("avg_pool", name, make, {"x": "map"},
             lambda g, t: {"y": g.add("avg_pool", [t["x"]], **attrs)[0]},
             lambda a: {"y": down(a["x"])}, absolute(down, "y"), taps),
        Case("avg_pool_bwd", name, backward, {"dy": "map"},
             lambda g, t: {"dx": g.add("avg_pool_bwd", [t["dy"]], size=x[2:], **attrs)[0]},
             lambda a: {"dx": up(a["dy"])}, absolute(up, "dx"), taps),
    ]  # fmt: skip


def global_cases(x):
    """Global average pooling (also of lazy tensors), flatten, channel sums; their gradients."""
    n, c, h, w = x
    name, area = label(x, {}), h * w

    def maps(rng):
        return {"x": normal(rng, *x, shift=0.2)}

    def lazies(rng):
        return maps(rng) | {"xscale": normal(rng, c), "xshift": normal(rng, c)}

    def loaded(a):
        return say.lazy(a["x"], a["xscale"], a["xshift"], "relu")

    lazy_feeds = {"x": "map", "xscale": "vector", "xshift": "vector"}
    size = {"size": (h, w), "channels": c}
    return [
        Case("global_avg_pool", name, maps, {"x": "map"},
             lambda g, t: {"y": g.add("global_avg_pool", [t["x"]])[0]},
             lambda a: {"y": a["x"].mean((2, 3))},
             lambda a: {"y": np.abs(a["x"]).mean((2, 3))}, area),
        Case("global_avg_pool", name + ",lazy=relu", lazies, lazy_feeds,
             lambda g, t: {
                 "y": g.add("global_avg_pool",
                            [g.lazy(t["x"], t["xscale"], t["xshift"], "relu")])[0]},
             lambda a: {"y": loaded(a).mean((2, 3))},
             lambda a: {"y": load_size(a, "relu").mean((2, 3))}, area),
        Case("global_avg_pool_bwd", name, lambda rng: {"dy": normal(rng, n, c)}, {"dy": "rows"},
             lambda g, t: {"dx": g.add("global_avg_pool_bwd", [t["dy"]], **size)[0]},
             lambda a: {"dx": np.broadcast_to(a["dy"][:, :, None, None] / area, x)}),
        Case("flatten", name, maps, {"x": "map"},
             lambda g, t: {"y": g.add("flatten", [t["x"]])[0]},
             lambda a: {"y": a["x"].reshape(n, -1)}),
        Case("flatten_bwd", name, lambda rng: {"dy": normal(rng, n, c * area)}, {"dy": "rows"},
             lambda g, t: {"dx": g.add("flatten_bwd", [t["dy"]], **size)[0]},
             lambda a: {"dx": a["dy"].reshape(x)}),
        Case("channel_sum", name, maps, {"x": "map"},
             lambda g, t: {"sum": g.add("channel_sum", [t["x"]])[0]},
             lambda a: {"sum": a["x"].sum((0, 2, 3))},
             lambda a: {"sum": np.abs(a["x"]).sum((0, 2, 3))}, n * area),
    ]  # fmt: skip


def pool_table():
    first = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1, 1, 1)}
    cases = []
    for x in [(2, 64, 28, 28), (3, 17, 13, 11), (1, 1, 2, 3), (1, 16, 1, 1)]:
        cases += max_pool_cases(x, **first) + max_pool_cases(x, "relu", **first)
        cases += global_cases(x)
    odd = (2, 19, 10, 13)
    cases += max_pool_cases(odd, "none", **first)
    cases += max_pool_cases(odd, kernel=(3, 3), stride=(2, 2), ceil_mode=1)
    cases += max_pool_cases(odd, kernel=(3, 3), stride=(1, 1), pad=(1, 1, 1, 1), ceil_mode=1)
    cases += max_pool_cases(odd, kernel=(2, 2), stride=(2, 2), ceil_mode=1)
    cases += max_pool_cases((2, 19, 2, 2), kernel=(3, 3), stride=(2, 2), ceil_mode=1)
    cases += avg_pool_cases((2, 19, 2, 4), kernel=(3, 3), stride=(2, 2), ceil_mode=1)
    cases += max_pool_cases(odd, kernel=(3, 2), stride=(3, 1), pad=(1, 0, 0, 1))
    cases += max_pool_cases(odd, "relu", kernel=(2, 3), stride=(1, 2), dilation=(3, 2))
    for x in [(2, 24, 9, 12), (3, 12, 15, 7)]:
        cases += max_pool_cases(x, "relu", kernel=(3, 3), stride=(1, 1), pad=(1, 1, 1, 1))
        cases += max_pool_cases(x, "relu", kernel=(3, 3), stride=(2, 2), ceil_mode=1)
        cases += max_pool_cases(x, kernel=(3, 3), stride=(2, 2), pad=(0, 1, 1, 0))
    for ceil in (0, 1):
        for count in (0, 1):
            more = {"ceil_mode": ceil, "count_include_pad": count}
            cases += avg_pool_cases(odd, kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1), **more)
            cases += avg_pool_cases(odd, kernel=(2, 3), stride=(3, 2), pad=(1, 0, 0, 1), **more)
    cases += avg_pool_cases((2, 32, 14, 14), kernel=(2, 2), stride=(2, 2))
    cases += avg_pool_cases((1, 3, 7, 5), kernel=(7, 5), stride=(1, 1))
    return cases


# ---------------------------------------------------------------- channels


def gather_case(n, channels, size, numbers, what, acts=None):
    """channel_gather from maps of these channels; acts: the activation of each source, None where
    it is stored. numbers: (source, channel) of each output channel, None for zeros."""
    acts = acts or (None,) * len(channels)
    table = [-1 if of is None else of[0] << 16 | of[1] for of in numbers]
    lazy = [i for i, act in enumerate(acts) if act]

    def make(rng):
        a = {f"x{i}": normal(rng, n, c, *size) for i, c in enumerate(channels)}
        for i in lazy:
            a |= {f"scale{i}": normal(rng, channels[i]), f"shift{i}": normal(rng, channels[i])}
        return a

    def wire(g, t):
        sources = [
            g.lazy(t[f"x{i}"], t[f"scale{i}"], t[f"shift{i}"], act) if act else t[f"x{i}"]
            for i, act in enumerate(acts)
        ]
        at = g.numbers(table)
        return {"y": g.add("channel_gather", sources, channels=len(table), table=at)[0]}

    def pick(of):
        zero = np.zeros((n, *size))
        return {"y": np.stack([zero if at is None else of[at[0]][:, at[1]] for at in numbers], 1)}

    def expect(a):
        def loaded(i, act):
            x = a[f"x{i}"]
            return say.lazy(x, a[f"scale{i}"], a[f"shift{i}"], act) if act else x

        return pick([loaded(i, act) for i, act in enumerate(acts)])

    def magnitude(a):
        def load(i, act):
            x = {"x": a[f"x{i}"]}
            more = {"xscale": a[f"scale{i}"], "xshift": a[f"shift{i}"]} if act else {}
            return load_size(x | more, act)

        return pick([load(i, act) for i, act in enumerate(acts)])

    feeds = {f"x{i}": "map" for i in range(len(channels))}
    feeds |= {f"{v}{i}": "vector" for i in lazy for v in ("scale", "shift")}
    name = label((n, *channels, *size), {"to": len(table), "what": what, "acts": len(lazy)})
    return Case("channel_gather", name, make, feeds, wire, expect, magnitude)


def shuffled(channels, groups=2):
    """The channels of a concatenation, shuffled."""
    one = [(i, c) for i, count in enumerate(channels) for c in range(count)]
    each = len(one) // groups
    return [one[k % groups * each + k // groups] for k in range(len(one))]


def units(half, count):
    """What `count` units of ShuffleNetV2 of 2 * half channels give, whose first is (0, 1); unit i
    adds source i + 2: all sources' channels and those of the half that passes through at last."""
    x = shuffled((half, half))
    for i in range(count):
        joined = x[:half] + [(i + 2, c) for c in range(half)]
        x = [joined[k % 2 * half + k // 2] for k in range(2 * half)]
    return x


def gather_table():
    cases, relu = [], ("relu", "relu")
    for half, size in [(24, (14, 14)), (29, (9, 11)), (58, (7, 7)), (116, (3, 5))]:
        numbers = shuffled((half, half))
        cases += [gather_case(2, (half, half), size, numbers[:half], "first", relu)]
        cases += [gather_case(2, (half, half), size, numbers[half:], "second", (None, "relu"))]
        back = [None if i % 2 else (0, i // 2) for i in range(2 * half)]
        cases += [gather_case(2, (half,), size, back, "back")]
    many = units(58, 7)
    cases += [gather_case(1, (58,) * 9, (7, 7), many[:58], "units", ("relu",) * 9)]
    cases += [gather_case(3, (58,) * 9, (7, 7), many[58:], "units")]
    each = [(i % 20, i // 20) for i in range(33)]  # more sources in a register than one pass takes
    cases += [gather_case(2, (3,) * 20, (5, 3), each, "scattered", ("none", None) * 10)]
    far = [(i % 20, i * 7 % 40) for i in range(133)]  # and of more packs than one launch takes
    cases += [gather_case(2, (40,) * 20, (7, 5), far, "far", ("relu", None, "silu", None) * 5)]
    cases += [gather_case(3, (150, 150), (9, 7), shuffled((150, 150)), "wide", (None, "relu"))]
    cases += [gather_case(1, (1, 17), (1, 1), [(1, 16), None, (0, 0)], "few", ("relu", None))]
    cases += [gather_case(4, (128, 128), (57, 56), shuffled((128, 128)), "large", (None, "relu"))]
    made = gather_case(2, (24, 24), (7, 7), shuffled((24, 24)), "shuffled", ("relu", None))
    return [*cases, viewed(made, ("x0", "x1"), {"y": (2, 48, 7, 7)}), viewed(made, ("x1",))]


# ---------------------------------------------------------------- rows and elements


def linear_cases(n, i, o):
    name = f"{n}x{i}x{o}"

    def arrays(*names):
        shapes = {"x": (n, i), "w": (o, i), "bias": (o,), "dy": (n, o)}
        return lambda rng: {v: normal(rng, *shapes[v]) for v in names}

    def both(f, name):
        return (lambda a: {name: f(a)}), (lambda a: {name: f({k: np.abs(v) for k, v in a.items()})})

    macs = float(n * i * o)
    feeds = {"x": "rows", "w": "matrix:param", "bias": "vector:param"}
    return [
        Case("linear", name, arrays("x", "w", "bias"), feeds,
             lambda g, t: {"y": g.add("linear", [t["x"], t["w"], t["bias"]])[0]},
             *both(lambda a: a["x"] @ a["w"].T + a["bias"], "y"), i, macs=macs),
        Case("linear", name + ",bias=None", arrays("x", "w"), {"x": "rows", "w": "matrix:param"},
             lambda g, t: {"y": g.add("linear", [t["x"], t["w"]])[0]},
             *both(lambda a: a["x"] @ a["w"].T, "y"), i, macs=macs),
        Case("linear_bwd_data", name, arrays("dy", "w"), {"dy": "rows", "w": "matrix:param"},
             lambda g, t: {"dx": g.add("linear_bwd_data", [t["dy"], t["w"]])[0]},
             *both(lambda a: a["dy"] @ a["w"], "dx"), o, macs=macs),
        Case("linear_bwd_weight", name, arrays("x", "dy"), {"x": "rows", "dy": "rows"},
             lambda g, t: {"dw": g.add("linear_bwd_weight", [t["x"], t["dy"]])[0]},
             *both(lambda a: a["dy"].T @ a["x"], "dw"), n, macs=macs),
        Case("channel_sum", name, arrays("dy"), {"dy": "rows"},
             lambda g, t: {"sum": g.add("channel_sum", [t["dy"]])[0]},
             *both(lambda a: a["dy"].sum(0), "sum"), n),
    ]  # fmt: skip


def element_cases(shape):
    kind = "map" if len(shape) == 4 else "rows"
    name = label(shape, {})

    def arrays(*names):
        return lambda rng: {v: normal(rng, *shape) for v in names}

    cases = []
    for act, value in RELU.items():
        for inplace in ((), ("x",)):
            more = {"inplace": True} if inplace else {}
            cases.append(
                Case(
                    "act",
                    label(shape, {"act": act} | more),
                    arrays("x"),
                    {"x": kind},
                    lambda g, t, v=value: {"y": g.add("act", [t["x"]], act=v)[0]},
                    lambda a, act=act: {"y": say.activate(a["x"], act)},
                    inplace=inplace,
                )
            )
        cases.append(
            Case(
                "act_bwd",
                label(shape, {"act": act}),
                arrays("dy", "y"),
                {"dy": kind, "y": kind},
                lambda g, t, v=value: {"dx": g.add("act_bwd", [t["dy"], t["y"]], act=v)[0]},
                lambda a, act=act: {"dx": a["dy"] * ((a["y"] > 0) | (act == "none"))},
            )
        )
    for inplace in ((), ("a",), ("b",), ("a", "b")):
        more = {"inplace": "+".join(inplace)} if inplace else {}
        cases.append(
            Case(
                "add",
                label(shape, more),
                arrays("a", "b"),
                {"a": kind, "b": kind},
                lambda g, t: {"y": g.add("add", [t["a"], t["b"]])[0]},
                lambda a: {"y": a["a"] + a["b"]},
                lambda a: {"y": np.abs(a["a"]) + np.abs(a["b"])},
                inplace=inplace,
                also=("act",) if inplace else (),
            )
        )
    cases.append(
        Case(
            "add",
            name + ",twice",
            arrays("a"),
            {"a": kind},
            lambda g, t: {"y": g.add("add", [t["a"], t["a"]])[0]},
            lambda a: {"y": 2 * a["a"]},
        )
    )
    return cases


# ---------------------------------------------------------------- loss

KINDS = ("ce", "bce", "mse", "ordinal")
REDUCTIONS = ("mean", "per_task_mean", "sum")


def sample_loss(kind, z, t, w, e):
    """Loss of one sample with logits z (k), target columns t, their weights w and smoothing e;
    paper's equation (3) for ce."""
    k = len(z)
    logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
    if kind == "ce":
        share = (1 - e) * np.eye(k)[int(t[0])] + e / k
        return -w[0] * (share * logp).sum()
    if kind == "bce":
        return np.nanmean(w[:k] * (np.logaddexp(0, z) - z * t[:k]))
    if kind == "mse":
        return np.mean(w[:k] * (z - t[:k]) ** 2)
    low, high = np.cumsum(np.exp(logp)), np.cumsum(np.exp(logp)[::-1])[::-1]
    terms = [np.log(low[j]) if t[0] <= j else np.log(high[j + 1]) for j in range(k - 1)]
    return -w[0] * sum(terms)


def masked_loss(logits, task, target, kinds, weights, reduction, weighted=False, smoothing=None):
    """Equations (1) and (2): the loss of the one task that each sample carries. With weights the
    target's second half of columns weighs the first; samples are counted, not weights."""
    sums, counts = np.zeros(len(kinds)), np.zeros(len(kinds))
    target, weight = np.split(target, 2, 1) if weighted else (target, np.ones_like(target))
    smoothing = smoothing or (0.0,) * len(kinds)
    for i, k in enumerate(task):
        unknown = np.isnan(target[i, : logits[k].shape[1]])
        if k >= 0 and not (unknown.all() if kinds[k] == "bce" else unknown[0]):
            sums[k] += sample_loss(kinds[k], logits[k][i], target[i], weight[i], smoothing[k])
            counts[k] += 1
    over = {"mean": counts.sum(), "sum": 1.0, "per_task_mean": np.maximum(counts, 1)}[reduction]
    total = float((np.asarray(weights) * sums / np.maximum(over, 1)).sum())
    return total, np.stack([sums, counts], 1).ravel()


def loss_gradients(logits, *rest):
    """4-point differences along every logit."""
    found = []
    for k, z in enumerate(logits):
        d = np.zeros_like(z)
        for at in np.ndindex(z.shape):
            e = np.zeros_like(z)
            e[at] = 1.0

            def moved(v, k=k):
                return masked_loss([*logits[:k], v, *logits[k + 1 :]], *rest)[0]

            d[at] = say.difference(moved, z, e, 1e-3)
        found.append(d)
    return found


def loss_case(n, classes, kinds, reduction="mean", weights=None, tasks=None, missing=False,
              weighted=False, smoothing=None):  # fmt: skip
    weights = weights or (1.0,) * len(kinds)
    names = [f"z{k}" for k in range(len(kinds))]
    shown = {"loss": "+".join(kinds), "reduction": reduction, "weights": weights}
    shown |= {"tasks": tasks, "missing": missing, "weighted": weighted, "smoothing": smoothing}
    attrs = {
        "tasks": len(kinds),
        "loss": tuple(KINDS.index(k) for k in kinds),
        "weight": weights,
        "reduction": REDUCTIONS.index(reduction),
        "want_gradient": 1,
        "weighted": int(weighted),
        "smoothing": smoothing or (0.0,) * len(kinds),
    }

    def make(rng):
        task = np.array(tasks if tasks else rng.integers(len(kinds), size=n), np.int32)
        target = np.zeros((n, max(classes)), np.float32)
        for i, k in enumerate(task):
            if kinds[k] in ("ce", "ordinal"):
                target[i, 0] = rng.integers(classes[k])
            else:
                target[i] = rng.random(max(classes))
        if missing:
            task[::3], target[1::4] = -1, np.nan
            for i, k in enumerate(task):  # and single outputs of a binary cross-entropy
                if k >= 0 and kinds[k] == "bce":
                    target[i, i % 2 :: 2] = np.nan
        if weighted:  # 0 is one of them; those of what has no label are not looked at
            weight = rng.choice(np.float32([0, 0.5, 1, 3]), target.shape)
            target = np.hstack([target, np.where(np.isnan(target), -1, weight)])
        logits = {z: normal(rng, n, c, scale=2.0) for z, c in zip(names, classes)}
        return {"task": task, "target": target, **logits}

    def wire(g, t):
        out = g.add("masked_loss", [t["task"], t["target"], *(t[z] for z in names)], **attrs)
        return {"loss": out[0], "per_task": out[1], **{f"d{z}": o for z, o in zip(names, out[2:])}}

    def expect(a):
        rest = (a["task"], a["target"], kinds, weights, reduction, weighted, smoothing)
        logits = [a[z] for z in names]
        loss, per_task = masked_loss(logits, *rest)
        gradients = loss_gradients(logits, *rest)
        found = {"loss": np.array([loss]), "per_task": per_task}
        return found | {f"d{z}": d for z, d in zip(names, gradients)}

    def magnitude(a):
        rest = (a["task"], a["target"], kinds, weights, reduction, weighted, smoothing)
        gradients = loss_gradients([a[z] for z in names], *rest)
        # differences carry an error of 1e-12 or so; exact zeros stay exact
        return {f"d{z}": np.abs(d) + 1e-5 * (d != 0) for z, d in zip(names, gradients)}

    feeds = {"task": "scalar", "target": "rows", **dict.fromkeys(names, "rows")}
    name = label((n, *classes), {k: v for k, v in shown.items() if v})
    return Case("masked_loss", name, make, feeds, wire, expect, magnitude, n)


def loss_table():
    cases = [loss_case(16, (2, 4), ("ce", "ce"), r) for r in REDUCTIONS]
    cases += [loss_case(7, (3, 5), (kind, "ce"), "mean") for kind in KINDS]
    cases += [
        loss_case(13, (2, 4, 3, 6), KINDS, r, weights=(1.0, 0.5, 2.0, 0.25)) for r in REDUCTIONS
    ]
    cases += [loss_case(5, (2, 4), ("ce", "ordinal"), tasks=(1,) * 5)]
    cases += [loss_case(1, (2,), ("ce",)), loss_case(12, (2, 4), ("ce", "bce"), missing=True)]
    cases += [loss_case(33, (14, 3), ("bce", "mse"), missing=True)]
    recipe = {"weighted": True, "smoothing": (0.125, 0.0, 0.0, 0.0)}  # exact in float32
    cases += [loss_case(13, (3, 4, 3, 6), KINDS, r, missing=True, **recipe) for r in REDUCTIONS]
    cases += [loss_case(16, (2, 4), ("ce", "ce"), smoothing=(0.5, 0.0625))]
    cases += [loss_case(21, (5, 3), ("bce", "ordinal"), missing=True, weighted=True)]
    return cases


def row_table():
    cases = []
    for n, i, o in [
        (16, 512, 128),
        (3, 17, 5),
        (1, 1, 1),
        (7, 128, 32),
        (33, 2048, 130),
        (2, 32, 4),
        # several tiles of either size, tails along every side
        (128, 48, 96),
        (70, 10, 240),
        (131, 172, 250),
        (9, 20, 1284),
    ]:
        cases += linear_cases(n, i, o)
    for shape in [(2, 32, 14, 14), (3, 17, 13, 11), (1, 1, 1, 1), (5, 37), (1, 1)]:
        cases += element_cases(shape)
    return cases
