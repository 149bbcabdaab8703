"""Batches computed in parts: by definition, against PyTorch, on every path."""

import copy
import pickle

import numpy as np
import pytest

import mdmt
from mdmt import _core, engine, inputs
from mdmt.errors import BadConfig, BadInput
from mdmt.model import Model
from tests import cudahost, oracle
from tests.exactness import statistics
from tests.test_groups import attached, equal, in_series, paths, rows, tiny
from tests.test_model import same

gpu, no_race = cudahost.gpu, cudahost.no_race
MIXED = {
    "a": {"classes": 3, "hidden": [5], "smoothing": 0.1, "dropout": 0.0},
    "b": {"classes": 2, "loss": "bce", "dropout": 0.0},
    "c": {"classes": 2, "loss": "mse", "dropout": 0.0},
}


def mixed(n=11, size=32):
    """x, task, target, sample_weight of three tasks, some without a label."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(n, 3, size, size)).astype(np.float32)
    task = rng.integers(-1, 3, n)
    target = rng.integers(0, 2, (n, 2)).astype(np.float32)
    target[1] = np.nan
    target[5, 1] = np.nan
    return x, task, target, rng.uniform(0.2, 3, (n, 2))


def close(found, exact, bound, scale=None):
    """Tensors within `bound` of the largest norm among them."""
    scale = max(np.linalg.norm(v) for v in (scale or exact).values())
    for key, value in exact.items():
        assert np.linalg.norm(found[key] - value) <= bound * scale, key


@pytest.mark.parametrize("n", [1, 5, 16, 37, 128])
@pytest.mark.parametrize("most", [1, 3, 16, 200, None])
def test_parts_are_few_and_nearly_equal(n, most):
    split = inputs.micro_batches(n, most)
    sizes = [size for size, count in split for _ in range(count)]
    assert sum(sizes) == n and max(sizes) <= (most or n) and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // (most or n)) and sizes == sorted(sizes, reverse=True)
    assert len({size for size, _ in split}) == len(split)


def by_parts(model, x, task, target, weight, most):
    """Loss and gradients of a batch from those of its parts: each a mean over its own labels."""
    labels = [~np.isnan(y).all() if t == 1 else (t == 0 and not np.isnan(y[0]))
              or (t == 2 and not np.isnan(y).any()) for t, y in zip(task, target)]  # fmt: skip
    loss, total, at = 0.0, {}, 0
    for size, count in inputs.micro_batches(len(x), most):
        for _ in range(count):
            part = slice(at, at + size)
            share = sum(labels[part]) / sum(labels)
            one, gradients = model.loss_and_gradients(
                x[part], task[part], target[part], sample_weight=weight[part]
            )
            loss += share * one
            for key, value in gradients.items():
                total[key] = total.get(key, 0) + share * value.astype(np.float64)
            at += size
    return loss, total


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("most", [6, 4, 3])
def test_gradients_are_those_of_the_parts(monkeypatch, isa, most):
    """With the loss's mean over the labels of the whole batch; statistics move with each part."""
    monkeypatch.setenv("MDMT_CPU", isa)
    ours, plain = (tiny(heads=MIXED) for _ in range(2))
    for model in (ours, plain):
        model.task_weights = {"a": 2.0, "c": 0.3}
    ours.micro_batch = most
    x, task, target, weight = mixed()
    expected = by_parts(plain, x, task, target, weight, most)
    loss, gradients = ours.loss_and_gradients(x, task, target, sample_weight=weight)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    close(gradients, expected[1], 1e-6)
    state = plain.state_dict()
    assert all(np.array_equal(v, ours.state_dict()[k]) for k, v in statistics(state).items())
    assert ours.state_dict()["conv1.1.num_batches_tracked"] == -(-11 // most)


@pytest.mark.parametrize("most", [8, 4, 3, 1])
def test_what_no_statistics_join_is_the_whole_batch(most):
    """In evaluation mode a batch in parts has the loss and the gradients of the batch at once."""
    model, (x, task, target, weight) = tiny(heads=MIXED), mixed()
    exact = model.loss_and_gradients(x, task, target, training=False, sample_weight=weight)
    model.micro_batch = most
    found = model.loss_and_gradients(x, task, target, training=False, sample_weight=weight)
    assert found[0] == pytest.approx(exact[0], rel=1e-5)
    close(found[1], exact[1], 2e-5)


@pytest.mark.oracle
def test_as_accumulated_by_pytorch():
    """Two steps of Adam in parts of 3, 3 and 2 on gradients that PyTorch adds up in float64, with
    its own batch statistics; the loss is a mean over the labels of the whole batch."""
    torch = oracle.need("torch")
    theirs = oracle.randomize(oracle.two_heads("resnet18", hidden=(), dropout=0.0), smooth=True)
    heads = {t: {"classes": c, "hidden": [], "dropout": 0.0} for t, c in oracle.HEADS.items()}
    ours = Model("resnet18", heads=heads, image_size=64)
    ours.load_state_dict(oracle.state(theirs))
    start, ours.micro_batch = ours.state_dict(), 3
    theirs = theirs.double().train()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4, weight_decay=1e-4)
    for step in range(2):
        x, task, target = oracle.batch(8, 64, seed=step)
        optimizer.zero_grad()
        total = 0.0
        for part in (slice(0, 3), slice(3, 6), slice(6, 8)):
            outputs = theirs(torch.from_numpy(x[part]).double())
            mine = torch.from_numpy(task[part]), torch.from_numpy(target[part])
            loss = oracle.masked_loss(outputs, *mine) * len(mine[0]) / 8
            loss.backward()
            total += loss.item()
        optimizer.step()
        assert ours.train_step(x, task, target, lr=1e-4) == pytest.approx(total, rel=1e-4)
    state = oracle.state(theirs)
    found = ours.state_dict()
    learnt = list(dict(theirs.named_parameters()))
    moved = {oracle.our_name(k): None for k in learnt}
    for key in moved:
        change = np.linalg.norm(state[key] - start[key])
        assert np.linalg.norm(found[key] - state[key]) <= 0.02 * change, key
    for key, value in statistics(state).items():
        np.testing.assert_allclose(found[key], value, rtol=2e-3, atol=2e-3)


