"""A tiny study for tests of the runners: configuration, command, environment, fingerprint."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

from mdmt.data import synthetic

ROOT = Path(__file__).parents[1]
SWEEP = """
name: sweep
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
  prognosis: {{classes: [MILD, SEVERE], head: {{hidden: [], dropout: 0}}}}
  severity: {{classes: ["0", "1", "2", "3"], thresholds: [5, 9, 14], head: {{hidden: []}}}}
backbones: [shufflenet_v2_x0_5]
cv: {{folds: 2, validation: 0.25}}
folds: [0]
image_size: 32
train: {{epochs: 1, warmup_epochs: 0, batch_size: 8, augment: null, checkpoint_steps: 1}}
sampler: {{drop_last: true}}
"""


def write(folder) -> Path:
    """Draw the data into `folder`; return the configuration's file."""
    folder = Path(folder)
    root = synthetic.make(folder / "data", patients=24, size=32, seed=1)
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(root=root, store=folder / "store"))
    return path


def command(*arguments) -> list[str]:
    """Of a run without a report, which takes longer than these trainings do."""
    return [sys.executable, "-m", "mdmt.run", "--no-report", *map(str, arguments)]


def environment(**more) -> dict:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return dict(os.environ, PYTHONPATH=path, MDMT_NUM_THREADS="1", **more)


def trainings_of(pid) -> dict[int, str]:
    """{process id: job's folder} of the trainings that a coordinator or worker has under way."""
    listed = subprocess.run(
        ["ps", "-ww", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True
    ).stdout.splitlines()
    split = [line.split() for line in listed if "mdmt.runner.job" in line]
    return {int(words[0]): words[-1] for words in split}


def rows(path) -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def fingerprint(out) -> dict:
    """Everything a sweep leaves that must not depend on how it ran."""
    out = Path(out)
    found = {name: (out / name).read_bytes() for name in ("results.csv", "predictions.csv")}
    for folder in sorted((out / "runs").iterdir()):
        for name, value in load_file(folder / "model.safetensors").items():
            found[f"{folder.name}/{name}"] = value.tobytes()
        found[f"{folder.name}/history"] = (folder / "history.csv").read_bytes()
    return found


def trained_once(out) -> bool:
    """Every training has one result, and its own."""
    for folder in (Path(out) / "runs").iterdir():
        result = json.loads((folder / "result.json").read_text())
        if (result["images"] > 0) != (result["epochs"] > 0):
            return False
        if (folder / "checkpoint.safetensors").exists():
            return False
    return True
