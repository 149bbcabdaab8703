"""A fifth of the trainings killed at random moments and the coordinator once: the sweep ends
complete, with the bits of an undisturbed one, nothing lost and nothing done twice.

10 trainings; 40 where MDMT_SLOW is set.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from tests import sweeps

JOBS = 40 if os.environ.get("MDMT_SLOW") else 10
BETAS = ", ".join(f"MDMT-beta{b}" for b in (0, 0.25, 0.75))
NETS, FOLDS = {
    10: ("shufflenet_v2_x0_5", "0"),
    40: ("shufflenet_v2_x0_5, mobilenet_v2", "0, 1"),
}[JOBS]
STUDY = [
    f"configurations=[STL-tau1, STL-tau2, FT, MDMT, {BETAS}, controls]",
    f"backbones=[{NETS}]",
    f"folds=[{FOLDS}]",
    "train.epochs=3",
]
GROW = [a for s in STUDY for a in ("--set", s)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(configuration's file, fingerprint of the undisturbed sweep)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = sweeps.write(folder)
    line = sweeps.command(config, "--out", folder / "out", *GROW, "--workers", "2")
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return config, sweeps.fingerprint(folder / "out")


def disturb(line, out, said, parents):
    """Run `line` until it ends by itself; return (starts of it, trainings killed).

    parents(the run's process) -> ids of the processes that start trainings. Victims are chosen by
    the order of their first starts.
    """
    rng = random.Random(4)
    chosen = set(rng.sample(range(JOBS - 3), JOBS // 5))
    seen, killed = [], []
    for attempt in range(4):
        with open(said, "ab") as stream:
            run = subprocess.Popen(line, env=sweeps.environment(), stdout=stream, stderr=stream,
                                   start_new_session=True)  # fmt: skip
        while run.poll() is None:
            under_way = {}
            for parent in parents(run):
                under_way |= sweeps.trainings_of(parent)
            for pid, folder in under_way.items():
                if folder in seen:
                    continue
                seen.append(folder)
                if len(seen) - 1 in chosen:
                    time.sleep(rng.uniform(0, 0.5))
                    try:
                        os.kill(pid, signal.SIGKILL)
                        killed.append(folder)
                    except ProcessLookupError:  # it had ended: another one
                        chosen.add(min(set(range(len(seen), JOBS)) - chosen))
            if attempt == 0 and len(list(out.glob("runs/*/result.json"))) >= JOBS // 2:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGKILL)
            time.sleep(0.02)
        if run.returncode == 0:
            return attempt + 1, killed
        assert run.returncode == -signal.SIGKILL, said.read_text()
    raise AssertionError(said.read_text())


def complete(out, want, starts, killed):
    """The end of every disturbed sweep."""
    assert starts == 2, "the coordinator was killed once"
    assert len(killed) == JOBS // 5
    assert len([k for k in want if k.endswith("/history")]) == JOBS
    assert sweeps.fingerprint(out) == want
    assert sweeps.trained_once(out)
    results = sweeps.rows(out / "results.csv")
    places = [(r["backbone"], r["configuration"], r["task"], r["fold"]) for r in results]
    assert len(places) == len(set(places))
    processes = {p.parent.name: len(p.read_text().splitlines())
                 for p in out.glob("runs/*/processes.jsonl")}  # fmt: skip
    undisturbed = [n for n in processes if not any(f.endswith(n) for f in killed)]
    again = [n for n in undisturbed if processes[n] > 1]
    assert len(again) <= 2, "only what ran when the coordinator died went on in another process"


def test_on_local_slots(study, tmp_path):
    config, want = study
    out = tmp_path / "out"
    line = sweeps.command(config, "--out", out, *GROW, "--workers", "2")
    complete(out, want, *disturb(line, out, tmp_path / "said", lambda run: [run.pid]))


def test_on_dask_workers(study, tmp_path):
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    from tests import test_dask

    config, want = study
    out = tmp_path / "out"
    with test_dask.running(tmp_path) as (address, more):
        workers = [more().pid, more().pid]
        line = sweeps.command(config, "--out", out, *GROW, "--dask", address)
        complete(out, want, *disturb(line, out, tmp_path / "said", lambda run: workers))
