"""Networks for masks on the CUDA backend, run on the processor: masks beside their images, whole
training steps, steps in a row, predictions and a study, against the CPU backend."""

import gc
import json
import sys

import numpy as np
import pytest

import mdmt
from mdmt import _core, mask_study, run, system
from mdmt.errors import BadConfig
from tests import cudahost
from tests.test_cuda_net import AUGMENT, BOTH, SAMPLED, STD, STEP, TONE
from tests.test_cuda_series import ORDERS
from tests.test_mask_study import SETTINGS, folder, rows_of, values_of  # noqa: F401 (a fixture)
from tests.test_unet import ADAM, MASK, discs, normalised, tiny

gpu, no_race = cudahost.gpu, cudahost.no_race
TWO = {"side": 2, **MASK}
MASK_BOUND = SAMPLED * min(STD)


# ---------------------------------------------------------------- the op images


# name: (ranges or None, size of the result)
MASK_CASES = {
    "masks as they are": (None, (32, 32)),
    "masks moved": (AUGMENT, (48, 40)),
    "masks, nodes at every pixel": (AUGMENT | {"elastic_sigma": 4.0}, (35, 70)),
    "masks of changed images": (AUGMENT | TONE, (32, 32)),
}


def moved(name, device, samples=12):
    """(samples, 1, height, width) of the op images: masks of two data sets, one has none."""
    ranges, size = MASK_CASES[name]
    rng = np.random.default_rng(5)
    sources = [rng.integers(64, 256, (5, *s), np.uint8) for s in ((40, 36), (32, 32), (32, 32))]
    how = {
        "sources": sources,
        "masks": [np.uint8(rng.integers(0, 2, s.shape) * 255) for s in sources[:2]] + [None],
        "dataset": np.arange(samples, dtype=np.int32) % 3,
        "index": rng.integers(0, 5, samples).astype(np.int64),
        "augmentation": ranges or AUGMENT,
    }
    attrs = {"batch": samples, "channels": 2, "size": size, "augment": int(ranges is not None),
             "want_mask": 1, "mean": (0.4, 0.5, 0.0, 0.0), "std": (0.2, 0.3, 1.0, 1.0)}  # fmt: skip
    graph = _core.Graph()
    for tensor, output in zip(graph.add("images", [], **attrs), ("x", "mask")):
        graph.output(tensor, output)
    out = _core.Program(graph, device=device).run({}, **STEP, **how)
    return out["mask"].copy(), out["x"].copy()


@pytest.mark.parametrize("limit", [None, "0", "0.007", "0.013"])
@pytest.mark.parametrize("name", MASK_CASES)
def test_masks_move_as_on_the_cpu(gpu, monkeypatch, name, limit):
    """All that belongs to a batch in the GPU's memory, or images without masks, or nothing."""
    if limit is not None:
        monkeypatch.setenv("MDMT_CUDA_STORE_MB", limit)
    (m, x), (mask, true) = (moved(name, device) for device in (cudahost.device("bf16"), None))
    assert np.abs(m - mask).max() < MASK_BOUND and np.abs(x - true).max() < BOTH
    assert (m[2::3] == 0).all() and m[0].max() == 1 and 0.2 < m[1::3].mean() < 0.8
    assert np.abs(x[2]).max() > 0.5


def test_sides_share_no_memory_beyond_the_limit(gpu, monkeypatch):
    """Room for the images alone: their masks come batch by batch, the images stay."""
    _, get = gpu
    pictures, masks = discs(6, 64)
    made = []
    for limit in ("1", "0.03", "0"):  # 24 KiB of images, as many of masks
        monkeypatch.setenv("MDMT_CUDA_STORE_MB", limit)
        before = get("used"), get("streams")
        model = tiny(size=64, device="cuda")
        model.attach([{"images": pictures, "task": 0, "target": masks}])
        loss = model.fit_step([0] * 4, range(4), augment={}, epoch=1)[0]
        made.append((loss, get("streams") - before[1]))
        del model
        gc.collect()
        assert (get("used"), get("streams")) == before
    assert [streams for _, streams in made] == [2, 3, 3]
    assert made[0][0] == made[1][0] == made[2][0]


