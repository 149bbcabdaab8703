"""Weights that a GPU keeps rounded to bfloat16: always what the weights are, rounded. The backend's
own code beside stand-ins for CUDA and cuDNN (tests/c)."""

import gc

import numpy as np
import pytest

from tests import cudahost
from tests.test_cuda_library import fake, fresh
from tests.test_cuda_net import ADAM, MODE, batch, network
from tests.test_cuda_series import everything, series

no_race = cudahost.no_race


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A module whose convolutions are cuDNN's."""
    folder = tmp_path_factory.mktemp("cudnn")
    module = fresh(folder)
    assert module.load_cudnn(str(fake(folder)))[0]
    return module


@pytest.fixture
def device(module, monkeypatch):
    monkeypatch.setenv("MDMT_CUDA_TUNE", "off")
    put, _ = cudahost.knobs(module)
    put("reset", 0)
    yield module.module, 0, "bf16"
    gc.collect()
    put("reset", 0)


def both_ways(monkeypatch, act):
    """What `act` gives with a mirror and without, which must be the same."""
    found = []
    for wish in ("on", "off"):
        monkeypatch.setenv("MDMT_CUDA_MIRROR", wish)
        found.append(act())
        gc.collect()
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("record", ["on", "off"])
def test_the_same_bits_with_and_without(device, monkeypatch, record):
    monkeypatch.setenv("MDMT_CUDA_RECORD", record)

    def act():
        net, names = network(device)
        losses = [series(net, *call)["loss"].tobytes() for call in ((3, 0), (2, 3))]
        return b"".join(losses) + everything(net, names)

    both_ways(monkeypatch, act)


def test_convolutions_read_it(module, device, monkeypatch):
    """Three dense convolutions, two passes that read the weights, one launch less for each."""
    _, get = cudahost.knobs(module)
    monkeypatch.setenv("MDMT_CUDA_RECORD", "off")
    launches = []
    for wish in ("on", "off"):
        monkeypatch.setenv("MDMT_CUDA_MIRROR", wish)
        net, _ = network(device)
        series(net, 1)
        before = get("launches")
        series(net, 1, start=1)
        launches.append(get("launches") - before)
    assert launches[0] == launches[1] - 6


def test_weights_that_are_set_are_mirrored(device, monkeypatch):
    """As when the best epoch's come back, and training goes on from there."""

    def act():
        net, names = network(device)
        kept = {n: np.array(net.get(n)) for n in names}
        series(net, 2)
        for name, value in kept.items():
            net.set(name, value)
        return series(net, 2)["loss"].tobytes() + everything(net, names)

    both_ways(monkeypatch, act)


def test_single_updates_are_mirrored(device, monkeypatch):
    def act():
        net, names = network(device)
        series(net, 2)
        feeds, how = batch()
        how |= {"seed": 3, "step": 2, "epoch": 2}
        net.run(MODE, feeds, ("loss",), (0.1, *ADAM[1:], 3), **how)
        loss = net.run(MODE, feeds, ("loss",), None, **how)["loss"]
        return np.asarray(loss).tobytes() + everything(net, names)

    both_ways(monkeypatch, act)


def test_without_memory_for_it(module, device, monkeypatch):
    """Each convolution converts its own weights, now and whenever there is memory again."""
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "0")  # else images would give way first
    put, get = cudahost.knobs(module)
    before = get("used")
    net, names = network(device)
    expected = series(net, 3)["loss"].tobytes() + everything(net, names)
    needed = get("used") - before
    del net
    gc.collect()
    put("memory", get("used") + needed - 4096)
    net, names = network(device)
    losses = series(net, 2)["loss"].tobytes()
    assert get("used") < before + needed - 4096
    put("memory", 1 << 40)
    assert losses + series(net, 1, 2)["loss"].tobytes() + everything(net, names) == expected
    del net
    gc.collect()
    assert get("used") == before
