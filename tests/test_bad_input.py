"""Bad input to a model and to the readers of weights: one sentence, at once, in little memory, and
nothing changed. What the strict reader of pickles refuses is in test_weights."""

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

import mdmt
from mdmt import _core, cli
from mdmt.model import Model
from tests.test_weights import PAYLOADS, legacy_file, torch_or_skip, zip_file

SECONDS = 0.1  # of the processor
MOST = 64 << 20  # bytes
HEADS = {"t": 2}
STEM = "conv1.0.weight"


@pytest.fixture(scope="module")
def model():
    return Model("shufflenet_v2_x0_5", HEADS, image_size=64)


@pytest.fixture(scope="module")
def dense():
    return Model("densenet121", HEADS, image_size=64)


def images(*shape):
    return np.zeros(shape, np.float32)


def refused(action, kinds=(ValueError, OSError)):
    """The sentence; best processor time of three, since other processes take part of the caches."""
    seconds, slabs = [], _core.slab_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(kinds) as caught:
            action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(kinds):
            action()
        seconds.append(time.process_time() - began)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence
    assert min(seconds) < SECONDS, f"{min(seconds):.3f} s: {sentence}"
    assert peak + _core.slab_bytes() - slabs < MOST, sentence
    return sentence


# The model ----------------------------------------------------------------------------------------

ARGUMENTS = {
    "unknown": (
        {"backbone": "resnet19"},
        "^there is no backbone 'resnet19'; did you mean 'resnet18'",
    ),
    "nearest": ({"backbone": "mobilenetv2"}, "did you mean 'mobilenet_v2'"),
    "no text": ({"backbone": ["resnet18"]}, "no backbone"),
    "small": (
        {"backbone": "densenet121", "image_size": 16},
        "densenet121 with images of 16 x 16 pixels: .* too small .* use larger images",
    ),
    "no side": ({"image_size": 0}, "image_size must be 1 to 16384, not 0"),
    "negative side": ({"image_size": (64, -1)}, "image_size must be 1 to 16384, not -1"),
    "side as text": ({"image_size": "224"}, "image_size must be an integer"),
    "three sides": ({"image_size": (1, 2, 3)}, "one side or"),
    "huge": ({"image_size": 10**12}, "image_size must be 1 to 16384"),
    "no channel": ({"channels": 0}, "channels must be 1 to 4, not 0"),
    "five channels": ({"channels": 5}, "channels must be 1 to 4, not 5"),
    "a million channels": ({"channels": 10**6}, "channels must be 1 to 4"),
    "channels as text": ({"channels": "3"}, "channels must be an integer"),
    "seed": ({"seed": -1}, "seed must be 0 to"),
    "no file": ({"weights": "none.pth"}, "there is no weight file none.pth"),
    "weights of no kind": (
        {"weights": 3},
        "weights must be None, 'imagenet', a file or a dictionary",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_model(name):
    given, words = ARGUMENTS[name]
    arguments = {"backbone": "resnet18", "heads": HEADS, "image_size": 64, **given}
    import re

    assert re.search(words, refused(lambda: Model(**arguments)))


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 3, 16, 16), "too small"),
        ((1, 1, 64, 64), r"x must be (N, 3, H, W), or (N, H, W) grey, not (1, 1, 64, 64)"),
        ((2, 4, 64, 64), "not (2, 4, 64, 64)"),
        ((64, 64), "not (64, 64)"),
        ((0, 3, 64, 64), "not (0, 3, 64, 64)"),
    ],
)
def test_images_that_a_network_cannot_take(dense, shape, words):
    assert words in refused(lambda: dense.forward(images(*shape)))


