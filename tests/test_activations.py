"""Activations where floats end: kinks, tails, infinities and NaN; the same on every path."""

import numpy as np
import pytest

from mdmt import _core
from tests import statements as say
from tests.opcase import ACTS, ISAS, available

KINKS = [-3.0, 3.0, 0.0, -0.0, 6.0]
FAR = [-1e38, -100.0, -88.5, -20.0, 20.0, 88.5, 100.0, 1e38]
# The limits at -inf and inf: infinity times a factor that is 0 has none, in any arithmetic.
LIMITS = {
    "none": (-np.inf, np.inf),
    "relu": (0.0, np.inf),
    "relu6": (0.0, 6.0),
    "silu": (np.nan, np.inf),
    "sigmoid": (0.0, 1.0),
    "hardswish": (0.0, np.inf),
    "hardsigmoid": (0.0, 1.0),
}

every_isa = pytest.mark.parametrize("isa", ISAS)
every_act = pytest.mark.parametrize("act", ACTS)


def run(op, isa, act, **feeds):
    if isa not in available():
        pytest.skip(f"this processor has no {isa}")
    g = _core.Graph()
    tensors = [g.input(name, "map", v.shape) for name, v in feeds.items()]
    g.output(g.add(op, tensors, act=ACTS.index(act))[0], "out")
    return np.array(_core.Program(g, isa=isa, threads=1).run(feeds, seed=0, step=0)["out"])


def as_map(values):
    """(1,C,1,1): a ragged number of channels."""
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


@every_isa
@every_act
def test_values_at_kinks_and_far_out(act, isa):
    x = as_map(KINKS + FAR)
    with np.errstate(over="ignore"):
        exact = say.activate(x.astype(np.float64), act)
    found = run("act", isa, act, x=x)
    np.testing.assert_allclose(found, exact, rtol=4e-7, atol=1e-36)


@every_isa
@every_act
def test_limits_and_nan(act, isa):
    found = run("act", isa, act, x=as_map([np.nan, -np.inf, np.inf, 1.0])).ravel()
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:3], np.float32(LIMITS[act]))
    assert np.isfinite(found[3])


@every_isa
@every_act
def test_slopes_at_kinks_and_far_out(act, isa):
    x = as_map(KINKS + FAR).astype(np.float64)
    with np.errstate(over="ignore"):
        v = x if act in say.FROM_INPUT else say.activate(x, act)
        v = v.astype(np.float32)
        given = v.astype(np.float64)
        exact = say.slope(given, act) if act in say.FROM_INPUT else say.slope_of_output(given, act)
    found = run("act_bwd", isa, act, dy=np.full_like(v, 2.0), v=v)
    np.testing.assert_allclose(found, 2 * exact, rtol=4e-7, atol=1e-34)


@every_isa
@every_act
def test_slope_of_nan_lets_no_finite_number_through(act, isa):
    """NaN where the slope is a product, 0 where it is a comparison, as in PyTorch."""
    found = run("act_bwd", isa, act, dy=as_map([1.0]), v=as_map([np.nan])).item()
    smooth = act in ("silu", "sigmoid", "hardswish")
    assert np.isnan(found) if smooth else found == (1.0 if act == "none" else 0.0)


@pytest.mark.parametrize("isa", ISAS[1:])
def test_sigmoid_is_monotonous_and_close_everywhere(isa):
    """Over the whole range, in steps of about 1e-3, no value falls behind the one before."""
    x = np.linspace(-90, 90, 1 << 17, dtype=np.float32).reshape(1, 16, 64, 128)
    found = run("act", isa, "sigmoid", x=x).ravel()
    exact = 1 / (1 + np.exp(-x.astype(np.float64).ravel()))
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found, exact, rtol=4e-7, atol=1e-37)
