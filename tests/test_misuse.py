"""Model from Python as people use it who know other libraries: several threads, forks, Ctrl-C,
arrays that are nearly right."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import mdmt
from mdmt import _core

HEADS = {
    "outcome": 2,
    "score": {"classes": 1, "loss": "mse", "hidden": []},
    "findings": {"classes": 3, "loss": "bce", "hidden": []},
}
SIZE = 32


def make(heads=None, **settings):
    heads = {"outcome": 2} if heads is None else heads
    return mdmt.Model("shufflenet_v2_x0_5", heads, image_size=SIZE, **settings)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(0, 256, (12, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return make(HEADS)


# Threads, forks, signals ---------------------------------------------------------------------


def test_threads_that_share_a_model_get_what_one_gets():
    model, rng = make(), np.random.default_rng(0)
    sizes = [(n, side) for n in (1, 2, 5) for side in (32, 48)]
    batches = [rng.normal(size=(n, 3, s, s)).astype(np.float32) for n, s in sizes]
    expected = [model.forward(b)["outcome"] for b in batches]
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(len(batches), size=40):
            if not np.array_equal(model.forward(batches[i])["outcome"], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_network_without_a_model_refuses_a_second_thread():
    """In a process of its own: without that it would be the end of this one."""
    code = """if True:
        import contextlib, threading
        import numpy as np, mdmt
        model = mdmt.Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=64)
        model._lock = contextlib.nullcontext()  # what is left is the engine's own network
        images = np.ones((24, 3, 64, 64), np.float32)
        expected = [model.forward(images[:n])["a"] for n in range(1, 25)]
        said, wrong = [], []
        def work(seed):
            for n in np.random.default_rng(seed).integers(24, size=40):
                try:
                    found = model.forward(images[:n + 1])["a"]
                    wrong.append(not np.array_equal(found, expected[n]))
                except RuntimeError as error:
                    said.append(str(error))
        def threads():
            for i in range(60):
                mdmt.set_num_threads(1 + i % 3)
        some = [threading.Thread(target=work, args=(s,)) for s in range(3)]
        some.append(threading.Thread(target=threads))
        for thread in some: thread.start()
        for thread in some: thread.join()
        model.forward(images)
        print(len(set(said)), any(wrong), said[0])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 False the network is being used by another thread; wait")


def test_state_dict_beside_training_is_of_one_step(x):
    """No mixture of the weights before and after a step."""
    model, task, target = make(), [0] * 4, [0, 1, 0, 1]
    twin = make()
    known = [twin.state_dict()]
    for _ in range(12):
        twin.train_step(x, task, target)
        known.append(twin.state_dict())
    step = threading.Thread(target=lambda: [model.train_step(x, task, target) for _ in range(12)])
    step.start()
    seen = []
    while step.is_alive():
        seen.append(model.state_dict())
    step.join()
    key = "conv1.1.num_batches_tracked"
    for state in seen:
        expected = known[int(state[key])]
        assert all(np.array_equal(state[k], expected[k]) for k in state)
    assert seen


