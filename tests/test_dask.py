"""Sweeps on a real Dask scheduler with two worker processes on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import sweeps

pytest.importorskip("distributed", reason="the extra [dask] is not installed")


@contextlib.contextmanager
def running(folder):
    """(address of a scheduler, function that starts a worker and returns its process)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    processes = [start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port,
                       "--no-dashboard", "--no-show")]  # fmt: skip

    def more(environment=None):
        processes.append(worker(address, folder / f"dask{len(processes)}", environment))
        return processes[-1]

    try:
        yield address, more
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def start(module, *arguments):
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        line, env=sweeps.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def worker(address, folder, environment=None):
    line = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", "1"]
    line += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder), "--no-nanny"]
    return subprocess.Popen(
        line, env=environment or sweeps.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def cluster(tmp_path):
    with running(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(configuration's file, fingerprint of the undisturbed sweep on this machine)."""
    folder = tmp_path_factory.mktemp("dask-study")
    config = sweeps.write(folder)
    line = sweeps.command(config, "--out", folder / "out", "--workers", "2")
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return config, sweeps.fingerprint(folder / "out")


def test_two_workers_one_killed_in_mid_sweep(cluster, study, tmp_path):
    config, want = study
    address, more = cluster
    first, _ = more(), more()
    out = tmp_path / "out"
    run = subprocess.Popen(
        sweeps.command(config, "--out", out, "--dask", address), env=sweeps.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 240
    while not sweeps.trainings_of(first.pid) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    more()
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr
    assert "MDMT" in stdout
    assert sweeps.fingerprint(out) == want
    assert sweeps.trained_once(out)


def test_a_worker_of_another_version_gets_no_training(cluster, study, tmp_path):
    config, want = study
    address, more = cluster
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import mdmt\nmdmt.__version__ = '0.0.1'\n")
    environment = sweeps.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(site), environment["PYTHONPATH"]])
    more(environment)
    run = subprocess.Popen(
        sweeps.command(config, "--out", tmp_path / "out", "--dask", address),
        env=sweeps.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for line in run.stderr:
        lines.append(line)
        if "has mdmt 0.0.1" in line:
            break
    more()
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, "".join(lines) + stderr
    assert "it gets no training: install the same version" in "".join(lines)
    assert sweeps.fingerprint(tmp_path / "out") == want


def test_a_scheduler_that_dies_is_a_sentence_and_the_run_goes_on_without_it(study, tmp_path):
    config, want = study
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, out = f"tcp://127.0.0.1:{port}", tmp_path / "out"
    scheduler = start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port,
                      "--no-dashboard", "--no-show")  # fmt: skip
    one = worker(address, tmp_path / "dask")
    try:
        run = subprocess.Popen(
            sweeps.command(config, "--out", out, "--dask", address),
            env=sweeps.environment(DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s"),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not list(out.glob("runs/*/processes.jsonl")) and run.poll() is None:
            time.sleep(0.1)
        scheduler.kill()
        stderr = run.communicate(timeout=120)[1]
    finally:
        for process in (one, scheduler):
            process.kill()
            process.wait()
    assert run.returncode == 75, stderr
    assert f"the Dask scheduler {address} has gone" in stderr and "Traceback" not in stderr
    done = subprocess.run(
        sweeps.command(config, "--out", out), env=sweeps.environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert sweeps.fingerprint(out) == want


def test_no_scheduler_is_a_sentence(study, tmp_path):
    config, _ = study
    line = sweeps.command(config, "--out", tmp_path / "out", "--dask", "tcp://127.0.0.1:9")
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "no scheduler answers there" in done.stderr
    assert "Traceback" not in done.stderr
