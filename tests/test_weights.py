"""Weight files: what PyTorch writes is read exactly; everything else is refused by name."""

import collections
import functools
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

import mdmt
from mdmt import _core


def torch_or_skip():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[oracle]'")


@pytest.mark.oracle
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_saves(tmp_path, legacy):
    torch = torch_or_skip()
    base = torch.randn(6, 8)
    state = collections.OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 3, 3),
            "a": torch.randn(5, dtype=torch.float64),
            "half": torch.randn(7).half(),
            "brain": torch.randn(7).bfloat16(),
            "count": torch.tensor(12345678901),
            "view": base[2:5, ::2],
            "turned": base.t(),
            "shared": base,
            "empty": torch.zeros(0, 3),
            "flag": torch.tensor([True, False]),
            "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        }
    )
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    read = mdmt.load_weights(path)
    assert list(read) == list(state)
    for key, tensor in state.items():
        tensor = tensor.detach()
        tensor = tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor
        np.testing.assert_array_equal(read[key], tensor.numpy(), strict=True)


@pytest.mark.oracle
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_checkpoints_and_strips_prefixes(tmp_path, legacy):
    torch = torch_or_skip()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {f"module.backbone.{k}": v for k, v in module.state_dict().items()}
    optimizer = torch.optim.Adam(module.parameters()).state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"epoch": 3, "state_dict": state, "optimizer": optimizer, "best": 0.5, "name": "net"},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    read = mdmt.load_weights(path)
    assert list(read) == list(module.state_dict())


def test_old_densenet_keys_are_renewed(tmp_path):
    path = tmp_path / "w.safetensors"
    key = "features.denseblock1.denselayer1.norm.1.weight"
    _core.write_safetensors(str(path), {key: np.ones(3, np.float32)})
    assert list(mdmt.load_weights(path)) == ["features.denseblock1.denselayer1.norm1.weight"]


class Evil:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def deep_pickle(depth):
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def called(function, depth):
    """A call with a deeply nested argument."""
    return b"\x80\x02" + function + b")" + b"\x85" * depth + b"R."


def storage(name):
    """{"w": a storage whose name is what `name` pushes}."""
    described = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + name + b"K\x00K\x01tQ"
    return b"\x80\x02}X\x01\x00\x00\x00w" + described + b"s."


def laughing(depth):
    """A tuple of two, which are one, and so on: 2 ** depth elements."""
    return b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(depth))


def laughs(width):
    """Dictionaries that hold one dictionary under many keys, and so on."""
    inner = b"}"
    for i in range(7):
        keys = b"".join(b"X\x02\x00\x00\x00%02dh%c" % (k, i) for k in range(width))
        inner += b"q%c0}(" % i + keys + b"u"
    return b"\x80\x02" + inner + b"."


def legacy_file(payload):
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + payload


def zip_file(path, payload, **members):
    with zipfile.ZipFile(path, "w", members.pop("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", payload)
        for name, data in members.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", data)


PAYLOADS = {
    "os.system": (pickle.dumps({"w": Evil(os.system, "touch HACKED")}, 2), "posix.system"),
    "eval": (pickle.dumps({"w": Evil(eval, "1")}, 2), "eval"),
    "protocol 4": (pickle.dumps({"w": Evil(os.system, "touch HACKED")}, 4), "posix.system"),
    "getattr": (pickle.dumps({"w": Evil(getattr, dict, "pop")}, 2), "getattr"),
    "numpy": (pickle.dumps({"w": np.ones(3)}, 2), "numpy"),
    "class": (pickle.dumps({"w": zipfile.ZipInfo("x")}, 2), "zipfile.ZipInfo"),
    "deep": (deep_pickle(50_000), "longer or deeper"),
    "deep tuple": (b"\x80\x02)" + b"\x85" * 20_000 + b".", "a tuple, not a dictionary"),
    "deep name": (called(b"ctorch._utils\n_rebuild_tensor_v2\n", 5_000), "stands on no storage"),
    "deep storage": (storage(b")" + b"\x85" * 5_000), "has no name"),
    "laughs": (laughs(40), "hold too much"),
    "laughing storage": (storage(laughing(40)), "has no name"),
    "function of a list": (b"\x80\x04]]\x93.", "has no name"),
    "list": (pickle.dumps([1, 2], 2), "a list, not a dictionary"),
    "cut": (pickle.dumps({"w": "x" * 100}, 2)[:50], "broken"),
    "no end": (b"\x80\x02}q\x00", "broken"),
    "empty stack": (b"\x80\x020.", "stack is empty"),
    "huge text": (b"\x80\x02X\xff\xff\xff\x7f.", "broken"),
    "instance": (b"(ios\nsystem\n.", "opcode INST"),
    "object": (b"(cos\nsystem\no.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "storage": (b"\x80\x02}X\x01\x00\x00\x00wK\x01Qs.", "unknown way"),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_refuses_by_name_quickly_and_without_effect(tmp_path, monkeypatch, name, container):
    monkeypatch.chdir(tmp_path)
    payload, words = PAYLOADS[name]
    path = tmp_path / "w.pth"
    if container == "zip":
        zip_file(path, payload)
    else:
        path.write_bytes(legacy_file(payload))
    import mdmt.weights.pth  # its import is not what is timed

    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValueError) as caught:
        mdmt.load_weights(path)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "HACKED").exists()
    assert peak < 64 << 20
    assert seconds < 0.5  # traced, and on shared machines


