"""The training loop: selection, checkpoints, stopping at any step, checks."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from mdmt import config, engine
from mdmt.errors import BadInput, Interrupted
from mdmt.model import Model

HEADS = {"a": {"classes": 2, "hidden": [8], "dropout": 0.5}, "b": {"classes": 3, "hidden": []}}
SAMPLER = {"mode": "union", "ratio": None, "epoch": "union", "drop_last": False}


def settings(**changes):
    train = config.load("demo", ["train.epochs=3", "train.warmup_epochs=1"])["train"]
    train.update(batch_size=8, patience=3, augment=config.load("covid_cxr")["train"]["augment"])
    train.update(changes)
    return train


def parts(seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for task, classes in enumerate((2, 3)):
        labels = np.arange(20) % classes
        images = rng.integers(0, 120, (20, 32, 32)) + 60 * labels[:, None, None]
        found.append(
            engine.Part(images.astype(np.uint8), labels, task, np.arange(0, 13), np.arange(13, 20))
        )
    return found


def stopped_and_resumed(folder, **recipe):
    """The history of two epochs of a recipe. A training that is stopped within the first one and
    goes on has the same, and the same weights, to the bit."""
    asked: list = []

    def stop():
        asked.append(1)
        return len(asked) > 5

    whole = fit(epochs=2, **recipe)
    history, weights = whole.run().history, whole.model.state_dict()
    with pytest.raises(Interrupted):
        fit(folder / "checkpoint", stop=stop, epochs=2, **recipe).run()
    resumed = fit(folder / "checkpoint", epochs=2, **recipe)
    assert resumed.run().history == history and resumed.resumed
    found = resumed.model.state_dict()
    assert all(np.array_equal(found[key], value) for key, value in weights.items())
    return history


def fit(path=None, stop=None, progress=None, seconds=0, steps=0, class_weights=None, heads=HEADS,
        **changes):  # fmt: skip
    model = Model("resnet18", heads=heads, image_size=32, seed=1)
    return engine.Fit(
        model, parts(), ["a", "b"], settings(**changes), SAMPLER, seed=5, checkpoint=path,
        seconds=seconds, steps=steps, stop=stop, progress=progress, class_weights=class_weights,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    """An uninterrupted training: (history, best weights, number of steps)."""
    count = []
    run = fit(progress=lambda state, loss: count.append(loss))
    state = run.run()
    return state.history, run.model.state_dict(), len(count)


def same(weights, other):
    return all(np.array_equal(weights[k], other[k]) for k in weights)


def test_it_learns_and_keeps_the_best_epoch(whole):
    history, weights, steps = whole
    assert steps == 3 * 4  # 26 samples in batches of 8, the last one smaller
    assert [r["epoch"] for r in history] == [0, 1, 2]
    assert history[0]["best"] == 0  # warm-up
    losses = [r["val_loss_a"] for r in history[1:]]
    best = 1 + int(np.argmin(losses))
    assert [r["epoch"] for r in history if r["best"]][-1] == best
    kept = {}
    run = fit()

    def keep(state, loss):
        kept[state.epoch] = state

    run.progress = keep
    state = run.run()
    assert state.best_epoch == best
    assert same(state.best, weights)


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_stopped_after_any_step_it_goes_on_to_the_same_bits(whole, tmp_path, step):
    history, weights, _ = whole
    path = tmp_path / "c.safetensors"
    done = []
    run = fit(path, stop=lambda: len(done) >= step, progress=lambda s, loss: done.append(loss))
    with pytest.raises(Interrupted, match="goes on from there"):
        run.run()
    assert len(done) == step
    again = fit(path)
    assert again.run().history == history
    assert same(again.model.state_dict(), weights)


def test_stopped_during_validation(whole, tmp_path):
    history, weights, _ = whole
    path = tmp_path / "c.safetensors"
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 4 + 2  # four steps, one validation batch, then the next

    with pytest.raises(Interrupted):
        fit(path, stop=stop).run()
    again = fit(path)
    assert again.run().history == history
    assert same(again.model.state_dict(), weights)


def test_checkpoints_by_steps_change_nothing_and_resume_from_the_last(whole, tmp_path):
    history, weights, steps = whole
    path = tmp_path / "c.safetensors"
    run = fit(path, steps=5)
    state = run.run()
    assert state.history == history
    done = []
    again = fit(path, progress=lambda s, loss: done.append(loss))
    assert again.run().history == history
    assert len(done) == steps - 10
    assert same(again.model.state_dict(), weights)


FALLING = {"schedule": "cosine", "lr_minimum": 1e-5, "lr_warmup_epochs": 1, "patience": 9}


def limited(path=None, stop=None, **named):
    """A training of ten steps in epochs of four: two and a half."""
    model = Model("resnet18", heads=HEADS, image_size=32, seed=1)
    return engine.Fit(model, parts(), ["a", "b"], settings(**FALLING), SAMPLER, seed=5,
                      max_steps=10, checkpoint=path, stop=stop, seconds=0, **named)  # fmt: skip


def test_the_cosine_ends_where_the_training_does(tmp_path):
    whole, top = fit(**FALLING).schedule, settings()["lr"]
    rates = [whole.lr, *(whole.update(epoch, 1.0)[0] for epoch in range(3))]
    assert rates == pytest.approx([top / 2, top, (top + 1e-5) / 2, 1e-5])
    run = limited()
    state = run.run()
    assert run.model.training_step == 10
    u = 1 / 1.5  # the last half epoch begins one epoch after the warm-up, of one and a half
    last = 1e-5 + (top - 1e-5) * (1 + np.cos(np.pi * u)) / 2
    assert [r["lr"] for r in state.history] == pytest.approx([top / 2, top, last])
    assert run.schedule.lr == pytest.approx(1e-5)
    weights = run.model.state_dict()
    path, done = tmp_path / "c.safetensors", []  # of the middle of the epoch after the warm-up
    with pytest.raises(Interrupted):
        limited(path, lambda: len(done) >= 6, progress=lambda s, loss: done.append(loss)).run()
    again = limited(path)
    assert again.run().history == state.history
    assert same(again.model.state_dict(), weights)


def test_settings_of_before_there_were_schedules_train_as_they_did(whole, tmp_path):
    """A description without the keys, and a checkpoint without the schedule's newer settings."""
    import json

    from safetensors import safe_open

    from mdmt._core import write_safetensors

    history, weights, _ = whole
    former = settings()
    for key in ("schedule", "lr_minimum", "lr_warmup_epochs"):
        del former[key]
    path, done = tmp_path / "c.safetensors", []

    def trained(**named):
        model = Model("resnet18", heads=HEADS, image_size=32, seed=1)
        return engine.Fit(model, parts(), ["a", "b"], former, SAMPLER, seed=5, checkpoint=path,
                          seconds=0, **named)  # fmt: skip

    with pytest.raises(Interrupted):
        trained(stop=lambda: len(done) >= 6, progress=lambda s, v: done.append(v)).run()
    with safe_open(str(path), "np") as stream:
        record = json.loads(stream.metadata()["mdmt"])
        arrays = {k: stream.get_tensor(k) for k in stream.keys()}  # noqa: SIM118
    for key in ("kind", "lr_warmup", "length"):
        del record["schedule"]["config"][key]
    write_safetensors(str(path), arrays, {"mdmt": json.dumps(record)})
    again = trained()
    assert again.run().history == history
    assert same(again.model.state_dict(), weights)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    done = []
    with pytest.raises(Interrupted):
        fit(path, stop=lambda: len(done) >= 1, progress=lambda s, v: done.append(v)).run()
    with pytest.raises(ValueError, match="batch_size"):
        fit(path, batch_size=4).run()


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(BadInput, match="delete it to start this training anew"):
        fit(path).run()


