"""The main job from end to end on tiny data: results, bad input, interruption, resumption."""

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mdmt import metrics, run
from mdmt.config import load
from mdmt.data import synthetic
from mdmt.errors import BadInput

ROOT = Path(__file__).parents[1]
TINY = """
name: tiny
data:
  root: {root}
  store: {store}
  datasets:
    - name: one
      table: prognosis.csv
      columns: {{image: image, patient: patient, label: prognosis, center: center}}
      task: prognosis
    - name: two
      table: severity.csv
      columns: {{image: image, patient: patient, label: score}}
      task: severity
tasks:
  prognosis: {{classes: [MILD, SEVERE], head: {{hidden: [8], dropout: 0.5}}}}
  severity: {{classes: ["0", "1", "2", "3"], thresholds: [5, 9, 14], head: {{hidden: []}}}}
backbones: [shufflenet_v2_x0_5]
cv: {{folds: 2, validation: 0.25}}
folds: [0]
image_size: 32
train: {{epochs: 3, warmup_epochs: 1, patience: 3, batch_size: 8, augment: {{}}}}
sampler: {{drop_last: true}}
"""


def two_folds(top):
    """(out folder, data) of a run of the tiny configuration, two folds, in the folder `top`."""
    data = synthetic.make(top / "data", patients=24, size=32, seed=1)
    path = top / "tiny.yaml"
    path.write_text(TINY.format(root=data, store=top / "store"))
    changes = ["backbones=[shufflenet_v2_x0_5]", "configurations=[STL-tau1, MDMT]", "folds=[0, 1]",
               "train.epochs=1"]  # fmt: skip
    run.run(load(str(path), changes), top / "out", quiet=True, report=False)
    return top / "out", data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of synthetic data, drawn once."""
    return synthetic.make(tmp_path_factory.mktemp("data"), patients=24, size=32, seed=1)


@pytest.fixture
def tiny(tmp_path, data):
    """The tiny configuration's file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=data, store=data.parent / "store"))
    return path


def command(*arguments, report=False):
    more = [] if report else ["--no-report"]
    return [sys.executable, "-m", "mdmt.run", *map(str, arguments), *more]


def environment(**more):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return dict(os.environ, PYTHONPATH=path, MDMT_NUM_THREADS="1", **more)


def call(*arguments, report=False, **more):
    return subprocess.run(command(*arguments, report=report), env=environment(**more),
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def fingerprint(out):
    """Everything a run leaves that must not depend on interruptions."""
    found = {name: (out / name).read_bytes() for name in ("results.csv", "predictions.csv")}
    for folder in sorted((out / "runs").iterdir()):
        for name, value in load_file(folder / "model.safetensors").items():
            found[f"{folder.name}/{name}"] = value.tobytes()
        found[f"{folder.name}/history"] = (folder / "history.csv").read_bytes()
    return found


@pytest.fixture(scope="session")
def reference(tmp_path_factory, data):
    """An uninterrupted run: (out folder, what it printed, its configuration file)."""
    folder = tmp_path_factory.mktemp("reference")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(root=data, store=data.parent / "store"))
    done = call(config, "--out", folder / "out", report=True)
    assert done.returncode == 0, done.stderr
    return folder / "out", done, config


# Long enough to be stopped in the midst of it.
SOLO = [a for s in ("configurations=[STL-tau1]", "train.epochs=60", "train.patience=60")
        for a in ("--set", s)]  # fmt: skip


@pytest.fixture(scope="session")
def solo(reference, tmp_path_factory):
    """An uninterrupted run of one training: (its fingerprint, its seconds, configuration)."""
    out, _, config = tmp_path_factory.mktemp("solo") / "out", *reference[1:]
    begin = time.monotonic()
    done = call(config, "--out", out, *SOLO)
    assert done.returncode == 0, done.stderr
    return fingerprint(out), time.monotonic() - begin, config