@pytest.mark.oracle
def test_refuses_archives_that_lie(tmp_path):
    torch = torch_or_skip()
    good = tmp_path / "good.pth"
    torch.save({"w": torch.ones(100)}, good)
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].split("/")[0]
        payload = archive.read(f"{root}/data.pkl")
    cases = {
        "missing or compressed": {},
        "bytes instead of": {"data__0": b"\0" * 399},
        "byte order": {"data__0": b"\0" * 400, "byteorder": b"big"},
        "data.pkl is missing or compressed": {
            "data__0": b"\0" * 400,
            "compression": zipfile.ZIP_DEFLATED,
        },
    }
    for words, members in cases.items():
        path = tmp_path / "bad.pth"
        zip_file(path, payload, **members)
        with pytest.raises(ValueError, match=words):
            mdmt.load_weights(path)
    path.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="whole"):
        mdmt.load_weights(path)


@pytest.mark.oracle
@pytest.mark.parametrize("field", ["offset", "shape"])
def test_refuses_tensors_beyond_their_storage(tmp_path, field):
    torch = torch_or_skip()
    good = tmp_path / "good.pth"
    torch.save({"w": torch.ones(100)}, good)
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].split("/")[0]
        payload = archive.read(f"{root}/data.pkl")
        data = archive.read(f"{root}/data/0")
    at = payload.index(b"Kd\x85")  # the shape (100,)
    changed = {
        "shape": payload[: at + 1] + b"\xff" + payload[at + 2 :],
        "offset": payload[: at - 1] + b"\x01" + payload[at:],
    }[field]
    zip_file(tmp_path / "bad.pth", changed, data__0=data)
    with pytest.raises(ValueError, match="was refused"):
        mdmt.load_weights(tmp_path / "bad.pth")


def test_refuses_safetensors_that_lie(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (
        struct.pack("<Q", 100 << 30) + b"{}",
        b"",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60)
        + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            mdmt.load_weights(path)


def test_unknown_kinds_of_files_are_named(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"w\.h5 is neither"):
        mdmt.load_weights(tmp_path / "w.h5")
    with pytest.raises(FileNotFoundError, match="no weight file"):
        mdmt.load_weights(tmp_path / "none.pth")


def test_average_is_the_mean_of_weights_and_statistics():
    a = {"w": np.array([1.0, 2], np.float32), "n": np.array(5)}
    b = {"w": np.array([3.0, 6], np.float32), "n": np.array(8)}
    mean = mdmt.average_weights(a, b, 0.25)
    np.testing.assert_array_equal(mean["w"], np.array([2.5, 5], np.float32))
    assert mean["n"] == 7 and mean["n"].dtype == a["n"].dtype
    assert np.array_equal(mdmt.average_weights(a, b, 1.0)["w"], a["w"])


@pytest.mark.parametrize(
    "a, b, words",
    [
        ({"w": np.ones(2)}, {"v": np.ones(2)}, "only one has v"),
        ({"w": np.ones(2)}, {"w": np.ones(3)}, "different networks"),
    ],
)
def test_average_refuses_different_networks(a, b, words):
    with pytest.raises(ValueError, match=words):
        mdmt.average_weights(a, b)


@functools.cache
def shapes_of(name):
    from mdmt.weights.fit import entries

    return {key: (role, shape) for key, role, shape in entries(name)}


def random_state(name, seed):
    rng, state = np.random.default_rng(seed), {}
    for key, (role, shape) in shapes_of(name).items():
        counter = role == "counter"
        state[key] = np.array(rng.integers(9)) if counter else rng.random(shape, np.float32)
    return state


@pytest.mark.parametrize("name", mdmt.backbones())
def test_average_of_every_backbone(name):
    a, b = random_state(name, 0), random_state(name, 1)
    mean = mdmt.average_weights(a, b, 0.25)
    assert list(mean) == list(a)
    for key, value in mean.items():
        exact = 0.25 * a[key].astype(np.float64) + 0.75 * b[key].astype(np.float64)
        if key.endswith("num_batches_tracked"):
            assert value == np.floor(exact) and value.dtype == np.int64
        else:
            np.testing.assert_array_equal(value, exact.astype(np.float32), strict=True)
    for other in mdmt.backbones():
        if shapes_of(other) == shapes_of(name):
            continue
        theirs = {k: np.broadcast_to(np.float32(0), s) for k, (_, s) in shapes_of(other).items()}
        with pytest.raises(ValueError, match="weights of different networks cannot be averaged"):
            mdmt.average_weights(a, theirs)


@pytest.mark.parametrize("damage", ["bytes missing", "name no text"])
def test_a_zip_archive_with_damaged_records_is_one_sentence(tmp_path, damage):
    path = tmp_path / "w.pth"
    zip_file(path, pickle.dumps({}, 2), data__é=b"1234")
    whole = path.read_bytes()
    head, name, tail = whole.rpartition("\u00e9".encode())
    cut = whole.index(b"archive/data.pkl") + 17
    path.write_bytes(
        whole[:cut] + whole[cut + 3 :] if damage == "bytes missing" else head + b"\xff\xff" + tail
    )
    with pytest.raises(ValueError, match=r"w.pth (was refused|is not a whole \.pth file): "):
        mdmt.load_weights(path)


@pytest.mark.parametrize("beta", [None, "half", [0.5], 2, float("nan")])
def test_a_share_that_is_none(beta):
    with pytest.raises(ValueError, match="beta must be in"):
        mdmt.average_weights({"a": np.ones(2)}, {"a": np.zeros(2)}, beta)