def test_number_of_threads_may_change_while_a_network_runs(x):
    model, before = make(), mdmt.system.get_num_threads()
    expected = model.forward(x)["outcome"]
    ended, wrong = threading.Event(), []

    def work():
        while not ended.is_set():
            wrong.append(not np.array_equal(model.forward(x)["outcome"], expected))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(40):
            mdmt.set_num_threads(1 + i % 3)
            model.memory(2)
            time.sleep(0.005)
    finally:
        ended.set()
        thread.join()
        mdmt.set_num_threads(before)
    assert wrong and not any(wrong)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_threads_of_a_number_are_kept_not_started_again(x):
    model, before = make(), mdmt.system.get_num_threads()
    counts = []
    try:
        for _ in range(4):
            for n in (2, 3):
                mdmt.set_num_threads(n)
                model.forward(x)
            counts.append(len(os.listdir("/proc/self/task")))
    finally:
        mdmt.set_num_threads(before)
    assert counts[0] == counts[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_predicts_while_the_parent_holds_the_model(x):
    """A child that is forked while another thread is in the model neither waits nor differs."""
    model = make()
    expected = model.forward(x)["outcome"]
    held, free = threading.Event(), threading.Event()

    def hold():
        with model._lock:
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pipe, end = multiprocessing.Pipe(False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: end.send(model.forward(x)["outcome"])
    )
    child.start()
    try:
        assert pipe.poll(60), "the child waits for ever"
        assert np.array_equal(pipe.recv(), expected)
    finally:
        child.kill()
        free.set()
        thread.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_forked_child_gets_threads_when_it_asks_for_them(x):
    """The parent's are not there; the same number is no reason to go without."""
    model, before = make(), mdmt.system.get_num_threads()
    pipe, end = multiprocessing.Pipe(False)

    def work():
        mdmt.set_num_threads(2)
        out = model.forward(x)["outcome"]
        end.send((out, len(os.listdir("/proc/self/task"))))

    try:
        mdmt.set_num_threads(2)
        expected = model.forward(x)["outcome"]
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        assert pipe.poll(60)
        out, threads = pipe.recv()
        child.join()
    finally:
        mdmt.set_num_threads(before)
    assert np.array_equal(out, expected) and threads == 2


def test_ctrl_c_ends_a_long_series(pictures):
    """What was done until then counts, as if it had been called for."""
    model, twin = make(), make()
    data = [{"images": pictures, "task": 0, "target": np.arange(12) % 2}]
    model.attach(data)
    twin.attach(data)
    steps = np.tile(np.arange(8), (100_000, 1))
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    # A process that a script starts in the background ignores the signal.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit_steps(np.zeros_like(steps), steps)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, former)
    assert time.monotonic() - begun < 30
    done = model.training_step
    assert 0 < done < len(steps)
    twin.fit_steps(np.zeros_like(steps[:done]), steps[:done])
    after = model.state_dict()
    assert all(np.array_equal(v, after[k]) for k, v in twin.state_dict().items())


def test_exception_of_a_signal_handler_comes_through(pictures):
    class TooLong(Exception):
        pass

    def handler(*_):
        raise TooLong

    model = make()
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    steps = np.tile(np.arange(8), (100_000, 1))
    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(TooLong):
            model.fit_steps(np.zeros_like(steps), steps)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_a_signal_handler_may_use_the_network_between_two_steps(pictures):
    """Its programs, the room they share and the threads are others after that; the steps are not.
    In a process of its own: without that it would be the end of this one."""
    code = """if True:
        import signal, sys
        import numpy as np, mdmt
        images = np.random.default_rng(1).integers(0, 256, (12, 32, 32), dtype=np.uint8)
        large = np.ones((40, 3, 64, 64), np.float32)
        models = [mdmt.Model("shufflenet_v2_x0_5", {"a": 2}, image_size=32) for _ in range(2)]
        steps, calls = np.tile(np.arange(8), (250, 1)), []
        def handler(*_):
            calls.append(1)
            mdmt.set_num_threads(1 + len(calls) % 2)
            for n in range(1, 14):  # more programs than are kept
                models[0].forward(large[: n + len(calls)])
        signal.signal(signal.SIGALRM, handler)
        for model, pause in zip(models, (0.1, 0)):
            model.attach([{"images": images, "task": 0, "target": np.arange(12) % 2}])
            signal.setitimer(signal.ITIMER_REAL, pause)
            losses = [model.fit_steps(np.zeros_like(steps), steps)[0]]
            print(len(calls) > 0, losses[0].tobytes().hex())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    disturbed, alone = done.stdout.splitlines()
    assert disturbed.startswith("True") and disturbed == alone


# Batches that are nearly right ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: (x * 9).astype(np.int32), "x holds int32"),
        (lambda x: x > 0, "x holds bool"),
        (lambda x: None, "x holds NoneType"),
        (lambda x: x[:0], "the batch is empty"),
        (lambda x: x[:, :1], r"give x\[:, 0\]"),
        (lambda x: x.transpose(0, 2, 3, 1), r"x.transpose\(0, 3, 1, 2\)"),
        (lambda x: x[0, 0], r"x\[None\]"),
    ],
)
def test_images_that_no_network_takes(model, x, change, words):
    with pytest.raises(ValueError, match=words):
        model.forward(change(x))


@pytest.mark.filterwarnings("error")
def test_values_beyond_float32_are_one_sentence_without_a_warning(model, x):
    with pytest.raises(FloatingPointError, match="image 0 of the batch"):
        model.forward(x.astype(np.float64) * 1e300)
    with pytest.raises(ValueError, match="infinite target"):
        model.train_step(x, [1] * 4, [1e300] * 4)


def test_targets_of_the_tasks_in_the_batch_are_enough(x):
    """One column for classes and numbers, though another head reads three."""
    a, b = make(HEADS), make(HEADS)
    task, target = [0, 0, 1, 1], np.array([0, 1, 0.3, 0.2])
    wide = np.column_stack([target, np.zeros((4, 2))])
    assert a.train_step(x, task, target) == b.train_step(x, task, wide)
    with pytest.raises(ValueError, match="task findings needs 3 targets per sample, not 1"):
        a.train_step(x, [0, 0, 1, 2], target)


def test_one_data_set_of_several_tasks_trains(pictures):
    model = make(HEADS)
    model.attach([{"images": pictures, "task": 0, "target": np.arange(12) % 2}])
    loss, per_task = model.fit_step([0] * 8, np.arange(8))
    assert np.isfinite(loss) and per_task[:, 1].tolist() == [8, 0, 0]


def test_masked_loss_needs_columns_only_for_tasks_in_the_batch():
    logits = [np.ones((3, 2), np.float32), np.ones((3, 4), np.float32)]
    kinds = ["ce", "bce"]
    loss, gradients, per_task = mdmt.masked_loss(logits, [0, -1, 0], [1, 0, 0], losses=kinds)
    assert loss == pytest.approx(np.log(2))
    assert not gradients[1].any() and per_task[:, 1].tolist() == [2, 0]
    with pytest.raises(ValueError, match="task 1 has 4 outputs, but the targets have 1 columns"):
        mdmt.masked_loss(logits, [0, 1, 0], [1, 0, 0], losses=kinds)


def test_one_hot_classes_are_refused(x):
    with pytest.raises(ValueError, match="not one-hot"):
        make({"outcome": 4}).train_step(x, [0] * 4, np.eye(4))
    a, b = make(), make()  # padding is none
    padded = np.array([[0, 0, np.nan], [1, 0, 0], [1, np.nan, 0], [0, 0, 0]])
    assert a.train_step(x, [0] * 4, padded) == b.train_step(x, [0] * 4, padded[:, 0])


def test_frozen_backbone_stays_in_train_step(x):
    model = make(HEADS)
    model.freeze_backbone()
    before = model.state_dict()
    task, target = [0, 1, 2, 0], [[1, 0, 0], [0.5, 0, 0], [1, 0, 1], [0, 0, 0]]
    losses = [model.train_step(x, task, target) for _ in range(3)]
    changed = {k for k, v in model.state_dict().items() if not np.array_equal(v, before[k])}
    assert changed and all(k.startswith("heads.") for k in changed)
    assert losses[-1] < losses[0]
    model.train_step(x[:1], [0], [1])  # nothing is normalised over the batch


@pytest.mark.parametrize("number", [1 << 32, -(1 << 32), (1 << 63) - 1])
def test_numbers_beyond_32_bits_are_not_cut(pictures, number):
    model = make()
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    for call in (model.fit_step, model.predict):
        with pytest.raises(IndexError, match=f"of data set {number}"):
            call(np.full(4, number), np.arange(4))
    with pytest.raises(IndexError, match=f"image {2**64 - 1} of"):
        model.predict([0], np.array([2**64 - 1], np.uint64))


def test_attributes_of_ops_beyond_32_bits_are_refused(x):
    w = np.ones((2, 3, 3, 3), np.float32)
    with pytest.raises(ValueError, match=f"stride cannot be {2**32 + 1}"):
        mdmt.ops.conv2d(x, w, stride=2**32 + 1)


@pytest.mark.parametrize(
    "how",
    [
        {"dilation": 2**31 - 1},
        {"dilation": 2**30},
        {"stride": 2**20},
        {"padding": 2**30},
        {"padding": (2**29, 2**23)},
    ],
)
def test_attributes_whose_products_leave_an_int_are_refused(how):
    x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1024, 1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"32768|cannot pad by"):
        mdmt.ops.conv2d(x, w, **how)
    if "stride" in how:
        with pytest.raises(ValueError, match="32768"):
            mdmt.ops.conv2d_backward(np.ones((1, 1024, 1, 1), np.float32), x, w, **how)


@pytest.mark.parametrize(
    "kernel, how",
    [(2**16, {}), (2**31 - 1, {}), (5, {"dilation": 2**30}), (3, {"stride": 2**31 - 1})],
)
def test_windows_whose_products_leave_an_int_are_refused(kernel, how):
    with pytest.raises(ValueError, match=r"more than 255 elements|at most 32768"):
        mdmt.ops.max_pool2d(np.ones((1, 1, 8, 8), np.float32), kernel, ceil_mode=True, **how)


def test_a_tensor_whose_count_of_elements_leaves_64_bits_is_too_large():
    graph = _core.Graph()
    with pytest.raises(ValueError, match="too large"):
        graph.input("x", "map", (1 << 20, 1 << 20, 1 << 24, 1))


def test_arrays_that_begin_anywhere_in_memory(model, x):
    odd = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not odd.flags.aligned
    for task, logits in model.forward(x).items():
        assert np.array_equal(model.forward(odd)[task], logits)
    rows = x.reshape(4, -1)[:, :3]
    away = np.frombuffer(b"." + rows.tobytes(), np.uint8)[1:].view(np.float32).reshape(4, 3)
    assert (
        mdmt.masked_loss([away], [0] * 4, [0] * 4)[0]
        == mdmt.masked_loss([np.ascontiguousarray(rows)], [0] * 4, [0] * 4)[0]
    )


@pytest.mark.parametrize("path", _core.cpu_info()["paths"])
def test_a_second_moment_that_overflows_leaves_its_weight(path):
    """As in PyTorch: a gradient beyond 1e20 has an infinite second moment, and no step."""
    code = """if True:
        import numpy as np, mdmt
        head = {"classes": 1, "hidden": [], "dropout": 0, "loss": "mse"}
        model = mdmt.Model("shufflenet_v2_x0_5", {"a": head}, image_size=32)
        x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
        before = model.state_dict()
        loss = model.train_step(x, [0] * 4, [1.5e19, -1.2e19, 1.4e19, 1.1e19])
        after, (moments, _) = model.state_dict(), model.optimizer_state()
        over = {k[:-2]: np.isinf(v) for k, v in moments.items() if k.endswith(".v")}
        same = all(np.array_equal(after[k][o], before[k][o]) for k, o in over.items())
        print(np.isfinite(loss), any(o.any() for o in over.values()), same)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MDMT_CPU": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True"] * 3, done.stdout + done.stderr


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"outcom": 2}, "not outcom"),
        ({"outcome": float("nan")}, "must be a number, not nan"),
        ({"outcome": "2"}, "must be a number, not '2'"),
        ([1, 2], r"not \[1, 2\]"),
    ],
)
def test_task_weights_are_of_heads(x, weights, words):
    model = make()
    model.task_weights = weights
    with pytest.raises(ValueError, match=words):
        model.train_step(x, [0] * 4, [0] * 4)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"images": 0, "task": 0, "targets": 0}, "data set 0 has no target.*it has targets"),
        ((1, 2, 3), "data set 0 has no images"),
        ({"images": [np.zeros((2, 2)), np.zeros((3, 2))], "task": 0, "target": 0}, "differ"),
        ({"images": np.zeros((0, 2, 2), np.uint8), "task": 0, "target": []}, "has no images"),
        ({"images": np.zeros((3, 2, 2), np.uint8).T, "task": 0, "target": 0}, "ascontiguous"),
        ({"images": np.zeros((3, 2, 2), np.uint8), "task": 0, "target": [0]}, "data set 0: target"),
    ],
)
def test_data_sets_that_cannot_be_attached(model, entry, words):
    with pytest.raises(ValueError, match=words):
        model.attach([entry])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"augment": True}, "augment must be None"),
        ({"augment": {"rotation": "3"}}, "rotation of the augmentation must be a number"),
        ({"augment": {"elastic_alpha": 3}}, "elastic_alpha of the augmentation must be two"),
        ({"epoch": -1}, "epoch must be 0 to"),
        ({"epoch": 1.5}, "epoch must be an integer"),
    ],
)
def test_settings_of_a_step_that_make_no_sense(pictures, settings, words):
    model = make()
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    with pytest.raises(ValueError, match=words):
        model.fit_step([0] * 4, np.arange(4), **settings)