def parted(most, calls, frozen=False, **options):
    model = tiny(image_size=64, **options)  # the statistics of so few images of 32 pixels are wild
    model.micro_batch = most
    return in_series(model, calls, frozen)


@pytest.mark.parametrize("most", [3, 4], ids=["equal parts", "parts of 3 and 2"])
@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "frozen"])
def test_steps_in_a_row_and_threads_give_the_same_bits(frozen, most):
    """With groups and clipping; of batches of six, or seven."""
    before = _core.get_num_threads()
    found = parted(most, [4], frozen)
    try:
        mdmt.set_num_threads(3)
        single = parted(most, [1, 2, 1], frozen)
    finally:
        mdmt.set_num_threads(before)
    assert equal(found, single) and len(found[1]) == 4
    assert not equal(found, parted(None, [4], frozen)) or frozen


def test_rows_of_unequal_parts():
    """Batches of seven in parts of 4 and 3 are train_step on the same pixels."""
    model, twin = attached(tiny()), attached(tiny())
    model.micro_batch = twin.micro_batch = 4
    dataset, index = rows(3, 7)
    losses, per_task = model.fit_steps(dataset, index, clip=0.5, lr=1e-3)
    pictures = np.stack(list(twin._sources))
    for step in range(3):
        x = twin.normalise(pictures[dataset[step], index[step]])
        loss = twin.train_step(x, dataset[step], index[step] % 2, lr=1e-3, clip=0.5)
        assert loss == pytest.approx(losses[step], rel=1e-5)
        np.testing.assert_array_equal(per_task[step, :, 1], np.bincount(dataset[step], minlength=2))
        assert per_task[step, :, 0].sum() / 7 == pytest.approx(losses[step], rel=1e-5)
    assert model.training_step == 3 and model.gradient_norms.shape == (3,)
    close(model.state_dict(), twin.state_dict(), 1e-5)


def test_dropout_differs_from_part_to_part():
    """The same image as a batch of parts of one: with one mask the losses would be equal."""
    model = tiny(heads={"a": {"classes": 2, "hidden": [64], "dropout": 0.5}})
    x, zeros = np.repeat(mixed(size=64)[0][:1], 4, 0), np.zeros(4, int)
    model.micro_batch = 1
    losses = [model.loss_and_gradients(x[:n], zeros[:n], zeros[:n])[0] for n in (1, 2, 3, 4)]
    each = np.diff(np.arange(5) * [0, *losses])  # of the parts' masks
    assert len(set(np.round(each, 4))) == 4
    model.training_step = 1
    assert model.loss_and_gradients(x[:1], zeros[:1], zeros[:1])[0] not in each.astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("most", [3, 4], ids=["equal parts", "unequal"])
def test_on_a_gpu(gpu, precision, most):
    """Recorded, in single steps and not recorded, frozen or not, as on the CPU."""
    put, _ = gpu
    for frozen in (False, True):
        how = {"device": "cuda", "precision": precision}
        put("capture", 1)
        found = parted(most, [4], frozen, **how)
        assert equal(found, parted(most, [1, 2, 1], frozen, **how))
        put("capture", 0)
        assert equal(found, parted(most, [4], frozen, **how))
        if precision == "fp32":
            cpu = parted(most, [4], frozen)
            np.testing.assert_allclose(found[1][0], cpu[1][0], rtol=1e-2)