@pytest.mark.parametrize("where", [0.1, 0.4, 0.8, "record"])
def test_a_checkpoint_of_which_a_bit_has_changed_is_not_gone_on_with(where, tmp_path):
    path = tmp_path / "c.safetensors"
    done = []
    with pytest.raises(Interrupted):
        fit(path, stop=lambda: len(done) >= 1, progress=lambda s, v: done.append(v)).run()
    raw = bytearray(path.read_bytes())
    mark = b'optimizer_step\\": '
    at = raw.index(mark) + len(mark) if where == "record" else int(where * len(raw))
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"checksum is another.*delete it to start"):
        fit(path).run()


RECIPE = {
    "class_weights": {"a": "balanced", "b": [1, 0.5, 4]},
    "heads": {"a": {**HEADS["a"], "smoothing": 0.125}, "b": HEADS["b"]},
}


@pytest.fixture(scope="module")
def weighted():
    """The same with class weights and smoothing."""
    run = fit(**RECIPE)
    return run, run.run().history, run.model.state_dict()


def test_balanced_weights_are_of_the_training_part_alone(weighted, whole):
    run, history, weights = weighted
    assert run.class_weights["a"] == pytest.approx([13 / 14, 13 / 12])  # 7 and 6 of rows 0 to 12
    assert run.class_weights["b"].tolist() == [1, 0.5, 4]
    assert not same(weights, whole[1])
    again = fit(**RECIPE)
    altered = again.parts[0]
    altered.labels[altered.val] = 0  # nor is it looked at
    other = engine.Fit(
        again.model, again.parts, ["a", "b"], settings(), SAMPLER, class_weights={"a": "balanced"}
    )
    assert other.class_weights["a"].tolist() == run.class_weights["a"].tolist()


