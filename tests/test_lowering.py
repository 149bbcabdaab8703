"""Networks of one construct each, lowered, differentiated and run, against PyTorch in float64."""

import sys
import types

import numpy as np
import pytest

import mdmt
from mdmt import nets
from tests import oracle

torch = oracle.need("torch")
pytestmark = pytest.mark.oracle
from tests import tinynets  # noqa: E402  (needs torch)

NETS = {
    "dense block": tinynets.dense,
    "dense block of 48": lambda: tinynets.dense(3, 48, 96),
    "inception": tinynets.inception,
    "shuffle": tinynets.shuffle,
    "shuffle of ragged halves": lambda: tinynets.shuffle(29, 8),
    "relu6": lambda: tinynets.inverted("relu6", False, kernel=3),
    "silu": lambda: tinynets.inverted("silu", False),
    "silu, excited": lambda: tinynets.inverted("silu", True),
    "hardswish, excited": lambda: tinynets.inverted("hardswish", True, 16, 3),
    "relu, excited": lambda: tinynets.inverted("relu", True, 22),
    "joined sums": tinynets.joined_sums,
    "gated halves": tinynets.gated_halves,
}
HEADS = {k: {"classes": c, "hidden": [], "dropout": 0.0} for k, c in oracle.HEADS.items()}
SIZE, BATCH, GRADIENT = 24, 6, 1e-4  # the promised relative error


@pytest.fixture(params=NETS, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def both(request, monkeypatch):
    """Our model of a tiny network and PyTorch's in float64, with the same weights."""
    torch.manual_seed(1)
    build, make = NETS[request.param]()
    module = make()
    family = types.ModuleType("mdmt.nets.tiny")
    family.build = lambda b, _: build(b)
    monkeypatch.setitem(sys.modules, "mdmt.nets.tiny", family)
    monkeypatch.setitem(nets.FAMILIES, "tiny", "tiny")
    ours = mdmt.Model("tiny", heads=HEADS, image_size=SIZE)
    oracle.randomize(module)
    state = {k: v.numpy().copy() for k, v in module.state_dict().items()}
    assert {k for k in ours.state_dict() if not k.startswith("heads.")} == set(state)
    ours.load_state_dict(ours.state_dict() | state)
    return ours, module.double()


def heads_of(ours):
    state = ours.state_dict()
    return [
        [torch.tensor(state[f"heads.{task}.0.{what}"]).double() for what in ("weight", "bias")]
        for task in HEADS
    ]


def test_evaluation_features(both):
    ours, module = both
    x, _, _ = oracle.batch(BATCH, SIZE)
    with torch.no_grad():
        expected = module.eval()(torch.tensor(x).double()).numpy()
    assert oracle.relative(ours.forward(x)["features"], expected) < 1e-6


def gradient_error(ours, module, data):
    """The worst relative error of a gradient tensor, and which: (error, key)."""
    x, task, target = data
    module.zero_grad()
    features = module.train()(torch.tensor(x).double())
    logits = [torch.nn.functional.linear(features, w, b) for w, b in heads_of(ours)]
    outputs = dict(zip(HEADS, logits, strict=True))
    loss = oracle.masked_loss(outputs, torch.tensor(task), torch.tensor(target))
    loss.backward()
    ours_loss, gradients = ours.loss_and_gradients(x, task, target)
    assert abs(ours_loss - loss.item()) < 1e-6
    exact = {k: p.grad.numpy() for k, p in module.named_parameters()}
    # A shift before another batch norm has no gradient but rounding: hold it against its layer.
    scale = max(np.linalg.norm(g) / np.sqrt(g.size) for g in exact.values())
    errors = []
    for key, gradient in exact.items():
        size = max(np.linalg.norm(gradient), 1e-2 * scale * np.sqrt(gradient.size))
        errors.append((np.linalg.norm(gradients[key] - gradient) / size, key))
    return max(errors)


def test_training_loss_gradients_and_running_statistics(both):
    """Of three batches one at least has no value so near a ReLU's zero that rounding decides its
    side; a wrong program is wrong on all of them."""
    ours, module = both
    found = []
    while len(found) < 3 and (not found or found[-1][0] >= GRADIENT):
        found.append(gradient_error(ours, module, oracle.batch(BATCH, SIZE, len(found))))
    assert found[-1][0] < GRADIENT, found
    state = ours.state_dict()
    for key, value in module.state_dict().items():
        if "running" in key:
            assert np.abs(state[key] - value.numpy()).max() < 1e-6, key