# ---------------------------------------------------------------- training


def pair(heads=MASK, precision="fp32", size=32):
    """The same network on the CPU and on the GPU."""
    here = tiny(heads, size)
    there = tiny(heads, size, device="cuda", precision=precision)
    there.load_state_dict(here.state_dict())
    return here, there


def off(found, true):
    """Relative error of each gradient; sums that cancel leave roundings."""
    return {
        k: np.linalg.norm(found[k].astype(float) - v) / (np.linalg.norm(v) + 1e-5)
        for k, v in true.items()
    }


@pytest.mark.parametrize("heads", [MASK, TWO], ids=["masks", "masks and classes"])
@pytest.mark.parametrize(
    "precision, loss_off, middle, most", [("fp32", 1e-6, 1e-5, 3e-5), ("bf16", 2e-3, 0.25, 2.0)]
)
def test_losses_and_gradients_are_the_cpus(gpu, heads, precision, loss_off, middle, most):
    pictures, masks = discs(5, 32)
    here, there = pair(heads, precision)
    x, soft = normalised(here, pictures), masks / np.float32(255)
    task = [0] * 5 if heads is MASK else [0, 1, 0, 1, -1]
    for training in (False, True):
        (loss, found), (exact, true) = (
            m.loss_and_gradients(x, task, [0, 0, 1, 0, 0], training=training, mask=soft)
            for m in (there, here)
        )
        assert loss == pytest.approx(exact, rel=loss_off)
        errors = off(found, true)
        assert max(errors.values()) < most, errors
        assert np.median(list(errors.values())) < middle, errors
    logits = here.forward(x)["lungs"]
    error = np.linalg.norm(there.forward(x)["lungs"] - logits) / np.linalg.norm(logits)
    assert error < (1e-5 if precision == "fp32" else 0.03)


def attached(model, heads, n=8, size=32):
    pictures, masks = discs(n, size)
    sets = [{"images": pictures, "task": len(heads) - 1, "target": masks}]
    if len(heads) > 1:
        side = np.float32(np.arange(n) % 2)
        sets.append({"images": np.ascontiguousarray(pictures[:, ::-1]), "task": 0, "target": side})
    model.attach(sets)
    return model


def steps(heads, count=6):
    """dataset and index (count, 4)."""
    rng = np.random.default_rng(4)
    return np.tile(np.arange(4) % len(heads), (count, 1)), rng.integers(0, 8, (count, 4))


def everything(model):
    return b"".join(v.tobytes() for _, v in sorted(model.state_dict().items()))


def trained(heads, device="cuda", precision="fp32", together=True):
    model = attached(tiny(heads, device=device, precision=precision), heads)
    dataset, index = steps(heads)
    how = {"augment": {}, "epoch": 3, "lr": 5e-3}
    if together:
        losses = model.fit_steps(dataset, index, **how)[0]
    else:
        losses = [model.fit_step(d, i, **how)[0] for d, i in zip(dataset, index)]
    return np.asarray(losses, np.float32), everything(model)


