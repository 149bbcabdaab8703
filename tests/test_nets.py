"""The descriptions of the backbones, without PyTorch: counts, image sizes, initial weights."""

import math
import re
import zlib

import numpy as np
import pytest

import mdmt
from mdmt import Model, nets
from mdmt.nets import init
from mdmt.nets.builder import Builder
from mdmt.nets.init import initial_value

# Parameters with the original classifier of 1000 classes, as torchvision and timm count them.
PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1_pruned": 6_331_916,
    "efficientnet_es": 5_438_392,
    "efficientnet_es_pruned": 5_438_392,
    "efficientnet_lite0": 4_652_008,
    "googlenet": 6_624_904,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "wide_resnet50_2": 68_883_240,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
}


def describe(name, height, width=None):
    """The builder after it was told the backbone, and the pooled features."""
    b = Builder(height, width or height, 3)
    return b, nets.family(name).build(b, name)


def test_the_eighteen_backbones():
    assert mdmt.backbones() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_with_the_original_classifier(name):
    b, features = describe(name, 224)
    own = sum(math.prod(shape) for _, role, _, shape in b.entries if role == "param")
    width = b.shape(features)[1]
    assert own + 1000 * width + 1000 == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (97, 131), (240, 240)])
def test_any_size_from_32_pixels_on(name, size):
    b, features = describe(name, *size)
    assert len(b.shape(features)) == 2


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [1, 2, 4, 8, 15, 16, 31])
def test_smaller_images_work_or_are_refused_in_one_sentence(name, size):
    try:
        describe(name, size)
    except ValueError as error:
        assert "too small" in str(error) and "larger images" in str(error)
        assert "\n" not in str(error)
        assert size < 31


def test_padding_same_follows_the_size():
    """ceil(size / stride) outputs; a size divisible by the stride is padded at its end only."""
    for size, pad in ((224, (0, 0, 1, 1)), (97, (1, 1, 1, 1))):
        b, _ = describe("efficientnet_b1_pruned", size)
        stem = next(op for op in b.graph.describe() if op["op"] == "conv2d")
        assert stem["attributes"]["pad"] == pad


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2"])
def test_initial_weights_have_the_spread_of_the_original(name):
    """Standard deviations of the rules that each original states."""
    b, _ = describe(name, 64)
    entries = {key: (init, shape) for key, _, init, shape in b.entries}
    rules = {
        "densenet121": ("features.denseblock1.denselayer1.conv2.weight", math.sqrt(2 / (128 * 9))),
        "efficientnet_b0": ("blocks.2.0.conv_dw.weight", math.sqrt(2 / 25)),
        "googlenet": ("inception4a.branch2.1.conv.weight", 0.01),
        "mobilenet_v2": ("features.2.conv.1.0.weight", math.sqrt(2 / (96 * 9))),
    }
    key, deviation = rules[name]
    value = initial_value(key, *entries[key], seed=0)
    assert value.dtype == np.float32
    assert value.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * value.size))
    assert abs(value.mean()) < 5 * deviation / math.sqrt(value.size)


def test_uniform_initial_weights_stay_within_their_bound():
    b, _ = describe("shufflenet_v2_x0_5", 64)
    init, shape = next((i, s) for key, _, i, s in b.entries if key == "conv5.0.weight")
    value = initial_value("conv5.0.weight", init, shape, seed=0)
    bound = 1 / math.sqrt(shape[1])
    assert 0.99 * bound < np.abs(value).max() <= bound


def test_gates_start_from_zero_bias():
    b, _ = describe("efficientnet_b0", 64)
    entries = {key: (init, shape) for key, _, init, shape in b.entries}
    assert entries["blocks.0.0.se.conv_reduce.weight"][1] == (8, 32, 1, 1)
    assert not initial_value("k", *entries["blocks.0.0.se.conv_reduce.bias"], seed=0).any()


def test_a_model_starts_from_a_dictionary_of_weights():
    source = Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=32, seed=1)
    state = source.state_dict()
    backbone = {k: v for k, v in state.items() if not k.startswith("heads.")}
    own = Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=32, seed=2).state_dict()
    model = Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=32, seed=2, weights=backbone)
    for key, value in model.state_dict().items():
        assert value.tobytes() == (backbone.get(key, own[key])).tobytes()
    whole = Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=32, seed=2, weights=state)
    assert all(v.tobytes() == state[k].tobytes() for k, v in whole.state_dict().items())
    lost = dict(backbone)
    gone = lost.popitem()[0]
    with pytest.raises(ValueError, match=f"missing key {re.escape(gone)}"):
        Model("shufflenet_v2_x0_5", heads={"a": 2}, image_size=32, weights=lost)
    with pytest.raises(ValueError, match=r"unknown key layer9\.weight"):
        Model("shufflenet_v2_x0_5", image_size=32, weights=backbone | {"layer9.weight": 1.0})
    with pytest.raises(ValueError, match="holds NaN"):
        bad = {k: np.full_like(v, np.nan) if v.ndim == 4 else v for k, v in backbone.items()}
        Model("shufflenet_v2_x0_5", image_size=32, weights=bad)


def test_initial_weights_are_box_and_mullers_pairs_of_their_stream():
    """Against the formula on the whole stream at once, around the sizes of a block."""
    for count in (1, 2, 7, init.BLOCK, 2 * init.BLOCK + 1, 3 * init.BLOCK + 2):
        key = [3, zlib.crc32(b"w")]
        half = (count + 1) // 2
        u = ((np.random.Philox(key=key).random_raw(2 * half) >> np.uint64(11)) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(u[:half])), 2 * np.pi * u[half:]
        want = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        got = init.initial_value("w", ("normal", 0.1), (count,), 3)
        np.testing.assert_allclose(got, 0.1 * want, rtol=1e-6, atol=1e-9)
        u = ((np.random.Philox(key=key).random_raw(count) >> np.uint64(11)) + 0.5) * 2.0**-53
        got = init.initial_value("w", ("uniform", 0.3), (count,), 3)
        np.testing.assert_allclose(got, 0.3 * (2 * u - 1), rtol=1e-6, atol=1e-9)
