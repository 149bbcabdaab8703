"""The store: what is made again and what is not, interruptions, other writers, full disks."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdmt import config
from mdmt.data import hashes, store
from mdmt.data.table import Cases
from mdmt.errors import BadData, BadInput, NoSpace
from mdmt.preprocess import build, picture

ROOT = str(Path(__file__).parents[1])


def draw(path, number, size=(40, 48)):
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)


def make_cases(folder, count, start=0):
    folder.mkdir(exist_ok=True)
    names = [f"i{k:04d}" for k in range(start, start + count)]
    for k, name in enumerate(names, start=start):
        if not (folder / f"{name}.png").exists():
            draw(folder / f"{name}.png", k)
    return Cases("d", "t", ["a", "b"], names, names, [""] * count, np.arange(count) % 2,
                 np.full(count, np.nan), [folder / f"{n}.png" for n in names])  # fmt: skip


def values(root, **data):
    found = config.load("demo", ["image_size=32"])
    found["data"].update(store=str(root / "store"), **data)
    found["data"]["datasets"] = [{"name": "d", "accept": [], "corrections": None}]
    return found


def inspect(cases, root, **data):
    workers = data.pop("workers", 1)
    return build.inspect(cases, values(root, **data), progress=False, workers=workers)


def fresh(cases, root, **data):
    """The pixels of the cases, by a store made from nothing."""
    place = root / f"fresh{time.monotonic_ns()}"
    found = build.inspect(cases, values(place, **data), progress=False)
    assert found.decoded == len(cases)
    return np.array(found.store.images)


def test_a_changed_file_costs_one_image(tmp_path):
    cases = make_cases(tmp_path / "images", 60)
    first = inspect(cases, tmp_path)
    assert (first.decoded, first.copied, first.found) == (60, 0, 0)
    again = inspect(cases, tmp_path)
    assert (again.decoded, again.copied, again.found) == (0, 0, 60)
    draw(cases.paths[31], 1000)
    changed = inspect(cases, tmp_path)
    assert (changed.decoded, changed.copied, changed.found) == (1, 59, 0)
    assert changed.store.key != first.store.key
    differs = [i for i in range(60) if (changed.store.images[i] != first.store.images[i]).any()]
    assert differs == [31]
    assert np.array_equal(changed.store.images, fresh(cases, tmp_path))
    for entry in (changed.store.entries[31], changed.store.entries[5]):
        small, mask = changed.store.look(entry)
        assert small.shape == (40, 48) and mask is None


def test_more_and_fewer_files_are_copied(tmp_path):
    inspect(make_cases(tmp_path / "images", 40), tmp_path)
    more = inspect(make_cases(tmp_path / "images", 55), tmp_path)
    assert (more.decoded, more.copied) == (15, 40)
    fewer = make_cases(tmp_path / "images", 20, start=10)
    found = inspect(fewer, tmp_path)
    assert (found.decoded, found.copied) == (0, 20)
    assert np.array_equal(found.store.images, fresh(fewer, tmp_path))


@pytest.mark.parametrize(
    "change, decoded",
    [
        ({"clip": [1, 99]}, 10), ({"clip": None}, 10), ({"square": "crop"}, 10),
        ({"minmax": True}, 10), ({"voi": False}, 10),
        ({"border": 0.2}, 0), ({"on_bad_image": "exclude"}, 0),  # without effect on pixels
    ],
)  # fmt: skip
def test_a_setting_touches_what_depends_on_it(tmp_path, change, decoded):
    cases = make_cases(tmp_path / "images", 10)
    inspect(cases, tmp_path)
    assert inspect(cases, tmp_path, **change).decoded == decoded


def test_files_are_hashed_once_and_a_changed_one_again(tmp_path, monkeypatch):
    cases = make_cases(tmp_path / "images", 12)
    monkeypatch.setattr(hashes, "YOUNG", -1e9)
    inspect(cases, tmp_path)
    read = []
    real = hashes.digest_file
    monkeypatch.setattr(hashes, "digest_file", lambda p: read.append(Path(p)) or real(p))
    inspect(cases, tmp_path)
    assert read == []
    one = cases.paths[4]
    before = one.stat()
    raw = bytearray(one.read_bytes())
    raw[60] ^= 1
    one.write_bytes(raw)  # same size, and the time set back
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one.stat().st_mtime_ns == before.st_mtime_ns
    found = inspect(cases, tmp_path)
    assert read == [one]
    assert len(found.refused) + found.decoded == 1 + bool(found.refused)


def test_young_files_are_not_remembered(tmp_path):
    cases = make_cases(tmp_path / "images", 3)
    inspect(cases, tmp_path)
    assert not (tmp_path / "store" / hashes.NAME).exists()


SLOW = """
import sys, time
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests import test_store as t
from mdmt.preprocess import picture
real = picture.prepare
def slow(tasks, *a, **k):
    time.sleep({wait})
    print("decoding", len(tasks), flush=True)
    return real(tasks, *a, **k)
