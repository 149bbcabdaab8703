"""The op table's proofs: kernels against the reference, the reference against float64, gradients,
the same bits for any number of threads. (Its fourth use is benchmarks/ops.py.)"""

import re
from pathlib import Path

import numpy as np
import pytest

from mdmt import _core
from tests import statements as say
from tests.opcase import EPSILON, ISAS, RELU, available, check, rounds
from tests.optable import CASES, ELSEWHERE, chosen

CSRC = Path(__file__).parent.parent / "csrc"


def kernels(op, isa):
    """Names of the kernels of an op that this instruction set adds, in float32 (test_bf16.py has
    the others)."""
    return [name for name, needs in _core.op_kernels(op) if needs == isa and not rounds(name)]


def run(case, against=None, **how):
    """Outputs, compared with the statement or with `against`; a failure tells how to repeat it."""
    try:
        got, kernel = case.run(_core, **how)
        check(case, got, kernel, against)
        return got
    except NotImplementedError:
        raise
    except Exception as error:
        raise AssertionError(f"{error}\n{case.repro(**how)}") from error


every_case = pytest.mark.parametrize("case", chosen(), ids=lambda c: c.id)


def test_every_op_is_in_the_table():
    declared = (CSRC / "ops" / "attrs.h").read_text().split("extern const mdmt_op_record")[1]
    ops = set(re.findall(r"\bmdmt_op_(\w+)", declared))
    assert ops, "found no op in attrs.h"
    in_table = {case.op for case in CASES}
    assert ops - in_table - set(ELSEWHERE) == set()
    assert len(CASES) == len({case.id for case in CASES}) > 300
    missing = [f for f in ELSEWHERE.values() if not (Path(__file__).parent / f).exists()]
    assert not missing


@every_case
def test_reference_means_what_is_stated(case):
    run(case, isa="ref", threads=1)


@every_case
def test_kernels_agree_with_reference(case):
    """The one chosen for each instruction set, and every other that can do it, by name."""
    reference = run(case, isa="ref", threads=2)
    for isa in available()[1:]:
        run(case, reference, isa=isa, threads=2)
        for kernel in kernels(case.op, isa):
            try:
                run(case, reference, isa=isa, threads=2, kernel=kernel)
            except NotImplementedError:
                continue  # a kernel may refuse a shape


def test_every_kernel_is_reached():
    """No kernel is listed that no case can run."""
    idle = set()
    for op in sorted({case.op for case in CASES}):
        names = {n for isa in available() for n in kernels(op, isa)}
        for case in (c for c in CASES if c.op == op):
            for name in sorted(names):
                try:
                    case.program(_core, isa=available()[-1], threads=1, kernel=name)
                except NotImplementedError:
                    continue
                names.discard(name)
            if not names:
                break
        idle |= names
    assert not idle


@every_case
def test_same_bits_for_any_number_of_threads(case):
    for isa in available():
        first = None
        for threads in (1, 2, 4):
            program, arrays = case.program(_core, isa=isa, threads=threads)
            for _ in range(2):
                got = {k: np.array(v) for k, v in program.run(arrays, seed=5, step=3).items()}
                got |= {name: np.array(program.read(name)) for name in case.reads}
                first = first or got
                for name, value in got.items():
                    same = value.tobytes() == first[name].tobytes()
                    how = {"isa": isa, "threads": threads}
                    assert same, f"{name} differs from one thread's\n{case.repro(**how)}"


# ---------------------------------------------------------------- gradients


def by_name(op):
    return {case.name: case for case in CASES if case.op == op}


def dot(a, b):
    return float((a.astype(np.float64) * b.astype(np.float64)).sum())


# forward op, its output; backward op, its output; the input they share with each other
ADJOINTS = [
    ("conv2d", "y", "conv2d_bwd_data", "dx", "x"),
    ("conv2d", "y", "conv2d_bwd_weight", "dw", "w"),
    ("avg_pool", "y", "avg_pool_bwd", "dx", "x"),
    ("upsample", "y", "upsample_bwd", "dx", "x"),
    ("global_avg_pool", "y", "global_avg_pool_bwd", "dx", "x"),
    ("flatten", "y", "flatten_bwd", "dx", "x"),
    ("linear", "y", "linear_bwd_data", "dx", "x"),
    ("linear", "y", "linear_bwd_weight", "dw", "w"),
]


