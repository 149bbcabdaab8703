"""benchmarks/gpu_check.py and its slices, as far as they can be proven without a GPU: they run on
the processor, with the backend of tests/cudahost.py, to the same files and summaries."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import mdmt
from benchmarks import gpu_check, gpu_correct, gpu_peer, gpu_speed
from tests import cudahost, oracle
from tests.test_cuda_ops import CASES

PATIENCE = 600  # seconds, for a machine that has other work


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.machine, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("MDMT_CACHE", str(tmp_path / "cache"))


def test_the_list_names_every_case(capsys):
    assert gpu_check.main(["--list"]) == 0
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [slice_ for slice_, _ in dict(lines).items()] == list(gpu_check.SLICES)
    assert [case for slice_, case in lines if slice_ == "table"] == [c.id for c in CASES]
    for part, more in (("nets", ["unet_tiny"]), ("speed", [])):
        assert [case for slice_, case in lines if slice_ == part] == [*mdmt.backbones(), *more]


def test_limits_leave_time():
    """Nine minutes: what asks for results at once, then what measures, one after the other."""
    limits = gpu_check.LIMITS
    together = max(limits[p] for p in gpu_check.AT_ONCE)
    assert together + sum(limits[p] for p in gpu_speed.SLICES) <= 540
    assert set(limits) == set(gpu_check.SLICES) == set(gpu_check.CASES)


def test_time_that_is_not_needed_goes_to_the_slices_asked_for(monkeypatch):
    monkeypatch.setattr(gpu_check, "LIMITS", gpu_check.LIMITS | {"nets": 90, "table": 130})
    monkeypatch.setitem(gpu_check.LIMITS, "speed", 160)
    options = gpu_check.parse(["--only", "table,nets,speed"])
    assert gpu_check.share(options, ["table", "nets"], 540) == 380  # what speed leaves
    assert gpu_check.share(options, ["table", "nets"], 200) == 130  # the longest limit of both
    assert gpu_check.share(options, ["speed"], 410) == 410  # nothing comes after it
    assert gpu_check.share(options, ["speed"], 50) == 50
    assert gpu_check.share(options, [], 540) == 160


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--only", "nothing"], "there is no slice 'nothing'"),
        (["--backbones", "vgg"], "there is no backbone 'vgg'"),
        (["--precisions", "fp64"], "there is no precision 'fp64'; choose among fp32, tf32, bf16"),
    ],
)
def test_what_is_unknown_is_refused(wrong, says, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(wrong)
    assert says in capsys.readouterr().err


def run(arguments, tmp_path, monkeypatch):
    """(exit status, {slice: rows of its file})."""
    cudahost.module()
    monkeypatch.setitem(gpu_check.sys.modules, "mdmt._cuda", None)
    monkeypatch.setenv("MDMT_CUDNN", os.devnull)
    status = gpu_check.main([*arguments, "--dry", "--inside", "--out", str(tmp_path)])
    files = {}
    for path in tmp_path.glob("gpu_*.csv"):
        with path.open(newline="") as file:
            files[path.stem.removeprefix("gpu_")] = list(csv.DictReader(file))
    return status, files


@pytest.mark.parametrize(
    "part, options, cases",
    [
        ("table", ["--stride", "60"], 30),
        ("images", [], 18),
        ("golden", [], 2),
        ("steps", [], 4),
        ("nets", ["--backbones", "shufflenet_v2_x0_5,unet_tiny"], 4),
        ("resume", [], 3),
        ("errors", [], 2),
        ("kernels", ["--backbones", "shufflenet_v2_x1_0"], 10),
        ("speed", ["--backbones", "shufflenet_v2_x0_5"], 2),
        ("tf32", ["--backbones", "shufflenet_v2_x0_5"], 1),
    ],
)
def test_a_slice_runs_on_the_processor(part, options, cases, tmp_path, monkeypatch, capsys):
    status, files = run(["--only", part, *options], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert status == 0, said
    rows = files[part]
    assert len(rows) >= cases and all(row["ok"] == "1" for row in rows), said
    assert f"{part}: {len(rows)} of {len(rows)} right" in said
    assert all("the processor in its place" in row["device"] for row in rows)
    assert all(row["mdmt"] == mdmt.__version__ for row in rows)


def test_what_needs_a_gpu_is_named_as_left_out(tmp_path, monkeypatch, capsys):
    status, files = run(["--only", "interrupts,compile,sanitizer"], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert status == 0 and files == {}
    for part in ("interrupts", "compile", "sanitizer"):
        assert f"{part}: 0 of 0 right" in said and f"left out: {part}: " in said


def test_a_limit_cuts_a_slice_off_and_names_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.LIMITS, "nets", 0.0)
    monkeypatch.setitem(gpu_check.LIMITS, "errors", 540.0)
    status, files = run(["--only", "nets,errors"], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert status == 0 and set(files) == {"errors"}
    assert "left out: nets: shufflenet_v2_x1_0 and all after it" in said


@pytest.mark.parametrize(
    "says, status, rows",
    [
        ("ERROR SUMMARY: 0 errors\ntable: 5 of 5 right (1 s)", 0, [1] * 4),
        ("ERROR SUMMARY: 0 errors\ntable: 0 of 0 right (1 s)", 0, [0] * 4),
        ("ERROR SUMMARY: 2 errors\ntable: 5 of 5 right (1 s)", 9, [0] * 4),
        ("Error: Device not supported. Please refer to the documentation", 1, []),
    ],
)
def test_what_the_sanitizer_says_counts(tmp_path, monkeypatch, capsys, says, status, rows):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_correct.shutil, "which", lambda name: str(tool))
    run = gpu_check.Run(gpu_check.parse(["--out", str(tmp_path / "out")]), "sanitizer", 60)
    run.where = ["", ""]
    gpu_correct.sanitizer(run)
    capsys.readouterr()
    assert [row[4] for row in run.rows] == rows
    assert len(run.left_out) == 4 - len(rows)
    assert all("does not support this device" in what for what in run.left_out)


def test_a_slice_that_fails_is_told(tmp_path, monkeypatch, capsys):
    def broken(run):
        run.attempt("one", "fp32", lambda: (1, True, ""))
        run.attempt("two", "fp32", lambda: 1 / 0)

    monkeypatch.setitem(gpu_check.SLICES, "golden", broken)
    status, files = run(["--only", "golden"], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert status == 1 and "golden: 1 of 2 right" in said
    assert "FAILED golden two fp32: ZeroDivisionError: division by zero" in said
    assert [row["ok"] for row in files["golden"]] == ["1", "0"]


def test_slices_run_in_processes_of_their_own(tmp_path, capsys):
    """Without --inside; and what a process that cannot start leaves behind is a failure."""
    out = ["--dry", "--out", str(tmp_path)]
    assert gpu_check.main(["--only", "errors,interrupts", *out]) == 0
    said = capsys.readouterr().out
    assert "errors: 2 of 2 right" in said and "left out: interrupts: " in said
    assert (tmp_path / "gpu_errors.csv").exists()


def test_a_process_that_dies_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.sys, "executable", "/bin/false")
    assert gpu_check.main(["--only", "golden", "--dry", "--out", str(tmp_path)]) == 1
    assert "FAILED golden: its process ended with status 1" in capsys.readouterr().out


def test_a_slice_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch, capsys):
    script, started = tmp_path / "python", tmp_path / "started"
    script.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {started}\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(script))
    options = gpu_check.parse(["--only", "golden", "--out", str(tmp_path)])
    found = gpu_check.outside(options, "golden", 2 - 25)
    assert found["rows"][0][4:] == [0, "it hung and was ended after 2 s"]
    ends = time.monotonic() + 20
    while gpu_peer.alive(int(started.read_text())) and time.monotonic() < ends:
        time.sleep(0.02)  # it has been sent the signal, and need not have gone yet
    assert not gpu_peer.alive(int(started.read_text()))


def test_without_pytorch_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(gpu_peer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_peer, "ahead", lambda names: pytest.fail("it was started"))
    monkeypatch.setattr(gpu_check, "outside", lambda *how: {"rows": [], "left_out": ["all"],
                                                            "seconds": 0})  # fmt: skip
    assert gpu_check.main(["--only", "compile"]) == 0
    assert "left out: compile: all" in capsys.readouterr().out


def test_what_compiled_and_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv(gpu_peer.FOLDER, str(tmp_path))
    monkeypatch.setattr(gpu_peer, "GRACE", 0.3)
    with subprocess.Popen(["sleep", "60"]) as process:
        for name, text in (("pid", str(process.pid)), ("ready", ""), ("log", "tuning\n")):
            (tmp_path / f"resnet18.{name}").write_text(text)
        with pytest.raises(RuntimeError, match=r"resnet18 is not done: tuning"):
            gpu_peer.compiled_rate("resnet18", 0.1)
        process.kill()


def test_without_a_gpu_it_fails_with_the_reason(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_check.sys.modules, "mdmt._cuda", None)
    arguments = ["--only", "table", "--stride", "400", "--inside", "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 1
    assert "the device 'cuda:0' is not available here: not in this build" in capsys.readouterr().out


def test_processes_that_train_together_add_up(monkeypatch):
    monkeypatch.setenv("MDMT_NUM_THREADS", "1")
    _, ok, text = gpu_speed.shared("cpu", "shufflenet_v2_x0_5", "fp32", (1, 2), 2, 32)
    alone, both = map(float, text.split(": ")[1].removesuffix(" images/s").split(", "))
    assert ok and alone > 0 and 0 < both < 8 * alone


def test_a_stopped_process_takes_its_descendants_along(tmp_path, monkeypatch):
    """Also those that lead a group of their own; and they go on afterwards."""
    made = "import subprocess, sys, time; "
    made += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    made += "start_new_session=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", made], start_new_session=True)

    def states(members):
        stats = [Path(f"/proc/{one}/stat").read_text() for one in members]
        return {stat.rsplit(")", 1)[1].split()[0] for stat in stats}

    def reaches(wanted, members):
        ends = time.monotonic() + 20
        while states(members) != {wanted} and time.monotonic() < ends:
            time.sleep(0.02)
        return states(members) == {wanted}

    try:
        ends = time.monotonic() + 20
        while len(gpu_peer.family(process.pid)) < 2 and time.monotonic() < ends:
            time.sleep(0.02)
        members = gpu_peer.family(process.pid)
        assert len(members) == 2
        (tmp_path / "resnet18.pid").write_text(str(process.pid))
        monkeypatch.setenv(gpu_peer.FOLDER, str(tmp_path))
        with gpu_peer.quiet():
            assert reaches("T", members)
        assert reaches("S", members)
        with gpu_peer.quiet(but="resnet18"):
            assert reaches("S", members)
    finally:
        for one in gpu_peer.family(process.pid)[::-1]:
            os.kill(one, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("theirs, ok", [(900, True), (1099, True), (1101, False)])
def test_ten_percent_slower_than_compiled_is_too_slow(monkeypatch, theirs, ok):
    monkeypatch.setattr(gpu_speed, "our_rate", lambda *how: (1000.0, None))
    monkeypatch.setattr(gpu_peer, "compiled_rate", lambda name, wait: float(theirs))
    found = gpu_speed.beside_compiled(SimpleNamespace(ends=0), "resnet18")
    assert found == (f"{1000 / theirs:.2f}", ok, f"1000 and {theirs}")


@pytest.mark.parametrize("name, eager, ok", [("resnet18", 760, True), ("resnet18", 780, False),
                                             ("densenet121", 620, True),
                                             ("densenet121", 630, False)])  # fmt: skip
def test_floors_beside_eager(monkeypatch, name, eager, ok):
    model = SimpleNamespace(memory=lambda batch, training: {"planned": 2**20})
    monkeypatch.setattr(gpu_speed, "our_rate", lambda *how: (1000.0, model))
    monkeypatch.setattr(gpu_speed, "step_profile", lambda *how: [])
    monkeypatch.setattr(gpu_speed, "keep_ops", lambda *how: None)
    monkeypatch.setattr(gpu_peer, "eager_rate", lambda *how: (float(eager), 2**21))
    width = gpu_speed.LIMIT_BANDWIDTH * 1000 / gpu_speed.LIMIT_P[name] / 0.5
    value, right, text = gpu_speed.beside_eager(None, object(), name, 1, 1, 32, width)
    assert (value, right) == ("1000", ok)
    assert text.startswith("50 % of limit P, planned 1 MiB, ")
    assert text.endswith(f"eager {eager} ({1000 / eager:.2f}x, 0.50 of its memory)")


@pytest.mark.oracle
def test_what_compiles_ahead_halts_until_it_is_called():
    """Two processes of the peer on the processor; one is measured while the other is stopped."""
    oracle.need("torch")
    names = ["shufflenet_v2_x0_5", "resnet18"]
    assert gpu_peer.compiled_rate(names[0]) is None
    with gpu_peer.ahead(names, "cpu", 2, 32) as folder:
        first = next(gpu_peer.by_readiness(names, time.monotonic() + PATIENCE))
        assert gpu_peer.compiled_rate(first, PATIENCE) > 0
        (other,) = set(names) - {first}
        assert not (folder / f"{other}.rate").exists()
        assert gpu_peer.compiled_rate(other, PATIENCE) > 0
        assert gpu_peer.compiled_rate("googlenet") is None
    assert gpu_peer.folder() is None and not folder.exists()


@pytest.mark.oracle
def test_what_cannot_be_compiled_is_named_with_its_last_words():
    oracle.need("torch")
    said = r"torch\.compile of vgg is not done: TypeError"
    with gpu_peer.ahead(["vgg"], "cpu", 2, 32), pytest.raises(RuntimeError, match=said):
        assert list(gpu_peer.by_readiness(["vgg"], time.monotonic() + PATIENCE)) == ["vgg"]
        gpu_peer.compiled_rate("vgg", PATIENCE)