def test_scaling_has_a_number_per_channel(pictures):
    model = make()
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    model.mean = (0.5, 0.5)
    with pytest.raises(ValueError, match=r"model.mean must be 3 numbers"):
        model.predict([0], [0])


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "a.b", "", "features", 3, "ä" * 48])
def test_names_that_no_head_can_have(name):
    with pytest.raises(ValueError, match="cannot be named"):
        make({name: 2})


def test_heads_as_other_mappings_and_numbers(tmp_path, x):
    """Mappings that are no dict, NumPy's integers, names of any script and of a backbone's keys."""
    heads = types.MappingProxyType({"重症度": np.int64(3), "conv1": np.int32(2), "Schwere ä": 2})
    model = make(heads)
    model.save(tmp_path / "m.safetensors")
    loaded = mdmt.Model.load(tmp_path / "m.safetensors")
    assert list(loaded.heads) == list(heads)
    expected = model.forward(x)
    assert all(np.array_equal(v, expected[k]) for k, v in loaded.forward(x).items())
    with pytest.raises(ValueError, match="head a: classes must be 1 to"):
        make({"a": 2**32 + 2})


# Copies and files ----------------------------------------------------------------------------


def trained(pictures, steps=3):
    model = make(seed=5)
    model.task_weights = {"outcome": 0.5}
    model.attach([{"images": pictures, "task": 0, "target": np.arange(12) % 2}])
    advance(model, range(steps))
    return model


