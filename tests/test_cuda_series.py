"""Steps in a row on a GPU: recorded and repeated, with images that come batch by batch, out of
memory, on a lost device. The backend's own code, beside a stand-in for the CUDA runtime that runs
asynchronous work in any order that CUDA allows (tests/c/fake_cuda)."""

import functools
import gc

import numpy as np
import pytest

import mdmt
from mdmt.augmentation import complete
from tests import cudahost
from tests.test_cuda_net import ADAM, MODE, TONE, batch, network

gpu, no_race = cudahost.gpu, cudahost.no_race
STEPS = 5
ORDERS = {"at once": 0, "as late as possible": 1, "other streams first": 2}


@functools.cache
def sources(images):
    """The data sets of `batch`, filled up to so many images; always the same arrays."""
    return [np.resize(s, (max(images, len(s)), *s.shape[1:])) for s in batch()[1]["sources"]]


def series(net, steps=STEPS, start=0, samples=12, lr=1e-3, images=4, ranges=None):
    """Runs steps start .. start + steps of one fixed sequence of batches."""
    feeds, how = batch()
    how["sources"] = sources(images)
    rng = np.random.default_rng(3)
    index = rng.integers(0, 4, (64, samples)).astype(np.int64)[start : start + steps]
    dataset = np.tile(how["dataset"][:samples], (steps, 1))
    labels = {k: np.tile(v[:samples], (steps,) + (1,) * v.ndim) for k, v in feeds.items()}
    labels["target"] += (index[..., None] % 2 * (labels["task"][..., None] == 0)).astype(np.float32)
    how |= {"dataset": dataset, "index": index, "seed": 3, "step": start, "epoch": 2}
    how["augmentation"] = how["augmentation"] | (ranges or {})
    adam = (lr, *ADAM[1:], start + 1)
    return net.series(MODE | {"batch": samples}, labels, ("loss", "per_task"), adam, **how)


def network_on(device):
    return network(device)[0]


def everything(net, names):
    return b"".join(net.get(n).tobytes() for n in sorted(names))


def run(gpu, calls=((STEPS, 0),), **how):
    """(losses, weights) of a fresh network."""
    net, names = network(cudahost.device("fp32"))
    losses = [series(net, *c, **how)["loss"] for c in calls]
    return np.concatenate(losses)[:, 0], everything(net, names)


def test_steps_in_a_row_are_single_steps(gpu):
    """One call for all steps, one per step, and the CPU's."""
    put, _ = gpu
    losses, weights = run(gpu)
    single = run(gpu, [(1, i) for i in range(STEPS)])
    assert losses.tobytes() == single[0].tobytes() and weights == single[1]
    assert len(np.unique(losses)) == STEPS
    net, _ = network(None)
    assert losses == pytest.approx(series(net)["loss"][:, 0], rel=1e-3)
    assert net.steps_done() == STEPS


def test_a_recorded_step_is_the_plain_one(gpu):
    put, get = gpu
    recorded = run(gpu)
    assert get("captures") == 1 and get("graph_launches") == STEPS - 1
    put("capture", 0)  # the device refuses to record
    plain = run(gpu)
    assert get("graph_launches") == STEPS - 1
    assert recorded[0].tobytes() == plain[0].tobytes() and recorded[1] == plain[1]


def test_the_host_does_nothing_within_a_series(gpu):
    """Copies and launches do not grow with the number of steps, but for the recording's start."""
    _, get = gpu
    net, _ = network(cudahost.device("fp32"))
    series(net, 4)
    counted = []
    for steps in (2, 12):
        before = {k: get(k) for k in ("copies", "launches", "allocations", "graph_launches")}
        series(net, steps)
        counted.append({k: get(k) - before[k] for k in before})
    assert counted[0].pop("graph_launches") == 2 and counted[1].pop("graph_launches") == 12
    assert counted[1].pop("allocations") <= 1  # room for the labels of more steps
    assert counted[0].pop("allocations") == 0
    assert counted[0] == counted[1] and counted[0]["launches"] == 0


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_any_order_gives_the_same_bits(gpu, order):
    put, _ = gpu
    expected = run(gpu)
    put("order", order)
    found = run(gpu)
    assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