def test_out_folder_holds_what_the_contract_says(reference):
    out, done, _ = reference
    results = rows(out / "results.csv")
    columns = "release validation fold backbone configuration task seed"
    numbers = "n accuracy f1 f1_macro f1_weighted gmean auc"
    assert list(results[0])[:14] == f"{columns} {numbers}".split()
    assert [(r["configuration"], r["task"]) for r in results] == [
        ("STL-tau1", "prognosis"),
        ("STL-tau2", "severity"),
        ("FT", "prognosis"),
        ("MDMT", "prognosis"),
        ("MDMT", "severity"),
    ]
    predictions = rows(out / "predictions.csv")
    classes = "p_MILD p_SEVERE p_0 p_1 p_2 p_3"
    cells = f"{columns} patient image center label predicted {classes}"
    assert list(predictions[0]) == cells.split()
    record = json.loads((out / "splits.json").read_text())
    tested = record["validation"]["cv"][0]["datasets"]["one"]["test"]
    mine = [p for p in predictions if (p["configuration"], p["task"]) == ("FT", "prognosis")]
    assert [p["image"] for p in mine] == tested
    folders = sorted(p.name for p in (out / "runs").iterdir())
    assert folders == sorted({r["job"] for r in results})
    for folder in folders:
        names = {p.name for p in (out / "runs" / folder).iterdir()}
        assert {"job.json", "history.csv", "model.safetensors", "result.json"} <= names
        assert "checkpoint.safetensors" not in names
    for text in ("STL-tau1", "MDMT", "F1 of SEVERE", "F1 macro", "G-mean", "results.csv"):
        assert text in done.stdout
    assert "img/s" in done.stderr
    assert "left" in done.stderr
    assert "\n  on the CPU" in done.stderr or "\n  on cuda" in done.stderr


def test_run_ends_in_tables_figures_and_report(reference):
    out, done, _ = reference
    for name in ("table1", "table2", "tableS1"):
        assert all((out / f"{name}.{kind}").stat().st_size for kind in ("csv", "tex", "html"))
    assert len(list((out / "figures").glob("*.png"))) == len(list((out / "figures").glob("*.svg")))
    text = (out / "report.html").read_text()
    assert "img" in text
    assert f"report       {out / 'report.html'}" in done.stdout
    before = (out / "results.csv").read_bytes()
    from mdmt import report

    notes = report.make(out, resamples=100, figures=False)["notes"]
    rare = re.compile(r"severity, cv: the metric '(gmean|f1_macro)' is not defined in \d+\.\d % of")
    assert all(rare.match(n) for n in notes), notes  # its one test part has few cases of a class
    assert (out / "results.csv").read_bytes() == before


def test_results_can_be_computed_again_from_the_predictions(reference):
    out, _, _ = reference
    classes = {"prognosis": ["MILD", "SEVERE"], "severity": ["0", "1", "2", "3"]}
    predictions = rows(out / "predictions.csv")
    for result in rows(out / "results.csv"):
        mine = [p for p in predictions
                if all(p[k] == result[k] for k in ("configuration", "task", "fold"))]  # fmt: skip
        names = classes[result["task"]]
        y = np.array([names.index(p["label"]) for p in mine])
        p = np.array([[float(m[f"p_{c}"]) for c in names] for m in mine])
        assert p.sum(1) == pytest.approx(1, abs=1e-5)
        assert [m["predicted"] for m in mine] == [names[k] for k in p.argmax(1)]
        for name, value in metrics.summary(y, p).items():
            assert float(result[name] or "nan") == pytest.approx(value, nan_ok=True)


def test_mdmt_started_from_the_average_and_ft_from_stl_tau2(reference):
    out, _, _ = reference
    jobs = {r["configuration"]: r["job"] for r in rows(out / "results.csv")}
    described = {n: json.loads((out / "runs" / j / "job.json").read_text())["description"]
                 for n, j in jobs.items()}  # fmt: skip
    assert described["FT"]["init"] == {"jobs": [[jobs["STL-tau2"], 1.0]]}
    assert described["MDMT"]["init"]["jobs"] == [[jobs["STL-tau1"], 0.5], [jobs["STL-tau2"], 0.5]]


