"""Golden runs: every gradient of the first step and ten losses, against PyTorch's float64 figures,
on machines that have no PyTorch, for every instruction set."""

import functools
import sys
import types

import numpy as np
import pytest

import mdmt
from mdmt import nets
from mdmt.nets import resnet
from tests import golden
from tests.opcase import ISAS, available

PLAIN = {k: {"classes": c, "dropout": 0.0} for k, c in golden.HEADS.items()}
GRADIENT, LOSS, CANCELLED = 1e-4, 1e-4, 1e-3  # relative errors; of the largest gradient's norm


@functools.cache
def recorded(name):
    with np.load(golden.FOLDER / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    add_small_networks(monkeypatch)


def add_small_networks(monkeypatch):
    """The golden networks are variants that no user needs."""
    for name, bottleneck in golden.RESIDUAL.items():
        monkeypatch.setitem(resnet.VARIANTS, name, (bottleneck, (1, 1, 1, 1), 1))
        monkeypatch.setitem(nets.FAMILIES, name, "resnet")
    family = types.ModuleType("mdmt.nets.tiny")
    family.build = lambda b, name: golden.TINY[name]()[0](b)
    monkeypatch.setitem(sys.modules, "mdmt.nets.tiny", family)
    for name in golden.TINY:
        monkeypatch.setitem(nets.FAMILIES, name, "tiny")


def model(name, precision="fp32"):
    size = golden.RUNS[name][0]
    made = mdmt.Model(name, heads=PLAIN, image_size=size, precision=precision)
    shapes = {k: v.shape for k, v in made.state_dict().items()}
    made.load_state_dict(golden.weights(shapes))
    return made


def worst_gradient(net, name):
    """(key, relative error) of the gradient that is furthest off in the first step."""
    wanted = recorded(name)
    loss, gradients = net.loss_and_gradients(*golden.batch(name, 0))
    assert loss == pytest.approx(wanted["losses"][0], rel=1e-5)
    keys = {k.removesuffix(":norm") for k in wanted if k.endswith(":norm")}
    assert set(gradients) == keys
    errors, largest = {}, max(float(wanted[f"{key}:norm"]) for key in keys)
    for key, value in gradients.items():
        value, sample = value.ravel(), wanted[f"{key}:sample"]
        norm = float(wanted[f"{key}:norm"])
        # The error of the sample, scaled up to the whole tensor.
        off = np.linalg.norm(value[golden.positions(value.size)] - sample)
        off *= np.sqrt(value.size / sample.size)
        off = max(off, abs(np.linalg.norm(value.astype(np.float64)) - norm))
        # A scale or shift before another batch norm has a gradient that cancels down to rounding.
        errors[key] = off / max(norm, CANCELLED * largest)
    worst = max(errors, key=errors.get)
    return worst, float(errors[worst])


def test_golden_files_are_small():
    sizes = [p.stat().st_size for p in golden.FOLDER.glob("*.npz")]
    assert len(sizes) == len(golden.RUNS)
    assert sum(sizes) < 300_000


# The reference kernels are slow, and know no Winograd convolution that could be left out.
HOW = [(isa, p) for isa in ISAS for p in ("fp32", "fp32-direct") if (isa, p) != ("ref", "fp32")]


@pytest.mark.parametrize(("isa", "precision"), HOW)
@pytest.mark.parametrize("name", golden.RUNS)
def test_golden_run(name, isa, precision, monkeypatch, record_property):
    if isa not in available():
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("MDMT_CPU", isa)
    net, wanted = model(name, precision), recorded(name)
    worst, error = worst_gradient(net, name)
    record_property("worst_gradient_error", error)
    assert error <= GRADIENT, (worst, error)
    steps = 3 if isa == "ref" else golden.STEPS
    losses = [net.train_step(*golden.batch(name, s), **golden.ADAM) for s in range(steps)]
    np.testing.assert_allclose(losses, wanted["losses"][:steps], rtol=LOSS)