picture.prepare = slow
root = Path({place!r})
found = t.inspect(t.make_cases(root / "images", {count}), root)
print("done", found.decoded, found.copied, found.found, found.store.key, flush=True)
"""


def start(place, count, wait):
    code = SLOW.format(root=ROOT, place=str(place), count=count, wait=wait)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_goes_on(tmp_path):
    make_cases(tmp_path / "images", 64)
    process = start(tmp_path, 64, 0.05)
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (building,) = (p for p in (tmp_path / "store").glob(".building-*") if p.is_dir())
    done = len((building / store.JOURNAL).read_bytes().splitlines())
    assert 16 <= done < 64
    cases = make_cases(tmp_path / "images", 64)
    found = inspect(cases, tmp_path)
    assert (found.found, found.decoded) == (done, 64 - done)
    assert np.array_equal(found.store.images, fresh(cases, tmp_path))
    assert not list((tmp_path / "store").glob(".building-*"))


@pytest.mark.parametrize(
    "damage", ["half a line", "pixels", "short pixels", "no looks", "nonsense"]
)
def test_what_an_interruption_left_half_is_made_again(tmp_path, monkeypatch, damage):
    cases = make_cases(tmp_path / "images", 40)
    real = picture.prepare

    def stops(tasks, *rest):
        if tasks[0].path.stem == "i0024":
            raise KeyboardInterrupt
        return real(tasks, *rest)

    monkeypatch.setattr(picture, "prepare", stops)
    with pytest.raises(KeyboardInterrupt):
        inspect(cases, tmp_path)
    monkeypatch.undo()
    (building,) = (tmp_path / "store").glob(".building-*")
    journal, images = building / store.JOURNAL, building / store.IMAGES
    kept = 24
    if damage == "half line":
        journal.write_bytes(journal.read_bytes()[:-9])
        kept = 23
    elif damage == "pixels":
        raw = bytearray(images.read_bytes())
        raw[10 * 32 * 32 + 5] ^= 255
        images.write_bytes(raw)
        kept = 10
    elif damage == "short pixels":
        images.write_bytes(images.read_bytes()[: 7 * 32 * 32 + 100])
        kept = 7
    elif damage == "no looks":
        (building / store.LOOKS).write_bytes(b"")
        kept = 0
    else:
        journal.write_bytes(b'[1]\n{"source"\n' + journal.read_bytes())
        kept = 0
    found = inspect(cases, tmp_path)
    assert (found.found, found.decoded) == (kept, 40 - kept)
    assert np.array_equal(found.store.images, fresh(cases, tmp_path))
    assert all(found.store.look(e)[0] is not None for e in found.store.entries)


def test_an_interrupted_preparation_serves_a_larger_one(tmp_path, monkeypatch):
    real = picture.prepare

    def stops(tasks, *rest):
        if tasks[0].path.stem == "i0016":
            raise KeyboardInterrupt
        return real(tasks, *rest)

    monkeypatch.setattr(picture, "prepare", stops)
    with pytest.raises(KeyboardInterrupt):
        inspect(make_cases(tmp_path / "images", 24), tmp_path)
    monkeypatch.undo()
    found = inspect(make_cases(tmp_path / "images", 30), tmp_path)
    assert (found.copied, found.decoded) == (16, 14)


def test_several_writers_at_once(tmp_path):
    make_cases(tmp_path / "images", 40)
    processes = [start(tmp_path, 40, 0.05) for _ in range(3)]
    lines = [p.communicate(timeout=300)[0].splitlines() for p in processes]
    assert all(p.returncode == 0 for p in processes)
    done = [line[-1].split() for line in lines]
    assert len({d[-1] for d in done}) == 1
    assert sum(int(d[1]) for d in done) == 40  # each image was decoded by one of them
    names = {p.name for p in (tmp_path / "store").iterdir()} - {hashes.NAME}
    assert names == {done[0][-1]}


def test_writers_of_different_stores_do_not_wait(tmp_path):
    with (
        store.Builder(tmp_path / "a-1", {"size": 2}, 1),
        store.Builder(tmp_path / "a-2", {"size": 2}, 1) as other,
    ):
        assert not other.done


def leftovers(root):
    return [p for p in (root / "store").glob("*") if p.name != hashes.NAME] + list(
        (root / "store").glob(".building*")
    )


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    cases = make_cases(tmp_path / "images", 40)
    real, calls = store._line, []

    def full(entry):
        calls.append(1)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(entry)

    monkeypatch.setattr(store, "_line", full)
    with pytest.raises(NoSpace, match="disk is full") as caught:
        inspect(cases, tmp_path)
    assert "\n" not in str(caught.value)
    assert not leftovers(tmp_path)
    monkeypatch.undo()
    assert inspect(cases, tmp_path).decoded == 40


def test_a_real_limit_of_the_file_size(tmp_path):
    """The kernel refuses the write in the middle of images.u8."""
    cases = make_cases(tmp_path / "images", 40)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 32 * 32, 20 * 32 * 32))
            inspect(cases, tmp_path)
        except NoSpace as error:
            status = 0 if "cannot be written (file too large)" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not leftovers(tmp_path)


def test_too_little_space_is_said_before_any_work(tmp_path, monkeypatch):
    cases = make_cases(tmp_path / "images", 10)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage(10**6, 10**6 - 1000, 1000))
    monkeypatch.setattr(picture, "prepare", lambda *a: pytest.fail("worked"))
    with pytest.raises(NoSpace, match=r"10 images need .* MiB and the disk has 0.0 MiB left"):
        inspect(cases, tmp_path)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("place", ["/proc/mdmt", "file/store"])
def test_a_folder_that_cannot_be_written(tmp_path, place):
    cases = make_cases(tmp_path / "images", 2)
    (tmp_path / "file").write_text("")
    given = values(tmp_path)
    given["data"]["store"] = str(tmp_path / place) if place[0] != "/" else place
    with pytest.raises(NoSpace, match="cannot be written") as caught:
        build.inspect(cases, given, progress=False)
    assert "\n" not in str(caught.value)


def test_a_read_only_store_is_read(tmp_path):
    cases = make_cases(tmp_path / "images", 4)
    inspect(cases, tmp_path)
    os.chmod(tmp_path / "store", 0o555)
    try:
        assert inspect(cases, tmp_path).found == 4
        if os.geteuid():  # root writes everywhere
            with pytest.raises(NoSpace, match="cannot be written"):
                inspect(cases, tmp_path, minmax=True)
    finally:
        os.chmod(tmp_path / "store", 0o755)


def test_a_missing_package_is_not_remembered(tmp_path, monkeypatch):
    cases = make_cases(tmp_path / "images", 6)
    real = picture.read_levels

    def lacks(path, *rest):
        if path.stem == "i0003":
            raise BadData(f"{path}: needs the package x; install it with pip install 'mdmt[x]'")
        return real(path, *rest)

    monkeypatch.setattr(picture, "read_levels", lacks)
    assert list(inspect(cases, tmp_path).refused) == [3]
    found = inspect(cases, tmp_path)
    assert list(found.refused) == [3]
    assert found.decoded == 0
    monkeypatch.undo()
    found = inspect(cases, tmp_path)
    assert (found.refused, found.decoded, found.copied) == ({}, 1, 5)
    assert len([p for p in (tmp_path / "store").iterdir() if p.is_dir()]) == 1


def test_a_file_that_cannot_be_read_is_refused_not_fatal(tmp_path):
    cases = make_cases(tmp_path / "images", 3)
    cases.paths[1].unlink()
    cases.paths[1].mkdir()
    found = inspect(cases, tmp_path)
    assert list(found.refused) == [1]
    assert "cannot be read" in found.refused[1]
    kept = build.build(cases, values(tmp_path, on_bad_image="exclude"), progress=False)[1]
    assert kept.images == ["i0000", "i0002"]
    with pytest.raises(BadData, match="i0001"):
        build.build(cases, values(tmp_path), progress=False)


def test_progress_in_a_log_is_a_line_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "LOG_SECONDS", 0)
    cases = make_cases(tmp_path / "images", 3)
    build.inspect(cases, values(tmp_path), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [x for x in lines if x.startswith("preparing")] == [
        f"preparing d: {k} of 3 images" for k in (1, 2, 3)
    ]


def test_workers_make_the_same_store(tmp_path):
    cases = make_cases(tmp_path / "images", 60)
    one = inspect(cases, tmp_path)
    (tmp_path / "other").mkdir()
    two = inspect(cases, tmp_path / "other", workers=2)
    assert (two.workers, two.decoded) == (2, 60)
    assert one.store.key == two.store.key
    assert one.store.entries == two.store.entries
    for name in (store.IMAGES, store.LOOKS):
        assert (one.store.folder / name).read_bytes() == (two.store.folder / name).read_bytes()


def test_a_large_store_takes_little_memory(tmp_path):
    """Copied from another store, opened and iterated: memory does not grow with the images."""
    code = f"""
