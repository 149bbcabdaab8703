"""A sweep among faults: a full disk, another version, clocks that jump. Each ends complete or in a
sentence, and nothing is lost or done twice. (Killed processes: tests/test_fault_sweeps.py.)"""

import ast
import itertools
import json
import subprocess
import sys

import pytest

from tests import sweeps

BETAS = ", ".join(f"MDMT-beta{b}" for b in (0, 0.25, 0.75))
GROW = ("--set", f"configurations=[STL-tau1, STL-tau2, FT, MDMT, {BETAS}, controls]")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(configuration's file, fingerprint of the undisturbed sweep)."""
    folder = tmp_path_factory.mktemp("faults")
    config = sweeps.write(folder)
    line = sweeps.command(config, "--out", folder / "out", *GROW)
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return config, sweeps.fingerprint(folder / "out")


def test_the_long_control_takes_as_many_steps_as_mdmt_in_all(study):
    config, _ = study
    results = sweeps.rows(config.parent / "out" / "results.csv")
    steps = {r["configuration"]: int(r["steps"]) for r in results}
    assert steps["STL-tau1-long"] == steps["STL-tau1"] + steps["STL-tau2"] + steps["MDMT"] > 0
    assert steps["AVG"] == 0
    folds = {r["configuration"]: r for r in results}
    assert folds["AVG"]["epochs"] == "0"


def test_the_average_is_tested_with_the_heads_of_its_sources(study):
    from safetensors.numpy import load_file

    config, _ = study
    out = config.parent / "out"
    jobs = {r["configuration"]: r["job"] for r in sweeps.rows(out / "results.csv")}
    model = {n: load_file(out / "runs" / j / "model.safetensors") for n, j in jobs.items()}
    for key, value in model["AVG"].items():
        if key.startswith("heads.prognosis"):
            assert value.tobytes() == model["STL-tau1"][key].tobytes()
        elif key.startswith("heads.severity"):
            assert value.tobytes() == model["STL-tau2"][key].tobytes()


def test_a_full_disk_in_the_middle_is_a_sentence_and_nothing_is_lost(study, tmp_path):
    config, _ = study
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(place)]  # two of four fit
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    out = place / "out"
    heavy = ["--set", "backbones=[resnet18]", "--set", "train.checkpoint_steps=0"]
    line = sweeps.command(config, "--out", out, *heavy)
    try:
        done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "No space left on device; free some space" in done.stderr
        assert len(list(out.glob("runs/*/processes.jsonl"))) == 3, "nothing starts on a full disk"
        assert "Traceback" not in done.stderr
        finished = {p.parent.name for p in out.glob("runs/*/result.json")}
        assert 1 <= len(finished) < 4
        stamps = {n: (out / "runs" / n / "model.safetensors").stat().st_mtime_ns for n in finished}
        grown = ["mount", "-o", "remount,size=600m", str(place)]
        assert subprocess.run(grown, capture_output=True).returncode == 0
        done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list(out.glob("runs/*/result.json"))) == 4
        for name, stamp in stamps.items():
            assert (out / "runs" / name / "model.safetensors").stat().st_mtime_ns == stamp
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)


def test_a_training_of_another_version_is_refused(study, tmp_path):
    from mdmt.errors import BadInput
    from mdmt.runner import job

    (tmp_path / "job.json").write_text(json.dumps({"mdmt": "0.0.1", "description": {}}))
    (tmp_path / "inputs.json").write_text("{}")
    with pytest.raises(BadInput, match=r"run by mdmt 0\.0\.1, and this worker has"):
        job.execute(tmp_path)


def test_another_cpu_path_is_noted(study, tmp_path):
    config, _ = study
    out = tmp_path / "out"
    one = ("--set", "configurations=[STL-tau1]")
    line = sweeps.command(config, "--out", out, *one)
    assert subprocess.run(line, env=sweeps.environment(), capture_output=True).returncode == 0
    more = ("--set", "configurations=[STL-tau1, STL-tau2]", "--extend")
    line = sweeps.command(config, "--out", out, *more)
    other = sweeps.environment(MDMT_CPU="ref")
    done = subprocess.run(line, env=other, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from mdmt.system import cpu_path

    if cpu_path() == "ref":
        pytest.skip("this processor has only the reference path")
    assert "note: trainings ran on several CPU paths (1 on avx" in done.stderr
    assert "1 on ref" in done.stderr
    written = json.loads((out / "environment.json").read_text())
    assert written["paths"] == {cpu_path(): 1, "ref": 1}


def test_a_deleted_prediction_file_is_made_again(study, tmp_path):
    config, _ = study
    out = tmp_path / "out"
    line = sweeps.command(config, "--out", out, "--set", "configurations=[STL-tau1]")
    assert subprocess.run(line, env=sweeps.environment(), capture_output=True).returncode == 0
    before = sweeps.fingerprint(out)
    next(out.glob("runs/*/predictions.csv")).unlink()
    assert subprocess.run(line, env=sweeps.environment(), capture_output=True).returncode == 0
    assert sweeps.fingerprint(out) == before


def test_a_training_made_again_elsewhere_and_killed_before_its_result(study, tmp_path):
    """Its weights were deleted and are needed again: the old result does not vouch for new ones,
    which on another CPU path have other bits."""
    config, _ = study
    out = tmp_path / "out"

    def again(*more):
        names = ", ".join(("STL-tau2", *more))
        given = ("--set", f"configurations=[{names}]", "--set", "keep_weights=false", "--extend")
        line = sweeps.command(config, "--out", out, *given)
        return subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)

    assert again().returncode == 0
    (folder,) = (out / "runs").iterdir()
    (folder / "weights.deleted").unlink()
    code = (
        "import os; from mdmt.runner import job; "
        "job._write_predictions = lambda *given: os._exit(9); "
        f"job.main([{str(folder)!r}])"
    )
    line, elsewhere = [sys.executable, "-c", code], sweeps.environment(MDMT_CPU="ref")
    assert subprocess.run(line, env=elsewhere, capture_output=True).returncode == 9
    assert (folder / "model.safetensors").is_file()
    done = again("FT")
    assert done.returncode == 0, done.stderr