@pytest.mark.parametrize("walk", [1, 2])
def test_threads_and_blocks_may_come_in_any_order(gpu, walk):
    put, _ = gpu
    expected = run(gpu)
    put("walk", walk)
    found = run(gpu)
    assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


def test_what_was_recorded_is_dropped_when_addresses_change(gpu):
    """A larger batch moves the activations: freed memory holds NaN, which a stale recording would
    read. Each change of the shape and back is recorded anew or found again."""
    put, get = gpu
    calls = [(3, 0, 6), (3, 3, 12), (3, 6, 6), (2, 9, 12)]
    recorded = run(gpu, calls)
    captures = get("captures")
    put("capture", 0)
    plain = run(gpu, calls)
    assert recorded[0].tobytes() == plain[0].tobytes() and recorded[1] == plain[1]
    assert np.isfinite(recorded[0]).all()
    assert captures == 3  # 6 samples, 12, and 6 again after the move


def test_ranges_of_grey_values_may_change_between_calls(gpu):
    """A recording has only the kernels that its ranges ask for; it is made again for others, after
    a step that is not recorded. Also with images that come batch by batch."""
    put, get = gpu
    ranges = [{}, {"gamma": 0.4}, {"gamma": 0.2, "noise": 0.1}, TONE, {}, TONE]

    def train(device):
        net, names = network(device)
        losses = [series(net, 3, 3 * i, ranges=r)["loss"] for i, r in enumerate(ranges)]
        return np.concatenate(losses)[:, 0], everything(net, names)

    recorded = train(cudahost.device("fp32"))
    assert get("captures") == 5 and get("graph_launches") == 3 * len(ranges) - 5
    assert recorded[0] == pytest.approx(train(None)[0], rel=3e-3)
    put("capture", 0)
    assert train(cudahost.device("fp32"))[0].tobytes() == recorded[0].tobytes()
    put("capture", 1)
    for order in ORDERS.values():
        put("order", order)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MDMT_CUDA_STORE_MB", "0")
            streamed = train(cudahost.device("fp32"))
        assert streamed[0].tobytes() == recorded[0].tobytes() and streamed[1] == recorded[1]


def test_evaluation_is_recorded_too(gpu):
    _, get = gpu
    net, _ = network(cudahost.device("fp32"))
    mode = {k: MODE[k] for k in ("batch", "height", "width", "from_store", "mean", "std")}
    _, how = batch()
    how |= {"dataset": np.tile(how["dataset"], (4, 1)), "index": np.tile(how["index"], (4, 1))}
    how["index"][1] = (how["index"][1] + 1) % 4
    out = net.series(mode, {}, ("a", "b"), None, **how)
    assert out["a"].shape == (4, 12, 3) and get("captures") == 1 and get("graph_launches") == 3
    for i in range(4):
        one = how | {"dataset": how["dataset"][i], "index": how["index"][i]}
        for name, value in net.run(mode, {}, ("a", "b"), None, **one).items():
            assert value.tobytes() == out[name][i].tobytes()
    assert out["a"][0].tobytes() == out["a"][2].tobytes() != out["a"][1].tobytes()


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("limit", ["0", "0.005"], ids=["nothing stays", "one data set stays"])
def test_images_that_do_not_fit_come_batch_by_batch(gpu, monkeypatch, limit, order):
    put, get = gpu
    expected = run(gpu, [(9, 0)])
    streams = get("streams")
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", limit)
    put("order", order)
    net, names = network(cudahost.device("fp32"))
    losses = series(net, 9)["loss"][:, 0]
    assert get("streams") == streams + 3  # its own, its branches', and one for the copies
    assert losses.tobytes() == expected[0].tobytes() and everything(net, names) == expected[1]
    feeds, how = batch()  # and outside of a series
    seen = [net.run(MODE, feeds, ("loss",), None, **how)["loss"] for _ in range(3)]
    assert seen[0] == seen[1] == seen[2]


def test_copies_may_read_the_hosts_arrays_as_late_as_cuda_allows(gpu):
    put, _ = gpu
    expected = run(gpu)
    put("order", 1)
    put("late", 1)
    for calls in ([(STEPS, 0)], [(1, i) for i in range(STEPS)]):
        found = run(gpu, calls)
        assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


