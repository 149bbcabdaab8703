"""Augmentation: the draws and the map against a plain statement with SciPy's sampling, the elastic
field against its definition, and what its random numbers may depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import mdmt
from mdmt.augmentation import RANGES
from tests.philox import philox, stream_key, uniform

NOTHING = {
    "probability": 1.0,
    "shift": 0.0,
    "zoom": 0.0,
    "flip": False,
    "rotation": 0.0,
    "elastic_alpha": (0.0, 0.0),
}


def picture(height, width, seed=0):
    """A smooth grey image with some texture."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((height, width)), 3)
    return np.uint8(np.clip(128 + 400 * smooth, 0, 255))


def draws(seed, epoch, data_set, index, ranges):
    """shift (x, y), zoom, flip, angle as csrc/cpu/images.c draws them."""
    key = stream_key(seed, 2)
    high = epoch << 32 | data_set << 8
    bits = [b for block in range(3) for b in philox(key, index, high | block)]
    on = [uniform(b) < ranges["probability"] for b in bits[:5]]
    value = [2 * uniform(b) - 1 for b in bits[5:9]]
    shift = [on[0] * ranges["shift"] * v for v in value[:2]]
    zoom = 1 + on[1] * ranges["zoom"] * value[2]
    angle = on[3] * ranges["rotation"] * value[3]
    return shift, zoom, on[2] and ranges["flip"], angle


def tone(image, seed, epoch, data_set, index, ranges):
    """Grey values 0..255 after gamma, contrast, brightness, inversion and noise, in float64."""
    key, high = stream_key(seed, 2), epoch << 32 | data_set << 8
    on, value, more = (philox(key, index, high | block) for block in (3, 4, 5))
    on = [uniform(b) < ranges["probability"] for b in on]
    spread = [2 * uniform(b) - 1 for b in value[:3]]
    v = np.float64(image) / 255
    if on[0]:
        v = v ** np.exp(ranges["gamma"] * spread[0])
    if on[1]:
        v = np.clip(v.mean() + (1 + ranges["contrast"] * spread[1]) * (v - v.mean()), 0, 1)
    if on[2]:
        v = np.clip(v + ranges["brightness"] * spread[2], 0, 1)
    if uniform(more[0]) < ranges["invert"]:
        v = 1 - v
    if on[3] and ranges["noise"]:
        noise_key = stream_key(more[1] | more[2] << 32, 6)
        words = [w for i in range(-(-v.size // 4)) for w in philox(noise_key, i, 0)][: v.size]
        sums = np.array([(w & 0xFFFF) + (w >> 16) - 65535 for w in words]).reshape(v.shape)
        deviation = ranges["noise"] * uniform(value[3])
        v = np.clip(v + deviation * sums * np.sqrt(6) / 65536, 0, 1)
    return 255 * v


TONE = {"gamma": 0.6, "contrast": 0.5, "brightness": 0.3, "invert": 0.4, "noise": 0.2}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 50),
    st.integers(0, 2**40),
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_grey_values_change_as_stated(seed, epoch, data_set, index, shape, probability):
    ranges = {**NOTHING, **TONE, "probability": probability}
    image = picture(*shape)
    key = {"epoch": epoch, "seed": seed}
    out = mdmt.augment(image, data_set, index, dtype=np.float32, **key, **ranges)
    expected = tone(image, seed, epoch, data_set, index, ranges)
    np.testing.assert_allclose(out, expected, atol=5e-3)


def test_noise_has_its_deviation_and_inversion_its_probability():
    n = 400
    grey = np.full((n, 16, 16), 128, np.uint8)
    how = {"epoch": 0, "seed": 3, "dtype": np.float32}
    noisy = mdmt.augment(grey, 0, np.arange(n), **how, **{**NOTHING, "noise": 0.1}) - 128
    # uniform between 0 and 0.1: a mean square of 0.1^2 / 3
    assert noisy.std() == pytest.approx(25.5 / np.sqrt(3), rel=0.1) and abs(noisy.mean()) < 1
    turned = mdmt.augment(grey, 0, np.arange(n), **how, **{**NOTHING, "invert": 0.25})
    assert abs((np.rint(turned) == 127).all((1, 2)).mean() - 0.25) < 0.08


def test_a_mask_moves_as_its_image_does_and_keeps_its_values():
    image = np.uint8(255 * (picture(48, 40) > 128))
    key = {"dataset": 2, "index": 7, "epoch": 3, "seed": 5, "probability": 1.0}
    moved = mdmt.augment(image, **key)
    assert (moved != image).any()
    np.testing.assert_array_equal(mdmt.augment(image, **key, **TONE, masks=True), moved)
    assert (mdmt.augment(image, **key, **TONE) != moved).any()


def statement(image, size, shift, zoom, flip, angle):
    """Inverse map in float64, sampled by SciPy: mirrored, linear."""
    (height, width), (sh, sw) = size, image.shape
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x - width / 2 - shift[0] * width, y - height / 2 - shift[1] * height
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = (c * x + s * y) / zoom, (c * y - s * x) / zoom
    x = (-x if flip else x) * sw / width + sw / 2 - 0.5
    y = y * sh / height + sh / 2 - 0.5
    return ndimage.map_coordinates(np.float64(image), [y, x], order=1, mode="mirror")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 50),
    st.integers(0, 2**40),
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_map_equals_the_statement(seed, epoch, data_set, index, shape, size, probability):
    ranges = {**RANGES, "probability": probability, "elastic_sigma": 0.0}
    image = picture(*shape)
    out = mdmt.augment(
        image, data_set, index, epoch=epoch, seed=seed, size=size, dtype=np.float32, **ranges
    )
    expected = statement(image, size, *draws(seed, epoch, data_set, index, ranges))
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_nothing_to_do_copies_every_pixel():
    image = picture(37, 41)
    for ranges in ({"probability": 0.0}, NOTHING):
        out = mdmt.augment(image, 1, 5, epoch=3, seed=9, **ranges)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, image)
    flipped = mdmt.augment(image, 1, 5, epoch=3, seed=9, **{**NOTHING, "flip": True})
    np.testing.assert_array_equal(flipped, image[:, ::-1])


