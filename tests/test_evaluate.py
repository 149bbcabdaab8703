"""mdmt evaluate: external validation of a finished run."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as oracle

from mdmt import cli, config, evaluate, points, run
from mdmt import predict as predictor
from mdmt.data import synthetic
from mdmt.errors import BadConfig, BadInput
from mdmt.paths import read_json
from tests import test_kinds_study as study
from tests.test_run import two_folds

OTHER = """
data:
  root: {root}
  store: {store}
  datasets:
    - name: hospital
      table: prognosis.csv
      columns: {{image: image, patient: patient, label: prognosis, center: center}}
      task: prognosis
    - name: scored
      table: severity.csv
      columns: {{image: image, patient: patient, label: score}}
      task: severity
"""


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(out folder, its data, file of the other data, their folder, the evaluation's folder)."""
    top = tmp_path_factory.mktemp("evaluate")
    out, data = two_folds(top)
    other = synthetic.make(top / "other", patients=30, size=32, seed=2)
    new = top / "other.yaml"
    new.write_text(OTHER.format(root=other, store=top / "store"))
    evaluate.evaluate(out, str(new), top / "external")
    return out, data, new, other, top / "external"


def test_figures_are_those_of_the_networks(finished):
    """Against what `mdmt predict` says of the same pictures, and scikit-learn's measures."""
    out, _, _, other, external = finished
    asked, _ = predictor.predict(out, [other / "images"])
    p = {r["image"].rsplit("/")[-1].removesuffix(".png"): r["p_SEVERE"]
         for r in asked if r["task"] == "prognosis"}  # fmt: skip
    table = {r["image"].removesuffix(".png"): r["prognosis"] == "SEVERE"
             for r in rows_of(other / "prognosis.csv")}  # fmt: skip
    rows = [r for r in rows_of(external / "predictions.csv")
            if (r["configuration"], r["task"]) == ("MDMT", "prognosis")]  # fmt: skip
    assert {r["seed"] for r in rows} == {"0", "1"} and {r["validation"] for r in rows} == {
        "external"
    }
    assert {r["image"] for r in rows} == set(table)
    each = {}
    for r in rows:
        each.setdefault(r["image"], []).append(float(r["p_SEVERE"]))
        assert r["label"] == ("SEVERE" if table[r["image"]] else "MILD")
    for image, values in each.items():
        assert np.mean(values) == pytest.approx(p[image], abs=1e-6)
    y = [table[i] for i in each]
    found = {(r["networks"], r["metric"]): r for r in rows_of(external / "external.csv")
             if (r["configuration"], r["task"]) == ("MDMT", "prognosis")}  # fmt: skip
    joint = oracle.roc_auc_score(y, [np.mean(v) for v in each.values()])
    alone = np.mean([oracle.roc_auc_score(y, [v[k] for v in each.values()]) for k in (0, 1)])
    for which, value in (("together", joint), ("one", alone)):
        row = found[which, "auc"]
        assert float(row["value"]) == pytest.approx(value)
        assert float(row["low"]) <= value <= float(row["high"])
        assert row["n_images"] == str(len(table))
    networks = rows_of(external / "networks.csv")
    mdmt = [r for r in networks if r["configuration"] == "MDMT"]
    assert [(r["seed"], r["run_fold"]) for r in mdmt] == [("0", "0"), ("1", "1")]
    assert all((out / "runs" / r["training"]).is_dir() for r in networks)


