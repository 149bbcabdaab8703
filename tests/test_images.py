"""The op images: what a training step's input is, against augment and plain normalisation."""

import numpy as np
import pytest

import mdmt
from mdmt._core import Graph, Program

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES = {
    "probability": 0.7,
    "shift": 0.1,
    "zoom": 0.1,
    "flip": 1.0,
    "rotation": 10.0,
    "elastic_alpha": (20.0, 40.0),
    "elastic_sigma": 7.0,
}


def sources():
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (7, 32, 40), dtype=np.uint8),
        rng.integers(0, 256, (5, 50, 30), dtype=np.uint8),
    ]


def program(batch, channels, size, augment, threads=1, isa=None):
    graph = Graph()
    attributes = {"batch": batch, "channels": channels, "size": size, "augment": augment}
    attributes |= {"mean": MEAN[:channels], "std": STD[:channels]}
    (out,) = graph.add("images", [], **attributes)
    graph.output(out, "x")
    return Program(graph, threads=threads, isa=isa)


def run(compiled, dataset, index, **step):
    step = {"sources": sources(), "augmentation": RANGES, "seed": 5, "epoch": 2, **step}
    return compiled.run({}, dataset=dataset, index=index, **step)["x"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [0, 1])
@pytest.mark.parametrize("size", [(32, 40), (45, 33)])
def test_equals_augment_and_normalisation(channels, augment, size):
    rng = np.random.default_rng(1)
    dataset = rng.integers(0, 2, 11)
    index = np.array([rng.integers((7, 5)[d]) for d in dataset])
    x = run(program(11, channels, size, augment), dataset, index)
    assert x.shape == (11, channels, *size) and x.dtype == np.float32
    ranges = RANGES if augment else {**RANGES, "probability": 0.0}
    for i, (d, k) in enumerate(zip(dataset, index)):
        grey = mdmt.augment(
            sources()[d][k], d, k, epoch=2, seed=5, size=size, dtype=np.float32, **ranges
        )
        for c in range(channels):
            expected = (grey / np.float32(255) - np.float32(MEAN[c])) / np.float32(STD[c])
            np.testing.assert_array_equal(x[i, c], expected)


def test_same_bits_for_any_number_of_threads_and_any_batch():
    dataset, index = [0, 1, 1, 0, 0, 1], [6, 0, 4, 1, 6, 2]
    one = run(program(6, 3, (36, 36), 1), dataset, index)
    for threads in (2, 4):
        many = run(program(6, 3, (36, 36), 1, threads), dataset, index)
        np.testing.assert_array_equal(many, one)
    np.testing.assert_array_equal(one[0], one[4])
    pair = run(program(2, 3, (36, 36), 1), [1, 0], [2, 6])
    np.testing.assert_array_equal(pair, one[[5, 0]])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (1, 9), (9, 1), (32, 40), (101, 67)])
def test_same_bits_for_any_instruction_set(shape):
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (40, *shape), dtype=np.uint8)]
    index = np.arange(40)
    step = {"sources": images, "augmentation": {**RANGES, "shift": 0.4, "zoom": 0.5}}
    best, ref = (
        run(program(40, 1, (37, 43), 1, isa=isa), np.zeros(40, int), index, **step)
        for isa in (None, "ref")
    )
    np.testing.assert_array_equal(best, ref)


def test_changes_with_epoch_and_seed():
    compiled = program(2, 1, (32, 40), 1)
    first = run(compiled, [0, 1], [1, 1])
    for step in ({"epoch": 3}, {"seed": 6}):
        assert (run(compiled, [0, 1], [1, 1], **step) != first).mean() > 0.5
    np.testing.assert_array_equal(run(compiled, [0, 1], [1, 1]), first)


def test_bad_samples_and_ranges_are_one_sentence():
    compiled = program(2, 1, (32, 40), 1)
    with pytest.raises((ValueError, IndexError), match=r"sample 1 .* image 7 of data set 0"):
        run(compiled, [0, 0], [6, 7])
    with pytest.raises((ValueError, IndexError), match="data set 2"):
        run(compiled, [0, 2], [0, 0])
    with pytest.raises(ValueError, match=r"zoom range .* not 1"):
        run(compiled, [0, 0], [0, 1], augmentation={**RANGES, "zoom": 1.0})
