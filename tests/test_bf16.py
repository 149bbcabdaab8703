"""bfloat16 on the CPU: feature maps are stored in it, direct convolutions multiply it; sums,
statistics and weights are float32."""

import numpy as np
import pytest

import mdmt
from mdmt import _core, system
from tests import statements as say
from tests.opcase import EPSILON, rounds
from tests.optable import CASES

OPS = ("conv2d", "conv2d_bwd_data", "conv2d_bwd_weight")
KERNELS = {op: [n for n, _ in _core.op_kernels(op) if rounds(n) and "direct" in n] for op in OPS}
HALF_UNIT = 2.0**-8  # of bfloat16, relative
HEADS = {"prognosis": 2, "severity": 4}

needs_bf16 = pytest.mark.skipif(
    not system.cpu_has_bf16(), reason="this processor (or MDMT_CPU) has no AVX512-BF16"
)


def dense(case):
    """Whether direct convolution takes the case."""
    return case.op in OPS and "w_stem" not in str(case.feeds) and "groups=" not in case.name and (
        "image=" not in case.name
    )  # fmt: skip


DENSE = [case for case in CASES if dense(case)]
every_case = pytest.mark.parametrize("case", DENSE, ids=lambda c: c.id)


def program_of(case, threads=2):
    (kernel,) = KERNELS[case.op]
    return case.program(_core, threads=threads, kernel=kernel)


def outputs(case, program, arrays):
    found = dict(program.run(arrays, seed=5, step=3))
    found |= {name: program.read(name) for name in case.reads}
    return {k: np.array(v) for k, v in found.items()}


@needs_bf16
@every_case
def test_kernels_mean_what_is_stated(case):
    """The statement in float64 with rounded factors, within the rounding of float32 and, of what is
    stored in a map, of bfloat16. What is loaded through a batch norm may be rounded to the
    neighbour where float32 and float64 disagree about a tie; a product more or less would show."""
    program, arrays = program_of(case)
    arrays |= {k: say.bfloat16(v) for k, v in arrays.items() if v.ndim == 4}
    got, lazy = outputs(case, program, arrays), "xscale" in arrays
    stated, bounds = case.expected(arrays, rounded=True)
    main = {"conv2d": "y", "conv2d_bwd_data": "dx", "conv2d_bwd_weight": "dw"}[case.op]
    for name in [main] if lazy else stated:
        bound = bounds[name]
        if stated[name].ndim == 4 and name != "dw":  # a map
            bound = bound + HALF_UNIT * np.abs(stated[name])
        if lazy:
            other = arrays["w" if case.op == "conv2d" else "dy"]
            loaded = np.abs(arrays["xscale"]).max() * np.abs(arrays["x"]).max() + 1.0
            gate = np.abs(arrays["xgate"]).max() if "xgate" in arrays else 1.0
            bound = bound + 3 * HALF_UNIT * loaded * gate * np.abs(other).max()
        error = np.abs(got[name] - stated[name])
        assert (error <= bound).all(), f"{name}: {np.max(error / bound)} of what is allowed"


@needs_bf16
def test_cases_are_many_and_rounding_shows():
    assert len(DENSE) > 120 and all(len(names) == 1 for names in KERNELS.values())
    case = next(c for c in DENSE if c.op == "conv2d" and "xscale" not in c.feeds)
    program, arrays = program_of(case)
    exact, bounds = case.expected(arrays)
    error = np.abs(np.array(program.run(arrays)["y"]) - exact["y"])
    assert (error > 2 * bounds["y"]).any(), "nothing was rounded"


@needs_bf16
@every_case
def test_same_bits_for_any_number_of_threads(case):
    first = None
    for threads in (1, 2, 4):
        program, arrays = program_of(case, threads)
        got = {k: v.tobytes() for k, v in outputs(case, program, arrays).items()}
        first = first or got
        assert got == first, f"{threads} threads"


@needs_bf16
@pytest.mark.parametrize("backward", ["conv2d_bwd_data", "conv2d_bwd_weight"])
def test_gradients_are_adjoint(backward):
    """<A x, dy> = <x, A' dy> for factors that are rounded already."""
    variable, gradient = {"conv2d_bwd_data": ("x", "dx")}.get(backward, ("w", "dw"))
    backs, tried = {c.name: c for c in DENSE if c.op == backward}, 0
    for case in (c for c in DENSE if c.op == "conv2d" and c.name in backs):
        back = backs[case.name]
        if "xscale" in case.feeds:
            continue
        (forward, a), (program, b) = program_of(case), program_of(back)
        a |= {k: say.bfloat16(a[k]) for k in ("x", "w")}
        b |= {k: a[k] for k in ("x", "w") if k in b} | {"dy": say.bfloat16(b["dy"])}
        for arrays, constant in ((a, "bias"), (b, "addend")):
            if constant in arrays:
                arrays[constant] = np.zeros_like(arrays[constant])
        y, g = outputs(case, forward, a)["y"], outputs(back, program, b)[gradient]
        products = [p.astype(float) * q for p, q in ((y, b["dy"]), (a[variable], g))]
        size = float(np.abs(products[0]).sum())
        allowed = EPSILON * (64 + 8 * np.sqrt(case.length + back.length)) * size
        # y and dx are rounded to bfloat16 when they are stored, each element by itself.
        stored = products[:1] if gradient == "dw" else products
        allowed += 4 * HALF_UNIT * sum(float(np.linalg.norm(p)) for p in stored)
        assert abs(products[0].sum() - products[1].sum()) <= allowed, case.name
        tried += 1
    assert tried > 20


