"""A study in colour from end to end: hue alone tells its classes apart, and one of its data sets is
grey."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from mdmt import Model, cli, config, evaluate, predict, run, study
from mdmt.data.store import Store
from mdmt.errors import BadInput
from mdmt.report import make as make_report
from mdmt.runner import kept
from tests.hues import GREENISH, REDDISH, texture, tinted
from tests.test_run import environment, fingerprint

STUDY = """
name: colour
data:
  root: {root}
  store: {store}
  colour: true
  clip: null
  datasets:
    - name: skin
      table: skin.csv
      columns: {{image: image, patient: image, label: lesion}}
      task: lesion
    - name: scans
      table: scans.csv
      columns: {{image: image, patient: image, label: end}}
      task: end
tasks:
  lesion: {{classes: [RED, GREEN], head: {{hidden: []}}}}
  end: {{classes: [TOP, BOTTOM], head: {{hidden: []}}}}
backbones: [shufflenet_v2_x0_5]
configurations: [STL-tau1, MDMT]
cv: {{folds: 2, validation: 0.25}}
image_size: 32
train: {{epochs: 12, warmup_epochs: 2, patience: 12, batch_size: 8, lr: 0.003, augment: {{}}}}
sampler: {{drop_last: true}}
"""
COUNT = 96


def draw(folder, seed=0, count=COUNT):
    """Data with `count` pictures in colour and half as many grey ones, brighter at one end."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    tables = {"skin": ["image,lesion"], "scans": ["image,end"]}
    for i in range(count):
        hue, label = ((REDDISH, "RED"), (GREENISH, "GREEN"))[i % 2]
        Image.fromarray(tinted(texture(rng), hue)).save(folder / "images" / f"c{seed}-{i}.png")
        tables["skin"].append(f"c{seed}-{i}.png,{label}")
    for i in range(count // 2):
        grey = texture(rng) / 2
        grey[20 * (i % 2) :][:20] += 60
        Image.fromarray(np.uint8(grey)).save(folder / "images" / f"g{seed}-{i}.png")
        tables["scans"].append(f"g{seed}-{i}.png,{('TOP', 'BOTTOM')[i % 2]}")
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(*arguments):
    return [sys.executable, "-m", "mdmt.run", *map(str, arguments)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(configuration's file, out folder of the run in colour, its data)."""
    top = tmp_path_factory.mktemp("colour")
    root = draw(top / "data")
    path = top / "colour.yaml"
    path.write_text(STUDY.format(root=root, store=top / "store"))
    done = subprocess.run(command(path, "--out", top / "out"), env=environment(),
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path, top / "out", root


def auc(out, configuration, task="lesion", positive="RED"):
    with open(out / "predictions.csv", newline="") as stream:
        rows = [r for r in csv.DictReader(stream)
                if (r["configuration"], r["task"]) == (configuration, task)]  # fmt: skip
    assert rows
    y = [r["label"] == positive for r in rows]
    return len(rows), roc_auc_score(y, [float(r[f"p_{positive}"]) for r in rows])


def test_hue_is_learnt_in_colour_and_only_there(made, tmp_path):
    path, out, _ = made
    for configuration in ("STL-tau1", "MDMT"):
        count, found = auc(out, configuration)
        assert count == COUNT and found > 0.97
    assert auc(out, "MDMT", "end", "TOP")[1] > 0.9
    values = config.load(str(path), ["data.colour=false", "configurations=[STL-tau1]"])
    run.run(values, tmp_path / "grey", quiet=True, report=False)
    assert 0.3 < auc(tmp_path / "grey", "STL-tau1")[1] < 0.7


def test_stores_hold_what_the_files_do(made):
    path, _, root = made
    ((_, cases, stores),) = study.gather(config.load(str(path)), quiet=True)
    (skin, scans) = (np.asarray(s.images) for s in stores)
    assert skin.shape == (COUNT, 3, 32, 32) and scans.shape == (COUNT // 2, 3, 32, 32)
    assert (scans == scans[:, :1]).all()
    red = np.array([t == "RED" for t in cases[0].texts])
    warm = skin[:, 0].mean((1, 2)) > skin[:, 1].mean((1, 2))
    assert np.array_equal(red, warm)
    assert isinstance(stores[0], Store) and stores[0].settings["colour"] is True


def test_a_stopped_run_ends_in_the_same_bits(made, tmp_path):
    """Stopped by SIGTERM after a checkpoint in the middle of an epoch."""
    path, out, _ = made
    more = (
        "--no-report",
        "--set",
        "train.checkpoint_seconds=0",
        "--set",
        "train.checkpoint_steps=2",
    )
    again = (path, "--out", tmp_path / "out", *more)
    process = subprocess.Popen(command(*again), env=environment(), stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while time.monotonic() < end and not list(
        (tmp_path / "out").glob("runs/*/checkpoint.safetensors")
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    run.main([*map(str, again), "--resume"])
    assert fingerprint(tmp_path / "out") == fingerprint(out)


def test_predict_and_explain(made, tmp_path):
    """Against the networks themselves, of pictures prepared by hand."""
    _, out, _ = made
    new = tmp_path / "new"
    new.mkdir()
    rng = np.random.default_rng(9)
    for i, hue in enumerate((REDDISH, GREENISH, (0, 0, 0))):
        Image.fromarray(tinted(texture(rng, 32), hue)).save(new / f"{i}.png")
    rows, notes = predict.predict(out, [new], configuration="STL-tau1")
    assert not notes and [r["networks"] for r in rows] == [2, 2, 2]
    assert rows[0]["p_RED"] > rows[1]["p_RED"] + 0.3
    pixels = []
    for i in range(3):
        values = np.asarray(Image.open(new / f"{i}.png"), np.float64)
        scaled = (values - values.min()) / (values.max() - values.min()) * 255
        pixels.append(np.rint(np.moveaxis(scaled, -1, 0)).astype(np.uint8))
    given = []
    for job in sorted(out.glob("runs/*/job.json")):
        if '"STL-tau1"' in job.read_text():
            model = Model.load(job.parent / kept.WEIGHTS)
            logits = model.forward(model.normalise(np.stack(pixels)))["lesion"].astype(np.float64)
            given.append(1 / (1 + np.exp(logits[:, 1] - logits[:, 0])))
    assert len(given) == 2
    assert np.abs(np.mean(given, 0) - [r["p_RED"] for r in rows]).max() < 0.02
    drawn = tmp_path / "drawn"
    assert cli.main(["explain", str(out), str(new), "--out", str(drawn), "--fold", "0"]) == 0
    picture = np.asarray(Image.open(drawn / "0-lesion.png").convert("RGB")).astype(int)
    red, green = picture[..., 0], picture[..., 1]
    assert (red - green > 60).mean() > 0.1  # the picture itself


def test_evaluate(made, tmp_path):
    """Of a grey configuration's file: the images are prepared as the run's own were."""
    path, out, _ = made
    other = draw(tmp_path / "other", seed=5, count=24)
    text = STUDY.format(root=other, store=tmp_path / "store")
    grey = tmp_path / "other.yaml"
    grey.write_text(text.split("\ntasks:")[0].replace("colour: true", "colour: false"))
    found = evaluate.evaluate(out, str(grey), tmp_path / "external", figures=False)
    assert any(n.startswith("data.colour is False in") for n in found["notes"])
    assert auc(tmp_path / "external", "MDMT")[1] > 0.97
    grey.write_text(text.split("\ntasks:")[0].replace(str(other), str(path.parent / "data")))
    with pytest.raises(BadInput, match="nothing of it is new to the run"):
        evaluate.evaluate(out, str(grey), tmp_path / "own", figures=False)


def test_the_report_says_colour(made):
    _, out, _ = made
    make_report(out, figures=True)
    text = re.sub(r"\s+", " ", (out / "report.html").read_text())
    assert "from images in colour" in text and "radiograph" not in text
    assert "Images kept in colour (RGB), grey ones with three equal channels" in text


def test_check_and_prepare(made, tmp_path, capsys):
    path, _, _ = made
    assert cli.main(["prepare", str(path), "--out", str(tmp_path / "sheets")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "skin" / "sheet-001.png").convert("RGB"))
    red, green = sheet[..., 0].astype(int), sheet[..., 1].astype(int)
    assert (red - green > 60).any() and (green - red > 60).any()
    page = (tmp_path / "sheets" / "index.html").read_text()
    assert "lung" not in page
    report = tmp_path / "check.html"
    assert cli.main(["check", str(path), "--out", str(report)]) == 0
    said = capsys.readouterr().out
    assert "radiograph" not in said + report.read_text() and "inverted" not in said
    assert os.path.getsize(report) > 10_000
