"""Every kernel of the CUDA backend over the op table, run on the processor (tests/cudahost.py)
with the arithmetic, indices and launch sizes that a GPU would run."""

import re
from pathlib import Path

import numpy as np
import pytest

from mdmt import _core
from tests import cudahost
from tests.opcase import check
from tests.oprows import max_pool_cases
from tests.optable import CASES

no_race = cudahost.no_race
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
BF16 = 2.0**-8  # twice the rounding of a number to bfloat16


def library_unit(case):
    """Of a convolution by the library, in bfloat16: where it stores something on the way, an
    activation or a sum before its bias or what it is added to, that is rounded, too, and may be
    larger than the result."""
    twice = "lazy" in case.name or "bias" in case.name
    return BF16 * (2 if twice or (case.op == "conv2d_bwd_data" and "addend" in case.name) else 1)


def run(case, precision, kernel=None, arrays=None):
    """Outputs, the kernel's name, and the program."""
    graph, made = case.graph(_core)
    program = _core.Program(graph, kernel=kernel, device=cudahost.device(precision))
    got = {k: np.array(v) for k, v in program.run(arrays or made, seed=5, step=3).items()}
    got |= {name: np.array(program.read(name)) for name in case.reads}
    return got, next(kernel for op, kernel in program.kernels() if op == case.op)


