"""Resident images in colour: each channel as a grey image would be, on every path."""

import numpy as np
import pytest

import mdmt
from mdmt import _core
from mdmt.model import Model
from tests import cudahost
from tests.test_groups import paths
from tests.test_images import MEAN, RANGES, STD
from tests.test_model import HEADS, same

gpu, no_race = cudahost.gpu, cudahost.no_race
TONE = {"gamma": 0.6, "contrast": 0.5, "brightness": 0.3, "invert": 0.4}
NOISE = {"noise": 0.2}
STILL = dict.fromkeys(RANGES, 0.0) | {"probability": 0.8, "elastic_alpha": (0.0, 0.0)}
CASES = {"as they are": None, "moved": RANGES, "changed": STILL | TONE,
         "all": RANGES | TONE, "with noise": RANGES | TONE | NOISE}  # fmt: skip
SAMPLES = 12


def sources(masks=False):
    """A data set in colour, a grey one and another in colour, of three sizes."""
    rng = np.random.default_rng(0)
    shapes = [(5, 3, 32, 40), (4, 36, 36), (3, 3, 50, 30)]
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    inside = [np.uint8(255) * rng.integers(0, 2, (s[0], *s[-2:]), np.uint8) for s in shapes]
    return (images, [inside[0], None, inside[2]]) if masks else images


def run(ranges, isa=None, device=None, threads=1, masks=False, size=(36, 44), given=None):
    """What the op images makes of twelve samples."""
    rng = np.random.default_rng(1)
    dataset = np.arange(SAMPLES) % 3
    index = np.array([rng.integers((5, 4, 3)[d]) for d in dataset])
    attrs = {"batch": SAMPLES, "channels": 3, "size": size, "augment": int(ranges is not None)}
    attrs |= {"mean": MEAN, "std": STD, "want_mask": int(masks), "colour": 1}
    graph = _core.Graph()
    for out, name in zip(graph.add("images", [], **attrs), ("x", "mask")):
        graph.output(out, name)
    images, inside = sources(True)
    how = {"device": device} if device else {"threads": threads, "isa": isa}
    more = {"masks": inside} if masks else {}
    found = _core.Program(graph, **how).run(
        {}, dataset=dataset, index=index, sources=given or images, seed=5, epoch=2,
        augmentation=ranges or RANGES, **more,
    )  # fmt: skip
    out = found["x"].copy()
    return (out, found["mask"].copy()) if masks else (out, dataset, index)


def normalised(grey, c):
    return (grey / np.float32(255) - np.float32(MEAN[c])) / np.float32(STD[c])


@pytest.mark.parametrize("case", CASES)
def test_each_channel_is_as_a_grey_image(case):
    """Of the same draws; noise alone is drawn for each channel. A grey image is repeated."""
    ranges = CASES[case]
    x, dataset, index = run(ranges)
    how = {"epoch": 2, "seed": 5, "size": (36, 44), "dtype": np.float32}
    how |= {**RANGES, "probability": 0.0} if ranges is None else ranges
    bound = 0 if case in ("as they are", "moved") else 1e-6  # augment divides by 255 and multiplies
    noisy = []
    for i, (d, k) in enumerate(zip(dataset, index)):
        picture = sources()[d][k]
        planes = [picture] * 3 if picture.ndim == 2 else picture
        for c, plane in enumerate(planes):
            expected = normalised(mdmt.augment(plane, d, k, **how), c)
            if case == "with noise" and c and picture.ndim == 3:
                noisy.append(np.abs(x[i, c] - expected).max() > 0.01)
            else:
                np.testing.assert_allclose(x[i, c], expected, rtol=0, atol=bound)
    assert case != "with noise" or sum(noisy) >= 6  # of 16, some have none


def test_noise_of_channels_is_independent():
    grey = np.full((1, 3, 64, 64), 128, np.uint8)
    how = dict.fromkeys(RANGES, 0.0) | {"probability": 1.0, "elastic_alpha": (0, 0)}
    made = mdmt.augment(grey, 0, 3, epoch=0, seed=1, dtype=np.float32, **how, noise=0.3)
    noise = made.reshape(3, -1) - 128
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.05 and noise.std() > 1


def test_augment_in_colour_is_what_the_engine_does():
    x, dataset, index = run(CASES["with noise"])
    how = {"epoch": 2, "seed": 5, "size": (36, 44), "dtype": np.float32} | CASES["with noise"]
    for i in np.flatnonzero(dataset != 1):
        found = mdmt.augment(sources()[dataset[i]][index[i]][None], dataset[i], index[i], **how)
        for c in range(3):
            np.testing.assert_allclose(normalised(found[0, c], c), x[i, c], rtol=0, atol=1e-6)
    four = mdmt.augment(np.zeros((2, 4, 8, 9), np.uint8), 0, 0, epoch=0, seed=0, size=5)
    assert four.shape == (2, 4, 5, 5) and four.dtype == np.uint8


@pytest.mark.parametrize("isa", paths())
def test_same_bits_on_any_instruction_set_and_threads(isa):
    best = run(CASES["with noise"])[0]
    for threads in (1, 3):
        found = run(CASES["with noise"], isa=isa, threads=threads)[0]
        np.testing.assert_array_equal(found, best)