import sys
sys.path[:0] = [{ROOT!r}]
from pathlib import Path
import numpy as np
from mdmt.data import store
from mdmt.system import peak_memory
root = Path({str(tmp_path)!r})
noise = np.random.default_rng(0).integers(0, 256, (64, 256, 256), np.uint8)
before = peak_memory()
with store.Builder(root / "a-1", {{"size": 256}}, 1536) as builder:
    for start in range(0, 1536, 64):
        builder.add([({{"source": str(start + i)}}, noise[i], None) for i in range(64)])
    builder.finish()
known = store.Known(root / "a-2", (256, 256))
with store.Builder(root / "a-2", {{"size": 256}}, 1536) as builder:
    for i in range(1536):
        builder.add([known.find({{"source": str(i)}})])
    builder.finish()
made = peak_memory()
opened = store.Store(root / "a-2")
assert opened.images.shape == (1536, 256, 256)
print((made - before) >> 20, opened.images[::100].mean() > 100)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, right = done.stdout.split()
    assert right == "True"
    assert int(grown) < 30  # MiB, of 96 written twice


def test_a_picture_whose_bytes_have_changed_is_made_again(tmp_path):
    cases = make_cases(tmp_path / "images", 6)
    folder = inspect(cases, tmp_path).store.folder
    whole = (folder / store.IMAGES).read_bytes()
    (folder.parent / f"{folder.name}{store.RETIRED}").mkdir()  # of a preparation that was killed
    with open(folder / store.IMAGES, "r+b") as stream:
        stream.seek(2 * 32 * 32 + 100)
        stream.write(bytes([whole[2 * 32 * 32 + 100] ^ 1]))
    again = inspect(cases, tmp_path)
    assert (again.decoded, again.copied) == (1, 5)
    assert (folder / store.IMAGES).read_bytes() == whole
    assert not list(folder.parent.glob(f"*{store.RETIRED}"))