def test_without_waits_the_order_would_show(gpu, monkeypatch):
    """So the tests above can fail."""
    put, _ = gpu
    expected = run(gpu, [(9, 0)])
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "0")
    put("order", 1)
    put("waits", 0)
    with np.errstate(all="ignore"):
        try:
            losses = run(gpu, [(9, 0)])[0]
        except FloatingPointError:
            return
    assert losses.tobytes() != expected[0].tobytes()


@pytest.mark.parametrize("capture", [0, 1], ids=["plain", "recorded"])
def test_gradients_of_weights_run_beside_the_line_to_the_same_bits(gpu, monkeypatch, capture):
    put, get = gpu
    put("capture", capture)
    monkeypatch.setenv("MDMT_CUDA_BRANCHES", "off")
    expected = run(gpu)
    monkeypatch.setenv("MDMT_CUDA_BRANCHES", "on")
    for order in ORDERS.values():
        put("order", order)
        found = run(gpu)
        assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]
    assert (get("graph_launches") > 0) == capture


@pytest.mark.parametrize("capture", [0, 1], ids=["plain", "recorded"])
def test_without_waits_the_branches_would_show(gpu, capture):
    put, _ = gpu
    put("capture", capture)
    expected = run(gpu)
    put("order", 1)
    put("waits", 0)
    with np.errstate(all="ignore"):
        try:
            losses = run(gpu)[0]
        except FloatingPointError:
            return
    assert losses.tobytes() != expected[0].tobytes()


def test_a_wrong_limit_is_named(gpu, monkeypatch):
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "some")
    with pytest.raises(ValueError, match="MDMT_CUDA_STORE_MB is 'some'; give a number of megabyte"):
        run(gpu)


def test_images_give_way_to_a_larger_batch(gpu):
    """Where only one of both fits, the images leave and come batch by batch."""
    put, get = gpu
    expected = run(gpu, [(2, 0, 6), (3, 2, 12)])
    net, names = network(cudahost.device("fp32"))
    losses = [series(net, 2, 0, 6, images=400)["loss"]]
    sizes = [sum(net.memory(MODE | {"batch": n})[k] for k in ("activations", "workspace"))
             for n in (6, 12)]  # fmt: skip
    put("memory_left", sizes[1] - sizes[0] - 1024)
    streams = get("streams")
    losses.append(series(net, 3, 2, 12, images=400)["loss"])
    assert get("streams") == streams + 1
    found = np.concatenate(losses)[:, 0]
    assert found.tobytes() == expected[0].tobytes() and everything(net, names) == expected[1]


