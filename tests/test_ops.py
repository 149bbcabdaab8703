"""mdmt.ops: the NumPy functions against float64 statements, and what they say to bad shapes."""

import sys

import numpy as np
import pytest

from mdmt import ops
from tests import statements as say
from tests.cudahost import gpu  # noqa: F401
from tests.opcase import ACTS, ISAS, available

RNG = np.random.default_rng(0)
BACKENDS = [None, *ISAS, "cuda"]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def near(found, exact):
    assert found.dtype == np.float32
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-5 * max(1.0, np.abs(exact).max()))


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request):
    """The value of `backend`; "cuda" is the backend on the processor, beside stand-ins."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    elif request.param and request.param not in available():
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.mark.parametrize("groups, c, k", [(1, 17, 19), (4, 8, 12), (6, 6, 6)])
@pytest.mark.parametrize("stride, padding", [(1, 1), ((2, 1), (1, 0)), (2, (0, 1, 2, 1))])
def test_convolution(groups, c, k, stride, padding, backend):
    x, w, bias = normal(2, c, 9, 8), normal(k, c // groups, 3, 3), normal(k)
    pads = padding if isinstance(padding, tuple) else (padding,) * 4
    attrs = {
        "stride": stride if isinstance(stride, tuple) else (stride, stride),
        "pad": pads * 2 if len(pads) == 2 else pads,
        "groups": groups,
    }
    y = ops.conv2d(x, w, bias, stride, padding, groups=groups, backend=backend)
    near(y, say.conv2d(x.astype(float), w, bias, **attrs))
    dy = normal(*y.shape)
    dx, dw, dbias = ops.conv2d_backward(dy, x, w, stride, padding, 1, groups, backend=backend)
    near(dx, say.conv2d_bwd_data(dy.astype(float), w, x.shape[2:], **attrs))
    near(dw, say.conv2d_bwd_weight(x.astype(float), dy, (3, 3), **attrs))
    near(dbias, dy.sum((0, 2, 3), dtype=float))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, backend):
    x, gamma, beta, mean = normal(3, 5, 4, 6), normal(5), normal(5), normal(5)
    var = np.abs(normal(5)) + 0.5
    found = ops.batch_norm(x, gamma, beta, mean, var, training, 0.1, 1e-5, backend)
    arrays = [a.astype(float) for a in (gamma, beta, mean, var)]
    fold = say.bn_fold(x.astype(float), *arrays, eps=1e-5, momentum=0.1, training=training)
    near(found[0], say.norm_act(x, fold["scale"], fold["shift"]))
    near(found[1], fold["rmean"])
    near(found[2], fold["rvar"])
    dy = normal(*x.shape)
    back = ops.batch_norm_backward(dy, x, gamma, mean, var, training, backend=backend)
    names = ("scale", "shift", "mean", "invstd")
    exact = say.bn_bwd(dy.astype(float), x, *(fold[n] for n in names), training=training)
    for value, name in zip(back, ("dx", "dgamma", "dbeta")):
        near(value, exact[name])


def test_pooling(backend):
    x = RNG.permutation(2 * 5 * 9 * 8).reshape(2, 5, 9, 8).astype(np.float32)
    attrs = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1, 1, 1), "ceil_mode": 1}
    y, where = say.max_pool(x.astype(float), **attrs)
    near(ops.max_pool2d(x, 3, 2, 1, ceil_mode=True, backend=backend), y)
    dy = normal(*y.shape)
    dx = ops.max_pool2d_backward(dy, x, 3, 2, 1, ceil_mode=True, backend=backend)
    near(dx, say.max_pool_bwd(dy, where, (9, 8), **attrs))
    for count in (False, True):
        how = {"padding": 1, "ceil_mode": True, "count_include_pad": count, "backend": backend}
        exact = attrs | {"count_include_pad": int(count)}
        near(ops.avg_pool2d(x, 3, 2, **how), say.avg_pool(x.astype(float), **exact))
        near(ops.avg_pool2d_backward(dy, x, 3, 2, **how),
             say.avg_pool_bwd(dy.astype(float), (9, 8), **exact))  # fmt: skip
    near(ops.global_avg_pool(x, backend), x.mean((2, 3), dtype=float))
    rows = normal(2, 5)
    spread = np.broadcast_to(rows[:, :, None, None] / 72.0, x.shape)
    near(ops.global_avg_pool_backward(rows, x, backend), spread)


def test_pooling_windows_that_the_map_does_not_fill(backend):
    """In ceil mode the only window may be partial; dilated taps may all fall beside the map."""
    x, how = normal(2, 19, 2, 1), {"ceil_mode": True, "backend": backend}
    y = ops.max_pool2d(x, (3, 2), 2, **how)
    near(y, x.astype(float).max((2, 3), keepdims=True))
    dx = ops.max_pool2d_backward(np.ones_like(y), x, (3, 2), 2, **how)
    assert np.array_equal(dx, x == y)
    near(ops.avg_pool2d(x, (3, 2), 2, **how), x.mean((2, 3), dtype=float, keepdims=True))
    for size in [(1, 20), (20, 1)]:
        x = normal(4, 31, *size)
        y = ops.max_pool2d(x, 2, 3, 1, 2, backend=backend)
        assert y.size and np.isneginf(y).all()
        assert not ops.max_pool2d_backward(np.ones_like(y), x, 2, 3, 1, 2, backend=backend).any()


def test_upsampling_and_masks(backend):
    x = normal(2, 19, 5, 4)
    for mode in ("nearest", "bilinear"):
        near(ops.upsample(x, mode, backend), say.upsample(x.astype(float), mode))
        dy = normal(2, 19, 10, 8)
        near(ops.upsample_backward(dy, mode, backend), say.upsample_bwd(dy.astype(float), mode))
    z, t = 3 * normal(3, 1, 9, 7), (normal(3, 1, 9, 7) > 0).astype(np.float32)
    losses, dz = ops.mask_loss(z, t, backend)
    exact = say.dice_and_entropy(say.mask_sums(z.astype(float), t))
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    direction = RNG.standard_normal(z.shape)
    slope = say.difference(
        lambda v: float(say.dice_and_entropy(say.mask_sums(v, t)).sum()), z.astype(float), direction
    )
    assert float((dz * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ACTS)
def test_activations(kind, backend):
    x, dy = 3 * normal(2, 21, 5, 7), normal(2, 21, 5, 7)
    near(ops.act(x, kind, backend), say.activate(x.astype(float), kind))
    near(ops.act_backward(dy, x, kind, backend), dy * say.slope(x.astype(float), kind))
    rows = 3 * normal(4, 13)
    near(ops.act(rows, kind, backend), say.activate(rows.astype(float), kind))


def test_gate(backend):
    x, s, dy = normal(2, 21, 5, 7), normal(2, 21), normal(2, 21, 5, 7)
    near(ops.gate(x, s, backend), x.astype(float) * s[:, :, None, None])
    dx, ds = ops.gate_backward(dy, x, s, backend)
    near(dx, dy.astype(float) * s[:, :, None, None])
    near(ds, (dy.astype(float) * x).sum((2, 3)))


def test_rows(backend):
    x, w, bias, dy = normal(7, 33), normal(5, 33), normal(5), normal(7, 5)
    near(ops.linear(x, w, bias, backend), x.astype(float) @ w.T + bias)
    near(ops.linear(x, w, backend=backend), x.astype(float) @ w.T)
    exact = (dy.astype(float) @ w, dy.T.astype(float) @ x, dy.sum(0, dtype=float))
    for found, wanted in zip(ops.linear_backward(dy, x, w, backend), exact):
        near(found, wanted)
    near(ops.relu(x, backend), np.maximum(x, 0))
    near(ops.relu_backward(x, np.maximum(x, 0), backend), x * (x > 0))
    near(ops.add(x, x, backend), 2 * x)
    y = ops.dropout(x, 0.25, seed=1, step=2, backend=backend)
    assert set(np.unique(np.round(y[y != 0] / x[y != 0], 4))) == {np.float32(1.3333)}
    assert np.array_equal(ops.dropout_backward(x, 0.25, seed=1, step=2, backend=backend), y)


def test_other_number_types_are_taken():
    x, w = np.ones((1, 2, 3, 3), np.uint8), np.ones((1, 2, 3, 3))
    assert ops.conv2d(x, w).item() == 18.0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ops.conv2d(normal(2, 3, 4), normal(1, 3, 1, 1)), r"x must have the shape"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(1, 2, 1, 1)), r"does not fit an x of 3"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(2, 3, 1, 1), normal(3)), r"K = 2"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(2, 3, 1, 1), stride=0), r"stride must be"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(2, 3, 5, 5)), r"too small"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(2, 3, 1, 1), padding=-1), r"padding must"),
        (lambda: ops.conv2d(np.array("x"), normal(2, 3, 1, 1)), r"real numbers"),
        (lambda: ops.conv2d(normal(1, 3, 4, 4), normal(2, 3, 1, 1), backend="x"), r"backend must"),
        (lambda: ops.linear(normal(2, 3), normal(4, 5)), r"I = 3"),
        (lambda: ops.max_pool2d(normal(1, 1, 4, 4), 2, padding=2), r"padding"),
        (lambda: ops.dropout(normal(2, 2), 1.0), r"rate"),
        (lambda: ops.upsample(normal(1, 1, 2, 2), "bicubic"), r"nearest or bilinear"),
        (lambda: ops.mask_loss(normal(1, 2, 3, 3), np.ones((1, 2, 3, 3))), r"one channel"),
        (lambda: ops.act(normal(2, 2), "gelu"), r"kind must be one of none, relu"),
        (lambda: ops.gate(normal(2, 3, 1, 1), normal(2, 4)), r"C = 3"),
        (lambda: ops.batch_norm_backward(normal(1, 1, 2, 2), normal(1, 1, 2, 2), normal(1),
                                         training=False), r"running statistics"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_sentence(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_gpu_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mdmt._cuda", None)
    with pytest.raises(NotImplementedError, match="the device 'cuda' is not available here"):
        ops.relu(normal(2, 2), backend="cuda")