def test_each_transform_comes_with_its_probability():
    for probability in (0.5, 0.2):
        ranges = {**NOTHING, "probability": probability}
        image = picture(12, 12)
        stack, n = np.repeat(image[None], 2000, 0), 2000
        for transform in ({"flip": True}, {"shift": 0.2}, {"zoom": 0.2}, {"rotation": 20.0}):
            out = mdmt.augment(
                stack, 0, np.arange(n), epoch=0, seed=1, dtype=np.float32, **{**ranges, **transform}
            )
            share = (out != image).any((1, 2)).mean()
            assert abs(share - probability) < 4.5 * np.sqrt(probability * (1 - probability) / n)


@pytest.mark.parametrize("sigma", [1.0, 4.0, 7.0, 13.0])
def test_elastic_field_has_the_strength_and_smoothness_of_its_definition(sigma):
    """A ramp makes the displacement visible. The definition, alpha times uniform noise smoothed
    by a Gaussian, has the deviation alpha / sqrt(12 pi) / sigma and the correlation
    exp(-d^2 / (4 sigma^2)) at distance d."""
    n, side, alpha = 40, 120, 3.0 * sigma
    ramp = np.repeat(np.arange(side, dtype=np.uint8)[None], side, 0) + np.uint8(50)
    ranges = {**NOTHING, "elastic_alpha": (alpha, alpha), "elastic_sigma": sigma}
    inner = np.s_[:, 20:-20, 20:-20]
    fields = []
    for image in (ramp, ramp.T):
        stack = np.repeat(image[None], n, 0)
        out = mdmt.augment(stack, 0, np.arange(n), epoch=0, seed=2, dtype=np.float32, **ranges)
        fields.append((out - image)[inner])
    expected = alpha / np.sqrt(12 * np.pi) / sigma
    if sigma < 2:  # the sum of squared taps of a narrow kernel is not its integral
        line = np.zeros(99)
        line[49] = 1
        expected = alpha / np.sqrt(3) * (ndimage.gaussian_filter1d(line, sigma) ** 2).sum()
    cells = n * (80 / (2 * sigma)) ** 2  # independent places, about
    for u in fields:
        assert u.std() == pytest.approx(expected, rel=0.03 + 3 / np.sqrt(cells))
        assert abs(u.mean()) < 5 * expected / np.sqrt(cells)
        for axis in (1, 2):
            for d in (round(sigma), round(2 * sigma)):
                a = np.take(u, np.arange(u.shape[axis] - d), axis)
                b = np.take(u, np.arange(d, u.shape[axis]), axis)
                correlation = (a * b).mean() / u.var()
                assert correlation == pytest.approx(np.exp(-(d**2) / (4 * sigma**2)), abs=0.08)
    both = (fields[0] * fields[1]).mean() / (fields[0].std() * fields[1].std())
    assert abs(both) < 5 / np.sqrt(cells)


