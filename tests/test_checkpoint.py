"""Checkpoints: read back equal by the safetensors package, and never lost, whatever fails."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load, load_file

from mdmt._core import _fail_io_after, fail_allocation_after, write_safetensors
from tests import writers

DTYPES = ["f4", "f8", "f2", "i4", "i8", "u1", "?"]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@pytest.fixture
def io_hook():
    """Makes the n-th next system call of the writer fail; off again after the test."""
    yield _fail_io_after
    _fail_io_after(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        TEXT.filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
        ),
        max_size=6,
    ),
    st.dictionaries(TEXT, TEXT, max_size=4),
)
def test_reads_back_equal(tmp_path_factory, arrays, metadata):
    path = str(tmp_path_factory.mktemp("checkpoint") / "a.safetensors")
    write_safetensors(path, arrays, metadata)
    back = load_file(path)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes()
    with safe_open(path, "numpy") as file:
        assert (file.metadata() or {}) == metadata


def test_layout_is_aligned_and_depends_on_the_content_alone(tmp_path):
    arrays = {
        "b": np.arange(3, dtype="u1"),
        "a": np.arange(5, dtype="f4"),
        "c": np.arange(2, dtype="i8"),
        "d": np.arange(4, dtype="f2"),
    }
    write_safetensors(tmp_path / "one", arrays, {"k": "v"})
    write_safetensors(tmp_path / "two", dict(reversed(arrays.items())), {"k": "v"})
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"k": "v"}
    assert list(header) == ["c", "a", "d", "b"]
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert start % arrays[name].itemsize == 0 and end - start == arrays[name].nbytes
    assert entry["data_offsets"][1] == len(data) - 8 - length


def test_views_and_foreign_byte_orders_are_written_in_c_order(tmp_path):
    matrix = np.arange(12.0).reshape(3, 4)
    arrays = {"t": matrix.T, "s": matrix[::2, ::-1], "big": matrix.astype(">f8")}
    write_safetensors(tmp_path / "a", arrays)
    for name, array in load_file(tmp_path / "a").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_an_empty_checkpoint_is_one(tmp_path):
    write_safetensors(tmp_path / "a", {})
    assert load((tmp_path / "a").read_bytes()) == {}


@pytest.mark.parametrize("exists", [True, False])
def test_every_failing_call_leaves_the_old_file(tmp_path, io_hook, exists):
    """Each open, write, flush and rename fails once. Up to the rename the old file stands; after it
    the new one; it is never another, and no temporary file stays."""
    path = tmp_path / "a.safetensors"
    old, new = {"x": np.zeros(1000, "f4")}, {"x": np.ones(2000, "f4"), "y": np.ones(3)}
    failures = []
    for site in range(50):
        path.unlink(missing_ok=True)
        if exists:
            write_safetensors(path, old)
        before = path.read_bytes() if exists else None
        io_hook(site)
        try:
            write_safetensors(path, new)
        except OSError as error:
            failures.append(str(error))
            assert "\n" not in failures[-1] and str(tmp_path) in failures[-1]
            assert os.strerror(errno.ENOSPC) in failures[-1]
        else:
            break
        finally:
            io_hook(-1)
        assert sorted(os.listdir(tmp_path)) == (["a.safetensors"] if path.exists() else [])
        if "folder" in failures[-1]:
            assert load_file(path).keys() == new.keys()
        else:
            assert (path.read_bytes() if path.exists() else None) == before
    assert load_file(path).keys() == new.keys()
    verbs = [text.split(" /")[0] for text in failures]
    assert verbs == [
        "opening a temporary file for",
        *["writing"] * 3,
        "flushing to disk",
        "renaming the temporary file to",
        "opening the folder",
        "flushing to disk the folder",
    ]


def test_every_failing_allocation_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_safetensors(path, {"x": np.zeros(3)})
    before, names = path.read_bytes(), {f"x{i}": np.ones(i) for i in range(40)}
    failures = 0
    for site in range(50):
        fail_allocation_after(site)
        try:
            write_safetensors(path, names)
        except MemoryError as error:
            failures += 1
            assert "out of memory" in str(error)
        else:
            break
        finally:
            fail_allocation_after(-1)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]
    assert failures >= 5  # arrays, references, metadata, order, header, name of the temporary file
    assert load_file(path).keys() == names.keys()


def limited_write(tmp_path, limit):
    """Writes in a child process that may make files of `limit` bytes."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from mdmt._core import write_safetensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    write_safetensors(sys.argv[1], {'x': np.ones(100000)})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "a"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    return path, done.stdout


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit of file sizes")
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    write_safetensors(tmp_path / "a", {"x": np.zeros(3)})
    path, said = limited_write(tmp_path, 4096)
    assert said == f"writing {path} failed: {os.strerror(errno.EFBIG)}\n"
    assert load_file(path)["x"].tolist() == [0, 0, 0]
    assert os.listdir(tmp_path) == ["a"]