def test_operating_points_are_those_that_the_run_chose(finished):
    """The thresholds of each training's own validation part, on the other data."""
    out, _, _, other, external = finished
    severe = {r["image"].removesuffix(".png"): r["prognosis"] == "SEVERE"
              for r in rows_of(other / "prognosis.csv")}  # fmt: skip
    folders = {r["seed"]: r["training"] for r in rows_of(external / "networks.csv")
               if r["configuration"] == "MDMT"}  # fmt: skip
    found = {(r["chosen_for"], r["measure"]): r for r in rows_of(external / "operating.csv")
             if r["configuration"] == "MDMT"}  # fmt: skip
    rows = [r for r in rows_of(external / "predictions.csv")
            if (r["configuration"], r["task"]) == ("MDMT", "prognosis")]  # fmt: skip
    for name in points.POINTS:
        each = []
        for seed, training in folders.items():
            cut = read_json(out / "runs" / training / "result.json")["thresholds"]["prognosis"]
            mine = [r for r in rows if r["seed"] == seed]
            called = [float(r["p_SEVERE"]) > cut[name] for r in mine]
            y = [severe[r["image"]] for r in mine]
            each.append(
                (oracle.recall_score(y, called), oracle.recall_score(y, called, pos_label=0))
            )
        for k, value in zip(("sensitivity", "specificity"), np.mean(each, 0), strict=True):
            assert float(found[name, k]["value"]) == pytest.approx(value)
    text = (external / "report.html").read_text()
    assert "operating points that each training&#x27;s validation part chose" in text


def test_the_report_is_one_of_an_external_validation(finished, capsys):
    external = finished[-1]
    text = (external / "report.html").read_text()
    for words in ("external validation", "Nothing was trained or chosen here", "Together: of the",
                  "From one network to the next", "mdmt evaluate"):  # fmt: skip
        assert words in text, words
    for words in (
        "Nadeau &amp; Bengio's",
        "paper's statistics",
        "splits.json is missing",
        "Table 1",
    ):
        assert words not in text, words
    before = (external / "comparisons.csv").read_bytes(), (external / "external.csv").read_bytes()
    assert cli.main(["report", str(external), "--no-figures"]) == 0
    assert "external" in capsys.readouterr().out
    assert before == (
        (external / "comparisons.csv").read_bytes(),
        (external / "external.csv").read_bytes(),
    )
    assert cli.main(["show", str(external)]) == 0
    assert "MDMT" in capsys.readouterr().out


