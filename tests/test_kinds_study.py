"""Studies of several kinds of tasks, from the tables to the report: classes, a number, findings."""

import csv
import json
import re

import numpy as np
import pytest

from mdmt import checks, cli, config, metrics, predict, report, run
from mdmt.data import synthetic
from mdmt.errors import BadInput
from mdmt.results import RESULT_COLUMNS

STUDY = """
name: kinds
data:
  root: {root}
  store: {store}
  near_duplicates: report
  datasets:
    - name: one
      table: prognosis.csv
      columns: {{image: image, patient: patient, label: prognosis, center: center}}
      task: prognosis
    - name: two
      table: severity.csv
      columns: {{image: image, patient: patient, label: score, second: score}}
      task: severity
tasks:
  prognosis: {{classes: [MILD, SEVERE], head: {{hidden: [], dropout: 0, loss: ordinal}}}}
  severity:
    head: {{hidden: [8], dropout: 0, loss: mse}}
    classes: [low, middle, high]
    thresholds: [5, 9]
backbones: [shufflenet_v2_x0_5]
configurations: [STL-tau1, STL-tau2, MDMT, AVG]
cv: {{folds: 2, validation: 0.25}}
image_size: 32
train: {{epochs: 2, warmup_epochs: 1, batch_size: 8, augment: null}}
"""


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def reported(top, text):
    """(out folder, configuration) of a study, run and reported in the folder `top`."""
    (top / "study.yaml").write_text(text)
    values = config.load(str(top / "study.yaml"))
    run.run(values, top / "out", quiet=True, report=False)
    report.make(top / "out", resamples=200)
    return top / "out", values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(out folder, configuration) of a run of two folds, with its report."""
    top = tmp_path_factory.mktemp("kinds")
    root = synthetic.make(top / "data", patients=24, size=32, seed=1)
    return reported(top, STUDY.format(root=root, store=top / "store"))


def test_predictions_of_numbers_are_numbers(finished):
    out, values = finished
    rows = rows_of(out / "predictions.csv")
    assert [c for c in rows[0] if c.startswith("p_")] == ["p_MILD", "p_SEVERE"]
    table = rows_of(next((out.parent / "data").glob("*/severity.csv")))
    label = {r["image"]: r["score"] for r in table}
    ours = [r for r in rows if r["task"] == "severity"]
    assert {r["configuration"] for r in ours} == {"STL-tau2", "MDMT", "AVG"}
    for r in ours:
        assert r["label"] == label[r["image"]] and np.isfinite(float(r["predicted"]))
        assert r["p_MILD"] == r["p_SEVERE"] == ""
    for r in rows:
        if r["task"] == "prognosis":
            assert float(r["p_MILD"]) + float(r["p_SEVERE"]) == pytest.approx(1, abs=1e-6)
    assert len({r["image"] for r in ours}) == len(label)


def test_results_have_the_columns_of_each_kind(finished):
    out, _ = finished
    rows, given = rows_of(out / "results.csv"), rows_of(out / "predictions.csv")
    columns = list(rows[0])
    assert columns[: len(RESULT_COLUMNS)] == RESULT_COLUMNS
    more = ["mae", "rmse", "r2", "pearson", "spearman", "ccc"]
    assert columns[len(RESULT_COLUMNS) : -4] == more
    for r in rows:
        mine = [g for g in given
                if all(g[k] == r[k] for k in ("fold", "configuration", "task"))]  # fmt: skip
        assert int(r["n"]) == len(mine)
        if r["task"] == "prognosis":
            assert all(r[k] == "" for k in more) and r["accuracy"]
            continue
        y, p = (np.array([float(g[k]) for g in mine]) for k in ("label", "predicted"))
        assert float(r["mae"]) == pytest.approx(np.abs(y - p).mean())
        assert float(r["ccc"]) == pytest.approx(metrics.ccc(y, p))
        right = np.digitize(y, [5, 9]) == np.digitize(p, [5, 9])
        assert float(r["accuracy"]) == pytest.approx(right.mean()) and r["auc"] == ""


def test_the_kept_head_of_an_average_says_numbers_of_the_label(finished):
    """AVG keeps the head of STL-tau2: its numbers must be of the scores' size, not of deviations'
    from a mean."""
    out, _ = finished
    rows = [r for r in rows_of(out / "predictions.csv") if r["task"] == "severity"]
    of = {c: np.array([float(r["predicted"]) for r in rows if r["configuration"] == c])
          for c in ("STL-tau2", "AVG")}  # fmt: skip
    label = np.array([float(r["label"]) for r in rows if r["configuration"] == "AVG"])
    assert abs(of["AVG"].mean() - label.mean()) < label.std()
    assert abs(of["STL-tau2"].mean() - label.mean()) < label.std()


def test_own_pictures_are_predicted_as_they_were_tested(finished, capsys):
    out, _ = finished
    images = next((out.parent / "data").glob("*/images"))
    rows, _ = predict.predict(out, [images])
    tested = {(r["image"], r["task"]): r for r in rows_of(out / "predictions.csv")
              if r["configuration"] == "MDMT"}  # fmt: skip
    found = 0
    for row in rows:
        known = tested.get((row["image"].rsplit("/")[-1].removesuffix(".png"), row["task"]))
        if known is not None and row["task"] == "severity":
            assert float(row["predicted"]) == pytest.approx(float(known["predicted"]), rel=1e-5)
            assert row["p_MILD"] is None
            number = float(row["predicted"])
            assert row["class"] == ("low" if number < 5 else "middle" if number < 9 else "high")
            found += 1
    assert found > 20
    assert cli.main(["predict", str(out), str(images), "--skip", "--quiet"]) in (0, None)
    said = capsys.readouterr().out
    assert re.search(r"severity +\d  -?\d+\.\d\d.*, class (low|middle|high)", said)


def test_explained_numbers_are_drawn(finished, tmp_path):
    out, _ = finished
    images = sorted(next((out.parent / "data").glob("*/images")).glob("*.png"))[:1]
    from mdmt.explain import explain

    written, _ = explain(out, images, tmp_path / "maps")
    stem = images[0].stem
    assert {p.name for p in written} == {f"{stem}-prognosis.png", f"{stem}-severity.png"}


def test_the_report_speaks_of_each_kind(finished):
    out, _ = finished
    names = {p.name for p in (out / "figures").glob("*.png")}
    assert {"scatter_cv_severity.png", "bland_altman_cv_severity.png", "roc_pr_cv_prognosis.png",
            "confusion_cv_severity.png", "forest_cv_severity.png"} <= names  # fmt: skip
    assert "roc_pr_cv_severity.png" not in names and "scatter_cv_prognosis.png" not in names
    text = (out / "report.html").read_text()
    for words in ("mean absolute error", "Lin&#x27;s concordance", "a number; cut at 5, 9 into",
                  "Always saying the median", "concordance (CCC) of"):  # fmt: skip
        assert words in text, words
    compared = rows_of(out / "comparisons.csv")
    of = {task: {r["metric"] for r in compared if r["task"] == task}
          for task in ("prognosis", "severity")}  # fmt: skip
    assert of["prognosis"] == {"accuracy", "f1", "gmean", "auc", "brier"}
    assert of["severity"] == {
        "mae", "rmse", "r2", "pearson", "ccc", "accuracy", "f1", "gmean",
    }  # fmt: skip
    one = next(r for r in compared if r["metric"] == "mae" and r["against"] == "STL-tau2")
    rows = rows_of(out / "results.csv")
    mae = {c: np.mean([float(r["mae"]) for r in rows
                       if (r["configuration"], r["task"]) == (c, "severity")])
           for c in ("MDMT", "STL-tau2")}  # fmt: skip
    assert float(one["difference"]) == pytest.approx(mae["MDMT"] - mae["STL-tau2"])
    tables = rows_of(out / "table1.csv")
    ours = next(r for r in tables if r["task"] == "severity" and r["experiment"] == "MDMT")
    assert float(ours["cv_mae"]) == pytest.approx(mae["MDMT"], abs=1e-4)
    best = min(rows_ := [r for r in tables if r["task"] == "severity"],
               key=lambda r: float(r["cv_mae"]))  # fmt: skip
    assert best["cv_mae_mark"] == "best" and len(rows_) == 3


def test_the_last_table_and_show_have_the_numbers(finished, capsys):
    out, _ = finished
    cli.main(["show", str(out)])
    text = capsys.readouterr().out
    assert "severity, cv, test parts: MAE and RMSE in the label's unit, accuracy in percent" in text
    lines = [line for line in text.splitlines() if "MDMT" in line]
    assert re.search(r"MDMT +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ± ", lines[1])


def test_an_edited_number_is_refused(finished):
    out, _ = finished
    path = out / "predictions.csv"
    before = path.read_text()
    rows = before.splitlines(keepends=True)
    k = next(i for i, line in enumerate(rows) if ",severity," in line)
    cells = rows[k].split(",")
    try:
        path.write_text("".join([*rows[:k], ",".join([*cells[:11], "3.25", *cells[12:]]),
                                 *rows[k + 1 :]]))  # fmt: skip
        with pytest.raises(BadInput, match="are not those of the training"):
            report.make(out, resamples=200, figures=False)
        path.write_text("".join([*rows[:k], ",".join([*cells[:10], "many", *cells[11:]]),
                                 *rows[k + 1 :]]))  # fmt: skip
        with pytest.raises(BadInput, match=f"near line {k + 1} a case of task 'severity' has 'ma"):
            report.make(out, resamples=200, figures=False)
    finally:
        path.write_text(before)


def test_check_shows_ranges_and_refuses_one_number(finished, tmp_path):
    _, values = finished
    shown = checks.terminal.text(checks.examine(values, quiet=True, costs=False), 100, False)
    assert "low " in shown and "two: low/middle/high" in shown.replace("cv, ", "")
    data = {**values["data"], "datasets": [dict(d) for d in values["data"]["datasets"]]}
    source = next((finished[0].parent / "data").glob("*/severity.csv"))
    rows = rows_of(source)
    with open(source.parent / "same.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**r, "score": "4"} for r in rows)
    data["datasets"][1]["table"] = "same.csv"
    found = checks.examine({**values, "data": data}, quiet=True, costs=False)
    assert any("every case has the number 4" in i.sentence for i in found.errors)


# Findings, a number without classes, and classes, in three data sets -----------------------------

THREE = """
name: three
data:
  root: {root}
  store: {store}
  near_duplicates: report
  datasets:
    - name: one
      table: findings.csv
      columns: {{image: image, patient: patient, center: center}}
      task: findings
    - name: two
      folder: {second}
      table: severity.csv
      columns: {{image: image, patient: patient, label: score}}
      task: severity
    - name: three
      folder: {second}
      table: prognosis.csv
      columns: {{image: image, patient: patient, label: prognosis, center: center}}
      task: prognosis