@pytest.mark.parametrize("heads", [MASK, TWO], ids=["masks", "masks and classes"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_single_ones_and_the_cpus(gpu, monkeypatch, heads, precision):
    put, get = gpu
    losses, weights = trained(heads, precision=precision)
    assert get("captures") == 1 and get("graph_launches") == 5
    found = [trained(heads, precision=precision, together=False)]
    put("walk", 1)
    found.append(trained(heads, precision=precision))
    put("walk", 0)
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "0")
    for order in ORDERS.values():
        put("order", order)
        found.append(trained(heads, precision=precision))
    for others, state in found:
        assert others.tobytes() == losses.tobytes() and state == weights
    exact, _ = trained(heads, "cpu")
    assert losses == pytest.approx(exact, rel=2e-3 if precision == "fp32" else 5e-2)


def test_learns_and_predicts(gpu):
    pictures, masks = discs(8, 32)
    model = attached(tiny(device="cuda", precision="bf16"), MASK)
    losses = [
        model.fit_steps([[0] * 8], [range(8)], lr=5e-3, augment={}, epoch=e)[0][0]
        for e in range(30)
    ]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    logits = model.predict([0] * 8, range(8))["lungs"]
    assert mdmt.engine.mask_scores(logits, masks)[1].mean() > 0.6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_come_in_plain_order(gpu, precision):
    """(N, 1, H, W) of several batches in one series, whatever the size of the batch."""
    _, get = gpu
    here, there = (attached(m, TWO) for m in pair(TWO, precision))
    dataset, index = [0, 1, 0, 0, 1, 0, 1], [3, 2, 1, 0, 7, 5, 5]
    exact = here.predict(dataset, index)
    for batch_size in (1, 3, 7):
        launched = get("graph_launches")
        out = there.predict(dataset, index, batch_size)
        assert (get("graph_launches") > launched) == (batch_size < 7)
        for name, tolerance in (("lungs", 1e-4), ("side", 1e-4), ("features", 1e-4)):
            scale = np.abs(exact[name]).max()
            assert out[name].shape == exact[name].shape
            allowed = (tolerance if precision == "fp32" else 0.05) * scale
            assert np.abs(out[name] - exact[name]).max() < allowed, name


def test_what_a_gpu_keeps_of_predictions_is_bounded(gpu):
    assert tiny(device="cuda")._predict_at_once(32) == 64
    assert [tiny(size=1024, device="cuda")._predict_at_once(n) for n in (1, 4, 32)] == [16, 4, 1]
    assert tiny({"side": 2}, 1024, device="cuda")._predict_at_once(32) == 64
    assert tiny(size=1024)._predict_at_once(1) == 1


def test_a_training_goes_on_from_the_cpus_weights(gpu):
    """And back, with Adam's moments: to the same losses."""
    here, there = (attached(m, MASK) for m in pair())
    dataset, index = steps(MASK)
    adam = {**ADAM, "augment": {}, "epoch": 1}
    here.fit_steps(dataset[:3], index[:3], **adam)
    there.load_state_dict(here.state_dict())
    there.load_optimizer_state(*here.optimizer_state())
    losses = [m.fit_steps(dataset[3:], index[3:], **adam)[0] for m in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# ---------------------------------------------------------------- a study


def test_a_study_on_the_gpu_is_the_cpus(gpu, folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(system, "load_cudnn", lambda module: "cuDNN 9.10.2 (libcudnn.so.9)")
    settings = (*SETTINGS, f"data.root={folder}")
    tables = {}
    for device in ("cpu", "cuda", "auto"):
        out = tmp_path / device
        command = ["lungs", "--out", str(out), "--device", device]
        assert run.main([*command, *(part for s in settings for part in ("--set", s))]) == 0
        tables[device] = np.array([float(r["mean"]) for r in rows_of(out / "table.csv")])
        used = json.loads((out / "runs" / "final" / "result.json").read_text())["device"]
        assert used == ("cpu" if device == "cpu" else "cuda")
        said = capsys.readouterr().err
        assert ("  on cuda:0 the processor in its place" in said) == (device != "cpu"), said
    np.testing.assert_allclose(tables["cuda"], tables["cpu"], atol=0.02)
    names = ("results.csv", "pictures.csv", "lungs.safetensors")
    assert all((tmp_path / "cuda" / n).read_bytes() == (tmp_path / "auto" / n).read_bytes()
               for n in names)  # fmt: skip


def test_a_study_without_its_gpu_is_refused(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "mdmt._cuda", None)
    with pytest.raises(BadConfig, match="the device 'cuda' is not available here: not in this bui"):
        mask_study.run(values_of(folder), tmp_path / "out", device="cuda", quiet=True)
    command = ["lungs", "--set", f"data.root={folder}", "--set", "precision=tf32"]
    assert run.main([*command, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