def advance(model, steps):
    return [model.fit_step([0] * 8, (np.arange(8) + s) % 12, augment={}, epoch=s)[0] for s in steps]


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_go_on_alike_and_apart(pictures, duplicate):
    model = trained(pictures)
    twin = duplicate(model)
    if not twin._sources:  # a pickle leaves the data sets behind
        twin.attach([{"images": pictures, "task": 0, "target": np.arange(12) % 2}])
    before = model.state_dict()
    losses = advance(twin, range(3, 6))
    after = model.state_dict()
    assert all(np.array_equal(v, after[k]) for k, v in before.items())
    assert losses == advance(model, range(3, 6))
    mine, theirs = model.state_dict(), twin.state_dict()
    assert all(np.array_equal(v, theirs[k]) for k, v in mine.items())


def test_saved_with_its_optimizer_a_model_goes_on_to_the_same_bits(tmp_path, pictures):
    model = trained(pictures)
    model.save(tmp_path / "m.pt", optimizer=True)
    model.save(tmp_path / "plain")
    loaded = mdmt.Model.load(tmp_path / "m.pt")
    loaded.attach([{"images": pictures, "task": 0, "target": np.arange(12) % 2}])
    assert loaded.training_step == 3
    assert advance(loaded, range(3, 6)) == advance(model, range(3, 6))
    weights = mdmt.load_weights(tmp_path / "m.pt")
    assert set(weights) == set(model.state_dict()) == set(mdmt.load_weights(tmp_path / "plain"))
    assert not [k for k in make(weights=tmp_path / "m.pt").unused if not k.startswith("heads.")]


