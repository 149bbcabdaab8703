"""Winograd convolution: every size of border tile, padding and channel tail, in all passes."""

import numpy as np
import pytest

from mdmt import _core
from tests import statements as say
from tests.opcase import available, check, normal, rounds
from tests.optable import convolutions

USABLE = available()
OPS = ("conv2d", "conv2d_bwd_data", "conv2d_bwd_weight")
KERNELS = [
    pytest.param(op, name, isa, id=name.removeprefix("mdmt_f32_"))
    for op in OPS
    for name, isa in _core.op_kernels(op)
    if "winograd" in name and isa in USABLE and not rounds(name)
]


def border_cases():
    """Small maps: 1 to 13 rows and columns cover every cut of a tile; then paddings and tails."""
    for size in range(1, 14):
        pad = (1, 1, 1, 1)
        yield convolutions((1, 3 + size, size, 14 - size), 17, (3, 3), pad=pad, backward=True)
    for pad in ((0, 0, 0, 0), (2, 2, 2, 2), (0, 1, 2, 0), (2, 0, 1, 2)):
        yield convolutions((2, 24, 7, 10), 40, (3, 3), pad=pad)
    same = (1, 1, 1, 1)
    yield convolutions((3, 17, 9, 33), 3, (3, 3), pad=same, bias=True, addend=True)
    yield convolutions((3, 40, 14, 14), 24, (3, 3), pad=same, stats=True)
    yield convolutions((2, 208, 14, 14), 24, (3, 3), pad=same, addend=True)  # by output channels
    yield convolutions((1, 24, 7, 7), 208, (3, 3), pad=same, stats=True)
    yield convolutions((1, 272, 7, 5), 24, (3, 3), pad=same)  # weights in two ranges
    yield convolutions((5, 208, 56, 56), 24, (3, 3), pad=same)  # two groups of images
    yield convolutions((9, 24, 31, 29), 40, (3, 3), pad=same)  # weight gradient: many parts,
    yield convolutions((45, 17, 9, 14), 24, (3, 3), pad=same, lazy="relu")
    yield convolutions((1, 64, 142, 138), 72, (3, 3), pad=same)  # few parts with large sums,
    yield convolutions((420, 208, 2, 1), 200, (3, 3), pad=same)  # ranges of both channels


CASES = [case for cases in border_cases() for case in cases]


@pytest.mark.skipif(not KERNELS, reason="no Winograd kernel for this processor")
@pytest.mark.parametrize("op, kernel, isa", KERNELS)
def test_kernel_means_what_is_stated(op, kernel, isa):
    cases = [case for case in CASES if case.op == op]
    assert len(cases) > 15
    for case in cases:
        got, chosen = case.run(_core, isa=isa, threads=1, kernel=kernel)
        assert chosen == kernel
        check(case, got, kernel)
        again, _ = case.run(_core, isa=isa, threads=3, kernel=kernel)
        for name, value in got.items():
            assert np.array_equal(value, again[name]), f"{case.id}: {name} with 3 threads"


def forward(shape, k, isa, kernel=None, winograd=2):
    """A 3x3 convolution of random numbers: program, arrays."""
    rng = np.random.default_rng(7)
    arrays = {"x": normal(rng, *shape), "w": normal(rng, k, shape[1], 3, 3)}
    graph = _core.Graph()
    x = graph.input("x", "map", shape)
    w = graph.input("w", "w_dense", arrays["w"].shape)
    graph.output(graph.add("conv2d", [x, w, None], pad=(1, 1, 1, 1))[0], "y")
    return _core.Program(graph, isa=isa, threads=1, kernel=kernel, winograd=winograd), arrays


@pytest.mark.parametrize("isa", USABLE[1:])
@pytest.mark.parametrize("tile, bound", [(4, 2e-6), (2, 7e-7)])
def test_rounding_error_stays_small(isa, tile, bound):
    """Root mean square of the error by that of the output."""
    kernel = f"mdmt_f32_conv2d_forward_winograd{tile}__{isa}"
    program, arrays = forward((1, 128, 28, 28), 32, isa, kernel)
    exact = say.conv2d(*(a.astype(np.float64) for a in arrays.values()), pad=(1, 1, 1, 1))
    error = program.run(arrays)["y"] - exact
    assert 1e-8 < np.sqrt(np.mean(error**2) / np.mean(exact**2)) < bound


@pytest.mark.parametrize("isa", USABLE[1:])
@pytest.mark.parametrize("winograd, named", [(0, "direct"), (1, "winograd2"), (2, "winograd4")])
def test_level_bounds_the_choice(isa, winograd, named):
    program, _ = forward((2, 64, 28, 28), 64, isa, winograd=winograd)
    assert named in program.kernels()[-1][1]


@pytest.mark.parametrize("isa", USABLE[1:])
def test_few_channels_stay_with_the_direct_kernel(isa):
    program, _ = forward((2, 4, 28, 28), 8, isa)
    assert "direct" in program.kernels()[-1][1]