def test_a_store_that_cannot_be_read_now_is_not_removed(tmp_path, monkeypatch):
    """Others may be training on it."""
    folder = inspect(make_cases(tmp_path / "images", 3), tmp_path).store.folder

    def refuse(*given, **named):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(store.np, "memmap", refuse)
    with pytest.raises(BadInput, match=r"cannot be read \(cannot allocate memory\)"):
        store.open_store(folder)
    assert (folder / store.INDEX).is_file()


def test_what_was_left_long_ago_is_removed_unless_somebody_works_on_it(tmp_path):
    """An interrupted preparation, its lock file, and a lock file alone; retired stores."""
    long_ago = time.time() - store.STALE - 60
    for name in ("left", "held", "new"):
        folder = tmp_path / f"{store.BUILDING}{name}"
        folder.mkdir()
        for path in (folder / store.JOURNAL, Path(f"{folder}.lock")):
            path.touch()
            if name != "new":
                os.utime(path, (long_ago, long_ago))
        if name != "new":
            os.utime(folder, (long_ago, long_ago))
    alone = tmp_path / f"{store.BUILDING}alone.lock"
    alone.touch()
    os.utime(alone, (long_ago, long_ago))
    (tmp_path / f"one{store.RETIRED}").mkdir()
    with open(tmp_path / f"{store.BUILDING}held.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.remove_old(tmp_path)
    kept = {f"{store.BUILDING}{n}" for n in ("held", "new", "held.lock", "new.lock")}
    assert {p.name for p in tmp_path.iterdir()} == kept