BATCH = np.zeros((4, 3, 64, 64), np.float32)
SET = {"images": np.zeros((3, 64, 64), np.uint8), "task": 0, "target": np.zeros(3)}
CALLS = {
    "uint8": (lambda m: m.forward(BATCH.astype(np.uint8)), "x holds uint8"),
    "complex": (lambda m: m.forward(BATCH.astype(complex)), "x holds complex128"),
    "text": (lambda m: m.forward(BATCH.astype(str)), "x holds <U32"),
    "ragged": (lambda m: m.forward([BATCH[0], BATCH[0, :, 1:]]), "its images differ in shape"),
    "label as text": (lambda m: m.train_step(BATCH, [0] * 4, ["A"] * 4), "target must hold num"),
    "no label": (lambda m: m.train_step(BATCH, [0] * 4, None), "target is None"),
    "task as text": (lambda m: m.train_step(BATCH, ["t"] * 4, [0] * 4), "4 integers, .*<U1"),
    "lr": (lambda m: m.train_step(BATCH, [0] * 4, [0] * 4, lr="1"), "lr of Adam cannot be '1'"),
    "eps": (lambda m: m.train_step(BATCH, [0] * 4, [0] * 4, eps=-1), "eps of Adam cannot be -1"),
    "betas": (lambda m: m.train_step(BATCH, [0] * 4, [0] * 4, betas=0.9), "must be two numbers"),
    "one data set": (lambda m: m.attach(SET), "attach takes a list"),
    "no images": (lambda m: m.attach([{**SET, "images": None}]), "C-ordered uint8"),
    "a task's name": (lambda m: m.attach([{**SET, "task": "t"}]), "task of data set 0 must be"),
    "batch size": (lambda m: m.predict([0], [0], batch_size=0), "batch_size must be 1 to"),
    "two lengths": (lambda m: m.predict([0], [0, 1]), "dataset and index must both be"),
    "half an index": (lambda m: m.predict([0], [0.5]), "index must hold integers, not float64"),
    "memory": (lambda m: m.memory(10**12), "batch_size must be 1 to 2147483647"),
    "hidden": (lambda m: Model("resnet18", {"t": {"classes": 2, "hidden": 8}}), "list of widths"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_a_model(model, name):
    import re

    call, words = CALLS[name]
    before = model.training_step
    assert re.search(words, refused(lambda: call(model)))
    assert model.training_step == before


# Weights ------------------------------------------------------------------------------------------


def broken(state):
    """{name: (state, words)}"""
    one = state[STEM]

    def changed(key, value):
        return {**state, key: value}

    nan, infinite = one.copy(), one.copy()
    nan.flat[5], infinite.flat[5] = np.nan, -np.inf
    return {
        "NaN": (changed(STEM, nan), f"{STEM} holds NaN or infinity"),
        "infinity": (changed(STEM, infinite), f"{STEM} holds NaN or infinity"),
        "beyond float32": (changed(STEM, one * 1e300), f"{STEM} holds NaN or infinity"),
        "shape": (
            changed(STEM, one[:, :1]),
            f"{STEM} has the shape (24, 1, 3, 3) in the weights and (24, 3, 3, 3) in shufflenet",
        ),
        "text": (changed(STEM, np.full(one.shape, "x")), f"{STEM} holds <U1"),
        "complex": (changed(STEM, one.astype(complex)), f"{STEM} holds complex128"),
        "object": (changed(STEM, np.full(one.shape, None)), f"{STEM} holds object"),
        "variance": (
            changed("conv1.1.running_var", -np.ones(24, np.float32)),
            "conv1.1.running_var is negative",
        ),
        "counter": (
            changed("conv1.1.num_batches_tracked", np.array(-1)),
            "num_batches_tracked is negative",
        ),
        "missing": ({k: v for k, v in state.items() if k != STEM}, f"missing key {STEM}"),
        "unknown": ({**state, "other.weight": one}, "unknown key other.weight"),
        "list": ([1], "must be a dictionary"),
        "keys": ({1: one}, "must be a dictionary"),
    }


CASES = (
    "NaN", "infinity", "beyond float32", "shape", "text", "complex", "object", "variance",
    "counter", "missing", "unknown", "list", "keys",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_dictionaries_that_are_refused(model, name):
    before = model.state_dict()
    cases = broken({**before, STEM: before[STEM].astype(np.float64)})
    assert set(cases) == set(CASES)
    state, words = cases[name]
    assert words in refused(lambda: model.load_state_dict(state))
    after = model.state_dict()
    assert all(np.array_equal(after[key], value) for key, value in before.items())


def test_weights_of_another_backbone(model, dense, tmp_path):
    state = model.state_dict()
    path = tmp_path / "w.safetensors"
    _core.write_safetensors(str(path), state)
    said = refused(lambda: dense.load_state_dict(state))
    assert "do not belong to densenet121" in said and "unknown key conv1.0.weight" in said
    said = refused(lambda: dense.load_state_dict({STEM: state[STEM]}, strict=False))
    assert "none of the weights belongs to densenet121" in said
    said = refused(lambda: Model("resnet101", HEADS, weights=path))
    assert said.startswith(f"{path} has no conv1.weight: not weights of resnet101")
    said = refused(lambda: Model("shufflenet_v2_x1_0", HEADS, weights=path))
    assert f"{path}: " in said and "(1024, 192, 1, 1) in the weights and (1024, 464, 1, 1)" in said
    with pytest.raises(ValueError, match="different networks"):
        mdmt.average_weights(state, dense.state_dict())


@pytest.mark.oracle
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_with_nan_or_infinity(model, tmp_path, value, kind):
    state = {k: np.array(v) for k, v in model.state_dict().items()}
    state[STEM].flat[0] = value
    if kind == "safetensors":
        path = tmp_path / "w.safetensors"
        _core.write_safetensors(str(path), state)
    else:
        torch, path = torch_or_skip(), tmp_path / "w.pth"
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    said = refused(lambda: Model("shufflenet_v2_x0_5", HEADS, weights=path))
    assert said.startswith(f"{path}: {STEM} holds NaN or infinity")


# Files --------------------------------------------------------------------------------------------


def header(value, body=b""):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


SAFETENSORS = {
    "empty": b"",
    "a header of 100 GB": struct.pack("<Q", 100 << 30) + b"{}",
    "a tensor of 100 GB": header({"w": entry([25 << 30], 100 << 30)}),
    "deep lists": header(b"[" * 1_000_000),
    "deep dictionaries": header(b'{"a":' * 300_000),
    "an unknown type": header({"w": entry([4], 4, "F8_E4M3")}, b"\0" * 4),
    "another size": header({"w": entry([9], 32)}, b"\0" * 32),
    "negative": header({"w": entry([-1], 4)}, b"\0" * 4),
    "a pickle": PAYLOADS["os.system"][0],
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(SAFETENSORS[name])
    for action in (mdmt.load_weights, Model.load, lambda p: Model("resnet18", HEADS, weights=p)):
        assert str(path) in refused(lambda action=action: action(path))


def described(model, **changes):
    """A file of one number with a description of a model."""
    text = json.dumps({**model.description(), **changes})
    return header({"__metadata__": {"mdmt": text}, "w": entry([1], 4)}, b"\0" * 4)


DESCRIPTIONS = {
    "a huge image": ({"image_size": [10**9, 10**9]}, "image_size must be"),
    "a deep one": ({"image_size": 1}, "description of a model is damaged"),
    "channels as text": ({"channels": "x"}, "description of a model is damaged"),
    "a wrong mean": ({"mean": "abc"}, "description of a model is damaged"),
    "a std of zero": ({"std": [1.0, 0.0, 1.0]}, "description of a model is damaged"),
    "an unknown setting": ({"code": "x"}, "description of a model is damaged"),
    "an unknown backbone": ({"backbone": "resnet19"}, "did you mean 'resnet18'"),
    "a huge head": ({"heads": {"t": {"classes": 10**9}}}, "needs 1.* GiB"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_that_lie(model, tmp_path, name):
    import re

    changes, words = DESCRIPTIONS[name]
    path = tmp_path / "w.safetensors"
    path.write_bytes(described(model, **changes))
    if name == "a deep one":
        text = "[" * 100_000
        path.write_bytes(header({"__metadata__": {"mdmt": text}, "w": entry([1], 4)}, b"\0" * 4))
    assert re.search(words, refused(lambda: Model.load(path), (ValueError, MemoryError)))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_that_are_cut_off(model, tmp_path, kind):
    state = model.state_dict()
    whole = tmp_path / f"whole.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        _core.write_safetensors(str(whole), state)
    else:
        torch = torch_or_skip()
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    path = tmp_path / f"w{whole.suffix}"
    for length in (0, 3, 100, 5_000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert str(path) in refused(lambda: mdmt.load_weights(path))


def claiming(count, size):
    """The pickle of {"w": float32 tensor} whose storage has `count` elements, and its shape."""
    n = struct.pack("<q", count)
    long = b"\x8a\x08" + n
    text = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    shape = b"\x8a\x08" + struct.pack("<q", size)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + text + long + b"tQK\x00" + shape
    tensor += b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_storages_that_claim_100_gigabytes(tmp_path, kind):
    path = tmp_path / "w.pth"
    payload, count = claiming(25 << 30, 25 << 30), struct.pack("<Q", 25 << 30)
    if kind == "zip":
        zip_file(path, payload, data__0=b"\0" * 400)
    else:
        path.write_bytes(legacy_file(payload) + b"\x80\x02]X\x01\x00\x00\x000a." + count)
    assert str(path) in refused(lambda: mdmt.load_weights(path))


def test_the_claim_is_what_is_refused(tmp_path):
    zip_file(tmp_path / "w.pth", claiming(100, 100), data__0=b"\0" * 400)
    assert mdmt.load_weights(tmp_path / "w.pth")["w"].shape == (100,)


def test_an_archive_whose_entry_claims_100_gigabytes(tmp_path):
    """In the directory of the archive as well as in the pickle."""
    path = tmp_path / "w.pth"
    zip_file(path, claiming(25 << 30, 100))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", b"\0" * 400)
        archive.filelist[-1].file_size = archive.filelist[-1].compress_size = 100 << 30
    assert "cut off: 107374182400 bytes" in refused(lambda: mdmt.load_weights(path))


def test_strides_that_repeat_one_number(tmp_path):
    payload = claiming(100, 25 << 30).replace(b"K\x01\x85\x89", b"K\x00\x85\x89")
    zip_file(tmp_path / "w.pth", payload, data__0=b"\0" * 400)
    assert "beyond its storage" in refused(lambda: mdmt.load_weights(tmp_path / "w.pth"))


READ_ALL = """
import sys
import mdmt
from mdmt.system import peak_memory

mdmt.load_weights(sys.argv[1])
before = peak_memory()
for path in sys.argv[2:]:
    try:
        mdmt.load_weights(path)
    except (ValueError, OSError):
        continue
    sys.exit(f"{path} was read")
print(peak_memory() - before)
"""


def test_the_whole_process_stays_small(tmp_path):
    """Not only what Python allocates: the peak of a process that tries all lying files."""
    good = tmp_path / "good.pth"
    zip_file(good, claiming(100, 100), data__0=b"\0" * 400)
    paths = []
    for name, content in SAFETENSORS.items():
        paths.append(tmp_path / f"{name}.safetensors".replace(" ", "-"))
        paths[-1].write_bytes(content)
    for name, (payload, _) in PAYLOADS.items():
        paths.append(tmp_path / f"{name}.pth".replace(" ", "-").replace("/", "-"))
        zip_file(paths[-1], payload)
    paths.append(tmp_path / "claims.pth")
    zip_file(paths[-1], claiming(25 << 30, 25 << 30), data__0=b"\0" * 400)
    line = [sys.executable, "-c", READ_ALL, good, *paths]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MOST
    assert len(os.listdir(tmp_path)) == 1 + len(paths)


@pytest.mark.parametrize("name", PAYLOADS)
def test_pickles_are_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    zip_file(tmp_path / "w.pth", PAYLOADS[name][0])
    assert PAYLOADS[name][1] in refused(lambda: mdmt.load_weights(tmp_path / "w.pth"))
    assert os.listdir(tmp_path) == ["w.pth"]


def test_the_command_line_says_one_sentence(tmp_path, capsys):
    path = tmp_path / "w.pth"
    zip_file(path, PAYLOADS["os.system"][0])
    for arguments in (["weights", "check", str(path)], ["show", "resnet19"]):
        assert cli.main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.strip().splitlines()) == 1
