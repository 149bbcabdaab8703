"""The public Model: contract, weights in and out, batches of any size, bad input."""

import gc

import numpy as np
import pytest

import mdmt
from mdmt import _core
from mdmt.model import Model

HEADS = {"prognosis": 2, "severity": {"classes": 4, "hidden": [8], "dropout": 0.25}}


def small(**options):
    return Model("resnet18", **{"heads": HEADS, "image_size": 32, "seed": 3, **options})


def batch(n, size=32, seed=0):
    rng = np.random.default_rng(seed)
    task = np.arange(n) % 2
    target = np.where(task == 0, rng.integers(0, 2, n), rng.integers(0, 4, n)).astype(np.float32)
    return rng.normal(size=(n, 3, size, size)).astype(np.float32), task, target


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_outputs_have_the_shapes_of_the_contract():
    out = small().forward(batch(3)[0])
    assert {k: v.shape for k, v in out.items()} == {
        "features": (3, 512),
        "prognosis": (3, 2),
        "severity": (3, 4),
    }
    assert all(v.dtype == np.float32 for v in out.values())


def test_grey_images_are_repeated_over_the_channels():
    model, grey = small(), batch(2)[0][:, 0]
    repeated = np.repeat(grey[:, None], 3, axis=1)
    assert same(model.forward(grey), model.forward(repeated))


def test_batches_and_image_sizes_differ_from_call_to_call():
    model, (x, _, _) = small(), batch(5)
    whole = model.forward(x)["severity"]
    parts = np.concatenate([model.forward(x[i : i + 1])["severity"] for i in range(5)])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    for size in (33, 47, 64):
        assert model.forward(batch(2, size)[0])["features"].shape == (2, 512)
    assert np.array_equal(model.forward(x)["severity"], whole)


def test_more_programs_than_the_cache_holds():
    model, (x, _, _) = small(), batch(14)
    first = model.forward(x[:1])["prognosis"]
    for n in range(2, 15):
        assert np.array_equal(model.forward(x[:n])["prognosis"], model.forward(x[:n])["prognosis"])
    assert np.array_equal(model.forward(x[:1])["prognosis"], first)


