"""The sbatch scripts on a real SLURM of one machine, with preemption; minutes, so only where
MDMT_SLOW is set."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests import sweeps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MDMT_SLOW"), reason="minutes: set MDMT_SLOW=1"),
]
SCRIPT = Path(__file__).parent / "slurm.sh"
EPOCHS = "train.epochs=36"  # so long that a preemption finds a training under way
CLUSTER = ("cluster.cores=1", "cluster.memory=1GB", "cluster.jobs=2", "cluster.partition=low")


def settings():
    return [a for s in CLUSTER for a in ("--set", s)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which sbatch finds a running SLURM."""
    for name in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in folder.parents:  # munged refuses a socket in a folder that others may not enter
        if parent != Path("/tmp") and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    try:
        done = subprocess.run(["bash", SCRIPT, "start", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield sweeps.environment(SLURM_CONF=str(folder / "slurm.conf"))
    finally:
        subprocess.run(["bash", SCRIPT, "stop", folder], check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(configuration's file, fingerprint of the undisturbed sweep on this machine)."""
    folder = tmp_path_factory.mktemp("study")
    config = sweeps.write(folder)
    line = sweeps.command(config, "--out", folder / "out", "--set", EPOCHS)
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return config, sweeps.fingerprint(folder / "out")


def queue(environment):
    done = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i %T %j %r"], env=environment, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def wait_for(environment, condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.3)
    return False


def test_arrays_with_preemption_end_as_the_undisturbed_sweep(slurm, study, tmp_path):
    config, want = study
    out = tmp_path / "out"
    line = sweeps.command(config, "--out", out, "--emit-slurm", "--set", EPOCHS, *settings())
    done = subprocess.run(line, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 trainings in" in done.stdout
    done = subprocess.run(["bash", out / "slurm" / "submit.sh"], env=slurm, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr

    def training():
        return any((out / "runs").glob("*/checkpoint.safetensors"))

    assert wait_for(slurm, training, 120), queue(slurm)
    # A job of the better partition takes the whole machine: the trainings are preempted.
    line = ["sbatch", "--parsable", "-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 3"]
    urgent = subprocess.run(line, env=slurm, capture_output=True, text=True, cwd=tmp_path)
    assert urgent.returncode == 0, urgent.stderr
    assert wait_for(slurm, lambda: not queue(slurm), 500), queue(slurm)
    assert sweeps.fingerprint(out) == want
    assert sweeps.trained_once(out)
    processes = [
        (f.parent / "processes.jsonl").read_text().splitlines()
        for f in out.glob("runs/*/result.json")
    ]
    assert max(len(p) for p in processes) > 1, "no training was preempted"
    resumed = [json.loads(f.read_text())["resumed"] for f in out.glob("runs/*/result.json")]
    assert max(resumed) > 0, "no training went on from its checkpoint"


def test_dask_jobqueue_starts_its_workers(slurm, study, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="the extra [dask] is not installed")
    config, want = study
    line = sweeps.command(
        config, "--out", tmp_path / "out", "--dask", "slurm", "--set", EPOCHS,
        *settings(),
    )  # fmt: skip
    done = subprocess.run(line, env=slurm, capture_output=True, text=True, cwd=tmp_path,
                          timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sweeps.fingerprint(tmp_path / "out") == want
