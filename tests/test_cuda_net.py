"""Whole training steps of the CUDA backend, run on the processor: images, augmentation, dropout,
loss, gradients, Adam, running statistics, against the CPU backend; and what is said of errors."""

from collections import Counter

import numpy as np
import pytest

from mdmt import _core
from mdmt.nets.builder import Builder
from mdmt.nets.init import initial_value
from tests import cudahost

no_race = cudahost.no_race
STEP = {"seed": 3, "step": 5, "epoch": 2}
AUGMENT = {"probability": 0.7, "shift": 0.1, "zoom": 0.1, "flip": 1.0, "rotation": 20.0,
           "elastic_alpha": (20.0, 60.0), "elastic_sigma": 6.0}  # fmt: skip


def small_net():
    """Stem, residual, concatenation, depthwise, squeeze-excite, shuffle, dropout, two heads."""
    b = Builder(32, 32, 1)

    def unit(x, name, out, kernel=1, act="relu", **how):
        x = b.conv(x, f"conv{name}", out, kernel, padding=kernel // 2, **how)
        x = b.batch_norm(x, f"norm{name}")
        return b.act(x, act) if act else x

    x = unit(b.image, "0", 16, 3, stride=2)
    x = b.relu(b.add(unit(x, "1", 16, 3, act=None), x))
    x = b.concat([x, b.conv(b.relu(b.batch_norm(x, "norm2")), "conv2", 16, 3, padding=1)])
    x = b.shuffle(b.relu(b.batch_norm(x, "norm3")), 2)
    x = unit(b.max_pool(x, 3, 2, 1), "4", 32, 5, "silu", groups=32)
    s = b.act(b.conv_rows(b.global_avg_pool(x), "squeeze", 8), "silu")
    x = b.gate(x, b.act(b.conv_rows(s, "excite", 32), "sigmoid"))
    f = b.dropout(b.global_avg_pool(unit(x, "5", 24)), 0.3)
    for name, classes in (("a", 3), ("b", 2)):
        b.graph.output(b.linear(f, name, classes), name)
    return b


def network(device=None):
    b = small_net()
    net = _core.Network(b.graph, seed=1, device=device)
    for key, role, init, shape in b.entries:
        if role != "counter":
            value = initial_value(key, init, shape, 1)
            net.set(key, value.reshape(value.shape[:2]) if key in b.rows else value)
    return net, [key for key, _ in net.names()]


MODE = {"batch": 12, "height": 32, "width": 32, "training": 1, "gradients": 1, "target_width": 1,
        "tasks": [("a", "ce", 1.0), ("b", "ordinal", 0.5)], "reduction": "mean",
        "from_store": 1, "augment": 1, "mean": (0.45,), "std": (0.23,)}  # fmt: skip
ADAM = (1e-3, 0.9, 0.999, 1e-8, 1e-4, True)


def batch():
    """Feeds, and what the step reads: two data sets of different sizes, one sample unlabelled."""
    rng = np.random.default_rng(7)
    sources = [
        rng.integers(0, 256, (5, 40, 36), np.uint8),
        rng.integers(0, 256, (4, 32, 32), np.uint8),
    ]
    dataset = np.array([0, 1] * 6, np.int32)
    index = rng.integers(0, 4, 12).astype(np.int64)
    task = np.array([0, 1, 0, 1, -1, 1, 0, 1, 0, 1, 0, 1], np.int32)
    target = (rng.integers(0, 2, (12, 1))).astype(np.float32)
    how = {"sources": sources, "dataset": dataset, "index": index, "augmentation": AUGMENT}
    return {"task": task, "target": target}, how


def train(device, steps, mode=MODE):
    net, names = network(device)
    feeds, how = batch()
    losses = []
    for step in range(steps):
        out = net.run(mode, feeds, ("loss", "per_task"), (*ADAM, step + 1), seed=3, step=step,
                      epoch=2, **how)  # fmt: skip
        losses.append(out["loss"][0])
    gradients = {n: net.get(n, "gradient") for n, is_parameter in net.names() if is_parameter}
    return np.array(losses), gradients, {n: net.get(n) for n in names}


def relative(a, b):
    return np.linalg.norm(a.astype(np.float64) - b) / (np.linalg.norm(b.astype(np.float64)) + 1e-12)


def test_one_step_is_the_cpus():
    losses, gradients, weights = train(cudahost.device("fp32"), 1)
    expected, true, state = train(None, 1)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, gradient in true.items():
        # Sums that cancel (a scale before a normalisation has no gradient) leave roundings.
        error = np.linalg.norm(gradients[name].astype(np.float64) - gradient)
        assert error < 2e-4 * np.linalg.norm(gradient) + 1e-7, name
    for name in (n for n in state if "running" in n):
        assert relative(weights[name], state[name]) < 1e-5, name


@pytest.mark.parametrize("precision, allowed", [("fp32", 2e-3), ("tf32", 2e-3), ("bf16", 5e-2)])
def test_ten_steps_lose_like_the_cpus(precision, allowed):
    losses, _, _ = train(cudahost.device(precision), 10)
    expected, _, _ = train(None, 10)
    assert losses == pytest.approx(expected, rel=allowed)
    assert expected[-1] < expected[0]


def test_same_bits_every_time():
    first, second = (train(cudahost.device("bf16"), 3) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert all(first[2][n].tobytes() == second[2][n].tobytes() for n in first[2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_activations_change_no_bit(precision, monkeypatch):
    """What a convolution and its weights' gradient both read is stored once, or computed twice."""

    def found():
        ops = network(cudahost.device(precision))[0].describe(MODE)
        return train(cudahost.device(precision), 3), Counter(op["op"] for op in ops)

    kept, ops = found()
    monkeypatch.setenv("MDMT_CUDA_KEEP", "off")
    again, fewer = found()
    assert kept[0].tobytes() == again[0].tobytes()
    for had, has in zip(kept[1:], again[1:]):
        assert all(had[name].tobytes() == has[name].tobytes() for name in had)
    # One convolution reads a normalised map that nothing else reads, one a gated map as well.
    assert ops - fewer == {"norm_act": ops["norm_act"] - fewer["norm_act"], "gate": 1}
    assert not fewer - ops and ops["norm_act"] > fewer["norm_act"]


MOVED = dict.fromkeys(AUGMENT, 0.0) | {"elastic_alpha": (0.0, 0.0), "probability": 0.7}
TONE = {"gamma": 0.6, "contrast": 0.5, "brightness": 0.3, "invert": 0.4, "noise": 0.2}
STD = (0.2, 0.3, 0.25, 1.0)
# A grey value may move by the rounding of a coordinate times the step of its neighbours.
SAMPLED = 2e-3
# Of 1 as float32: powf by two libraries 12, times contrast, whose mean has the same; five more.
CHANGED = 32 * 2.0**-24 / min(STD)
# Sampling's error times the steepest gamma of values from 64 on (1.9) and contrast with its mean.
BOTH = SAMPLED * 2 * 2
# name: (ranges or None, size of the result, least grey value of the sources, bound)
IMAGE_CASES = {
    "as they are": (None, (48, 40), 0, SAMPLED),
    "moved": (AUGMENT, (48, 40), 0, SAMPLED),
    # nodes at every pixel and at every fifth, in several tiles of the kernels
    "nodes at every pixel": (AUGMENT | {"elastic_sigma": 4.0}, (35, 290), 0, SAMPLED),
    "nodes at every fifth": (AUGMENT | {"elastic_sigma": 15.0}, (150, 71), 0, SAMPLED),
    **{key: (MOVED | {key: value}, (32, 36), 0, CHANGED) for key, value in TONE.items()},
    "grey values": (MOVED | TONE, (32, 36), 0, CHANGED),
    "grey values, not in fours": (MOVED | TONE, (31, 35), 0, CHANGED),
    "grey values, many blocks": (MOVED | TONE, (67, 93), 0, CHANGED),
    "grey values of one pixel": (MOVED | TONE, (1, 1), 0, CHANGED),
    "moved and changed": (AUGMENT | TONE, (48, 40), 64, BOTH),
}


def images(name, device, samples=12):
    """Result (samples, 3, height, width) of the op images. Where nothing moves, its sources have
    the size of the result, so that every grey value is exact before it is changed."""
    ranges, size, least, bound = IMAGE_CASES[name]
    rng = np.random.default_rng(7)
    sizes = [size, size] if bound == CHANGED else [(40, 36), (32, 32)]
    how = {
        "sources": [rng.integers(least, 256, (5, *s), np.uint8) for s in sizes],
        "dataset": np.arange(samples, dtype=np.int32) % 2,
        "index": rng.integers(0, 5, samples).astype(np.int64),
        "augmentation": ranges or AUGMENT,
    }
    attrs = {"batch": samples, "channels": 3, "size": size, "augment": int(ranges is not None),
             "mean": (0.4, 0.5, 0.6, 0.0), "std": STD}  # fmt: skip
    graph = _core.Graph()
    graph.output(graph.add("images", [], **attrs)[0], "x")
    return _core.Program(graph, device=device).run({}, **STEP, **how)["x"].copy()


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_images_are_the_cpus(name, monkeypatch):
    expected, found = images(name, None), images(name, cudahost.device("bf16"))
    assert np.abs(expected - found).max() < IMAGE_CASES[name][3]
    assert expected.std() > 0.3
    put, _ = cudahost.knobs()
    put("walk", 1)
    try:
        assert images(name, cudahost.device("bf16")).tobytes() == found.tobytes()
    finally:
        put("walk", 0)
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "0")
    assert images(name, cudahost.device("bf16")).tobytes() == found.tobytes()


def test_changes_of_grey_values_are_seen():
    """So the comparisons above can fail: each range changes images, and not all of them."""
    plain = IMAGE_CASES["grey values"][0] | dict.fromkeys(TONE, 0.0)
    IMAGE_CASES["plain"] = (plain, (32, 36), 0, CHANGED)
    try:
        before = images("plain", None)
    finally:
        del IMAGE_CASES["plain"]
    for key in TONE:
        changed = (images(key, None) != before).any((1, 2, 3))
        assert changed.any() and not changed.all(), key
    assert (images("grey values", None) != before).any((1, 2, 3)).sum() > 8


def test_what_is_not_asked_for_is_not_started():
    """Launches of kernels: the sum that contrast needs, and the changes themselves."""
    _, get = cudahost.knobs()
    counted = []
    for name in ("as they are", "moved", "gamma", "contrast", "moved and changed"):
        before = get("launches")
        images(name, cudahost.device())
        counted.append(get("launches") - before)
    assert counted == [2, 4, 5, 6, 6]


@pytest.mark.parametrize("kind, shape", [("rows", (6, 37)), ("map", (3, 21, 5, 7))])
def test_dropout_draws_the_cpus_mask(kind, shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = []
    for device in (None, cudahost.device("fp32")):
        graph = _core.Graph()
        y = graph.add("dropout", [graph.input("x", kind, shape)], rate=0.4, stream=2)[0]
        graph.output(y, "y")
        program = _core.Program(graph, device=device)
        found.append([program.run({"x": x}, seed=9, step=s)["y"].copy() for s in (1, 2, 1)])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1][0], found[1][1])
    assert np.array_equal(found[1][0], found[1][2])


@pytest.mark.parametrize(
    "task, target, says",
    [
        (5, 0.0, "sample 4 has the task 5, outside 0 to 1"),
        (0, 7.0, "sample 4 has the class 7 for task 0, which has the classes 0 to 2"),
        (1, 0.5, "sample 4 has the class 0.5 for task 1"),
    ],
)
def test_a_label_out_of_range_is_named(task, target, says):
    net, _ = network(cudahost.device("fp32"))
    feeds, how = batch()
    feeds["task"][4], feeds["target"][4] = task, target
    with pytest.raises(ValueError, match=says):
        net.run(MODE, feeds, ("loss",), None, **STEP, **how)
    feeds["task"][4], feeds["target"][4] = 0, 1.0
    assert np.isfinite(net.run(MODE, feeds, ("loss",), None, **STEP, **how)["loss"]).all()


@pytest.mark.parametrize("device", [None, "fp32"])
@pytest.mark.parametrize("weight", [-1.0, np.inf, np.nan])
def test_a_weight_out_of_range_is_named(device, weight):
    """Of a label; that of a sample without one is not looked at."""
    net, _ = network(device and cudahost.device(device))
    feeds, how = batch()
    weights = np.ones((12, 1), np.float32)
    weights[4], weights[6] = -7, weight
    feeds["target"] = np.hstack([feeds["target"], weights])
    mode = MODE | {"target_width": 2, "weighted": 1}
    with pytest.raises(
        ValueError, match=f"sample 6 has the weight {weight:g} for task 0; a weight"
    ):
        net.run(mode, feeds, ("loss",), None, **STEP, **how)
    feeds["target"][6, 1] = 0
    assert np.isfinite(net.run(mode, feeds, ("loss",), None, **STEP, **how)["loss"]).all()


def test_what_is_said_of_wrong_devices():
    graph = _core.Graph()
    graph.output(graph.add("act", [graph.input("x", "rows", (2, 3))], act=1)[0], "y")
    capsule = cudahost.module().module
    for device, says in (
        ((capsule, 7, "fp32"), "there is no device 'cuda:7'"),
        ((capsule, 0, "fp8"), "must be fp32, tf32 or bf16, not 'fp8'"),
        (("x", 0, "fp32"), "capsule of mdmt._cuda"),
        ("cuda", "a device is None or"),
    ):
        with pytest.raises(ValueError, match=says):
            _core.Program(graph, device=device)


def test_a_forced_kernel_is_refused_by_name():
    graph = _core.Graph()
    graph.output(graph.add("act", [graph.input("x", "rows", (2, 3))], act=1)[0], "y")
    with pytest.raises(NotImplementedError, match="no op here has a kernel named cuda_pool"):
        _core.Program(graph, kernel="cuda_pool", device=cudahost.device())
