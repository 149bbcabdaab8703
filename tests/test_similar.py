"""Near-duplicates: copies are found, different pictures are not; pairs of real radiographs."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from mdmt import config, study
from mdmt.data import similar
from tests.realdata import COVID_CXR, needs_covid_cxr


def drawn(count, size=160, seed=0):
    """Smooth random pictures, no two alike: (count, size, size) uint8."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        field = gaussian_filter(rng.normal(size=(size, size)), size / 25)
        field = field + 1.5 * gaussian_filter(rng.normal(size=(size, size)), size / 8) * 4
        low, high = np.percentile(field, [1, 99])
        found.append(np.clip(255 * (field - low) / (high - low), 0, 255).astype(np.uint8))
    return np.stack(found)


def encoded(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("L")


def cropped(image, *shares):
    width, height = image.size
    left, top, right, bottom = shares
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width),
         round((1 - bottom) * height))
    )  # fmt: skip


def changed(image, function):
    return Image.fromarray(np.clip(function(np.asarray(image, float)), 0, 255).astype(np.uint8))


COPIES = {
    "re-encoded": lambda im: encoded(im, 30),
    "resized": lambda im: im.resize([s // 2 for s in im.size], Image.Resampling.BICUBIC),
    "brighter": lambda im: changed(im, lambda a: a + 30),
    "flatter": lambda im: changed(im, lambda a: 0.6 * a + 20),
    "gamma": lambda im: changed(im, lambda a: 255 * (a / 255) ** 0.7),
    "cropped by 2 %": lambda im: cropped(im, 0.02, 0.02, 0.02, 0.02),
    "cropped at the left": lambda im: cropped(im, 0.05, 0, 0, 0),
    "turned by 2 degrees": lambda im: im.rotate(2, Image.Resampling.BILINEAR),
    "mirrored": lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "all of it": lambda im: encoded(changed(cropped(im, 0.02, 0.01, 0.03, 0.02),
                                            lambda a: 0.9 * a + 10), 50),
}  # fmt: skip


def back(image, size):
    """As the store has it: padded to a square and resized."""
    side = max(image.size)
    ground = Image.new("L", (side, side))
    ground.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(ground.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(copy):
    images = drawn(30)
    copies = [back(COPIES[copy](Image.fromarray(i)), 160) for i in images[:10]]
    found = similar.pairs(np.concatenate([images, np.stack(copies)]))
    assert [(p.a, p.b) for p in found] == [(i, 30 + i) for i in range(10)]
    assert all(p.mirrored == (copy == "mirrored") for p in found)
    assert all(similar.THRESHOLD <= p.correlation <= 1.0001 for p in found)


def test_nothing_to_compare():
    assert similar.pairs(np.zeros((0, 80, 80), np.uint8)) == []
    assert similar.pairs(np.full((3, 80, 80), 7, np.uint8)) == []  # constant pictures show nothing
    assert similar.pairs(drawn(1)) == []
    assert [(p.a, p.b) for p in similar.pairs(np.repeat(drawn(1), 2, 0))] == [(0, 1)]


def store(images, sources, key="k"):
    return SimpleNamespace(images=images, sources=list(sources), key=key)


def test_within_and_between_data_sets(tmp_path):
    images = drawn(5)
    brighter = np.clip(images[1].astype(int) + 20, 0, 255).astype(np.uint8)
    one = store(images, "abcde", "one")
    two = store(np.stack([images[0], brighter, images[2]]), "axy", "two")
    found = similar.by_source([one, two], tmp_path)
    assert {f[:2] for f in found} == {("b", "x"), ("c", "y")}  # a is the same file
    assert {f[:2]: f[4] for f in found} == {("b", "x"): False, ("c", "y"): True}
    alike = similar.across([one, two], found)
    assert [(p.one, p.two, p.exact) for p in alike] == [
        ((0, 0), (1, 0), True), ((0, 1), (1, 1), False), ((0, 2), (1, 2), True),
    ]  # fmt: skip
    assert similar.by_source([one, two], tmp_path) == found
    cached = next(tmp_path.glob("similar-*.json"))
    cached.write_text("{")  # damaged: found again
    assert similar.by_source([one, two], tmp_path) == found


def test_small_pictures_are_compared_by_their_pixels_alone():
    images = drawn(3, 40)
    almost = images[0].copy()
    almost[0, 0] ^= 1
    both = store(np.stack([*images, images[1], almost]), "abcde")
    assert [f[:2] for f in similar.by_source([both])] == [("b", "d")]


@needs_covid_cxr
def test_the_pairs_of_public_radiographs(tmp_path):
    """Looked at, they are the same pictures: three in both data sets, six under two patients."""
    values = config.load(
        "covid_cxr",
        [f"data.root={COVID_CXR}", f"data.store={tmp_path}", "image_size=128", "data.crop=whole"],
    )
    gathered = study.gather(values, None, True)
    (alike,) = study.find_alike(values, gathered)
    cases = gathered[0][1]
    found = {
        frozenset([cases[p.one[0]].images[p.one[1]], cases[p.two[0]].images[p.two[1]]])
        for p in alike
        if p.one[0] != p.two[0]
        or cases[p.one[0]].patients[p.one[1]] != cases[p.two[0]].patients[p.two[1]]
    }
    one = ["c_6ab2c88885", "c_8b9bdf6b83", "c_7381149522", "c_a8ea4f784d"]  # two of one patient
    assert found == {
        frozenset(("c_79d30e699f", "c_e91ea88a0e")),
        frozenset(("c_a32038ab8c", "c_c7fbec6ce0")),
        frozenset(("c_2d4879d045", "c_354a9f8005")),
        frozenset(("c_cd127f994b", "c_dd87be1b24")),
        *(frozenset((a, b)) for i, a in enumerate(one) for b in one[i + 1 :]
          if {a, b} != {"c_7381149522", "c_a8ea4f784d"}),
    }  # fmt: skip