tasks:
  findings:
    classes: [upper, lower, no one has it]
    class_weights: balanced
    head: {{hidden: [], dropout: 0, loss: bce}}
  severity: {{head: {{hidden: [], dropout: 0, loss: mse}}}}
  prognosis:
    classes: [MILD, SEVERE]
    class_weights: {{SEVERE: 2}}
    head: {{hidden: [], dropout: 0, smoothing: 0.1}}
backbones: [shufflenet_v2_x0_5]
configurations: [STL-tau1, MDMT, ALL]
experiments:
  ALL: [{{tasks: [findings, severity, prognosis], task_weights: uncertainty}}]
cv: {{folds: 2, validation: 0.25}}
image_size: 32
train: {{epochs: 2, warmup_epochs: 1, batch_size: 8, augment: null}}
"""
NAMES = ["upper", "lower", "no one has it"]


def write_findings(root):
    """findings.csv of the pictures of a synthetic data set: a zone of 2 or more; some not known."""
    truth = [r for r in rows_of(root / "truth.csv") if r["image"].startswith("prognosis")]
    with open(root / "findings.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient", "center", *NAMES])
        for k, r in enumerate(truth):
            upper, lower = (int(int(r["zones"][z]) >= 2) for z in (0, 2))
            cells = ["" if k % 5 == 0 else upper, lower, 0]
            writer.writerow([r["image"], f"f-{r['patient']}", r["center"], *cells])


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """(out folder, configuration) of a run of two folds, with its report."""
    top = tmp_path_factory.mktemp("three")
    root = synthetic.make(top / "data", patients=24, size=32, seed=2)
    second = synthetic.make(top / "data", patients=24, size=32, seed=1)
    write_findings(root)
    return reported(top, THREE.format(root=root, second=second, store=top / "store"))


def test_findings_are_predicted_and_measured_each(three):
    out, values = three
    table = {r["image"]: r for r in rows_of(f"{values['data']['root']}/findings.csv")}
    rows = [r for r in rows_of(out / "predictions.csv") if r["task"] == "findings"]
    assert {r["image"] for r in rows} == set(table)
    for r in rows:
        known = table[r["image"]]
        want = [f"{'?' * (known[n] == '')}{n}" for n in NAMES if known[n] != "0"]
        assert r["label"] == ";".join(want)
        p = [float(r[f"p_{n}"]) for n in NAMES]
        assert r["predicted"] == ";".join(n for n, v in zip(NAMES, p, strict=True) if v > 0.5)
        assert r["p_MILD"] == "" and 0 <= min(p) <= max(p) <= 1
    for result in rows_of(out / "results.csv"):
        if result["task"] != "findings":
            assert result["auc_upper"] == result["f1_lower"] == ""
            continue
        mine = [r for r in rows if all(r[k] == result[k] for k in ("fold", "configuration"))]
        found = {}
        for n in ("upper", "lower"):
            some = [r for r in mine if table[r["image"]][n] != ""]
            t = [float(table[r["image"]][n]) for r in some]
            p = [float(r[f"p_{n}"]) for r in some]
            found[n] = metrics.auc(t, p)
            assert float(result[f"auc_{n}"]) == pytest.approx(found[n])
        assert result["auc_no one has it"] == result["f1_no one has it"] == result["mae"] == ""
        assert float(result["auc"]) == pytest.approx(np.mean(list(found.values())))
        assert result["f1"] == result["f1_macro"]


def test_three_kinds_train_on_mixed_batches(three):
    out, _ = three
    rows = rows_of(out / "results.csv")
    job = next(r["job"] for r in rows if r["configuration"] == "ALL")
    history = rows_of(out / "runs" / job / "history.csv")
    assert {"val_accuracy_findings", "val_mae_severity", "val_accuracy_prognosis"} <= set(
        history[0]
    )
    losses = [f"{k}_{t}" for k in ("loss", "val_loss", "weight")
              for t in ("findings", "severity", "prognosis")]  # fmt: skip
    assert np.isfinite([float(history[1][k]) for k in losses]).all()
    tested = {(r["configuration"], r["task"]) for r in rows}
    assert {("ALL", t) for t in ("findings", "severity", "prognosis")} <= tested


def test_class_weights_are_of_each_training_part(three):
    """In result.json of each training; the report says them, and what they do to probabilities."""
    out, values = three
    table = {r["image"]: r for r in rows_of(f"{values['data']['root']}/findings.csv")}
    folds = json.loads((out / "splits.json").read_text())["validation"]["cv"]
    jobs = {r["job"]: r for r in rows_of(out / "results.csv")}
    for job, row in jobs.items():
        weights = json.loads((out / "runs" / job / "result.json").read_text())["class_weights"]
        part = folds[int(row["fold"])]["datasets"]["one"]["train"]
        known = {n: [table[i][n] for i in part] for n in NAMES}
        balanced = {n: v.count("0") / v.count("1") if "1" in v else 1 for n, v in known.items()}
        assert weights["findings"] == pytest.approx(balanced)
        if row["configuration"] == "ALL":
            assert weights["prognosis"] == {"MILD": 1, "SEVERE": 2}
    assert sum(len(folds[k]["datasets"]["one"]["train"]) for k in (0, 1)) < 2 * len(table)
    text = (out / "report.html").read_text()
    for words in ("findings, balanced over each training part (positives of upper ",
                  "prognosis, fixed (MILD 1.00, SEVERE 2.00)", "label smoothing 0.1 (prognosis)",
                  "population in which positives count by their weight",
                  "population in which every class counts by its weight"):  # fmt: skip
        assert words in text, words
    assert "The networks learnt severity with" not in text
    assert "No resampling by class" in text


def test_the_report_of_findings(three):
    out, _ = three
    names = {p.name for p in (out / "figures").glob("*.png")}
    assert {"findings_cv_findings.png", "roc_pr_cv_findings.png", "reliability_cv_findings.png",
            "scatter_cv_severity.png", "confusion_cv_prognosis.png"} <= names  # fmt: skip
    assert not {"confusion_cv_findings.png", "confusion_cv_severity.png"} & names
    text = (out / "report.html").read_text()
    for words in ("any of upper, lower, no one has it", "each finding, percent", "(a number)",
                  "Always saying of each finding"):  # fmt: skip
        assert words in text, words
    compared = [r for r in rows_of(out / "comparisons.csv") if r["task"] == "findings"]
    assert {r["metric"] for r in compared} == {"accuracy", "f1", "gmean", "auc", "brier"}
    rows = [r for r in rows_of(out / "results.csv") if r["task"] == "findings"]
    for metric in ("accuracy", "f1", "gmean", "auc"):
        one = next(r for r in compared if (r["metric"], r["against"]) == (metric, "STL-tau1"))
        mean = {c: np.mean([float(r[metric]) for r in rows if r["configuration"] == c])
                for c in ("MDMT", "STL-tau1")}  # fmt: skip
        assert float(one["difference"]) == pytest.approx(mean["MDMT"] - mean["STL-tau1"])
    table = next(r for r in rows_of(out / "table1.csv")
                 if (r["task"], r["experiment"]) == ("findings", "ALL"))  # fmt: skip
    mean = np.mean([float(r["auc"]) for r in rows if r["configuration"] == "ALL"])
    assert float(table["cv_auc"]) == pytest.approx(100 * mean, abs=1e-3)


def test_predictions_and_maps_of_findings(three, tmp_path, capsys):
    from mdmt.explain import explain

    out, values = three
    picture = sorted((tmp_path / values["data"]["root"] / "images").glob("prognosis*.png"))[0]
    rows, _ = predict.predict(out, [picture], configuration="ALL")
    tested = {r["task"]: r for r in rows_of(out / "predictions.csv")
              if (r["image"], r["configuration"]) == (picture.stem, "ALL")}  # fmt: skip
    one = next(r for r in rows if r["task"] == "findings")
    for n in NAMES:
        assert one[f"p_{n}"] == pytest.approx(float(tested["findings"][f"p_{n}"]), abs=1e-5)
    assert one["predicted"] == tested["findings"]["predicted"] and one["sd"] is None
    written, _ = explain(out, [picture], tmp_path / "maps", configuration="ALL")
    assert len(written) == 3
    cli.main(["predict", str(out), str(picture), "--configuration", "ALL", "--quiet"])
    said = capsys.readouterr().out
    assert re.search(r"findings +1  (upper|lower) \d+\.\d, ", said)


def test_check_speaks_of_findings_and_ranges(three):
    _, values = three
    found = checks.examine(values, quiet=True, costs=False)
    shown = checks.terminal.text(found, 100, False)
    assert re.search(r"upper \d+, lower \d+, no one has it 0", shown)
    assert re.search(r"two .* 0 to \d+: \d+, ", shown)
    assert any(
        i.grade == "warning" and "no case has the finding no one has it" in i.sentence
        for i in found.items
    )
    assert not found.errors


def test_an_edited_probability_of_a_finding_is_refused(three):
    out, _ = three
    path = out / "predictions.csv"
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    k = next(i for i, line in enumerate(lines) if ",findings," in line)
    at = lines[0].rstrip().split(",").index("p_upper")
    cells = lines[k].rstrip("\n").split(",")
    other = str(1 - float(cells[at]))
    try:
        for value, words in ("1.5", "has probabilities that"), (other, "predicts other findings"):
            cells[at] = value
            path.write_text("".join([*lines[:k], ",".join(cells) + "\n", *lines[k + 1 :]]))
            with pytest.raises(BadInput, match=f"line {k + 1} {words}"):
                report.make(out, resamples=200, figures=False)
    finally:
        path.write_text(before)