@pytest.mark.parametrize("pair", ADJOINTS, ids=lambda p: f"{p[2]}-{p[4]}")
def test_linear_ops_have_the_adjoint_as_gradient(pair):
    """<A x, dy> = <x, A' dy>: the same weights and the same lazy load on both sides."""
    forward_op, out, backward_op, gradient, variable = pair
    backward, tried = by_name(backward_op), 0
    for name, case in by_name(forward_op).items():
        if name not in backward:
            continue
        back = backward[name]
        a, b = case.arrays(), back.arrays()
        for shared in set(a) & set(b):
            b[shared] = a[shared]
        for constant in ("bias", "addend"):  # affine parts are not linear
            for arrays in (a, b):
                if constant in arrays:
                    arrays[constant] = np.zeros_like(arrays[constant])
        for isa in available():
            y = run_with(case, a, isa)[out]
            g = run_with(back, b, isa)[gradient]
            left, right = dot(y, b["dy"]), dot(a[variable] if variable in a else b["w"], g)
            size = dot(np.abs(y), np.abs(b["dy"]))
            allowed = EPSILON * (64 + 8 * np.sqrt(case.length + back.length)) * size
            assert abs(left - right) <= allowed, (
                f"<A{variable},dy> = {left}, <{variable},A'dy> = {right}\n{back.repro(isa=isa)}"
            )
        tried += 1
    assert tried


def run_with(case, arrays, isa):
    program, _ = case.program(_core, isa=isa, threads=2)
    return {k: np.array(v) for k, v in program.run(arrays, seed=5, step=3).items()}


def norm_chain(x, act, residual, training=1):
    """Graph of statistics, fold, norm_act and its gradient; with arrays."""
    rng = np.random.default_rng(11)
    n, c, h, w = x
    count = n * h * w
    arrays = {k: (rng.random(c) + 0.5).astype(np.float32) for k in ("gamma", "beta", "rmean")}
    arrays["rvar"] = np.ones(c, np.float32)
    for k in ("x", "dz") + (("r",) if residual else ()):
        arrays[k] = rng.standard_normal(x).astype(np.float32)
    g = _core.Graph()
    t = {k: g.input(k, "map", x) for k in ("x", "dz") + (("r",) if residual else ())}
    t |= {k: g.param(k, "vector", (c,)) for k in ("gamma", "beta")}
    t |= {k: g.buffer(k, "vector", (c,)) for k in ("rmean", "rvar")}
    stats = g.add("channel_stats", [t["x"]])[0]
    fold = g.add(
        "bn_fold",
        [stats, *(t[k] for k in ("gamma", "beta", "rmean", "rvar"))],
        eps=1e-5, momentum=0.1, training=training, count=count,
    )  # fmt: skip
    extra = [t["r"]] if residual else []
    z = g.add("norm_act", [t["x"], fold[0], fold[1], *extra], act=RELU[act])[0]
    back = g.add(
        "bn_bwd",
        [t["dz"], t["x"], *fold, *([z] if residual else [])],
        act=RELU[act], training=training, want_dpre=int(residual),
    )  # fmt: skip
    for name, tensor in zip(("dx", "dgamma", "dbeta", "dr"), back):
        g.output(tensor, name)
    return g, arrays


@pytest.mark.parametrize("act", RELU)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("isa", ISAS)
def test_batch_norm_gradient_is_the_derivative(act, residual, isa):
    """4-point differences of the float64 statement along random directions, for x, gamma, beta and
    the residual."""
    if isa not in available():
        pytest.skip(f"this processor has no {isa}")
    graph, arrays = norm_chain((3, 21, 5, 7), act, residual)
    gradients = _core.Program(graph, isa=isa).run(arrays, seed=0, step=0)
    exact = {k: v.astype(np.float64) for k, v in arrays.items()}

    def objective(**changed):
        a = exact | changed
        fold = say.bn_fold(
            a["x"], a["gamma"], a["beta"], a["rmean"], a["rvar"],
            eps=1e-5, momentum=0.1, training=1,
        )  # fmt: skip
        z = say.norm_act(a["x"], fold["scale"], fold["shift"], a.get("r"), act)
        return float((z * a["dz"]).sum())

    rng = np.random.default_rng(5)
    for name in ("x", "gamma", "beta") + (("r",) if residual else ()):
        direction = rng.standard_normal(exact[name].shape)
        # Small enough that no mask flips: the derivative is taken where the function is smooth.
        slope = say.difference(lambda v, name=name: objective(**{name: v}), exact[name],
                               direction, 1e-7)  # fmt: skip
        found = dot(gradients[f"d{name}"], direction)
        size = dot(np.abs(gradients[f"d{name}"]), np.abs(direction))
        assert abs(found - slope) <= 2e-5 * size, (name, found, slope)