def test_balanced_weights_are_of_all_data_sets_of_a_task():
    """Findings in two data sets: the training rows of both, missing labels left out."""
    rng = np.random.default_rng(6)
    made, counted = [], []
    for rows in (12, 20):
        labels = rng.choice([0.0, 1.0, np.nan], (rows, 2), p=[0.6, 0.3, 0.1])
        images = rng.integers(0, 256, (rows, 32, 32), np.uint8)
        made.append(engine.Part(images, labels, 0, np.arange(rows - 4), np.arange(rows - 4, rows)))
        counted.append(labels[: rows - 4])
    heads = {"f": {"classes": 2, "hidden": [], "dropout": 0, "loss": "bce"}}
    model = Model("shufflenet_v2_x0_5", heads, image_size=32, channels=1)
    how = {"class_weights": {"f": "balanced"}}
    run = engine.Fit(model, made, ["f"], settings(epochs=1, warmup_epochs=0), SAMPLER, **how)
    both = np.concatenate(counted)
    expected = (both == 0).sum(0) / (both == 1).sum(0)
    assert run.class_weights["f"] == pytest.approx(expected)
    assert np.isfinite(run.run().history[0]["val_loss_f"])


def test_the_validation_loss_has_the_weights_and_no_smoothing(weighted):
    """Of the best weights, which the model holds at the end; in float64."""
    run, history, _ = weighted
    row = history[run.state.best_epoch]
    for k, (name, weights) in enumerate(run.class_weights.items()):
        part = run.parts[k]
        logits = engine.predict(run.model, k, part.val)[name].astype(np.float64)
        y = part.labels[part.val]
        each = -log_softmax(logits, 1)[np.arange(len(y)), y]
        assert row[f"val_loss_{name}"] == pytest.approx((weights[y] * each).mean(), rel=1e-5)


def test_weights_resume_to_the_same_bits(weighted, tmp_path):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 6

    with pytest.raises(Interrupted):
        fit(tmp_path / "checkpoint", stop=stop, **RECIPE).run()
    resumed = fit(tmp_path / "checkpoint", **RECIPE)
    assert resumed.run().history == weighted[1] and resumed.resumed
    assert same(resumed.model.state_dict(), weighted[2])


def test_early_stopping(tmp_path):
    state = fit(epochs=30, patience=1, lr=0.05).run()
    assert len(state.history) < 30
    assert state.history[-1]["best"] == 0