def test_a_frozen_backbone_stays_frozen_in_a_file(tmp_path, x):
    model = make()
    model.freeze_backbone()
    model.train_step(x, [0] * 4, [0, 1, 0, 1])
    model.save(tmp_path / "m", optimizer=True)
    loaded = mdmt.Model.load(tmp_path / "m")
    for one in (model, loaded):
        one.train_step(x, [0] * 4, [0, 1, 0, 1])
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert all(np.array_equal(v, theirs[k]) for k, v in mine.items())
    model.save(tmp_path / "weights")  # those alone: to start another training from
    assert not mdmt.Model.load(tmp_path / "weights")._frozen


@pytest.mark.parametrize(
    "name, values",
    [("mean", (0.5, 0.5)), ("mean", (np.nan, 0, 0)), ("std", (0, 1, 1)), ("std", (1, 1, 1e7))],
)
def test_a_scaling_that_load_would_refuse_is_not_saved(tmp_path, name, values):
    model = make()
    setattr(model, name, values)
    with pytest.raises(ValueError, match=f"model.{name} must be 3 numbers"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_load_would_refuse_is_not_saved(tmp_path):
    model = make()
    model._network.set("conv1.1.running_var", np.full(24, np.inf, np.float32))
    with pytest.raises(FloatingPointError, match=r"not written: conv1.1.running_var holds NaN"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_load_refuses_are_named(tmp_path):
    model, path = make(), tmp_path / "m.safetensors"
    model.save(path)
    whole = bytearray(path.read_bytes())
    whole[-4:] = b"\xff" * 4
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"m\.safetensors: .* holds NaN"):
        mdmt.Model.load(path)
    pth = tmp_path / "resnet.pth"
    pth.write_bytes(b"PK\3\4" + bytes(40))
    with pytest.raises(ValueError, match=r"resnet\.pth was not written by Model\.save"):
        mdmt.Model.load(pth)


def test_partial_loads_say_what_was_missing_and_ignored():
    model = make()
    backbone = {k: v for k, v in model.state_dict().items() if not k.startswith("heads.")}
    with pytest.raises(ValueError, match="strict=False keeps the heads"):
        model.load_state_dict(backbone)
    state = {**backbone, "fc.weight": np.zeros((9, 1024)), "conv1.typo": np.zeros(3)}
    loaded = model.load_state_dict(state, strict=False)
    assert loaded == ["fc.weight", "conv1.typo"]
    assert loaded.unexpected_keys == ["conv1.typo"]
    assert loaded.missing_keys == [k for k in model.state_dict() if k.startswith("heads.")]


@pytest.mark.parametrize(
    "change, step, words",
    [
        (lambda a: {"x.m": 0}, 1, "x.m is no moment"),
        (lambda a: {"conv1.0.weight.m": a["conv1.0.weight.m"][:1]}, 1, "must be floats"),
        (lambda a: {"conv1.0.weight.m": a["conv1.0.weight.m"] + np.nan}, 1, "holds NaN"),
        (lambda a: {"conv1.0.weight.v": a["conv1.0.weight.v"] - 1}, 1, "negative second"),
        (lambda a: a, -5, "step must be 0 to"),
    ],
)
def test_optimizer_states_of_other_models(change, step, words):
    model = make()
    arrays, _ = model.optimizer_state()
    with pytest.raises(ValueError, match=words):
        model.load_optimizer_state(change(arrays), step)
    assert model.training_step == 0
    assert not any(v.any() for v in model.optimizer_state()[0].values())


def test_modules_in_the_place_of_their_weights():
    class Module:
        def state_dict(self):
            return {}

    for call in (
        lambda: make(weights=Module()),
        lambda: make().load_state_dict(Module()),
        lambda: mdmt.average_weights(Module(), Module()),
    ):
        with pytest.raises(ValueError, match=r"Module; give its state_dict\(\)"):
            call()


def test_sampler_and_schedule_can_be_copied_and_show_themselves():
    sampler = mdmt.MixedBatchSampler([5, 6], 3, mode="ratio", ratio=[1, 2], seed=4)
    sampler.set_epoch(2)
    batches = iter(sampler)
    next(batches)
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        ours = [np.stack(b).tolist() for b in copy.copy(sampler)]
        assert [np.stack(b).tolist() for b in twin] == ours and len(ours) == len(sampler) - 1
    text = repr(sampler)
    assert "ratio [1.0, 2.0]" in text and "[5, 6] samples" in text and "epoch 2" in text
    schedule = mdmt.schedule.TrainingSchedule(lr=0.01, warmup=0)
    schedule.update(0, 0.5)
    assert repr(schedule) == "TrainingSchedule(lr 0.01, 1 epochs done, best 0 (loss 0.5))"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([5.5], 2), "size of data set 0 must be an integer, not 5.5"),
        (("56", 2), "must be an integer, not '5'"),
        ((5, 2), "sizes must be a list"),
        (([5], 2.7), "batch_size must be an integer, not 2.7"),
        (([2**70], 2), "size of data set 0 must be"),
    ],
)
def test_sampler_takes_whole_numbers(arguments, words):
    with pytest.raises(ValueError, match=words):
        mdmt.MixedBatchSampler(*arguments)
    with pytest.raises(ValueError, match="seed must be a number"):
        mdmt.MixedBatchSampler([5], 2, seed=1.5)
    with pytest.raises(ValueError, match="epoch must be an integer"):
        mdmt.MixedBatchSampler([5], 2).set_epoch(1.5)