def test_masks_move_with_the_images():
    _, inside = sources(True)
    mask = run(RANGES, masks=True)[1]
    _, dataset, index = run(RANGES)
    how = {"epoch": 2, "seed": 5, "size": (36, 44), "dtype": np.float32, "masks": True} | RANGES
    for i, (d, k) in enumerate(zip(dataset, index)):
        expected = 0 if inside[d] is None else mdmt.augment(inside[d][k], d, k, **how) / 255
        np.testing.assert_array_equal(mask[i, 0], np.float32(expected))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(36, 44), (31, 35)], ids=["in fours", "not in fours"])
def test_on_a_gpu_as_on_the_cpu(gpu, case, size, monkeypatch):
    """Resident, streamed, and with threads and blocks in another order."""
    put, _ = gpu
    expected = run(CASES[case], masks=True, size=size)
    device = cudahost.device("bf16")
    found = run(CASES[case], masks=True, size=size, device=device)
    bound = 0.05 if case != "as they are" else 1e-4
    for mine, cpus in zip(found, expected):
        assert np.abs(mine - cpus).max() < bound and cpus.std() > 0.2
    put("walk", 1)
    again = run(CASES[case], masks=True, size=size, device=device)
    put("walk", 0)
    monkeypatch.setenv("MDMT_CUDA_STORE_MB", "0")
    streamed = run(CASES[case], masks=True, size=size, device=device)
    for k in (0, 1):
        assert again[k].tobytes() == found[k].tobytes() == streamed[k].tobytes()


def data_sets(model):
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (6, 3, 64, 64), np.uint8),
              rng.integers(0, 256, (6, 64, 64), np.uint8)]  # fmt: skip
    model.attach(
        [{"images": m, "task": k, "target": np.arange(6.0) % 2} for k, m in enumerate(images)]
    )
    return images


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_and_predictions_are_those_of_the_pixels(gpu, device):
    how = {"heads": HEADS, "image_size": 64, "seed": 3, "device": device}
    model, twin = (Model("shufflenet_v2_x0_5", **how) for _ in range(2))
    images = data_sets(model)
    rng = np.random.default_rng(4)
    dataset, index = rng.integers(0, 2, (2, 6)), rng.integers(0, 6, (2, 6))

    def pixels(rows):
        colour = [m[:, None].repeat(3, 1) if m.ndim == 3 else m for m in images]
        return twin.normalise(np.stack([colour[d][i] for d, i in zip(dataset[rows], index[rows])]))

    for row in (0, 1):
        loss, _ = model.fit_step(dataset[row], index[row], lr=1e-4)
        expected = twin.train_step(pixels(row), dataset[row], index[row] % 2, lr=1e-4)
        assert loss == pytest.approx(expected, rel=1e-5 if device == "cpu" else 1e-3)
    twin.load_state_dict(model.state_dict())
    found, expected = model.predict(dataset[0], index[0], 4), twin.forward(pixels(0))
    for name in HEADS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_colour_is_seen_by_training_alone_where_it_differs():
    """Grey images as three equal planes are the grey ones, to the bit."""
    how = {"heads": HEADS, "image_size": 32, "seed": 3}
    grey, colour = (Model("shufflenet_v2_x0_5", **how) for _ in range(2))
    images = np.random.default_rng(2).integers(0, 256, (6, 32, 32), np.uint8)
    both = [images, np.ascontiguousarray(images[:, None].repeat(3, 1))]
    zeros, index = np.zeros((2, 4), int), np.arange(8).reshape(2, 4) % 6
    for model, mine in zip((grey, colour), both):
        model.attach([{"images": mine, "task": 0, "target": np.arange(6.0) % 2}])
        model.fit_steps(zeros, index, augment={"probability": 0.8} | TONE, epoch=1)
    assert same(grey.state_dict(), colour.state_dict())


def attach(images, **how):
    Model("resnet18", {"a": 2}, image_size=32, **how).attach(
        [{"images": images, "task": 0, "target": np.zeros(len(images))}]
    )


@pytest.mark.parametrize(
    "shape, how, words",
    [
        ((4, 32, 32, 3), {}, r"\(M, 3, H, W\), not .*channels to the front"),
        ((4, 2, 32, 32), {}, r"uint8 \(M, H, W\) or \(M, 3, H, W\), not \(4, 2, 32, 32\)"),
        ((4, 1, 32, 32), {}, r"grey images in one channel give x\[:, 0\]"),
        ((4, 3, 32, 32), {"channels": 1}, r"uint8 \(M, H, W\), not"),
        ((4, 1, 3, 32, 32), {}, r"uint8 \(M, H, W\) or"),
    ],
)
def test_other_shapes_are_one_sentence(shape, how, words):
    with pytest.raises(ValueError, match=words):
        attach(np.zeros(shape, np.uint8), **how)


def test_the_engine_refuses_what_does_not_fit(gpu):
    bad = [np.zeros((5, 2, 32, 40), np.uint8), *sources()[1:]]
    with pytest.raises(ValueError, match="images of data set 0 have 2 channels, the network takes"):
        run(RANGES, given=bad)
    with pytest.raises(ValueError, match="images of data set 0 have 2 channels, the network takes"):
        run(RANGES, given=bad, device=cudahost.device("fp32"))