def test_two_recordings_serve_any_number_of_parts(gpu):
    """One of the parts that do not end a step, one of those that do; the host starts them only."""
    put, get = gpu
    model = attached(tiny(device="cuda", image_size=64))
    dataset, index = rows(4, 6)
    model.micro_batch = 2
    model.fit_steps(dataset, index, lr=1e-5)
    assert get("captures") == 2 and get("graph_launches") == 12 - 2
    before = {k: get(k) for k in ("launches", "captures", "graph_launches")}
    model.fit_steps(dataset, index, lr=1e-5)
    assert get("captures") == before["captures"] and get("launches") == before["launches"]
    assert get("graph_launches") == before["graph_launches"] + 12
    model.micro_batch = None  # and back: nothing of the parts is left
    whole = attached(tiny(device="cuda", image_size=64))
    whole.load_state_dict(model.state_dict())
    whole.load_optimizer_state(*model.optimizer_state())
    assert np.array_equal(model.fit_steps(dataset, index)[0], whole.fit_steps(dataset, index)[0])
    assert same(model.state_dict(), whole.state_dict())


def test_train_step_on_a_gpu(gpu):
    ours, plain = (tiny(heads=MIXED, device="cuda") for _ in range(2))
    ours.micro_batch = 4
    x, task, target, weight = mixed()
    expected = by_parts(plain, x, task, target, weight, 4)
    loss, gradients = ours.loss_and_gradients(x, task, target, sample_weight=weight)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    close(gradients, expected[1], 1e-6)
    ours.train_step(x, task, target, sample_weight=weight, clip=1.0)
    assert ours.training_step == 1 and np.isfinite(ours.gradient_norms).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad, done", [(0, 0), (1, 0), (4, 2), (5, 2)])
def test_a_loss_that_is_not_finite_in_any_part(gpu, device, clip, bad, done):
    """Ends the series; the steps before count, and that step changes no weight."""
    model = tiny(device=device, heads={"a": {"classes": 1, "loss": "mse", "dropout": 0.0}})
    target = np.full(13, 0.5, np.float32)
    target[12] = 3e38  # its square is infinite
    rng = np.random.default_rng(0)
    model.attach([{"images": rng.integers(0, 256, (13, 32, 32), np.uint8), "task": 0,
                   "target": target}])  # fmt: skip
    index = np.arange(12).reshape(3, 4)  # parts of two
    index.reshape(-1, 2)[bad, 1] = 12
    model.micro_batch = 2
    twin = copy.copy(model)
    with pytest.raises(FloatingPointError, match=f"training step {done}"):
        model.fit_steps(np.zeros_like(index), index, clip=clip)
    assert model.training_step == done
    if done:
        twin.fit_steps(np.zeros_like(index[:done]), index[:done], clip=clip)
    learnt = model._learnt
    state, expected = model.state_dict(), twin.state_dict()
    assert all(np.array_equal(state[k], expected[k]) for k in learnt)


