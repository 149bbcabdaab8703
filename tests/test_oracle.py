"""Live comparison of mdmt.Model with torchvision: names, features, gradients, training."""

import copy

import numpy as np
import pytest

import mdmt
from tests import oracle

torch = oracle.need("torch")
oracle.need("torchvision")
pytestmark = pytest.mark.oracle

PLAIN = {k: {"classes": c, "dropout": 0.0} for k, c in oracle.HEADS.items()}
# backbone, image size, batch
PLACES = [("resnet18", 64, 8), ("resnet34", 64, 8), ("resnet50", 96, 6), ("resnet18", 224, 4)]
PRECISIONS = ("fp32", "fp32-direct")
LOGITS, GRADIENT = 1e-5, 1e-4  # promised relative errors


def pair(name, size, precision="fp32", seed=0):
    """Ours and torchvision's with the same weights, no dropout."""
    torch.manual_seed(seed)
    theirs = oracle.randomize(oracle.two_heads(name, dropout=0.0), seed)
    ours = mdmt.Model(name, heads=PLAIN, image_size=size, precision=precision)
    ours.load_state_dict(oracle.state(theirs))
    return ours, theirs


def torch_step(model, x, task, target):
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    outputs = model(torch.from_numpy(x).to(dtype))
    loss = oracle.masked_loss(outputs, torch.from_numpy(task), torch.from_numpy(target))
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_state_dict_has_torchvisions_names_and_shapes(name):
    ours = mdmt.Model(name, image_size=64).state_dict()
    theirs = oracle.state(oracle.two_heads(name))
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].shape == value.shape, key
        assert ours[key].dtype == (np.int64 if value.dtype == np.int64 else np.float32), key


def test_loading_ignores_the_original_classifier_and_says_so(capsys, caplog, recwarn):
    full = oracle.need("torchvision").models.resnet18(weights=None)
    arrays = {k: v.numpy() for k, v in full.state_dict().items()}
    model = mdmt.Model("resnet18", image_size=64)
    model.load_state_dict(arrays, strict=False)
    said = "".join(capsys.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn)
    assert "fc" in said
    kept = model.state_dict()
    assert "fc.weight" not in kept
    assert np.array_equal(kept["layer4.1.conv2.weight"], arrays["layer4.1.conv2.weight"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_features_and_logits(place, training, precision):
    name, size, n = place
    ours, theirs = pair(name, size, precision)
    x, _, _ = oracle.batch(n, size)
    theirs.train(training)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    got = ours.forward(x, training=training)
    assert list(got) == list(expected)
    errors = {k: oracle.relative(got[k], v.numpy()) for k, v in expected.items()}
    assert max(errors.values()) <= LOGITS, errors
    if training:
        state, wanted = ours.state_dict(), oracle.state(theirs)
        for key in wanted:
            if "running" in key or "tracked" in key:
                assert oracle.relative(state[key], wanted[key]) <= LOGITS, key


@pytest.mark.parametrize("n", [1, 3, 8])
def test_batch_size_may_change_from_call_to_call(n):
    ours, theirs = pair("resnet18", 64)
    theirs.eval()
    for count in (8, n, 5, n):
        x, _, _ = oracle.batch(count, 64, seed=count)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x))
        got = ours.forward(x)
        assert all(oracle.relative(got[k], v.numpy()) <= LOGITS for k, v in expected.items())


def test_grey_images_are_three_equal_channels():
    ours, _ = pair("resnet18", 64)
    x = np.random.default_rng(0).standard_normal((3, 64, 64)).astype(np.float32)
    grey, colour = ours.forward(x), ours.forward(np.repeat(x[:, None], 3, axis=1))
    assert all(oracle.relative(grey[k], colour[k]) <= LOGITS for k in grey)


def gradient_errors(ours, theirs, x, task, target):
    """Worst relative error against float32 PyTorch; where rounding alone takes that beyond the
    promise (a mask that flips near zero does), against a float64 run, which must not be missed by
    more than PyTorch misses it itself."""
    double = copy.deepcopy(theirs).double()
    loss, found = ours.loss_and_gradients(x, task, target, training=True)
    wanted_loss = torch_step(theirs, x, task, target)
    wanted = oracle.gradients(theirs)
    assert loss == pytest.approx(wanted_loss, rel=LOGITS)
    assert set(found) == set(wanted)
    direct = {k: oracle.relative(found[k], wanted[k]) for k in wanted}
    beyond = {k: e for k, e in direct.items() if e > GRADIENT}
    if beyond:
        torch_step(double, x, task, target)
        exact = oracle.gradients(double)
        for key in beyond:
            mine = oracle.relative(found[key], exact[key])
            theirs_ = oracle.relative(wanted[key], exact[key])
            assert mine <= max(GRADIENT, 2 * theirs_), (key, mine, theirs_, direct[key])
    return direct


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_gradient(place, precision, record_property):
    name, size, n = place
    ours, theirs = pair(name, size, precision)
    theirs.train()
    errors = gradient_errors(ours, theirs, *oracle.batch(n, size))
    record_property("worst_gradient_error", max(errors.values()))
    assert len(errors) == len(list(theirs.parameters()))


@pytest.mark.parametrize("absent", [0, 1])
def test_head_without_a_sample_gets_exactly_zero(absent):
    ours, theirs = pair("resnet18", 64)
    x, _, _ = oracle.batch(4, 64)
    task, target = np.full(4, 1 - absent), np.zeros(4, np.int64)
    _, found = ours.loss_and_gradients(x, task, target)
    name = list(oracle.HEADS)[absent]
    head = {k: v for k, v in found.items() if k.startswith(f"heads.{name}.")}
    assert head and all(not v.any() for v in head.values())
    assert all(np.isfinite(v).all() for v in found.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_ten_steps_of_adam(name, precision):
    """Losses of ten steps on changing batches, and the running statistics after the first."""
    size, n = 64, 8
    ours, theirs = pair(name, size, precision)
    theirs.train()
    how = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
    optimizer = torch.optim.Adam(theirs.parameters(), **how)
    got, wanted = [], []
    for step in range(10):
        x, task, target = oracle.batch(n, size, seed=step)
        got.append(ours.train_step(x, task, target, **how))
        wanted.append(torch_step(theirs, x, task, target))
        optimizer.step()
        if step == 0:
            state, expected = ours.state_dict(), oracle.state(theirs)
            for key, value in expected.items():
                if "running" in key:
                    assert oracle.relative(state[key], value) <= LOGITS, key
                elif "tracked" in key:
                    assert state[key] == value == 1, key
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_winograd_can_be_switched_off_from_outside(monkeypatch):
    """MDMT_WINOGRAD=off and precision="fp32-direct" are the same thing, bit for bit."""
    x, task, target = oracle.batch(4, 64)
    direct, _ = pair("resnet18", 64, "fp32-direct")
    fast, _ = pair("resnet18", 64)
    loss, wanted = direct.loss_and_gradients(x, task, target)
    _, other = fast.loss_and_gradients(x, task, target)
    monkeypatch.setenv("MDMT_WINOGRAD", "off")
    off, _ = pair("resnet18", 64)
    loss_off, found = off.loss_and_gradients(x, task, target)
    assert loss_off == loss
    assert all(np.array_equal(found[k], wanted[k]) for k in wanted)
    key = "layer1.0.conv1.weight"
    assert oracle.relative(other[key], wanted[key]) <= 2 * GRADIENT