def test_elastic_field_is_as_strong_at_the_border_as_inside():
    ramp = np.repeat(np.arange(100, dtype=np.uint8)[None], 100, 0) + np.uint8(50)
    ranges = {**NOTHING, "elastic_alpha": (20.0, 20.0), "elastic_sigma": 7.0}
    stack = np.repeat(ramp[None], 300, 0)
    out = mdmt.augment(stack, 0, np.arange(300), epoch=0, seed=4, dtype=np.float32, **ranges)
    u = (out - ramp)[:, :, 10:-10]
    assert u[:, 0].std() == pytest.approx(u[:, 50].std(), rel=0.12)


def test_depends_on_seed_epoch_data_set_and_index_alone():
    rng = np.random.default_rng(0)
    images = np.stack([picture(40, 48, seed=i) for i in range(9)])
    data_set, index = rng.integers(0, 3, 9), rng.integers(0, 10**6, 9)
    whole = mdmt.augment(images, data_set, index, epoch=4, seed=11, probability=1.0)
    for threads in (2, 4):
        again = mdmt.augment(
            images, data_set, index, epoch=4, seed=11, probability=1.0, threads=threads
        )
        np.testing.assert_array_equal(again, whole)
    order = rng.permutation(9)
    again = mdmt.augment(
        images[order], data_set[order], index[order], epoch=4, seed=11, probability=1.0
    )
    np.testing.assert_array_equal(again, whole[order])
    one = mdmt.augment(images[3], data_set[3], index[3], epoch=4, seed=11, probability=1.0)
    np.testing.assert_array_equal(one, whole[3])
    key = {"dataset": int(data_set[3]), "index": int(index[3]), "epoch": 4, "seed": 11}
    for name in key:
        other = mdmt.augment(images[3], **{**key, name: key[name] + 1}, probability=1.0)
        assert (other != whole[3]).any(), name


def test_source_of_another_size_is_resampled_by_the_same_map():
    image = picture(64, 96)
    out = mdmt.augment(image, 0, 0, epoch=0, seed=0, size=(32, 48), probability=0.0, dtype=float)
    np.testing.assert_allclose(out, image.reshape(32, 2, 48, 2).mean((1, 3)), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (300, 2)])
def test_thin_images_and_wild_ranges_stay_inside(size):
    image = picture(*size)
    ranges = {
        "probability": 1.0,
        "shift": 30.0,
        "zoom": 0.99,
        "rotation": 3600.0,
        "elastic_alpha": (0.0, 1e5),
        "elastic_sigma": 50.0,
    }
    out = mdmt.augment(np.repeat(image[None], 20, 0), 0, range(20), epoch=0, seed=0, **ranges)
    assert out.min() >= image.min() and out.max() <= image.max()


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        ({"zoom": 1.0}, "zoom range .* not 1"),
        ({"probability": 1.5}, "probability .* not 1.5"),
        ({"rotation": -3}, "rotation .* not -3"),
        ({"shift": float("nan")}, "shift .* not nan"),
        ({"elastic_alpha": (40, 20)}, "lower and an upper value, not 40 and 20"),
        ({"invert": 1.5}, "invert .* within 0 to 1, not 1.5"),
        ({"gamma": -1}, "gamma .* within 0 to 3, not -1"),
        ({"shear": 1}, "unknown range 'shear'"),
        ({"size": (0, 5)}, "cannot have the size 0 x 5"),
        ({"threads": 0}, "number of threads must be 1"),
    ],
)
def test_bad_ranges_are_one_sentence(ranges, sentence):
    with pytest.raises(ValueError, match=sentence):
        mdmt.augment(picture(8, 8), 0, 0, epoch=0, seed=0, **ranges)


def test_images_must_be_grey_bytes():
    with pytest.raises(ValueError, match="must be uint8"):
        mdmt.augment(np.zeros((4, 4)), 0, 0, epoch=0, seed=0)


@pytest.mark.parametrize("change, says", [
    ({"dataset": [0.7, 0.2]}, "dataset must be an integer or 2 of them"),
    ({"index": ["0", "1"]}, "index must be an integer or 2 of them"),
    ({"index": [0, 1, 2]}, "index must be an integer or 2 of them"),
    ({"index": None}, "index must be an integer or 2 of them"),
    ({"epoch": 0.9}, "epoch must be an integer"),
    ({"epoch": None}, "epoch must be an integer"),
    ({"seed": 1.9}, "seed must be an integer"),
    ({"seed": 2**64}, "seed must be 0 to"),
])  # fmt: skip
def test_numbers_of_samples_are_whole(change, says):
    how = {"dataset": 0, "index": [0, 1], "epoch": 0, "seed": 0} | change
    with pytest.raises(ValueError, match=says):
        mdmt.augment(np.zeros((2, 32, 32), np.uint8), **how)