def test_what_a_model_was_built_with_cannot_be_changed_afterwards(pictures):
    model = make()
    for name in ("backbone", "heads", "channels", "device", "precision"):
        with pytest.raises(AttributeError):
            setattr(model, name, getattr(model, name))
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    model.image_size = 48
    twin = make()
    twin.image_size = (48, 48)
    twin.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    assert model.image_size == (48, 48)
    assert np.array_equal(model.predict([0], [3])["outcome"], twin.predict([0], [3])["outcome"])
    with pytest.raises(ValueError, match="image_size must be an integer"):
        model.image_size = "48"


def test_a_call_is_a_forward_pass(model, x):
    expected = model.forward(x)
    assert all(np.array_equal(v, expected[k]) for k, v in model(x).items())


def test_places_where_no_model_can_be_saved(tmp_path):
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "a" / "m.st", "there is no folder")):
        with pytest.raises(FileNotFoundError, match=words):
            make().save(path)
    os.mkfifo(tmp_path / "pipe")  # as a device, a place of its own that no file may replace
    with pytest.raises(FileNotFoundError, match="no regular file"):
        make().save(tmp_path / "pipe")
    assert not (tmp_path / "pipe").is_file()


def test_other_settings_that_are_refused_in_a_sentence():
    logits, w = [np.zeros((2, 3), np.float32)], np.ones((1, 1, 3, 3), np.float32)
    for call, words in (
        (lambda: mdmt.masked_loss(logits[0], [0, 0], [0, 1]), "must be a list"),
        (lambda: mdmt.masked_loss([logits[0], logits[0][:1]], [0, 0], [0, 1]), r"logits\[1\]"),
        (lambda: mdmt.masked_loss(logits, [0, 0], [0, 1], weights=[np.nan]), "not nan"),
        (lambda: mdmt.masked_loss(logits, [0, 0], [0, 1], weights={"a": 1}), "must be a list with"),
        (lambda: mdmt.set_num_threads(1.5), "must be an integer, not 1.5"),
        (lambda: mdmt.ops.conv2d(w, w, padding="same"), "in pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    loss, gradients, _ = mdmt.masked_loss([np.zeros((0, 3), np.float32)], [], [])
    assert loss == 0 and gradients[0].shape == (0, 3)


def test_tasks_by_name_are_told_their_numbers(model, x, pictures):
    for call in (
        lambda: model.train_step(x, ["score"] * 4, [0] * 4),
        lambda: model.attach([{"images": pictures, "task": "score", "target": np.zeros(12)}]),
    ):
        with pytest.raises(ValueError, match=r"0 \(outcome\), 1 \(score\), 2 \(findings\)"):
            call()


def test_normalised_pictures_are_what_resident_ones_become(pictures):
    model = make()
    model.attach([{"images": pictures, "task": 0, "target": np.zeros(12)}])
    resident = model.predict([0] * 12, np.arange(12), batch_size=12)
    colour = np.repeat(pictures[:, None], 3, axis=1)
    for given in (pictures, colour):
        outside = model.forward(model.normalise(given))
        assert all(np.array_equal(v, resident[k]) for k, v in outside.items())
    for given, words in (
        (pictures / 255, "not float64"),
        (colour.transpose(0, 2, 3, 1), r"x.transpose\(0, 3, 1, 2\)"),
        (pictures[0], "must be uint8"),
    ):
        with pytest.raises(ValueError, match=words):
            model.normalise(given)


@pytest.mark.parametrize("change", ["task_weights", "frozen"])
def test_a_saved_model_goes_on_with_its_task_weights_and_its_frozen_backbone(tmp_path, x, change):
    model, path = make(HEADS), tmp_path / "m.safetensors"
    if change == "frozen":
        model.freeze_backbone()
    else:
        model.task_weights = {"score": np.float32(0.25)}
    batch = x, [0, 1, 2, 1], [[1, 0, 0], [3, 0, 0], [1, 0, 1], [-2, 0, 0]]
    model.train_step(*batch)
    model.save(path, optimizer=True)
    twin = mdmt.Model.load(path)
    assert [model.train_step(*batch) for _ in range(2)] == [twin.train_step(*batch) for _ in "ab"]
    after = model.state_dict()
    assert all(np.array_equal(v, after[k]) for k, v in twin.state_dict().items())