@needs_bf16
def test_specials_pass_through():
    """NaN and infinities reach every output they are multiplied into, and no other; a padding pixel
    of an odd row is no NaN."""
    g = _core.Graph()
    x, w = g.input("x", "map", (1, 16, 1, 5)), g.param("w", "w_dense", (16, 16, 1, 1))
    g.output(g.add("conv2d", [x, w])[0], "y")
    program = _core.Program(g, kernel=KERNELS["conv2d"][0], bf16=True)
    values, weights = np.ones((1, 16, 1, 5), np.float32), np.ones((16, 16, 1, 1), np.float32)
    values[0, 3, 0, 1], values[0, 4, 0, 4] = np.nan, np.inf
    y = np.array(program.run({"x": values, "w": weights})["y"])[0, :, 0]
    assert np.isnan(y[:, 1]).all() and np.isposinf(y[:, 4]).all()
    assert (y[:, [0, 2, 3]] == 16).all()
    g = _core.Graph()
    x, dy = g.input("x", "map", (1, 16, 1, 5)), g.input("dy", "map", (1, 16, 1, 5))
    g.output(g.add("conv2d_bwd_weight", [x, dy], kernel=(1, 1))[0], "dw")
    program = _core.Program(g, kernel=KERNELS["conv2d_bwd_weight"][0], bf16=True)
    dw = np.array(program.run({"x": values, "dy": np.ones_like(values)})["dw"])[:, :, 0, 0]
    assert np.isnan(dw[:, 3]).all() and np.isposinf(dw[:, 4]).all()
    assert (np.delete(dw, [3, 4], 1) == 5).all()


# ---------------------------------------------------------------- networks


def batch(size=64, n=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3, size, size)).astype(np.float32)
    return x, np.arange(n) % 2, rng.integers(0, 2, n)


def model(backbone, precision, **how):
    heads = {k: {"classes": c, "hidden": [], "dropout": 0.0} for k, c in HEADS.items()}
    return mdmt.Model(backbone, heads, image_size=64, precision=precision, seed=3, **how)


@needs_bf16
@pytest.mark.parametrize("backbone", ["resnet50", "densenet121", "mobilenet_v2", "googlenet"])
def test_networks_use_it(backbone):
    """Rounded factors are used where that is faster; the first loss stays close, and the bits of
    training are the same for any number of threads."""
    rounded, plain = model(backbone, "bf16"), model(backbone, "fp32")
    mode = rounded._mode(6, (64, 64), True, True)
    kernels = [op["kernel"] for op in rounded._network.describe(mode)]
    assert sum(map(rounds, kernels)) > 20 and not all(map(rounds, kernels))
    losses = [[m.train_step(*batch(seed=s), lr=1e-4) for s in range(3)] for m in (rounded, plain)]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(
        losses[1][0], rel=0.15
    )  # deep and random: any rounding grows
    before, again = _core.get_num_threads(), model(backbone, "bf16")
    try:
        mdmt.set_num_threads(1 if before > 1 else 2)
        assert [again.train_step(*batch(seed=s), lr=1e-4) for s in range(3)] == losses[0]
    finally:
        mdmt.set_num_threads(before)


@needs_bf16
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0"])
def test_gradients_point_where_those_of_float32_do(backbone):
    """(Random deep networks amplify any rounding: there tests/test_oracle.py compares with
    PyTorch's autocast.)"""
    found = []
    for precision in ("bf16", "fp32"):
        gradients = model(backbone, precision).loss_and_gradients(*batch())[1]
        flat = np.concatenate([gradients[k].ravel() for k in sorted(gradients)]).astype(float)
        found.append(flat / np.linalg.norm(flat))
    assert 0.9 < found[0] @ found[1] < 1 - 1e-6


# ---------------------------------------------------------------- where it is not to be had


def test_other_processors_are_told(monkeypatch):
    monkeypatch.setenv("MDMT_CPU", "avx2")
    with pytest.raises(NotImplementedError, match=r"AVX512-BF16, which .*; use the precision fp32"):
        model("resnet18", "bf16")
    with pytest.raises(
        ValueError, match="precision bf16 needs a GPU or a processor with AVX512-BF16"
    ):
        system.device_for("cpu", "bf16")
    assert system.device_to_measure("cpu", "bf16") == ("cpu", "fp32")
    with pytest.raises(ValueError, match="precision tf32 needs a GPU, but the CPU was asked for"):
        system.device_for("cpu", "tf32")


def test_rounding_kernels_are_not_taken_unasked():
    case = next(c for c in DENSE if c.op == "conv2d")
    graph, _ = case.graph(_core)
    for kernel in KERNELS["conv2d"]:
        with pytest.raises(NotImplementedError, match="cannot do this conv2d"):
            _core.Program(graph, kernel=kernel)


@needs_bf16
def test_saved_models_are_loaded_where_they_can_be(tmp_path, monkeypatch):
    made = model("shufflenet_v2_x0_5", "bf16")
    made.save(tmp_path / "m.safetensors")
    assert mdmt.Model.load(tmp_path / "m.safetensors").precision == "bf16"
    monkeypatch.setenv("MDMT_CPU", "avx2")
    assert mdmt.Model.load(tmp_path / "m.safetensors").precision == "fp32"