def test_starting_weights_are_those_of_the_sources(reference):
    from mdmt.runner import job

    out, _, _ = reference
    ids = {r["configuration"]: r["job"] for r in rows(out / "results.csv")}
    weights = {n: load_file(out / "runs" / i / "model.safetensors") for n, i in ids.items()}

    def start(name):
        folder = out / "runs" / ids[name]
        description = json.loads((folder / "job.json").read_text())["description"]
        inputs = json.loads((folder / "inputs.json").read_text())
        return job._build(description, inputs)

    ft, both = start("FT").state_dict(), start("MDMT").state_dict()
    one, two = weights["STL-tau1"], weights["STL-tau2"]
    keys = [k for k in ft if not k.startswith("heads.")]
    for key in keys:
        np.testing.assert_array_equal(ft[key], two[key])
        if ft[key].dtype == np.float32:
            np.testing.assert_allclose(both[key], (one[key] + two[key]) / 2, rtol=1e-5, atol=1e-7)
    head = "heads.prognosis.0.weight"
    assert not np.array_equal(ft[head], one[head])


def test_there_must_be_a_run_to_go_on_with(tmp_path, capsys):
    """Not the demo instead: what was interrupted before it was written down is not known."""
    out = tmp_path / "out"
    assert run.main(["--resume", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mdmt: {out}: there is no run to go on with") and not out.exists()
    out.mkdir()
    assert run.main([str(out)]) == 2
    assert "is a folder, no configuration; give a YAML file" in capsys.readouterr().err
    (out / "config.yaml").touch()
    assert run.main([str(out)]) == 2
    assert f"go on with its run by --resume --out {out}" in capsys.readouterr().err


def test_running_again_trains_nothing(reference):
    out, _, config = reference
    before = fingerprint(out)
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("model.safetensors")}
    again = call(config, "--out", out)
    assert again.returncode == 0, again.stderr
    assert call("--resume", "--out", out).returncode == 0
    assert fingerprint(out) == before
    assert stamps == {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("model.safetensors")}


def test_what_a_training_killed_at_its_very_end_left_is_taken_away(reference, tmp_path):
    """Between the result, which makes a training finished, and the end of its checkpoint."""
    source, _, config = reference
    out = tmp_path / "out"
    shutil.copytree(source, out)
    left = next(out.glob("runs/*/result.json")).with_name("checkpoint.safetensors")
    left.write_bytes(b"left")
    done = call(config, "--out", out)
    assert done.returncode == 0, done.stderr
    assert not left.exists() and fingerprint(out) == fingerprint(source)


def test_a_last_batch_of_one_small_image_is_told_before_any_training(tiny, tmp_path):
    """Of 32 pixels one is left, and a batch of one has nothing to be normalised over."""
    plain = ("--set", "configurations=[STL-tau1]", "--set", "sampler.drop_last=false")
    batch = ("--set", "train.batch_size=3")
    done = call(tiny, "--out", tmp_path / "out", *plain, *batch)
    assert done.returncode == 2 and "Error" not in done.stderr
    words = "13 training images in batches of 3 leave a last batch of one, which shufflenet_v2_x0_5"
    assert f"mdmt: plan: cv, fold 0: {words}" in done.stderr
    assert not (tmp_path / "out" / "runs").exists()
    assert call(tiny, "--out", tmp_path / "out", "--set", "train.batch_size=3",
                "--set", "configurations=[STL-tau1]").returncode == 0  # fmt: skip
    done = call(tiny, "--out", tmp_path / "one", *plain, "--set", "train.batch_size=1")
    assert done.returncode == 2
    assert (
        "train.batch_size is 1, and shufflenet_v2_x0_5 cannot normalise a single image"
        in done.stderr
    )


def test_tensorboard_is_looked_for_before_any_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    values, out = load(tiny), tmp_path / "out"
    with pytest.raises(BadInput, match="--tensorboard needs the package tensorboard"):
        run.run(values, out, tensorboard=True, quiet=True)
    assert not out.exists()
    run.run(values, out, tensorboard=True, emit_slurm=True, quiet=True)
    script = (out / "slurm" / "level0-0.sbatch").read_text()
    assert script.index("export MDMT_TENSORBOARD=1\n") < script.index("mdmt.runner.job")


def test_slurm_scripts_of_odd_names(tiny, tmp_path):
    """sbatch ends a word at a space and reads % as a pattern; a comment ends with its line."""
    values, out = load(tiny), tmp_path / "it's 50% a"
    values["name"] = "one\ntouch two"
    run.run(values, out, emit_slurm=True, quiet=True)
    lines = (out / "slurm" / "level0-0.sbatch").read_text().splitlines()
    assert any(line.endswith("trainings of the study one touch two.") for line in lines)
    assert not any(line.startswith("touch") for line in lines)
    given = next(line for line in lines if line.startswith("#SBATCH --output="))
    assert given.endswith(r"/it\'s\ 50%%\ a/slurm/level0-0-%a.txt")
    with pytest.raises(BadInput, match="has a line break in its name, which sbatch cannot take"):
        run.run(values, tmp_path / "a\nb", emit_slurm=True, quiet=True)


def test_dry_run_lists_the_jobs_and_writes_nothing(tiny, tmp_path):
    done = call(tiny, "--out", tmp_path / "out", "--dry-run", "--set", "folds=[0, 1]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("8 jobs")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(5))
def test_kill_at_random_moments_then_resume_gives_the_same_bits(solo, tmp_path, seed):
    want, seconds, config = solo
    out, rng = tmp_path / "out", random.Random(seed)
    arguments = (config, "--out", out, *SOLO, "--set", "train.checkpoint_steps=2")
    for _ in range(2):
        process = subprocess.Popen(
            command(*arguments),
            env=environment(),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds * rng.uniform(0.2, 0.9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == want


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_75(solo, tmp_path, number):
    want, _, config = solo
    out = tmp_path / "out"
    arguments = (config, "--out", out, *SOLO, "--set", "train.checkpoint_seconds=0")
    process = subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not list(out.glob("runs/*/.lock")):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert signal.Signals(number).name in stderr
    assert "Traceback" not in stderr
    assert list(out.glob("runs/*/checkpoint.safetensors"))
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == want


def test_two_trainings_at_a_time_give_the_same_bits(reference, tmp_path):
    uninterrupted, _, config = reference
    done = call(config, "--out", tmp_path / "out", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "out") == fingerprint(uninterrupted)


def test_out_folder_of_another_configuration_is_refused(reference):
    out, _, config = reference
    before = fingerprint(out)
    done = call(config, "--out", out, "--set", "train.lr=0.5")
    assert done.returncode == 2
    assert "another configuration (train.lr is 0.001 there and 0.5 here)" in done.stderr
    assert fingerprint(out) == before


def test_extend_lets_a_study_grow(reference, tmp_path):
    import shutil

    uninterrupted, _, config = reference
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    grow = ("--set", "folds=[0, 1]", "--set", "configurations=[STL-tau1]")
    refused = call(config, "--out", out, *grow)
    assert refused.returncode == 2
    assert "--extend" in refused.stderr
    done = call(config, "--out", out, *grow, "--extend")
    assert done.returncode == 0, done.stderr
    assert [r["fold"] for r in rows(out / "results.csv")] == ["0", "1"]


def test_leave_one_center_out(reference, tmp_path):
    _, _, config = reference
    out = tmp_path / "out"
    wanted = ("validation=[loco]", "configurations=[STL-tau1]", "folds=[0]", "train.epochs=1")
    done = call(config, "--out", out, *(a for w in wanted for a in ("--set", w)))
    assert done.returncode == 0, done.stderr
    tested = {p["center"] for p in rows(out / "predictions.csv")}
    record = json.loads((out / "splits.json").read_text())["validation"]["loco"]
    assert tested == {record[0]["datasets"]["one"]["center"]}
    assert len(record) == len({f["datasets"]["one"]["center"] for f in record})


THIRD = """
experiments:
  ALL:
    - {tasks: [tau2]}
    - {tasks: [tau3]}
    - {tasks: [tau1, tau2, tau3], init: [0, 1]}
"""


def test_a_third_data_set_with_a_third_task_needs_only_configuration(data, tmp_path):
    import shutil

    import yaml

    root = tmp_path / "data"
    shutil.copytree(data, root)
    table = (root / "severity.csv").read_text().splitlines()
    patients = sorted({line.split(",")[1] for line in table[1:]})
    for name, chosen in (("severity", patients[::2]), ("third", patients[1::2])):
        kept = [line for line in table[1:] if line.split(",")[1] in chosen]
        (root / f"{name}.csv").write_text("\n".join([table[0], *kept]) + "\n")
    values = yaml.safe_load(TINY.format(root=root, store=tmp_path / "store") + THIRD)
    values["tasks"]["severity"] = {"classes": ["low", "high"], "thresholds": [9]}
    values["tasks"]["extent"] = {"classes": ["small", "large"], "thresholds": [7]}
    third = {**values["data"]["datasets"][1], "name": "three", "table": "third.csv"}
    values["data"]["datasets"].append({**third, "task": "extent"})
    values["configurations"] = ["ALL"]
    config = tmp_path / "three.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    done = call(config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    results = rows(tmp_path / "out" / "results.csv")
    assert [r["task"] for r in results] == ["prognosis", "severity", "extent"]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3


BAD = {
    "unknown backbone": (["--set", "backbones=[resnet19]"], "did you mean 'resnet1"),
    "unknown configuration": (["--set", "configurations=[FTT]"], "did you mean 'FT'"),
    "unknown key": (["--set", "train.epoch=2"], "did you mean 'train.epochs'"),
    "no such fold": (["--set", "folds=[9]"], "no fold 9"),
    "more folds than patients": (["--set", "cv.folds=99"], "cannot fill 99 folds"),
    "missing data root": (["--set", "data.root=/nowhere"], "/nowhere does not exist"),
    "missing column": (["--set", "data.datasets.0.columns.label=prognoses"], "mean 'prognosis'"),
    "unknown label": (["--set", "tasks.prognosis.classes=[MILD, SEVER]"], "'SEVERE'"),
    "a task with a dot": (
        [
            "--set",
            "tasks={a.b: {classes: [x, y]}}",
            "--set",
            "data.datasets.0.task=a.b",
            "--set",
            "data.datasets.1.task=a.b",
        ],
        "tasks: a head cannot be named",
    ),
    "device": (["--device", "tpu"], "not a device"),
    "workers": (["--workers", "0"], "at least 1"),
    "ImageNet weights": (["--set", "weights=imagenet"], "cannot be fetched"),
    "batch larger than memory": (["--set", "train.batch_size=100000000"], "a batch of 100000000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_2(tiny, tmp_path, case):
    arguments, fragment = BAD[case]
    out = tmp_path / "out"
    # No weights are here, and the proxy is one where nobody listens.
    nowhere = {"MDMT_WEIGHTS": str(tmp_path / "weights"), "https_proxy": "http://127.0.0.1:9"}
    done = call(tiny, "--out", out, *arguments, **nowhere, no_proxy="")
    assert done.returncode == 2, done.stderr
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "results.csv").exists()
    if case != "batch larger than memory":
        assert len(done.stderr.strip().splitlines()) == 1
        assert not out.exists()


def test_a_folder_that_is_not_ours_is_left_alone(tiny, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = call(tiny, "--out", out)
    assert done.returncode == 2
    assert "not an out folder" in done.stderr
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_diverging_training_names_step_and_task_and_fails_alone(tiny, tmp_path):
    out = tmp_path / "out"
    done = call(tiny, "--out", out, "--set", "train.lr=1e30", "--set", "configurations=[STL-tau1]")
    assert done.returncode == 2, done.stderr
    assert "prognosis" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("runs/*/model.safetensors"))


def test_full_disk_is_one_sentence_and_leaves_no_half_written_file(tiny, tmp_path):
    """Files of more than 1 MB cannot be written: the weights are the first of them."""
    out = tmp_path / "out"
    done = subprocess.run(
        command(tiny, "--out", out, "--set", "configurations=[STL-tau1]"),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode == 2, done.stderr
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("runs/*/model.safetensors*"))
    assert call(tiny, "--out", out, "--set", "configurations=[STL-tau1]").returncode == 0


def test_debugging_shows_the_traceback(tiny, tmp_path):
    done = call(tiny, "--out", tmp_path / "out", "--set", "backbones=[x]", MDMT_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_damaged_checkpoint_is_one_sentence(reference, tmp_path):
    import shutil

    uninterrupted, _, config = reference
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    job = out / "runs" / rows(out / "results.csv")[0]["job"]
    (job / "result.json").unlink()
    (job / "checkpoint.safetensors").write_bytes(b"\xff" * 100)
    done = call(config, "--out", out)
    assert done.returncode == 2
    assert "delete it to start this training anew" in done.stderr


def job_process(out, deadline=60):
    """The number and folder of the first training process of a run that is at work."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        for lock in out.glob("runs/*/.lock"):
            folder = str(lock.parent.resolve()).encode()
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if path.read_bytes().rstrip(b"\0").endswith(folder.split(b"/runs/")[1]):
                        return int(path.parent.name), lock.parent
                except OSError:
                    continue
        time.sleep(0.01)
    raise AssertionError("no training started")


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")


@needs_proc
def test_a_training_that_is_killed_fails_alone(reference, tmp_path):
    uninterrupted, _, config = reference
    out = tmp_path / "out"
    process = subprocess.Popen(command(config, "--out", out, "--retries", 0), env=environment(),
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    number, folder = job_process(out)
    os.kill(number, signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "was ended by SIGKILL" in stderr
    assert "2 of 4 trainings failed" in stderr  # STL-tau1, and MDMT that starts from it
    assert [r["configuration"] for r in rows(out / "results.csv")] == ["STL-tau2", "FT"]
    assert (folder / "error.json").exists()
    done = call(config, "--out", out)
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == fingerprint(uninterrupted)


@needs_proc
def test_a_training_whose_run_was_killed_saves_and_ends(solo, tmp_path):
    want, _, config = solo
    out = tmp_path / "out"
    arguments = (config, "--out", out, *SOLO, "--set", "train.checkpoint_seconds=0")
    process = subprocess.Popen(command(*arguments), env=environment(), stderr=subprocess.DEVNULL)
    job_process(out)
    process.kill()
    process.wait()
    done = call(*arguments)  # waits for the orphan to let go of its folder
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == want


def test_a_picture_in_two_data_sets_is_refused(data, tmp_path):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(data, root)
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(root=root, store=tmp_path / "store"))
    first = sorted((root / "images").glob("prognosis_*"))[0]
    for other in sorted((root / "images").glob("severity_*"))[:1]:
        shutil.copy(first, other)
    done = call(config, "--out", tmp_path / "out", "--set", "cv.folds=4", "--set", "cv.seed=1",
                "--set", "folds=[0]", "--set", "data.near_duplicates=report")  # fmt: skip
    assert done.returncode == 2
    assert "is the same picture as" in done.stderr


def mdmt(*arguments):
    return subprocess.run([sys.executable, "-m", "mdmt", *map(str, arguments)], env=environment(),
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_the_other_commands(reference, tiny, tmp_path):
    out, done, _ = reference
    shown = mdmt("show", out)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() in done.stdout
    checked = mdmt("check", tiny, "--out", tmp_path / "check.html")
    assert checked.returncode == 0, checked.stderr
    assert "MiB for a step of the largest backbone" in checked.stdout
    assert "4 trainings: 1 backbone" in checked.stdout
    assert (tmp_path / "check.html").read_text().startswith("<!doctype html>")
    assert (out / "check.html").is_file()
    made = mdmt("splits", tiny, "--out", tmp_path / "s.json")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "s.json").read_text() == (out / "splits.json").read_text()
    prepared = mdmt("prepare", tiny, "--out", tmp_path / "sheets")
    assert "one: 34 images: 34 used" in prepared.stdout
    assert "covid_cxr" in mdmt("show").stdout
    assert "train:" in mdmt("show", "keys").stdout
    assert "weights: random" in mdmt("show", "covid_cxr").stdout
    wrong = mdmt("show", "covid_cx")
    assert wrong.returncode == 2
    assert "did you mean 'covid_cxr'" in wrong.stderr
    assert mdmt("--version").stdout.startswith("mdmt ")
    assert mdmt("shwo").returncode == 2