def test_files_of_finished_trainings_that_were_changed_are_not_used(study, tmp_path):
    """What was cut is made again; what has another byte is told, before anything comes of it."""
    config, _ = study
    out = tmp_path / "out"
    line = sweeps.command(config, "--out", out, "--set", "configurations=[STL-tau2, FT]")

    def again():
        return subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)

    assert again().returncode == 0
    before = sweeps.fingerprint(out)
    jobs = {r["configuration"]: r["job"] for r in sweeps.rows(out / "results.csv")}
    tested = out / "runs" / jobs["FT"] / "predictions.csv"
    text = tested.read_text()
    tested.write_text("".join(text.splitlines(True)[:-2]))
    weights = out / "runs" / jobs["STL-tau2"] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert again().returncode == 0
    assert sweeps.fingerprint(out) == before

    tested.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    done = again()
    assert done.returncode == 2
    assert f"{jobs['FT']}/predictions.csv: is not as its training wrote it" in done.stderr
    tested.unlink()
    weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    done = again()
    assert done.returncode == 2
    assert f"{jobs['STL-tau2']}/model.safetensors: is not as its training wrote it" in done.stderr


def test_trainings_on_data_as_they_were_count_no_more(tmp_path):
    """A picture that was replaced is learnt from anew; what is left of before is in nothing."""
    from PIL import Image, ImageOps

    from mdmt import predict, study
    from mdmt.known import Known

    config = sweeps.write(tmp_path)
    out = tmp_path / "out"
    line = sweeps.command(config, "--out", out, "--set", "configurations=[STL-tau1]")
    assert subprocess.run(line, env=sweeps.environment(), capture_output=True).returncode == 0
    picture = next((tmp_path / "data").glob("**/prognosis_*.png"))
    ImageOps.flip(Image.open(picture)).save(picture)
    assert subprocess.run(line, env=sweeps.environment(), capture_output=True).returncode == 0
    assert len(list(out.glob("runs/*/result.json"))) == 2
    before = (out / "results.csv").read_bytes()
    (used,) = predict.networks(out, study.stored_values(out), Known())
    assert used.folder.name in before.decode()
    again = [sys.executable, "-m", "mdmt", "report", str(out)]
    assert subprocess.run(again, env=sweeps.environment(), capture_output=True).returncode == 0
    assert (out / "results.csv").read_bytes() == before


def test_nothing_depends_on_the_clock_of_the_wall():
    """A clock that jumps (time set, daylight saving, a laptop that wakes) must not end a wait or
    start a checkpoint: durations are measured by the monotonic clock alone. What is compared with
    the times of files (is a remembered hash fresh, is a preparation abandoned) has no other one."""
    with_files = {"hashes.py", "store.py"}
    found = []
    for path in sorted((sweeps.ROOT / "mdmt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            if ast.unparse(node) in ("time.time", "time.time_ns") and path.name not in with_files:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_weights_of_tasks_and_frozen_backbones_train(study, tmp_path):
    """Stages with fixed weights, with weights by uncertainty, and with a frozen backbone."""
    from safetensors.numpy import load_file

    config, _ = study
    text = (
        config.read_text()
        + """
experiments:
  FIXED:
    - {tasks: [tau1, tau2], task_weights: {tau1: 3, tau2: 1}}
  SURE:
    - {tasks: [tau1, tau2], task_weights: uncertainty, train: {epochs: 3}}
  PROBE:
    - {tasks: [tau2]}
    - {tasks: [tau1], init: 0, freeze: true, train: {epochs: 12, lr: 0.01}}
"""
    )
    own = tmp_path / "own.yaml"
    own.write_text(text)
    wanted = ("--set", "configurations=[STL-tau2, FIXED, SURE, PROBE]")
    line = sweeps.command(own, "--out", tmp_path / "out", *wanted)
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "out" / "runs"
    jobs = {r["configuration"]: r["job"] for r in sweeps.rows(tmp_path / "out" / "results.csv")}
    history = {n: sweeps.rows(runs / j / "history.csv") for n, j in jobs.items()}
    first = history["FIXED"][0]
    assert (float(first["weight_prognosis"]), float(first["weight_severity"])) == (1.5, 0.5)
    sure = history["SURE"]
    assert (float(sure[0]["weight_prognosis"]), float(sure[0]["weight_severity"])) == (1, 1)
    for before, row in itertools.pairwise(sure):
        losses = [float(before[f"loss_{t}"]) for t in ("prognosis", "severity")]
        weights = [float(row[f"weight_{t}"]) for t in ("prognosis", "severity")]
        assert weights[0] * losses[0] == pytest.approx(weights[1] * losses[1])
        assert sum(weights) == pytest.approx(2)
    probe = load_file(runs / jobs["PROBE"] / "model.safetensors")
    source = load_file(runs / jobs["STL-tau2"] / "model.safetensors")
    backbone = [k for k in probe if not k.startswith("heads.")]
    assert backbone and all(probe[k].tobytes() == source[k].tobytes() for k in backbone)
    losses = [float(r["loss_prognosis"]) for r in history["PROBE"]]
    assert sum(losses[-3:]) < sum(losses[:3])
