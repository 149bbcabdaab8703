"""Exported ONNX files: valid, equal in onnxruntime, of any batch, described, whole or not there."""

import json
import os
import sys

import numpy as np
import pytest

import mdmt
from mdmt import _core
from mdmt.errors import BadInput
from mdmt.nets.builder import Builder
from mdmt.onnx import ACTIVATIONS, write
from mdmt.weights.catalogue import default_size

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[test]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

HEADS = {"prognosis": 2, "severity": {"classes": 4, "hidden": [], "dropout": 0.2}}
SIZE = 64


def session(path):
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(one, x):
    one = one if isinstance(one, onnxruntime.InferenceSession) else session(one)
    return dict(zip([o.name for o in one.get_outputs()], one.run(None, {"image": x})))


def scrambled(state, seed=0):
    """Batch norms away from 1 and 0, so that an exchange of two of them would show."""
    rng = np.random.default_rng(seed)
    ranges = {"weight": (0.8, 1.2), "bias": (-0.2, 0.2)}
    ranges |= {"running_mean": (-0.2, 0.2), "running_var": (0.8, 1.2)}
    found = {}
    for key, value in state.items():
        what = key.rpartition(".")[2]
        if value.ndim == 1 and what in ranges and not key.startswith("heads."):
            value = rng.uniform(*ranges[what], value.shape).astype(np.float32)
        found[key] = value
    return found


def assert_near(found, wanted, most=1e-4):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(value).max() > 0.01, f"{name} is no proof: all near 0"
        scale = max(1.0, np.abs(value).max())
        error = np.abs(found[name] - value).max() / scale
        assert error <= most, (name, error)


def assert_equal_in_onnxruntime(backbone, size, path):
    """For batches of 1 and of 3, with one file."""
    model = mdmt.Model(backbone, heads=HEADS, image_size=size)
    model.load_state_dict(scrambled(model.state_dict()))
    model.export_onnx(path)
    one = session(path)
    for n in (1, 3):
        x = np.random.default_rng(n).standard_normal((n, 3, size, size)).astype(np.float32)
        assert_near(run(one, x), model.forward(x))


@pytest.mark.parametrize("backbone", mdmt.backbones())
def test_every_backbone_is_equal_in_onnxruntime(tmp_path, backbone):
    assert_equal_in_onnxruntime(backbone, SIZE, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MDMT_SLOW"), reason="runs where MDMT_SLOW is set")
@pytest.mark.parametrize("backbone", mdmt.backbones())
def test_every_backbone_at_its_original_size(tmp_path, backbone):
    assert_equal_in_onnxruntime(backbone, default_size(backbone), tmp_path / "net.onnx")


def test_size_and_channels_are_those_of_the_model(tmp_path):
    model = mdmt.Model("resnet18", heads={"t": 3}, image_size=(47, 65), channels=1)
    model.export_onnx(tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((2, 1, 47, 65)).astype(np.float32)
    assert_near(run(tmp_path / "net.onnx", x), model.forward(x))


def test_names_and_metadata_are_as_documented(tmp_path):
    model = mdmt.Model("resnet18", heads=HEADS, image_size=SIZE)
    path = tmp_path / "net.onnx"
    model.export_onnx(path)
    one = session(path)
    assert [(i.name, i.shape) for i in one.get_inputs()] == [("image", ["batch", 3, SIZE, SIZE])]
    assert [(o.name, o.shape) for o in one.get_outputs()] == [
        ("features", ["batch", 512]),
        ("prognosis", ["batch", 2]),
        ("severity", ["batch", 4]),
    ]
    kept = one.get_modelmeta()
    assert json.loads(kept.custom_metadata_map["mdmt"]) == json.loads(
        json.dumps(model.description())
    )
    assert kept.producer_name == "mdmt"
    file = onnx.load(str(path))
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 13)]
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in file.graph.initializer}
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(weights[key], value)


def every_op():
    """A network of all ops and activations that a description can have, for images of 19 x 23."""
    b = Builder(19, 23, 3)
    x = b.batch_norm(b.conv(b.image, "stem", 16, (3, 5), padding=(0, 1, 2, 3)), "n0", eps=1e-3)
    x = b.max_pool(x, 3, 2, ceil_mode=True)
    x = b.concat([b.act(x, kind) for kind in ACTIVATIONS[1:]])
    x = b.shuffle(b.slice(x, 16, 72), 3)
    y = b.conv(x, "grouped", 48, 3, padding=2, dilation=2, groups=6, bias=True)
    y = b.concat(
        [b.avg_pool(y, 3, 2, 1), b.avg_pool(y, 2, 2, ceil_mode=True, count_include_pad=False)]
    )
    y = b.conv(y, "depth", 96, 5, padding="same", groups=96)
    y = b.add(y, b.conv(x, "side", 96, 2, stride=2, padding="same"))
    s = b.act(b.conv_rows(b.global_avg_pool(y), "reduce", 5), "silu")
    s = b.act(b.conv_rows(s, "expand", 96), "sigmoid")
    features = b.global_avg_pool(b.batch_norm(b.gate(y, s), "n1"))
    b.graph.output(features, "features")
    b.graph.output(b.linear(b.dropout(features, 0.5), "heads.t.0", 3), "t")
    return b


def test_every_op_is_equal_in_onnxruntime(tmp_path):
    b = every_op()
    network = _core.Network(b.graph)
    rng = np.random.default_rng(5)
    state = {}
    for key, role, _, shape in b.entries:
        if role != "counter":
            low = 0.5 if key.endswith("running_var") else -0.5
            state[key] = rng.uniform(low, 1.0, shape).astype(np.float32)
            network.set(key, state[key].reshape(shape[:2] if key in b.rows else shape))
    path = tmp_path / "net.onnx"
    write(path, b.graph, (1, 3, 19, 23), {"features": (96,), "t": (3,)}, state, {"backbone": "all"})
    x = rng.standard_normal((3, 3, 19, 23)).astype(np.float32)
    mode = {"batch": 3, "height": 19, "width": 23, "training": 0}
    assert_near(run(path, x), network.run(mode, {"image": x}, ("features", "t"), seed=0, step=0))


def test_a_pooling_that_onnx_cannot_say_is_refused(tmp_path):
    b = Builder(8, 8, 3)
    x = b.avg_pool(b.conv(b.image, "stem", 16, 1), 3, 2, ceil_mode=True)
    b.graph.output(b.global_avg_pool(x), "features")
    state = {"stem.weight": np.ones((16, 3, 1, 1), np.float32)}
    with pytest.raises(NotImplementedError, match="no counterpart"):
        write(
            tmp_path / "n.onnx", b.graph, (1, 3, 8, 8), {"features": (16,)}, state, {"backbone": ""}
        )
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    model = mdmt.Model("resnet18", heads={"t": 2}, image_size=32)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="disk is full"):
        model.export_onnx(path)
    assert os.listdir(tmp_path) == ["net.onnx"] and path.read_bytes() == b"before"


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    model = mdmt.Model("resnet18", heads={"t": 2}, image_size=32)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadInput, match=r"pip install 'mdmt\[onnx\]'") as caught:
        model.export_onnx(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_the_size_of_the_images_may_change_before_the_export(tmp_path):
    """ShuffleNet's channels are exchanged by a Reshape, whose numbers depend on the size."""
    model = mdmt.Model("shufflenet_v2_x0_5", HEADS, image_size=SIZE)
    model.image_size = (48, 80)
    model.export_onnx(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 48, 80)).astype(np.float32)
    found, wanted = run(tmp_path / "m.onnx", x), model.forward(x)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= 1e-5 * max(np.abs(value).max(), 0.1)
