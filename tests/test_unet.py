"""Networks for masks: a tiny U-Net against PyTorch, resident masks, mixed heads, files, errors."""

import numpy as np
import pytest

import mdmt
from mdmt import engine
from mdmt.mask_study import save_half

MASK = {"lungs": {"loss": "dice_ce"}}
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}


def discs(n, size, seed=0):
    """Noisy pictures of a bright disc, uint8 (n, size, size), and its mask, 255 inside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0.3, 0.7, (n, 2)) * size, rng.uniform(0.15, 0.3, n) * size
    inside = np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None]) < radius[:, None, None]
    pictures = 90 + 60 * inside + rng.normal(0, 25, inside.shape)
    return np.uint8(np.clip(pictures, 0, 255)), np.uint8(255 * inside)


def tiny(heads=MASK, size=32, **more):
    return mdmt.Model("unet_tiny", heads=heads, image_size=size, channels=1, **more)


def normalised(model, pictures):
    x = pictures[:, None].astype(np.float32) / np.float32(255)
    return (x - np.float32(model.mean[0])) / np.float32(model.std[0])


class Torch:
    """The tiny U-Net and its loss in PyTorch, float64."""

    def __init__(self, model):
        import torch

        self.torch, self.f = torch, torch.nn.functional
        state = {k: torch.tensor(v) for k, v in model.state_dict().items()}
        self.weights = {
            k: v.double().requires_grad_()
            for k, v in state.items()
            if v.is_floating_point() and "running" not in k
        }

    def unit(self, x, name, stride=1):
        w = self.weights
        x = self.f.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=1)
        norm = (w[f"{name}.bn.weight"], w[f"{name}.bn.bias"])
        return self.f.batch_norm(x, None, None, *norm, training=True).relu()

    def up(self, x):
        return self.f.interpolate(x, scale_factor=2, mode="bilinear")

    def loss(self, x, masks):
        x, levels = self.unit(self.torch.tensor(x).double(), "stem", 2), []
        for i in range(3):
            if i:
                x = self.unit(self.f.max_pool2d(x, 2), f"down.{i}.0")
            x = self.unit(x, f"down.{i}.1")
            levels.append(x)
        for i in (1, 0):
            x = self.torch.cat([self.up(x), levels[i]], 1)
            x = self.unit(self.unit(x, f"up.{i}.0"), f"up.{i}.1")
        head = (self.weights["heads.lungs.0.weight"], self.weights["heads.lungs.0.bias"])
        z, t = self.up(self.f.conv2d(x, *head)), self.torch.tensor(masks).double()[:, None]
        entropy = self.f.binary_cross_entropy_with_logits(z, t, reduction="none").mean((1, 2, 3))
        p, axes = z.sigmoid(), (1, 2, 3)
        dice = (2 * (p * t).sum(axes) + 1) / (p.sum(axes) + t.sum(axes) + 1)
        return (entropy + 1 - dice).mean()


@pytest.mark.oracle
def test_gradients_and_ten_steps_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    model = tiny()
    pictures, masks = discs(4, 32)
    x, target = normalised(model, pictures), masks / np.float32(255)
    peer = Torch(model)
    loss, gradients = model.loss_and_gradients(x, [0] * 4, target)
    expected = peer.loss(x, target)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, weight in peer.weights.items():
        error = np.linalg.norm(gradients[name] - weight.grad.numpy())
        assert error <= 1e-4 * np.linalg.norm(weight.grad.numpy()), name
    adam = torch.optim.Adam(peer.weights.values(), **ADAM)
    for _ in range(10):
        adam.zero_grad()
        expected = peer.loss(x, target)
        expected.backward()
        adam.step()
        assert model.train_step(x, [0] * 4, target, **ADAM) == pytest.approx(
            expected.item(), rel=2e-5
        )


def test_learns_and_has_the_same_bits_for_any_number_of_threads():
    pictures, masks = discs(8, 32)
    found = []
    try:
        for threads in (1, 2):
            mdmt.set_num_threads(threads)
            model = tiny()
            model.attach([{"images": pictures, "task": 0, "target": masks}])
            losses = [
                model.fit_step([0] * 8, range(8), lr=5e-3, augment={}, epoch=e)[0]
                for e in range(30)
            ]
            found.append((losses, model.predict([0] * 8, range(8))["lungs"]))
    finally:
        mdmt.set_num_threads(1)
    assert found[0][0] == found[1][0] and found[0][1].tobytes() == found[1][1].tobytes()
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    loss, dice = engine.mask_scores(found[0][1], masks)
    assert loss.shape == dice.shape == (8,) and dice.mean() > 0.6


def test_a_resident_mask_is_moved_with_its_image():
    pictures, masks = discs(3, 32)
    augment = {"probability": 1.0, "elastic_alpha": (1.0, 2.0), "elastic_sigma": 2.0, "gamma": 0.5}
    key = {"epoch": 4, "seed": 7, **augment, "dtype": np.float32}
    rows = np.arange(3)
    moved = mdmt.augment(pictures, 0, rows, **key)
    target = mdmt.augment(masks, 0, rows, masks=True, **key) / np.float32(255)
    resident, plain = tiny(seed=7), tiny(seed=7)
    resident.attach([{"images": pictures, "task": 0, "target": masks}])
    loss, per_task = resident.fit_step([0] * 3, rows, augment=augment, epoch=4)
    x = normalised(plain, moved)
    assert loss == pytest.approx(plain.train_step(x, [0] * 3, target), rel=1e-5)
    assert per_task.tolist() == [[pytest.approx(3 * loss, rel=1e-5), 3]]


def test_resident_masks_of_zeros_and_ones_are_refused():
    pictures, masks = discs(3, 32)
    with pytest.raises(ValueError, match="masks of data set 0 hold 0 and 1 alone, and 255 is"):
        tiny().attach([{"images": pictures, "task": 0, "target": masks // 255}])
    tiny().attach([{"images": pictures, "task": 0, "target": np.zeros_like(masks)}])


def test_masks_and_classes_train_in_one_batch():
    model = tiny(heads={"side": 2, **MASK})
    pictures, masks = discs(5, 32)
    x, task = normalised(model, pictures), np.array([0, 1, 0, 1, -1])
    soft = masks / np.float32(255)
    loss, gradients = model.loss_and_gradients(x, task, [0, 0, 1, 0, 0], mask=soft, training=False)
    assert all(np.abs(gradients[f"heads.{k}.0.weight"]).max() > 0 for k in ("side", "lungs"))
    out = model.forward(x)
    assert out["features"].shape == (5, 32) and out["lungs"].shape == (5, 1, 32, 32)
    classes = mdmt.masked_loss([out["side"]], np.where(task == 0, 0, -1), [0, 0, 1, 0, 0])
    each, _ = engine.mask_scores(out["lungs"][[1, 3]], masks[[1, 3]])
    assert loss == pytest.approx((2 * classes[0] + each.sum()) / 4, rel=1e-5)
    alone, gradients = model.loss_and_gradients(x, [1] * 5, soft, training=False)
    assert (gradients["heads.side.0.weight"] == 0).all()
    none, gradients = model.loss_and_gradients(x, [-1] * 5, soft, training=False)
    assert none == 0 and all((g == 0).all() for g in gradients.values())


def test_saves_loads_and_exports(tmp_path):
    model = tiny()
    pictures, masks = discs(4, 32)
    x = normalised(model, pictures)
    model.train_step(x, [0] * 4, masks / 255)
    out = model.forward(x)["lungs"]
    model.save(tmp_path / "m.safetensors")
    again = mdmt.Model.load(tmp_path / "m.safetensors")
    assert again.forward(x)["lungs"].tobytes() == out.tobytes()
    save_half(model, tmp_path / "h.safetensors")
    half = mdmt.Model.load(tmp_path / "h.safetensors").forward(x)["lungs"]
    assert np.abs(half - out).max() < 2e-2
    size = (tmp_path / "h.safetensors").stat().st_size
    assert size < 0.6 * (tmp_path / "m.safetensors").stat().st_size
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    model.export_onnx(tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    (theirs,) = session.run(["lungs"], {"image": x})
    np.testing.assert_allclose(theirs, out, atol=1e-4)


X = np.zeros((2, 1, 32, 32), np.float32)
M = np.zeros((2, 32, 32))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda m: m.train_step(X, [0, 0], M[:, 1:]), r"must be \(2, 32, 32\), like the images"),
        (lambda m: m.train_step(X, [0, 0], M + 2), "mask of sample 0 must lie within 0 to 1"),
        (lambda m: m.train_step(X, [0, 0], [0, 0]), "task lungs needs a mask per sample"),
        (lambda m: m.forward(X[..., :30]), "sides are multiples of 8, not 32 x 30"),
        (
            lambda m: m.attach([{"images": np.uint8(M), "task": 0, "target": M}]),
            "masks of data set 0 must be uint8",
        ),
        (lambda m: tiny({"a": {"loss": "dice_ce", "classes": 3}}), "classes can only be 1, not 3"),
        (lambda m: mdmt.Model("resnet18", heads=MASK), "needs a backbone with a feature map"),
        (lambda m: tiny(size=30), "unet_tiny with images of 30 x 30 pixels"),
    ],
)
def test_bad_arguments_are_one_sentence(act, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        act(tiny())
    assert "\n" not in str(error.value)