def test_train_step_learns_a_batch():
    model, data = small(), batch(8)
    losses = [model.train_step(*data, lr=3e-4) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    assert model.training_step == 15


def test_gradients_are_those_of_the_step():
    """The first Adam step from zero moments moves each weight by lr times the gradient's sign."""
    model, data = small(), batch(4)
    before = model.state_dict()
    loss, gradients = model.loss_and_gradients(*data)
    assert model.train_step(*data, lr=1e-3, eps=1e-12, weight_decay=0) == loss
    after = model.state_dict()
    for key, gradient in gradients.items():
        assert gradient.shape == before[key].shape
        moved = after[key].astype(np.float64) - before[key]
        clear = np.abs(gradient) > 1e-6
        expected = -1e-3 * np.sign(gradient[clear])
        np.testing.assert_allclose(moved[clear], expected, rtol=0, atol=2e-6)


def test_state_dict_has_torchvision_keys_and_survives_a_file(tmp_path):
    model, data = small(), batch(4)
    model.train_step(*data)
    state = model.state_dict()
    assert state["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)
    assert state["bn1.num_batches_tracked"] == 1
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    assert state["heads.severity.1.bias"].shape == (4,)
    model.save(tmp_path / "model.safetensors")
    again = Model.load(tmp_path / "model.safetensors")
    assert same(again.state_dict(), state)
    assert same(again.forward(data[0]), model.forward(data[0]))


def test_an_original_classifier_is_ignored_and_named():
    model = small()
    state = model.state_dict() | {"fc.weight": np.zeros((1000, 512), np.float32)}
    assert model.load_state_dict(state) == ["fc.weight"]


def test_weights_of_a_file_leave_the_heads_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    donor = small(seed=11)
    _core.write_safetensors(str(path), donor.state_dict())
    model = small(weights=path)
    state, given, own = model.state_dict(), donor.state_dict(), small().state_dict()
    assert np.array_equal(state["conv1.weight"], given["conv1.weight"])
    assert np.array_equal(state["heads.prognosis.0.weight"], own["heads.prognosis.0.weight"])


def test_optimizer_state_continues_bit_for_bit():
    model, data = small(), batch(4)
    model.train_step(*data)
    state, (arrays, step) = model.state_dict(), model.optimizer_state()
    losses = [model.train_step(*data) for _ in range(3)]
    other = small(seed=3)
    other.load_state_dict(state)
    other.load_optimizer_state(arrays, step)
    assert [other.train_step(*data) for _ in range(3)] == losses
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("augment", [None, {}, {"elastic_alpha": (0, 0), "rotation": 25}])
def test_fit_step_equals_train_step_on_the_same_pixels(augment):
    rng = np.random.default_rng(5)
    images = [
        rng.integers(0, 256, (6, 32, 32), np.uint8),
        rng.integers(0, 256, (4, 32, 32), np.uint8),
    ]
    labels = [np.array([0, 1, 1, 0, 1, 0.0]), np.array([3, 0, 2, 1.0])]
    fitted, stepped = small(), small()
    sets = [{"images": i, "task": k, "target": t} for k, (i, t) in enumerate(zip(images, labels))]
    fitted.attach(sets)
    dataset, index = np.array([0, 1, 0, 1, 0]), np.array([5, 3, 0, 1, 2])
    loss, per_task = fitted.fit_step(dataset, index, augment=augment, epoch=2)
    grey = np.stack([images[d][i] for d, i in zip(dataset, index)])
    if augment is not None:
        grey = mdmt.augment(grey, dataset, index, epoch=2, seed=3, dtype=np.float32, **augment)
    x = np.stack([(grey / 255.0 - m) / s for m, s in zip(stepped.mean, stepped.std)], axis=1)
    target = np.array([labels[d][i] for d, i in zip(dataset, index)])
    assert loss == pytest.approx(stepped.train_step(x, dataset, target), rel=1e-5)
    assert per_task[:, 1].tolist() == [3, 2]
    assert per_task[:, 0].sum() / 5 == pytest.approx(loss, rel=1e-6)


def test_predict_is_forward_on_resident_images():
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (5, 32, 32), np.uint8)
    model = small()
    model.attach([{"images": images, "task": 0, "target": np.zeros(5)}])
    out = model.predict(np.zeros(5, int), np.arange(5), batch_size=2)
    x = np.stack([(images / 255.0 - m) / s for m, s in zip(model.mean, model.std)], axis=1)
    for name, value in model.forward(x).items():
        np.testing.assert_allclose(out[name], value, rtol=2e-4, atol=2e-5)


def test_the_same_bits_for_any_number_of_threads():
    results = []
    before = _core.get_num_threads()
    try:
        for threads in (1, 2, 4):
            mdmt.set_num_threads(threads)
            model, data = small(), batch(6)
            losses = [model.train_step(*data) for _ in range(3)]
            results.append((losses, model.state_dict()))
        mdmt.set_num_threads(2)  # a model follows a change in mid-training, too
        model, data = small(), batch(6)
        losses = [model.train_step(*data)]
        mdmt.set_num_threads(3)
        losses += [model.train_step(*data) for _ in range(2)]
        results.append((losses, model.state_dict()))
    finally:
        mdmt.set_num_threads(before)
    for losses, state in results[1:]:
        assert losses == results[0][0]
        assert same(state, results[0][1])


def test_nothing_is_allocated_after_the_first_step():
    model, data = small(), batch(4)
    model.train_step(*data)
    count = _core.allocation_count()
    for _ in range(3):
        model.train_step(*data)
    assert _core.allocation_count() == count


def test_every_failing_allocation_is_a_memory_error_and_leaks_nothing():
    gc.collect()
    held = _core.slab_bytes()
    data = batch(2)
    failures = 0
    for n in range(0, 2000, 11):
        _core.fail_allocation_after(n)
        try:
            model = small()
            model.train_step(*data)
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            _core.fail_allocation_after(-1)
            model = None
            gc.collect()
    else:
        pytest.fail("the step never succeeded")
    assert failures > 3
    assert _core.slab_bytes() == held


def test_planned_memory_is_what_is_taken():
    gc.collect()
    held = _core.slab_bytes()
    model, data = small(), batch(4)
    model.train_step(*data)
    taken = _core.slab_bytes() - held
    planned = sum(model.memory(4).values())
    assert planned <= taken <= planned + 12 * 2**21  # each slab is rounded up to huge pages


def test_cost_counts_the_multiply_adds_of_resnet18():
    """1.814 G multiply-adds at 224 px without heads (torchvision's documentation: 1.81 GFLOPS)."""
    model = Model("resnet18", heads={"a": {"classes": 2, "hidden": []}})
    assert model.cost()["macs"] == 1814073344 - 512 * 1000 + 512 * 2


def fit_once(index=(0, 1), **options):
    model = small()
    model.attach([{"images": np.zeros((4, 32, 32), np.uint8), "task": 0, "target": np.zeros(4)}])
    model.fit_step(np.zeros(len(index), int), index, **options)


BAD = [
    (lambda: Model("resnet19"), ValueError, "resnet18"),
    (lambda: small(heads={}), ValueError, "1 to 16 tasks"),
    (lambda: small(heads={"a": 1}), ValueError, "at least 2 classes"),
    (lambda: small(heads={"a": {"classes": 2, "dropuot": 0}}), ValueError, "dropuot"),
    (lambda: small(heads={"loss": 2}), ValueError, "named 'loss'"),
    (lambda: small(precision="fp8"), ValueError, "fp8"),
    (lambda: small(weights="/nowhere/w.safetensors"), FileNotFoundError, "/nowhere"),
    (lambda: small().forward(np.zeros((2, 4, 32, 32))), ValueError, "(N, 3, H, W)"),
    (lambda: small().forward(np.full((2, 32, 32), np.nan)), FloatingPointError, "image 0"),
    (lambda: small().train_step(*batch(1)), ValueError, "larger batch"),
    (lambda: small().train_step(batch(2)[0], [0, 1], [0, 4]), ValueError, "classes 0 to 3"),
    (lambda: small().train_step(batch(2)[0], [0, 2], [0, 1]), ValueError, "0 to 1"),
    (lambda: small().train_step(*batch(2), lr=-1), ValueError, "lr"),
    (lambda: small().load_state_dict({}), ValueError, "missing"),
    (lambda: small().memory(2**30), ValueError, ""),
    (lambda: fit_once(augment={"rotate": 5}), ValueError, "'rotate'"),
    (lambda: fit_once(index=[7]), IndexError, "image 7 of data set 0"),
    (lambda: mdmt.set_num_threads(0), ValueError, "1 to 1024"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_is_one_sentence(number):
    call, error, words = BAD[number]
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_memory_names_the_planned_size():
    model = Model("resnet18", image_size=4096)
    images = np.zeros((8, 8, 8), np.uint8)
    model.attach([{"images": images, "task": 0, "target": np.zeros(8)}])
    with pytest.raises(MemoryError, match=r"needs [\d.]+ GiB, but only [\d.]+ GiB are available"):
        model.fit_step(np.zeros(128, int), np.arange(128) % 8)


def test_a_weight_that_is_not_a_number_stops_the_step_and_keeps_the_weights():
    model, data = small(), batch(4)
    state = model.state_dict()
    broken = {**state, "heads.severity.1.bias": np.full(4, np.nan, np.float32)}
    with pytest.raises(ValueError, match="NaN"):
        model.load_state_dict(broken)
    assert same(model.state_dict(), state)
    model._network.set("heads.severity.1.bias", broken["heads.severity.1.bias"])
    with pytest.raises(FloatingPointError, match=r"step 0 \(task severity\)"):
        model.train_step(*data)
    assert np.array_equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