def test_what_the_networks_know_is_left_out(finished, tmp_path, capsys):
    out, data, new, other, _ = finished
    mixed = tmp_path / "mixed"
    shutil.copytree(other, mixed)
    learnt = {r["image"] for r in rows_of(data / "prognosis.csv")}
    name = sorted(learnt)[0].removesuffix(".png") + ".png"
    rows = rows_of(mixed / "prognosis.csv")
    patient = next(r["patient"] for r in rows
                   if sum(q["patient"] == r["patient"] for q in rows) > 1)  # fmt: skip
    mine = [r for r in rows if r["patient"] == patient]
    shutil.copy(data / "images" / name, mixed / "images" / "copied.png")
    with open(mixed / "prognosis.csv", "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writerow({**mine[0], "image": "copied"})
    path = tmp_path / "mixed.yaml"
    path.write_text(new.read_text().replace(str(other), str(mixed)))
    to, quick = tmp_path / "to", ["--quiet", "--no-figures"]
    assert cli.main(["evaluate", str(out), str(path), "--out", str(to), *quick]) == 0
    said = capsys.readouterr().err
    assert f"hospital: {len(mine) + 1} images left out" in said and "the run learnt from" in said
    assert "patient ids" in said and "set data.same_patients to true" in said
    tested = {r["patient"] for r in rows_of(to / "predictions.csv") if r["task"] == "prognosis"}
    assert tested == {r["patient"] for r in rows} - {patient}
    assert "another image of its patient" in (to / "report.html").read_text()
    # Equal ids, said to mean the same people: all drawn patients have them.
    arguments = ["evaluate", str(out), str(path), "--out", str(tmp_path / "same"), *quick,
                 "--set", "data.same_patients=true"]  # fmt: skip
    assert cli.main(arguments) == 0
    kept = {r["patient"] for r in rows_of(tmp_path / "same" / "predictions.csv")}
    assert kept and not kept & {r["patient"] for r in rows_of(data / "prognosis.csv")}


def test_who_has_one_radiograph_under_two_ids_is_one_patient(finished, tmp_path, capsys):
    """As in a run, unless data.near_duplicates is report."""
    out, _, new, other, _ = finished
    twice = tmp_path / "twice"
    shutil.copytree(other, twice)
    rows = rows_of(twice / "prognosis.csv")
    patients = len({r["patient"] for r in rows})
    with open(twice / "prognosis.csv", "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        for k, row in enumerate(rows[:3]):
            image = twice / "images" / f"{row['image'].removesuffix('.png')}.png"
            Image.open(image).save(twice / "images" / f"again{k}.bmp")  # the same pixels
            writer.writerow({**row, "image": f"again{k}", "patient": f"again{k}"})
    path = tmp_path / "twice.yaml"
    path.write_text(new.read_text().replace(str(other), str(twice)))
    for change, n in ((), patients), (["data.near_duplicates=report"], patients + 3):
        to = tmp_path / f"to{n}"
        quick = ["--out", str(to), "--quiet", "--no-figures"]
        assert cli.main(["evaluate", str(out), str(path), *quick,
                         *(a for c in change for a in ("--set", c))]) == 0  # fmt: skip
        said = capsys.readouterr()
        assert f"For prognosis in external validation on {n} patients" in said.out
        assert (f"{patients + 3} patient ids are {n} patients" in said.err) == (not change)
        counted = {r["n_patients"] for r in rows_of(to / "external.csv")
                   if r["task"] == "prognosis"}  # fmt: skip
        assert counted == {str(n)}


def test_the_run_s_own_cases_are_no_external_validation(finished, tmp_path, capsys):
    out, data, new, other, _ = finished
    path = tmp_path / "own.yaml"
    path.write_text(new.read_text().replace(str(other), str(data)))
    assert cli.main(["evaluate", str(out), str(path), "--out", str(tmp_path / "to")]) == 2
    assert "data set 'hospital': nothing of it is new to the run" in capsys.readouterr().err
    assert not (tmp_path / "to" / "predictions.csv").exists()


def test_labels_may_have_other_names(finished, tmp_path):
    out, _, new, other, _ = finished
    named = tmp_path / "named"
    shutil.copytree(other, named)
    text = (named / "prognosis.csv").read_text()
    (named / "prognosis.csv").write_text(text.replace("MILD", "home").replace("SEVERE", "icu"))
    path = tmp_path / "named.yaml"
    path.write_text(
        new.read_text().replace(str(other), str(named))
        + "tasks:\n  prognosis: {classes: [MILD, SEVERE], labels: {home: MILD, icu: SEVERE}}\n"
    )
    path.write_text(path.read_text().replace("data:\n", "data:\n  minmax: true\n"))
    made = evaluate.evaluate(out, str(path), tmp_path / "to", figures=False)
    assert any(n.startswith("data.minmax is True in") and "as the run's" in n
               for n in made["notes"])  # fmt: skip
    same = rows_of(finished[-1] / "predictions.csv")
    assert rows_of(tmp_path / "to" / "predictions.csv") == same


def test_what_does_not_fit_is_one_sentence(finished, tmp_path, capsys):
    out, _, new, _, external = finished

    def refused(words, change=None, to=tmp_path / "to", source=out, error=BadConfig, **more):
        path = tmp_path / "changed.yaml"
        path.write_text(change(new.read_text()) if change else new.read_text())
        with pytest.raises(error, match=words):
            evaluate.evaluate(source, str(path), to, **more)

    refused("the task 'prognosys', which the run was not trained for",
            lambda t: t.replace("task: prognosis", "task: prognosys"))  # fmt: skip
    refused("classes are A, B and the run's MILD, SEVERE",
            lambda t: t + "tasks: {prognosis: {classes: [A, B]}}\n")  # fmt: skip
    refused("the key 'data' is missing", lambda t: "name: nothing\n")
    refused("is itself an evaluation", source=external, error=BadInput)
    with pytest.raises(BadInput, match="is an evaluation, which trained no network"):
        predictor.predict(external, [new.parent / "other"])
    refused("is no out folder of mdmt", source=tmp_path, error=BadInput)
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    refused("is not empty and holds no evaluation", to=full, error=BadInput)
    refused("--validation loco", error=BadInput, validation="loco")
    with pytest.raises(BadConfig, match="mdmt evaluate"):
        run.run(config.load(str(new.with_name("tiny.yaml")), ["validation=[external]"]),
                tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize("writer", ["write_csv", "write_json", "write_atomic"])
def test_an_interrupted_one_is_done_again(finished, tmp_path, monkeypatch, writer):
    """After any of its files: the same command goes on, and no part of it is reported before."""
    out, _, new, _, _ = finished
    to, write = tmp_path / "to", getattr(evaluate, writer)

    def interrupted(path, *more):
        write(path, *more)
        (to / ".left.tmp").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, writer, interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(out, str(new), to, figures=False)
    monkeypatch.undo()
    if writer != "write_atomic":  # the last one
        assert cli.main(["report", str(to)]) == 2
    evaluate.evaluate(out, str(new), to, figures=False)
    for name in ("predictions.csv", "networks.csv", "external.csv", "evaluation.json"):
        assert (to / name).read_bytes() == (finished[-1] / name).read_bytes(), name
    assert not (to / ".left.tmp").exists()


def test_what_was_not_kept_is_said(finished, tmp_path):
    """Without the weights of one configuration the others are evaluated, with a note."""
    out, _, new, _, _ = finished
    less = tmp_path / "less"
    shutil.copytree(out, less)
    networks = rows_of(finished[-1] / "networks.csv")
    for r in networks:
        if r["configuration"] == "MDMT":
            (less / "runs" / r["training"] / "model.safetensors").unlink()
            (less / "runs" / r["training"] / "weights.deleted").touch()
    made = evaluate.evaluate(less, str(new), tmp_path / "to", figures=False)
    assert any("kept no weights" in n for n in made["notes"])
    found = rows_of(tmp_path / "to" / "predictions.csv")
    assert {r["configuration"] for r in found} == {"STL-tau1"}
    assert {r["task"] for r in found} == {"prognosis"}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numbers_and_findings(tmp_path):
    def described(name, seeds):
        root, second = (synthetic.make(tmp_path / name, patients=24, size=32, seed=s)
                        for s in seeds)  # fmt: skip
        study.write_findings(root)
        path = tmp_path / f"{name}.yaml"
        path.write_text(study.THREE.format(root=root, second=second, store=tmp_path / "store"))
        return str(path)

    values = config.load(described("data", (2, 1)), ["configurations=[ALL]", "train.epochs=1"])
    run.run(values, tmp_path / "out", quiet=True, report=False)
    made = evaluate.evaluate(tmp_path / "out", described("other", (5, 6)), tmp_path / "to")
    found = {(r["task"], r["networks"], r["metric"]): r
             for r in rows_of(tmp_path / "to" / "external.csv")}  # fmt: skip
    rows = [r for r in rows_of(tmp_path / "to" / "predictions.csv") if r["task"] == "severity"]
    label, said = {}, {}
    for r in rows:
        label[r["image"]] = float(r["label"])
        said.setdefault(r["image"], []).append(float(r["predicted"]))
    joint = oracle.mean_absolute_error(list(label.values()), [np.mean(said[i]) for i in label])
    assert float(found["severity", "together", "mae"]["value"]) == pytest.approx(joint)
    assert 0 <= float(found["findings", "one", "auc"]["value"]) <= 1
    page = (tmp_path / "to" / "report.html").read_text()
    assert "In the label&#x27;s unit" in page and "each finding" in page
    assert len(made["headlines"]) == 3  # nothing to compare with
    assert made["headlines"][0] in page or "findings" in made["headlines"][0]
    few = described("few", (7, 8))
    data = config.load(few)["data"]
    for source in data["datasets"]:
        table = Path(data["root"]) / (source["folder"] or "") / source["table"]
        table.write_text("".join(table.read_text().splitlines(True)[:2]))
    made = evaluate.evaluate(tmp_path / "out", few, tmp_path / "one")
    assert len(made["headlines"]) == 3
    for said in made["headlines"]:
        assert "1 patient (1 image) there is nothing to say with an interval" in said
    assert sum("all tested cases are of one patient" in n for n in made["notes"]) == 3
    rows = rows_of(tmp_path / "one" / "predictions.csv")
    assert len({(r["task"], r["image"]) for r in rows}) == 3