def test_missing_and_read_only_folders(tmp_path):
    missing = tmp_path / "none" / "a"
    with pytest.raises(OSError, match=f"file for {missing} failed: No such file"):
        write_safetensors(missing, {})
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=f"renaming the temporary file to {tmp_path / 'a'} failed"):
        write_safetensors(tmp_path / "a", {})
    assert os.listdir(tmp_path) == ["a"]
    if os.geteuid() != 0:
        os.chmod(tmp_path, stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(OSError, match="failed: Permission denied"):
            write_safetensors(tmp_path / "b", {})
        os.chmod(tmp_path, stat.S_IRWXU)


def test_a_killed_writer_leaves_the_old_file_and_the_next_write_works(tmp_path):
    path = tmp_path / "a"
    write_safetensors(path, {"x": np.zeros(3)})
    code = (
        "import sys, numpy as np\n"
        "from mdmt._core import write_safetensors\n"
        "big = {'x': np.ones(2_000_000)}\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    write_safetensors(sys.argv[1], big)\n"
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        try:
            writer.wait(rng.uniform(0, 0.1))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert load_file(path)["x"].shape in ((3,), (2_000_000,))
    write_safetensors(path, {"x": np.zeros(4)})
    assert load_file(path)["x"].shape == (4,)
    assert os.listdir(tmp_path) == ["a"]


def test_two_processes_write_one_path_at_once(tmp_path):
    """Every file that is ever there is whole and of one of them, and nothing else stays."""
    path = tmp_path / "a"
    code = (
        "import sys, numpy as np\n"
        "from mdmt._core import write_safetensors\n" + writers.START + "for i in range(60):\n"
        "    write_safetensors(sys.argv[1], {'x': np.full(40_000, float(sys.argv[2]))})\n"
    )
    seen = set()

    def look():
        x = load_file(path)["x"]
        assert x.shape == (40_000,) and np.ptp(x) == 0
        seen.add(float(x[0]))

    writers.race(code, path, "12", look)
    assert seen == {1, 2}
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_left_of_dead_writers_goes_and_what_others_hold_stays(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    held, dead = ".a.7-0.tmp", ".a.7-1.tmp"
    foreign = [".ab.7-1.tmp", ".a.b.tmp", ".a..tmp", ".a.tmp", "a.tmp"]
    for name in (held, dead, *foreign):
        (tmp_path / name).touch()
    with open(tmp_path / held, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_safetensors(tmp_path / "a", {})
        assert sorted(os.listdir(tmp_path)) == sorted([held, "a", *foreign])
    write_safetensors(tmp_path / "a", {})
    assert sorted(os.listdir(tmp_path)) == sorted(["a", *foreign])
    # a pid that has come round again
    mine = [f".a.{os.getpid()}-{n}.tmp" for n in range(200)]
    streams = []
    for name in mine:
        streams.append(open(tmp_path / name, "wb"))  # noqa: SIM115 (held below)
        fcntl.flock(streams[-1], fcntl.LOCK_EX)
    write_safetensors(tmp_path / "a", {"x": np.ones(3)})
    assert load_file(tmp_path / "a")["x"].tolist() == [1, 1, 1]
    assert all((tmp_path / name).stat().st_size == 0 for name in mine)
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(
    ("arrays", "metadata", "error", "sentence"),
    [
        ({"x": np.zeros(2, "c16")}, {}, TypeError, "array 'x' cannot be written: .*complex128"),
        ({"x": np.array(["a"])}, {}, TypeError, "array 'x' cannot be written"),
        ({3: np.zeros(2)}, {}, TypeError, "a name of a checkpoint must be a string, not 3"),
        ({}, {"k": 3}, TypeError, "a metadata value of a checkpoint must be a string, not 3"),
        ({"__metadata__": np.zeros(2)}, {}, ValueError, "which safetensors reserves"),
        ({"\ud800": np.zeros(2)}, {}, UnicodeEncodeError, "surrogates"),
    ],
)
def test_bad_content_is_refused_before_anything_is_written(
    tmp_path, arrays, metadata, error, sentence
):
    with pytest.raises(error, match=sentence):
        write_safetensors(tmp_path / "a", arrays, metadata)
    assert os.listdir(tmp_path) == []