def test_max_pool_gradient_is_the_derivative():
    backward, tried = by_name("max_pool_bwd"), 0
    for case in backward.values():
        a = case.arrays()
        if "xscale" in a or "views=" in case.name:
            continue  # a lazy load's own gradient belongs to bn_bwd; a view changes nothing
        got = run_with(case, a, available()[-1])["dx"]
        exact = a["x"].astype(np.float64)
        attrs = pool_attrs(case)
        direction = np.random.default_rng(3).standard_normal(exact.shape)
        slope = say.difference(
            lambda v, a=a, attrs=attrs: float((say.max_pool(v, **attrs)[0] * a["dy"]).sum()),
            exact, direction,
        )  # fmt: skip
        found, size = dot(got, direction), dot(np.abs(got), np.abs(direction))
        assert abs(found - slope) <= 1e-5 * size, case.repro()
        tried += 1
    assert tried


def test_mask_gradients_are_the_derivatives():
    """Of the sums, and of the loss made of them, along random directions."""
    rng = np.random.default_rng(4)
    for case in by_name("mask_sums_bwd").values():
        a = case.arrays()
        got = run_with(case, a, available()[-1])["dz"]
        e = {k: v.astype(np.float64) for k, v in a.items()}
        direction = rng.standard_normal(e["z"].shape)
        slope = say.difference(
            lambda z, e=e: float((say.mask_sums(z, e["mask"])[:, :3] * e["dsums"][:, :3]).sum()),
            e["z"], direction,
        )  # fmt: skip
        size = dot(np.abs(got), np.abs(direction))
        assert abs(dot(got, direction) - slope) <= 2e-5 * size + 1e-6, case.repro()
    for case in (c for n, c in by_name("masked_loss").items() if "dice_ce" in n):
        a = case.arrays()
        got = run_with(case, a, "ref")["dsums"]
        sums, masks = a["sums"].astype(np.float64), a["task"] == 0
        weight = float(case.name.split("weight=")[1].split(",")[0]) / (a["task"] >= 0).sum()
        own = a["target"][:, 1] if case.name.endswith(",weighted") else np.ones(len(sums))
        direction = rng.standard_normal(sums.shape)
        slope = say.difference(
            lambda s, own=own * masks: float((say.dice_and_entropy(s) * own).sum()), sums, direction
        )
        size = dot(np.abs(got), np.abs(direction))
        assert abs(dot(got, direction) - weight * slope) <= 1e-5 * size, case.repro()


def pool_attrs(case):
    """Attributes back from a case's name: "..., kernel=3x3, stride=2x2"."""
    attrs = {}
    for part in case.name.split(",")[1:]:
        key, value = part.split("=")
        if key != "lazy":
            numbers = tuple(int(v) for v in value.split("x"))
            attrs[key] = numbers if len(numbers) > 1 else numbers[0]
    return attrs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 128), (7, 13), (4, 20, 9, 7)])
def test_dropout(isa, rate, shape):
    """Kept elements are scaled, the share of zeros is the rate, the mask depends on seed, step and
    stream alone, and the op is its own gradient (a diagonal matrix)."""
    if isa not in available():
        pytest.skip(f"this processor has no {isa}")

    def drop(x, seed=1, step=2, stream=3, threads=1, isa=isa):
        g = _core.Graph()
        t = g.input("x", "map" if x.ndim == 4 else "rows", x.shape)
        g.output(g.add("dropout", [t], rate=rate, stream=stream)[0], "y")
        program = _core.Program(g, isa=isa, threads=threads)
        return np.array(program.run({"x": x}, seed=seed, step=step)["y"])

    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    y = drop(x)
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=4 * EPSILON)
    spread = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((~kept).mean() - rate) <= 5 * spread
    assert np.array_equal(drop(x, threads=4), y)
    assert dot(y, dy) == pytest.approx(dot(x, drop(dy)), rel=1e-5, abs=1e-5)
    if 0 < rate < 1:
        others = [drop(x, seed=9), drop(x, step=3), drop(x, stream=4)]
        assert not any(np.array_equal(o, y) for o in others)
    assert np.array_equal(drop(x, isa="ref") != 0, kept), "the mask depends on the instruction set"