def to_bf16(a):
    """Rounded to nearest even, as float32."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def on_tensor_cores(case):
    """Whether depth_tensor.cuh serves it: depthwise, 3 x 3 or 5 x 5, in steps of 1 or 2."""
    shape = re.match(r"conv2d(_bwd_weight)?/\d+x(\d+)x\d+x\d+x\2x(3x3|5x5),.*groups=\2\b", case.id)
    stride = re.search(r"stride=(\d)x(\d)", case.id)
    even = not stride or (stride[1] == stride[2] and stride[1] in "12")
    return bool(shape and even and "dilation" not in case.id)


@every_case
def test_fp32_means_what_is_stated(case):
    check(case, *run(case, "fp32"))


@every_case
def test_bf16_means_what_is_stated_of_rounded_maps(case):
    bf16_means_what_is_stated(case)


TENSOR = [case for case in CASES if on_tensor_cores(case)]


@pytest.mark.parametrize("case", TENSOR, ids=lambda c: c.id)
def test_depthwise_convolutions_on_tensor_cores_mean_what_is_stated(case, monkeypatch):
    """Whatever the size: what they are chosen for by themselves is larger."""
    monkeypatch.setenv("MDMT_CUDA_DEPTH", "tensor")
    assert bf16_means_what_is_stated(case).endswith("_depth_tensor")


def bf16_means_what_is_stated(case):
    """The kernel's name."""
    arrays = case.arrays()
    stem = ("image", "w_stem") if case.op.startswith("conv2d") else ()
    for name, feed in case.feeds.items():
        if feed.startswith(("map", *stem)) and arrays[name].dtype == np.float32:
            arrays[name] = to_bf16(arrays[name])
    got, kernel = run(case, "bf16", arrays=arrays)
    # A depthwise convolution on tensor cores rounds activations, as the library's convolutions do.
    unit = BF16 * (2 if kernel.endswith("_depth_tensor") and "lazy" in case.name else 1)
    outputs, bounds = case.expected(arrays)
    exact = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
    sizes = case.magnitude(exact) if case.magnitude else {}
    assert set(got) == set(outputs)
    for name, value in outputs.items():
        size = np.maximum(np.abs(sizes.get(name, value)), np.abs(value))
        error = np.abs(got[name].astype(np.float64) - value)
        allowed = bounds[name] + unit * size
        worst = (error / allowed).max(initial=0.0)
        assert worst <= 1, f"{case.id} {name}: off by {worst:.3g} times what rounding explains"
    return kernel


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lazy", [None, "relu"])
def test_max_pool_heeds_nan_and_infinity_as_the_cpu_does(lazy, stride):
    how = {"kernel": (3, 3), "stride": (stride, stride), "pad": (1, 1, 1, 1)}
    case = max_pool_cases((2, 12, 9, 11), lazy, **how)[1]
    graph, arrays = case.graph(_core)
    rng = np.random.default_rng(0)
    for value in (np.nan, np.inf, -np.inf):
        arrays["x"][rng.random(arrays["x"].shape) < 0.1] = value
    arrays["x"][0, :3] = -np.inf
    exact = _core.Program(graph).run(arrays, seed=5, step=3)
    got, _ = run(case, "fp32", arrays=arrays)
    for name in ("y", "dx"):
        np.testing.assert_allclose(got[name], exact[name], 1e-5, 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_of_what_is_no_number_are_none(value):
    case = next(c for c in CASES if c.op == "stats_moments")
    graph, arrays = case.graph(_core)
    arrays["x"][0, 1, 0, 0] = value
    with np.errstate(invalid="ignore"):
        exact = _core.Program(graph).run(arrays, seed=5, step=3)
    got, _ = run(case, "fp32", arrays=arrays)
    for name in ("var", "scale", "shift", "invstd"):
        assert np.isnan(exact[name][1]) and np.array_equal(
            np.isnan(got[name]), np.isnan(exact[name])
        )


def declared():
    """(op, kernel) of every list in csrc/cuda."""
    found = []
    for path in Path(cudahost.CUDA).glob("*.cu"):
        found += re.findall(r'\{"(\w+)", "(cuda_\w+)",', path.read_text())
    return found


def test_every_op_has_a_kernel_for_every_shape():
    """Of the whole table (csrc/ops/table.c): a kernel that refuses no site, in every list that the
    backend looks through. The ops that lowering replaces have none, as on the CPU."""
    sources = {p: p.read_text() for p in cudahost.CUDA.parent.rglob("*.c*")}
    records = "".join(text for p, text in sources.items() if p.parent.name == "ops")
    names = dict(re.findall(r"mdmt_op_record (mdmt_op_\w+) = \{\s*\.name = \"(\w+)\"", records))
    table = re.findall(r"&(mdmt_op_\w+)", sources[cudahost.CUDA.parent / "ops" / "table.c"])
    lists = re.search(r"lists\[\] = \{(.*?)\}", sources[cudahost.CUDA / "backend.cu"], re.S)[1]
    total, listed = set(), set()
    for path, text in sources.items():
        for name, body in re.findall(r"impl (mdmt_cuda_\w+)\[\] = \{(.*?)\};", text, re.S):
            assert name in lists, f"{path}: the backend does not look into {name}"
            listed.add(name)
            total |= set(re.findall(r"\{\s*\"(\w+)\",\s*\"cuda_\w+\",\s*NULL,", body))
    assert listed == set(re.findall(r"mdmt_cuda_\w+", lists))
    ops = {names[op] for op in table}
    assert len(ops) == len(table) == len(names)
    lowered = {"batch_norm", "concat", "channel_slice", "channel_shuffle"}
    assert ops - total == lowered and not total - ops
    here = set(re.findall(r"\{&(mdmt_op_\w+),", sources[cudahost.CUDA.parent / "cpu" / "select.c"]))
    assert {names[op] for op in here} == total


def test_every_kernel_is_reached():
    reached = {"cuda_images", "cuda_dropout"}  # test_cuda_net.py
    reached |= {kernel for _, kernel in declared() if kernel.endswith("_cudnn")}  # ..._library.py
    reached |= {kernel for _, kernel in declared() if kernel.endswith("_tensor")}  # above
    for op, kernel in declared():
        for case in (c for c in CASES if c.op == op):
            graph, _ = case.graph(_core)
            try:
                program = _core.Program(graph, kernel=kernel, device=cudahost.device())
            except NotImplementedError:
                continue  # a kernel may refuse a shape
            if (op, kernel) in program.kernels():
                reached.add(kernel)
                break
    assert {kernel for _, kernel in declared()} == reached


ANY = [c for c in CASES if c.op.startswith("conv2d") and c.macs < 2e6]


@pytest.mark.parametrize("case", ANY, ids=lambda c: c.id)
def test_the_definition_of_convolution_agrees(case):
    """The kernel for any convolution, where a faster one would have been chosen."""
    kernel = {"conv2d": "cuda_conv2d_any"}.get(case.op, f"cuda_{case.op}_any")
    check(case, *run(case, "fp32", kernel))


def few():
    """Up to six cases of each op, the smallest ones."""
    found = {}
    for case in sorted(CASES, key=lambda c: c.macs):
        found.setdefault(case.op, []).append(case)
    some = [c for cases in found.values() for c in cases[:6]]
    recipe = (c for c in found["masked_loss"] if "weighted" in c.name)
    return some + [c for c in recipe if c not in some][:2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", few(), ids=lambda c: c.id)
def test_threads_and_blocks_may_come_in_any_order(case, precision):
    """From the last to the first, and by leaps: a thread that reads within a phase what another one
    writes there (a race on a GPU) would give other bits."""
    put, _ = cudahost.knobs()
    forwards, _ = run(case, precision)
    for walk in (1, 2):
        put("walk", walk)
        try:
            other, _ = run(case, precision)
        finally:
            put("walk", 0)
        for name, value in forwards.items():
            assert value.tobytes() == other[name].tobytes(), f"{name}, walk {walk}"
