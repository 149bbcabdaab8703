"""Worker processes that prepare images: the same result, and what a lost worker costs."""

import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from mdmt import config
from mdmt.preprocess import crew, picture
from tests.dicomfiles import write_dicom


def tasks(folder, count):
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        values = rng.integers(0, 256, (40, 50), np.uint8)
        if i % 3:
            path = write_dicom(folder / f"{i}.dcm", values, bits=8,
                               syntax=("explicit", "jpeg-lossless", "jpeg-ls")[i % 3])  # fmt: skip
        else:
            path = folder / f"{i}.png"
            Image.fromarray(values).save(path)
        found.append(picture.Task(path))
    return found


SETTINGS = picture.settings_of(config.load("demo", ["image_size=32"]))


def test_workers_give_what_this_process_gives_in_order(tmp_path):
    wanted = tasks(tmp_path, 50)
    wanted[7].path.write_bytes(b"no image")
    wanted[21] = picture.Task(tmp_path / "absent.png")
    alone = picture.prepare(wanted, SETTINGS)
    found = list(crew.run(wanted, SETTINGS, 2))
    assert len(found) == 50
    assert sum(f.pixels is None for f in found) == 2
    for a, b in zip(alone, found):
        assert (a.facts, a.look) == (b.facts, b.look)
        assert (a.pixels is None) == (b.pixels is None)
        assert a.pixels is None or np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_file_that_ends_or_stops_its_worker_costs_that_file_alone(tmp_path, monkeypatch, how):
    """A fifo without a writer holds the worker, which is then killed or only stopped."""
    wanted = tasks(tmp_path, 24)
    trap = tmp_path / "trap.png"
    os.mkfifo(trap)
    wanted[11] = picture.Task(trap)
    monkeypatch.setattr(crew, "SECONDS", 3.0)
    started = []
    real = crew._started
    monkeypatch.setattr(crew, "_started", lambda s: started.append(real(s)) or started[-1])
    found = []
    for one in crew.run(wanted, SETTINGS, 2):
        found.append(one)
        if len(found) == 8:  # the second chunk is stuck in the trap now or soon
            deadline = time.monotonic() + 20
            while started[-1].process.poll() is None and time.monotonic() < deadline:
                held = [w for w in started if w.chunk and w.chunk[0][0] == 8]
                if held:
                    time.sleep(0.5)
                    held[0].process.send_signal(how)
                    break
                time.sleep(0.01)
    assert len(found) == 24
    bad = {i: f.facts["reason"] for i, f in enumerate(found) if f.pixels is None}
    assert list(bad) == [11]
    assert "its decoder" in bad[11]
    assert all(w.process.poll() is not None for w in started)


def test_a_crew_that_cannot_start_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_START", "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ends at once"):
        list(crew.run(tasks(tmp_path, 16), SETTINGS, 2))


def test_nothing_is_left_when_the_caller_stops(tmp_path, monkeypatch):
    started, real = [], crew._started
    monkeypatch.setattr(crew, "_started", lambda s: started.append(real(s)) or started[-1])
    run = crew.run(tasks(tmp_path, 40), SETTINGS, 2)
    next(run)
    assert len(started) == 2
    run.close()
    assert all(w.process.poll() is not None for w in started)