def test_interrupted_between_steps_alone():
    """Ctrl-C comes while a step of ten parts runs: whole steps take effect, as without it."""
    import signal

    class Halt(Exception):
        pass

    def halt(*_):
        raise Halt

    model, twin = (attached(tiny(image_size=64)) for _ in range(2))
    model.micro_batch = twin.micro_batch = 2
    dataset, index = rows(400, 20)
    index %= 6
    former = signal.signal(signal.SIGALRM, halt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Halt):
            model.fit_steps(dataset, index, lr=1e-5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    done = model.training_step
    assert 0 < done < 400
    twin.fit_steps(dataset[:done], index[:done], lr=1e-5)
    assert same(model.state_dict(), twin.state_dict())


def test_memory_is_that_of_a_part():
    model = tiny("resnet18", image_size=64)
    whole, part = model.memory(32), model.memory(4)
    model.micro_batch = 4
    planned = model.memory(32)
    assert planned["activations"] == part["activations"] < whole["activations"] / 4
    assert planned["gradients"] == 2 * whole["gradients"]
    assert model.memory(4) == part
    assert model.memory(32, training=False) == tiny("resnet18", image_size=64).memory(32, False)


def test_copies_pickles_and_files_keep_it(tmp_path):
    model = attached(tiny())
    model.micro_batch = 2
    dataset, index = rows(1, 6)
    model.fit_steps(dataset, index)
    model.save(tmp_path / "whole.safetensors", optimizer=True)
    model.save(tmp_path / "weights.safetensors")
    assert Model.load(tmp_path / "weights.safetensors").micro_batch is None
    loaded = Model.load(tmp_path / "whole.safetensors")
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]
    model.fit_steps(dataset, index)
    for twin in twins:
        assert twin.micro_batch == 2
        attached(twin).fit_steps(dataset, index)
        assert same(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize("most", [0, -1, 2.5, "4", True])
def test_what_is_no_number_of_samples(most):
    model = tiny()
    with pytest.raises((ValueError, TypeError), match="micro_batch"):
        model.micro_batch = most
    assert model.micro_batch is None


def test_a_part_that_batch_norm_cannot_take():
    model = tiny("resnet18")
    model.micro_batch = 1
    with pytest.raises(ValueError, match="larger batch"):
        model.train_step(mixed()[0][:4], [0] * 4, [0] * 4)


# In studies ----------------------------------------------------------------------------------


def test_a_training_is_resumed_within_an_epoch_to_the_same_bits(tmp_path):
    from tests import test_engine

    history = test_engine.stopped_and_resumed(tmp_path, micro_batch=3, clip_norm=2.0)
    plain = test_engine.fit(epochs=2, clip_norm=2.0)
    assert plain.run().history != history


def test_descriptions_name_it_where_it_matters():
    """Trainings without it, or with parts that are whole batches, keep their ids."""
    from tests.test_experiments import by_name, own, plan

    size = "train.batch_size=16"
    without, found = (by_name(plan(size, *more)) for more in ([], ["train.micro_batch=4"]))
    assert found["MDMT"].description["train"]["micro_batch"] == 4
    assert found["MDMT"].id != without["MDMT"].id
    for most in (16, 20):
        assert by_name(plan(size, f"train.micro_batch={most}"))["MDMT"].id == without["MDMT"].id
    stages = [{"tasks": ["tau1"], "train": {"micro_batch": 2}}, {"tasks": ["tau1"], "init": 0}]
    first, second = (job.description["train"] for job in own(*stages)[:2])
    assert first["micro_batch"] == 2 and "micro_batch" not in second
    with pytest.raises(BadConfig, match=r"train.micro_batch is 0; it must be at least 1"):
        plan("train.micro_batch=0")


def test_the_report_names_it():
    from mdmt import config
    from mdmt.report import recipe

    values = config.load("demo", ["train.batch_size=16", "train.micro_batch=4"])
    said = ", batches in parts of at most 4, whose gradients are added up"
    assert recipe.optimiser(values) == said
    values["experiments"] = {"MINE": [{"train": {"micro_batch": None}}]}
    values["configurations"] = ["MINE"]
    assert recipe.optimiser(values) == f"{said} (in stage 0 of MINE, whole batches at once)"
    values["train"]["micro_batch"] = 16
    values["configurations"] = ["MDMT"]
    assert recipe.optimiser(values) == ""


def test_too_little_memory_names_a_micro_batch_that_would_do(monkeypatch):
    model = tiny("resnet18", image_size=64)
    model.micro_batch = 8
    room = sum(model.memory(64).values())
    monkeypatch.setattr(engine, "available_memory", lambda: room)
    assert engine.check_memory(model, 64) == room
    model.micro_batch = None
    with pytest.raises(MemoryError, match=r"a batch of 64 needs .* of which train.micro_batch 8 "):
        engine.check_memory(model, 64)
    assert model.micro_batch is None
    model.micro_batch = 16
    with pytest.raises(MemoryError, match=r"a batch of 64 in parts of at most 16 needs .* 8 would"):
        engine.check_memory(model, 64)
    monkeypatch.setattr(engine, "available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"GiB are free$"):
        engine.check_memory(model, 64)


def test_a_part_of_one_image_is_refused_before_training():
    found = {(n, most): engine.leaves_one(n, most) for n in range(1, 9) for most in (1, 2, 3, None)}
    assert {case for case, one in found.items() if one} == {
        *((n, 1) for n in range(1, 9)), *((n, 2) for n in (1, 3, 5, 7)), (1, 3), (1, None),
    }  # fmt: skip
    model = tiny("resnet18")
    model.micro_batch = 2
    engine.check_memory(model, 8)
    with pytest.raises(BadInput, match=r"^train.micro_batch is 2, .* image \(of a batch of 5"):
        engine.check_memory(model, 5)
    engine.check_memory(tiny("resnet18", image_size=64), 5)
    said = engine.lonely(model, 27, 8)
    assert "a last batch of 3 in parts of at most 2, with a part of one, which resnet18" in said
    assert said.endswith("or change train.micro_batch, train.batch_size or image_size")