def test_out_of_memory_names_the_bytes_and_leaves_all_usable(gpu):
    put, get = gpu
    net, names = network(cudahost.device("fp32"))
    series(net, 2, 0, 6)
    before = everything(net, names)
    put("memory_left", 1 << 16)
    planned = net.memory(MODE)
    total = -(-(planned["activations"] + planned["workspace"]) // 256) * 256
    says = (
        rf"out of GPU memory: the batch \(its activations and workspace\) needs {total} bytes "
        r"\(\d+\.\d\d GiB\), but only \d+\.\d\d of \d+\.\d\d GiB are free; use a smaller batch"
    )
    with pytest.raises(MemoryError, match=says):
        series(net, 2, 2, 12)
    assert everything(net, names) == before and net.steps_done() == 0
    put("memory", 1 << 40)
    assert np.isfinite(series(net, 2, 2, 12)["loss"]).all()


def test_nothing_is_kept_after_the_end(gpu):
    _, get = gpu
    gc.collect()
    before = get("used"), get("streams")
    run(gpu)
    gc.collect()
    assert (get("used"), get("streams")) == before


@pytest.mark.parametrize("calls", [0, 3, 20, 80, 200, 420])
def test_a_lost_device_is_one_sentence(gpu, calls):
    put, _ = gpu
    net, _ = network(cudahost.device("fp32"))
    series(net, 2)
    put("lose_after", calls)
    with pytest.raises(RuntimeError, match=r"the GPU was lost during .*: what it held is gone"):
        for _ in range(100):
            series(net, 3)
    with pytest.raises(RuntimeError, match="the GPU was lost"):
        net.get("conv0.weight")


def test_a_failed_launch_is_one_sentence(gpu):
    put, _ = gpu
    net, _ = network(cudahost.device("fp32"))
    put("fail_at_launch", 30)
    with pytest.raises(RuntimeError, match="the GPU was lost during the start of a kernel"):
        series(net)


def test_a_loss_that_is_no_number_stops_the_updates(gpu):
    """The third of five steps meets a target beyond all bounds; two steps took effect."""
    results = []
    for device in (None, cudahost.device("fp32")):
        net, names = network(device)
        with pytest.raises(FloatingPointError, match=r"not a finite number at training step \d"):
            for start in range(0, 40, 5):
                series(net, 5, start, lr=1e30)
        results.append((start, net.steps_done(), everything(net, names)))
    assert results[0][:2] == results[1][:2]
    net, names = network(cudahost.device("fp32"))
    parameters = [n for n, is_parameter in net.names() if is_parameter]
    try:
        for i in range(start + results[1][1]):
            series(net, 1, i, lr=1e30)
    except FloatingPointError:
        pytest.fail("the updates before were too many")
    again, _ = network(cudahost.device("fp32"))
    with pytest.raises(FloatingPointError):
        series(again, 40, 0, lr=1e30)
    assert everything(again, parameters) == everything(net, parameters)


@pytest.mark.parametrize(
    "knob, value, says",
    [
        ("driver", 0, "the device 'cuda' is not available here: no NVIDIA driver; use 'cpu'"),
        ("driver", 11040, r"driver supports CUDA 11\.4, but this build needs 13\.0 or newer"),
        ("devices", 0, "the device 'cuda' is not available here: fake error 100"),
        ("code", 0, r"no code for the GPU the processor in its place \(compute capability 9.0; .*"
                    r"build with MDMT_CUDA_ARCHS=90, or use the device 'cpu'"),
        ("code", 700, r"the GPU was lost during what was done before \(fake error 700\)"),
        ("lose_after", 0, "the GPU was lost"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_device_that_cannot_be_used(gpu, knob, value, says):
    gpu[0](knob, value)
    with pytest.raises((NotImplementedError, RuntimeError), match=says):
        mdmt.Model("resnet18", device="cuda")


def test_a_model_does_steps_in_a_row(gpu):
    """fit_steps, predict with more batches than one: as on the CPU."""
    from tests.test_cuda_device import make

    rng = np.random.default_rng(0)
    dataset, index = rng.integers(0, 2, (3, 4)), rng.integers(0, 6, (3, 4))
    here, there = make("cpu"), make("cuda")
    for model in (here, there):
        model.losses, model.tasks = model.fit_steps(dataset, index, augment={}, epoch=1)
    assert there.losses[0] == pytest.approx(here.losses[0], rel=1e-3)
    single = make("cuda")
    for i in range(3):
        assert single.fit_step(dataset[i], index[i], augment={}, epoch=1)[0] == there.losses[i]
    assert there.tasks.shape == (3, 2, 2) and np.array_equal(
        there.tasks[..., 1], here.tasks[..., 1]
    )
    assert there.training_step == 3 and there.steps_at_once > 1
    for batch_size in (2, 5, 16):
        out = there.predict(dataset.ravel(), index.ravel(), batch_size)
        assert out["a"].shape == (12, 2) and out["features"].shape[0] == 12
        assert np.abs(out["a"] - there.predict(dataset.ravel(), index.ravel(), 1)["a"]).max() < 1e-4
    with pytest.raises(ValueError, match=r"must both be \(S, N\)"):
        there.fit_steps(dataset[0], index[0])


def test_weights_and_smoothing_are_the_cpus(gpu):
    """Recorded steps with weights of the samples and smoothing; those of single steps."""
    from tests.test_weighting import BATCHES, attached

    made = {}
    for device in ("cpu", "cuda"):
        model, _ = attached(device)
        made[device] = *model.fit_steps(*BATCHES, lr=1e-3), model
    (here, parts, _), (there, others, model) = made["cpu"], made["cuda"]
    assert there[0] == pytest.approx(here[0], rel=1e-3)
    assert others[0] == pytest.approx(parts[0], rel=2e-3, abs=1e-5)
    single, _ = attached("cuda")
    assert [single.fit_step(*b, lr=1e-3)[0] for b in zip(*BATCHES)] == there.tolist()
    state = single.state_dict()
    assert all(np.array_equal(v, state[k]) for k, v in model.state_dict().items())
    plain, _ = attached("cuda", weighted=False)
    assert not np.allclose(plain.fit_steps(*BATCHES, lr=1e-3)[0], there, rtol=1e-3)


FREEZE = {"lr": 1e-2, "weight_decay": 1e-2, "augment": {}, "epoch": 1}


def frozen_batches(steps=4):
    rng = np.random.default_rng(1)
    return rng.integers(0, 2, (steps, 4)), rng.integers(0, 6, (steps, 4))


def put_back(model, steps):
    """Losses of training the heads alone as it is defined: every gradient, one step at a time, in
    evaluation mode; then the backbone gets its weights again."""
    keys = [k for k, role, *_ in model._entries if role == "param" and not k.startswith("heads.")]
    kept = {k: model._get(k) for k in keys}
    mode = model._mode(4, model.image_size, False, True, 1, store=True)
    losses = []
    for d, i in zip(*frozen_batches(steps)):
        samples = model._samples(d[None], i[None])
        feeds = {"task": d[None].astype(np.int32), "target": (i[None] % 2).astype(np.float32)}
        adam = (FREEZE["lr"], 0.9, 0.999, 1e-8, FREEZE["weight_decay"], False)
        adam += (model.training_step + 1,)
        out = model._network.series(
            mode, feeds, ("loss",) + ("per_task",), adam, step=model.training_step, epoch=1,
            augmentation=complete({}), **samples,
        )  # fmt: skip
        model.training_step += 1
        losses.append(out["loss"][0, 0])
        for key, value in kept.items():
            model._set(key, value)
    return np.array(losses)


@pytest.mark.parametrize("device, precision", [("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")])
def test_frozen_backbones_train_in_series(gpu, device, precision):
    """One call, one per step, and the definition: the same bits of losses and weights. Before and
    after, the same model learns as a whole."""
    from tests.test_cuda_device import make

    _, get = gpu
    batches = frozen_batches()
    found = []
    for how in ("series", "single", "definition"):
        model = make(device, precision)
        model.fit_steps(*batches, **FREEZE)
        before = model.state_dict()
        moments = model.optimizer_state()[0]
        counted = get("captures"), get("graph_launches")
        model.freeze_backbone()
        losses = (
            model.fit_steps(*batches, **FREEZE)[0] if how == "series" else put_back(model, 4)
            if how == "definition" else
            np.array([model.fit_step(d, i, **FREEZE)[0] for d, i in zip(*batches)])
        )  # fmt: skip
        if how == "series" and device == "cuda":
            assert (get("captures"), get("graph_launches")) == (counted[0] + 1, counted[1] + 3)
        after = model.state_dict()
        for key, value in before.items():
            assert np.array_equal(after[key], value) == (not key.startswith("heads.")), key
        changed = {k for k, v in model.optimizer_state()[0].items() if (v != moments[k]).any()}
        if how != "definition":
            assert changed and all(".heads." in f".{k}" for k in changed)
        found.append((losses.astype(np.float32).tobytes(), b"".join(after[k].tobytes()
                      for k in sorted(after))))  # fmt: skip
        model.freeze_backbone(False)
        model.fit_steps(*batches, **FREEZE)
        assert any(
            (model.state_dict()[k] != v).any() for k, v in after.items() if k.startswith("conv1")
        )
    assert len(set(np.frombuffer(found[0][0], np.float32))) == 4
    assert found[0] == found[1] == found[2]


def test_a_frozen_backbone_has_no_gradients(gpu):
    from tests.test_cuda_device import make

    model = make("cuda")
    mode = model._mode(4, model.image_size, False, True, 1, store=True)
    ops = [[o["op"] for o in model._network.describe(mode | m)] for m in ({}, {"learns": "heads."})]
    assert sum("bwd" in op for op in ops[0]) > 50
    assert not any("conv" in op or "norm" in op for op in ops[1] if "bwd" in op)
    assert any("bwd" in op for op in ops[1]) and len(ops[1]) < len(ops[0]) / 2
    for learns, says in (
        ("conv1.", "the weights whose names begin with 'conv1.' cannot learn alone: "),
        ("tail.", "no weight's name begins with 'tail.'"),
        ("x" * 40, "is too long for the names of weights that learn"),
    ):
        with pytest.raises(ValueError, match=says):
            model._network.series(
                mode | {"learns": learns},
                {"task": np.zeros((1, 4), np.int32), "target": np.zeros((1, 4), np.float32)},
                ("loss", "per_task"), (*ADAM, 1), augmentation=complete({}),
                **model._samples(np.zeros((1, 4), int), np.zeros((1, 4), int)),
            )  # fmt: skip


def test_the_hosts_memory_does_not_limit_a_gpu(gpu, monkeypatch):
    from mdmt import engine
    from tests.test_cuda_device import make

    monkeypatch.setattr(engine, "available_memory", lambda: 1)
    with pytest.raises(MemoryError, match=r"a batch of 4 needs .* GiB as planned"):
        engine.check_memory(make("cpu"), 4)
    assert engine.check_memory(make("cuda"), 4) > 1


@pytest.mark.parametrize("cost, kept", [(3, False), (0, True), (-3, True)])
def test_starts_that_overlap_are_tried_out(gpu, monkeypatch, cost, kept):
    """A step is recorded in three ways, which take turns to the same bits; one stays."""
    put, get = gpu
    plain = run(gpu, [(3, 0), (17, 3)])
    monkeypatch.setenv("MDMT_CUDA_OVERLAP", "measured")
    put("reset", 0)
    put("overlap_cost", cost)
    net, names = network(cudahost.device("fp32"))
    graphs = get("graphs")
    losses = [series(net, 3, 0)["loss"], series(net, 17, 3)["loss"]]
    assert get("captures") == 3 and get("graph_launches") == 19
    assert np.concatenate(losses)[:, 0].tobytes() == plain[0].tobytes()
    assert everything(net, names) == plain[1]
    assert get("graphs") - graphs == 1
    before = get("overlapped")
    series(net, 2, 20)
    assert (get("overlapped") > before) == kept


def test_a_recording_that_could_not_be_started_once_is_tried_out_all_the_same(gpu, monkeypatch):
    put, get = gpu
    monkeypatch.setenv("MDMT_CUDA_OVERLAP", "measured")
    net, _ = network(cudahost.device("fp32"))
    graphs = get("graphs")
    put("fail_at_graph", 4)
    with pytest.raises(MemoryError, match="out of GPU memory during the start of a recording"):
        series(net, 20)
    assert np.isfinite(series(net, 20, 5)["loss"]).all()
    assert get("graphs") - graphs == 1 and get("graph_launches") == 24


def test_a_step_that_cannot_be_recorded_in_every_way_at_once_runs_op_by_op(gpu, monkeypatch):
    put, get = gpu
    plain = run(gpu)
    monkeypatch.setenv("MDMT_CUDA_OVERLAP", "measured")
    put("reset", 0)
    graphs = get("graphs")
    net, names = network(cudahost.device("fp32"))
    first = series(net, 1)["loss"]
    launches = get("launches")
    series(network_on(cudahost.device("fp32")), 1)
    put("fail_at_launch", 3 * (get("launches") - launches) // 2)  # in the second recording
    losses = np.concatenate([first, series(net, 1, 1)["loss"]])
    assert get("captures") == 2 and get("graph_launches") == 0
    assert get("graphs") == graphs and net.recordings() == 0
    losses = np.concatenate([losses, series(net, STEPS - 2, 2)["loss"]])  # and the next in all
    assert get("captures") == 5 and get("graph_launches") == STEPS - 2
    assert net.recordings() == 1
    assert losses[:, 0].tobytes() == plain[0].tobytes() and everything(net, names) == plain[1]


def test_another_thread_may_do_as_it_likes_while_one_records(gpu):
    """It opens a network of its own, allocates, records, and closes it."""
    _, get = gpu
    plain = run(gpu)
    before = get("captures")
    said = cudahost.while_recording(lambda: run(gpu))
    said.append(run(gpu))
    assert len(said) == 2 and get("captures") == before + 2, said
    for losses, weights in said:
        assert losses.tobytes() == plain[0].tobytes() and weights == plain[1]


def test_code_that_does_not_wait_at_its_beginning_does_not_start_early(gpu):
    """A newer device runs what its driver makes of PTX for an older one: without the wait."""
    put, get = gpu
    found = []
    for ptx in (90, 80, 90):
        put("reset", 0)
        put("ptx", ptx)
        found.append((run(gpu)[1], get("overlapped") > 0))
    assert [early for _, early in found] == [True, False, True]
    assert len({weights for weights, _ in found}) == 1
