"""Maps stored in bfloat16: every kernel that takes them as they are stored, over the op table.

(Direct convolutions, which round weights, too, are in test_bf16.py.)
"""

import functools

import numpy as np
import pytest

from mdmt import _core, system
from tests import statements as say
from tests.opcase import mixing, rounds
from tests.optable import CASES
from tests.test_winograd import CASES as BORDERS

OPS = sorted({case.op for case in CASES})
KERNELS = [(op, name) for op in OPS for name, _ in _core.op_kernels(op) if rounds(name)]
KERNELS = [(op, name) for op, name in KERNELS if "direct" not in name]

pytestmark = pytest.mark.skipif(
    not system.cpu_has_bf16(), reason="this processor (or MDMT_CPU) has no AVX512-BF16"
)
every_kernel = pytest.mark.parametrize("op, kernel", KERNELS, ids=[name for _, name in KERNELS])


def cases_of(op, kernel):
    return [c for c in CASES + (BORDERS if "winograd" in kernel else []) if c.op == op]


def arrays_of(case):
    """Those of the case, maps as they are stored."""
    stored = {name for name, feed in case.feeds.items() if feed.startswith("map")}
    return {k: say.bfloat16(v) if k in stored else v for k, v in case.arrays().items()}


def outputs(case, arrays, **how):
    """None where the kernel does not take the case."""
    try:
        program, _ = case.program(_core, **how)
    except NotImplementedError:
        return None
    found = dict(program.run(arrays, seed=5, step=3))
    found |= {name: program.read(name) for name in case.reads}
    return {k: np.array(v) for k, v in found.items()}


def is_map(name, value):
    return value.ndim == 4 and name != "dw"


@functools.cache
def stated(case_id):
    case = next(c for c in CASES + BORDERS if c.id == case_id)
    return case.expected(arrays_of(case))


def nearest(v):
    """In bfloat16; the processor stores zeros for what has no normal number there."""
    return np.where(np.abs(v) < np.finfo(np.float32).tiny, 0, say.bfloat16(v))


def half_unit(v):
    """Half the distance of neighbours in bfloat16."""
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(v), 1e-37))) - 8)


@every_kernel
def test_kernel_means_what_is_stated(op, kernel):
    """Maps within half a unit of bfloat16, all else within the rounding of float32, of the
    statement and of the kernel of floats on the same values; and that, on copies of stored maps,
    gives the nearest of what it gives on floats."""
    floats, tried = kernel.replace("mdmt_bf16_", "mdmt_f32_"), 0
    for case in cases_of(op, kernel):
        arrays = arrays_of(case)
        got = outputs(case, arrays, kernel=kernel, threads=1)
        if got is None:
            continue
        tried += 1
        peer = outputs(case, arrays, kernel=floats, threads=1, bf16=False)
        copies = outputs(case, arrays, kernel=floats, threads=1, bf16=True)
        exact, bounds = stated(case.id)
        for name, value in got.items():
            bound, rounding = bounds[name], 0.0
            if mixing(kernel):
                bound = np.full_like(bound, mixing(kernel) * bound.max(initial=0.0))
            if is_map(name, value):
                assert np.array_equal(value, say.bfloat16(value)), f"{case.id} {name}"
                rounding = half_unit(exact[name])
                stored = nearest(copies[name]), nearest(peer[name])
                assert np.array_equal(*stored), f"{case.id} {name}"
            allowed = 2 * bound + rounding
            for other in (exact, peer):
                error = np.abs(value.astype(np.float64) - other[name])
                assert (error <= allowed).all(), (
                    f"{case.id} {name}: {np.max(error / allowed)} of what is allowed"
                )
    assert tried > 3


@every_kernel
def test_same_bits_for_any_number_of_threads(op, kernel):
    for case in cases_of(op, kernel):
        arrays = arrays_of(case)
        first = outputs(case, arrays, kernel=kernel, threads=1)
        for threads in (2, 4) if first else ():
            again = outputs(case, arrays, kernel=kernel, threads=threads)
            for name, value in first.items():
                assert np.array_equal(value, again[name]), f"{case.id} {name}, {threads} threads"
