"""Model from Python as people use it who know other libraries: several threads, forks, Ctrl-C,
arrays that are nearly right."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

import mdmt

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


def test_ctrl_c_ends_a_long_series(pictures):
    """What was done until then counts, as if it had been called for."""
    model, twin = make(), make()
    data = [{"images": pictures, "task": 0, "target": np.arange(12) % 2}]
    model.attach(data)
    twin.attach(data)
    steps = np.tile(np.arange(8), (100_000, 1))
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.fit_steps(np.zeros_like(steps), steps)
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
