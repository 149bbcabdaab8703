"""The part of the op table for outputs per pixel: up-sampling, the sums of masks, their loss."""

import numpy as np

from tests import statements as say
from tests.opcase import Case, label, normal, viewed


def upsample_cases(x, mode):
    n, c, h, w = x
    name = label(x, {"mode": mode})
    return [
        Case("upsample", name, lambda rng: {"x": normal(rng, *x)}, {"x": "map"},
             lambda g, t: {"y": g.add("upsample", [t["x"]], mode=mode)[0]},
             lambda a: {"y": say.upsample(a["x"], mode)},
             lambda a: {"y": say.upsample(np.abs(a["x"]), mode)}, 4),
        Case("upsample_bwd", name, lambda rng: {"dy": normal(rng, n, c, 2 * h, 2 * w)},
             {"dy": "map"}, lambda g, t: {"dx": g.add("upsample_bwd", [t["dy"]], mode=mode)[0]},
             lambda a: {"dx": say.upsample_bwd(a["dy"], mode)},
             lambda a: {"dx": say.upsample_bwd(np.abs(a["dy"]), mode)}, 16),
    ]  # fmt: skip


def mask_cases(n, h, w, scale=3.0):
    """Soft masks, one of them empty; logits far out, too."""
    name, shape = label((n, 1, h, w), {"scale": scale}), (n, 1, h, w)

    def make(rng):
        t = rng.choice([0.0, 1.0, 0.25], size=shape, p=[0.5, 0.3, 0.2]).astype(np.float32)
        t[-1] *= n == 1
        return {"z": normal(rng, *shape, scale=scale), "mask": t}

    def backward(rng):
        return {"dsums": normal(rng, n, 4), **make(rng)}

    def size(a):
        z, t = a["z"], a["mask"]
        entropy = np.abs(np.logaddexp(0, z)) + np.abs(z * t)
        return {"sums": say.mask_sums(z, t) + np.array([[1, 0, 0, 0]]) * entropy.mean()}

    def slope_size(a):
        p, t = 1 / (1 + np.exp(-a["z"])), a["mask"]
        entropy, both, guessed = (np.abs(a["dsums"][:, k, None, None, None]) for k in range(3))
        return {"dz": entropy * (p + t) / (h * w) + (both * t + guessed) * p * (1 - p)}

    feeds = {"z": "map", "mask": "image"}
    return [
        Case("mask_sums", name, make, feeds,
             lambda g, t: {"sums": g.add("mask_sums", [t["z"], t["mask"]])[0]},
             lambda a: {"sums": say.mask_sums(a["z"], a["mask"])}, size, h * w),
        Case("mask_sums_bwd", name, backward, {"dsums": "rows", **feeds},
             lambda g, t: {"dz": g.add("mask_sums_bwd", [t["dsums"], t["z"], t["mask"]])[0]},
             lambda a: {"dz": say.mask_sums_bwd(a["dsums"], a["z"], a["mask"])}, slope_size, 9),
    ]  # fmt: skip


def dice_case(n, weight=1.0, weighted=False):
    """masked_loss of a mask and a class task together; the mean over the labelled samples."""

    def make(rng):
        true = rng.integers(0, 900, n).astype(np.float32)
        guessed = (1000 * rng.random(n)).astype(np.float32)
        both = np.minimum(true, guessed) * rng.random(n).astype(np.float32)
        sums = np.stack([rng.random(n).astype(np.float32), both, guessed, true], 1)
        task = (np.arange(n) % 3 - 1).astype(np.int32)
        target = (np.arange(n) % 2).astype(np.float32)[:, None]
        if weighted:
            target = np.hstack([target, (0.5 * (np.arange(n) % 4)).astype(np.float32)[:, None]])
        return {"task": task, "target": target, "sums": sums, "z": normal(rng, n, 2)}

    attrs = {"tasks": 2, "loss": (4, 0), "weight": (weight, 1.0), "want_gradient": 1,
             "weighted": int(weighted)}  # fmt: skip

    def wire(g, t):
        out = g.add("masked_loss", [t["task"], t["target"], t["sums"], t["z"]], **attrs)
        return dict(zip(("loss", "per_task", "dsums", "dz"), out))

    def expect(a):
        masks, classes = a["task"] == 0, a["task"] == 1
        counts = [masks.sum(), classes.sum()]
        own_weight = a["target"][:, 1] if weighted else np.ones(n)
        labelled = (a["task"] >= 0).sum()
        each, z = say.dice_and_entropy(a["sums"]), a["z"]
        own = z[np.arange(n), a["target"][:, 0].astype(int)]
        entropy = np.logaddexp(z[:, 0], z[:, 1]) - own
        masks, classes = masks * own_weight, classes * own_weight
        per_task = [(each * masks).sum(), counts[0], (entropy * classes).sum(), counts[1]]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        p[np.arange(n), a["target"][:, 0].astype(int)] -= 1
        _, both, guessed, true = a["sums"].T
        all_ = guessed + true + 1
        rise = (2 * both + 1) / all_**2
        dsums = np.stack([np.ones(n), -2 / all_, rise, rise], 1)
        loss = (weight * per_task[0] + per_task[2]) / labelled
        return {
            "loss": np.array([loss]), "per_task": np.array(per_task),
            "dsums": weight * dsums * masks[:, None] / labelled,
            "dz": p * classes[:, None] / labelled,
        }  # fmt: skip

    feeds = {"task": "scalar", "target": "rows", "sums": "rows", "z": "rows"}
    name = f"{n},loss=dice_ce+ce,weight={weight}" + (",weighted" if weighted else "")
    return Case("masked_loss", name, make, feeds, wire, expect,
                lambda a: {"dz": np.abs(expect(a)["dz"]) + 1e-6}, n)  # fmt: skip


def dense_table():
    cases = []
    for x in [(2, 32, 14, 14), (3, 17, 5, 7), (1, 1, 1, 1), (1, 16, 1, 9), (2, 19, 33, 2)]:
        for mode in ("bilinear", "nearest"):
            cases += upsample_cases(x, mode)
    for x in [(2, 32, 9, 8), (3, 19, 4, 5)]:
        for case in upsample_cases(x, "bilinear"):
            small, large = x, (*x[:2], 2 * x[2], 2 * x[3])
            inputs, outputs = (
                ("x", {"y": large}) if case.op == "upsample" else ("dy", {"dx": small})
            )
            cases.append(viewed(case, (inputs,), outputs))
    for case in [(3, 20, 24), (2, 7, 9), (1, 1, 1), (2, 96, 100), (2, 16, 16, 40.0)]:
        cases += mask_cases(*case)
    return [*cases, dice_case(7), dice_case(12, 0.5), dice_case(9, 0.5, weighted=True)]