def test_a_sampler_that_gives_no_batch_is_refused_in_a_sentence():
    some = {**SAMPLER, "mode": "ratio", "ratio": [9, 1], "epoch": "shortest", "drop_last": True}
    with pytest.raises(BadInput, match=r"^sampler: .* has no batch: lower the batch size$"):
        engine.make_sampler([10, 90], 50, some, 0)
    assert len(engine.make_sampler([10, 90], 8, some, 0)) == 1


def test_an_empty_training_part_is_refused():
    empty = parts()
    empty[1].train = empty[1].train[:0]
    model = Model("resnet18", heads=HEADS, image_size=32)
    with pytest.raises(BadInput, match="task 'b': the training part is empty"):
        engine.Fit(model, empty, ["a", "b"], settings(), SAMPLER)


def test_an_empty_validation_part_is_refused():
    """Of a task: of one of its data sets it may be empty."""
    one, model = parts(), Model("resnet18", heads=HEADS, image_size=32)
    shared = [*one, engine.Part(one[1].images, one[1].labels, 1, one[1].train, one[1].val)]
    one[1].val = one[1].val[:0]
    with pytest.raises(BadInput, match="task 'b': the validation part, by which the epoch"):
        engine.Fit(model, one, ["a", "b"], settings(), SAMPLER)
    engine.Fit(model, shared, ["a", "b"], settings(epochs=1), SAMPLER).run()


def test_a_last_batch_of_one_image_that_cannot_be_normalised():
    """26 images in batches of 5: refused at 32 pixels, of which one is left, where a batch is
    normalised at all."""
    words = "^26 training images in batches of 5 leave a last batch of one, which resnet18 cannot"

    def start(size=32, sampler=None, **more):
        model = Model("resnet18", heads=HEADS, image_size=size)
        how = settings(batch_size=5, **more.pop("changes", {}))
        return engine.Fit(model, parts(), ["a", "b"], how, SAMPLER | (sampler or {}), **more)

    for refused in ({}, {"max_steps": 6}):
        with pytest.raises(BadInput, match=words):
            start(**refused)
    start(64)
    start(sampler={"drop_last": True})
    start(freeze=True)
    start(max_steps=5)
    start(changes={"epochs": 0})
    with pytest.raises(BadInput, match=r"train\.batch_size is 1, and resnet18 cannot normalise"):
        engine.check_memory(Model("resnet18", heads=HEADS, image_size=32), 1)


def test_a_batch_that_no_memory_holds_names_its_size(monkeypatch):
    model = Model("resnet18", heads=HEADS, image_size=32)
    planned = engine.check_memory(model, 8)
    assert planned == sum(model.memory(8, training=True).values())
    monkeypatch.setattr(engine, "available_memory", lambda: planned - 1)
    with pytest.raises(MemoryError, match=rf"a batch of 8 needs {planned / 2**30:.1f} GiB"):
        engine.check_memory(model, 8)


def test_available_memory_is_plausible():
    available = engine.available_memory()
    assert available is None or 2**20 < available < 2**50


def test_softmax_and_mean_loss_against_scipy():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((50, 4)) * 30).astype(np.float32)
    labels = rng.integers(0, 4, 50)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(engine.softmax(logits), softmax(wide, 1), atol=1e-7)
    want = -log_softmax(wide, 1)[np.arange(50), labels].mean()
    assert engine.mean_loss("ce", logits, labels) == pytest.approx(want)


def test_elastic_field_is_scaled_to_the_image():
    given = settings()["augment"]
    assert engine.augmentation(None, 64) is None
    assert engine.augmentation(given, 256)["elastic_alpha"] == (20, 40)
    small = engine.augmentation(given, 64)
    assert small["elastic_sigma"] == pytest.approx(7 / 4)
    assert small["elastic_alpha"] == pytest.approx((20 / 16, 40 / 16))
    assert engine.augmentation({**given, "elastic_alpha": [0, 0]}, 64)["elastic_sigma"] == 0
