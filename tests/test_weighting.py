"""Weights of samples and label smoothing in the Model: steps, resident data sets, files, and what
is said of wrong ones. Their arithmetic: tests/test_loss.py."""

import json

import numpy as np
import pytest

import mdmt

HEADS = {
    "a": {"classes": 3, "hidden": [], "dropout": 0.0, "smoothing": 0.125},
    "b": {"classes": 2, "hidden": [], "dropout": 0.0, "loss": "bce"},
}
LOSSES, SMOOTHING = ["ce", "bce"], [0.125, 0.0]


def small(heads=HEADS, **options):
    return mdmt.Model("shufflenet_v2_x0_5", heads, image_size=32, channels=1, seed=4, **options)


@pytest.fixture(scope="module")
def batch():
    """x, task, target, weight of eight samples; one without a label, one finding without."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 1, 32, 32)).astype(np.float32)
    target = rng.integers(0, 2, (8, 2)).astype(np.float32)
    target[3], target[1, 0] = np.nan, np.nan
    weight = np.float32([[1, 9], [2, 0.5], [0.25, 9], [np.nan, -1], [3, 9], [0, 1], [1, 9], [4, 2]])
    return x, np.arange(8) % 2, target, weight


def test_a_pass_is_masked_loss_on_its_logits(batch):
    """Loss, and the gradients of the heads' biases: sums of the logits' gradients."""
    x, task, target, weight = batch
    model = small()
    out = model.forward(x)
    expected, dlogits, _ = mdmt.masked_loss(
        [out["a"], out["b"]], task, target, losses=LOSSES, sample_weight=weight, smoothing=SMOOTHING
    )
    loss, gradients = model.loss_and_gradients(x, task, target, False, sample_weight=weight)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, dz in zip("ab", dlogits):
        np.testing.assert_allclose(
            gradients[f"heads.{name}.0.bias"], dz.sum(0), rtol=1e-5, atol=1e-7
        )
    assert loss != pytest.approx(model.loss_and_gradients(x, task, target, False)[0], rel=1e-2)


def test_weights_of_one_give_the_same_bits(batch):
    x, task, target, _ = batch
    plain, ones = small(), small()
    losses = [plain.train_step(x, task, target) for _ in range(3)]
    assert [ones.train_step(x, task, target, sample_weight=np.ones(8)) for _ in range(3)] == losses
    state = ones.state_dict()
    assert all(np.array_equal(v, state[k]) for k, v in plain.state_dict().items())


def attached(device="cpu", weighted=True, **options):
    """Two data sets, the second one with weights per finding; labels as in a study."""
    model = small(device=device, **options)
    rng = np.random.default_rng(2)
    sets = []
    for k in range(2):
        target = rng.integers(0, 2, (6, k + 1)).astype(np.float32)
        sets.append({"images": rng.integers(0, 256, (6, 32, 32), np.uint8), "task": k,
                     "target": target})  # fmt: skip
    if weighted:
        sets[1]["sample_weight"] = rng.choice(np.float32([0, 0.5, 2, 5]), (6, 2))
    model.attach(sets)
    return model, sets


BATCHES = np.array([[0, 1, 1, 0]] * 3), np.array([[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]])


def test_resident_weights_are_gathered():
    """One call, single steps, and train_step of the same pictures and weights."""
    (model, sets), (single, _), (outside, _) = attached(), attached(), attached()
    losses, per_task = model.fit_steps(*BATCHES)
    for i, (dataset, index) in enumerate(zip(*BATCHES)):
        loss, one = single.fit_step(dataset, index)
        assert loss == losses[i] and np.array_equal(one, per_task[i])
        weight, target = np.ones((4, 2), np.float32), np.full((4, 2), np.nan, np.float32)
        pictures = np.stack([sets[d]["images"][r] for d, r in zip(dataset, index)])
        for j, (d, r) in enumerate(zip(dataset, index)):
            target[j, : d + 1] = sets[d]["target"][r]
            weight[j] = sets[d]["sample_weight"][r] if d else 1
        again = outside.train_step(
            outside.normalise(pictures), dataset, target, sample_weight=weight
        )
        assert again == pytest.approx(loss, rel=1e-4)
    states = [m.state_dict() for m in (model, single)]
    assert all(np.array_equal(v, states[1][k]) for k, v in states[0].items())
    assert per_task[..., 1].tolist() == [[2, 2]] * 3
    assert model.predict(*(b[0] for b in BATCHES))["a"].shape == (4, 3)


def test_a_copy_keeps_the_weights(batch):
    import copy

    model, twin = attached()[0], None
    twin = copy.deepcopy(model)
    assert twin.fit_steps(*BATCHES)[0].tobytes() == model.fit_steps(*BATCHES)[0].tobytes()


def test_masks_take_weights():
    """dice_ce: the weight of a sample counts its whole mask."""
    rng = np.random.default_rng(3)
    x, mask = rng.normal(size=(4, 1, 32, 32)).astype(np.float32), rng.random((4, 32, 32))
    model = mdmt.Model("unet_tiny", {"m": {"loss": "dice_ce"}}, image_size=32, channels=1)
    each = [
        model.loss_and_gradients(x, np.where(np.arange(4) == i, 0, -1), mask, False)[0]
        for i in range(4)
    ]
    weight = np.array([1, 0.5, 0, 3])
    loss, _ = model.loss_and_gradients(x, [0] * 4, mask, False, sample_weight=weight)
    assert loss == pytest.approx(weight @ each / 4, rel=1e-5)
    pictures = rng.integers(0, 256, (4, 32, 32), np.uint8)
    model.attach([{"images": pictures, "task": 0, "target": pictures, "sample_weight": weight}])
    assert np.isfinite(model.fit_step([0] * 4, range(4))[0])


def test_files_keep_smoothing_and_do_without(tmp_path, batch):
    x, task, target, weight = batch
    model = small()
    model.save(tmp_path / "with")
    again = mdmt.Model.load(tmp_path / "with")
    assert again.heads["a"]["smoothing"] == 0.125 and "smoothing" not in again.heads["b"]
    found = again.loss_and_gradients(x, task, target, sample_weight=weight)[0]
    assert found == model.loss_and_gradients(x, task, target, sample_weight=weight)[0]
    none = {"a": {**HEADS["a"], "smoothing": 0}, "b": HEADS["b"]}
    small(none).save(tmp_path / "without")
    from mdmt.weights import read_description

    assert "smoothing" not in json.dumps(read_description(tmp_path / "without"))
    assert mdmt.Model.load(tmp_path / "without").heads == small(none).heads


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({"classes": 2, "smoothing": 1}, "task a: smoothing must be .* below 1, not 1"),
        ({"classes": 2, "smoothing": "x"}, "task a: smoothing must be a number"),
        ({"classes": 2, "loss": "bce", "smoothing": 0.1}, "task a: smoothing spreads the target"),
        ({"loss": "dice_ce", "smoothing": 0.1}, "loss dice_ce has no such target; leave it out"),
    ],
)
def test_smoothing_that_a_head_cannot_have(head, says):
    with pytest.raises(ValueError, match=says):
        small({"a": head})


def test_wrong_weights_change_nothing(batch):
    x, task, target, weight = batch
    model = small()
    before = model.state_dict()
    bad = weight.copy()
    bad[4, 0] = -2
    for wrong, says in (
        (bad, "sample 4 has the weight -2 for task a; a weight is a finite number, 0 or more"),
        (weight[:5], r"sample_weight must be \(8,\), or \(8, k\)"),
    ):
        with pytest.raises(ValueError, match=says):
            model.train_step(x, task, target, sample_weight=wrong)
    pictures = np.zeros((3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="data set 0: sample 1 has the weight inf for task a"):
        model.attach([{"images": pictures, "task": 0, "target": [0, 1, 2],
                       "sample_weight": [1, np.inf, 0]}])  # fmt: skip
    assert all(np.array_equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("labels, classes, says", [
    ([0, 1, 1], ["MILD", "SEVERE"], "classes must be their number"),
    ([0, 1, 1], None, "classes must be their number"),
    ([0, 1, 1], 2.0, "classes must be their number"),
    ([], 0, "classes must be their number"),
    (["MILD", "SEVERE"], 2, "labels must be numbers"),
    ({"MILD": 3}, 2, "labels must be numbers"),
    ([[0], [0, 1]], 2, "labels must be numbers"),
])  # fmt: skip
def test_balanced_weights_of_what_is_no_class_number(labels, classes, says):
    with pytest.raises(ValueError, match=says):
        mdmt.class_weights(labels, classes)
