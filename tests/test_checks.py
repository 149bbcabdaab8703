"""mdmt check: what it finds, how it is graded, its pages; the same checks before a run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mdmt import checks, config, study
from mdmt.checks import page, plan, terminal
from mdmt.checks.examine import _shared_patients
from mdmt.checks.pictures import Looks
from mdmt.data import similar
from mdmt.errors import BadInput
from mdmt.runner import estimate
from tests.realdata import COVID_CXR, needs_covid_cxr
from tests.test_similar import drawn

CONFIG = """
name: small
data:
  root: {root}
  store: {store}
  datasets:
    - {{name: one, table: one.csv, task: prognosis, columns: {{center: center}}}}
    - {{name: two, table: two.csv, task: severity}}
tasks:
  prognosis: {{classes: [MILD, SEVERE], head: {{hidden: []}}}}
  severity: {{classes: ["0", "1"], head: {{hidden: []}}}}
backbones: [resnet18]
cv: {{folds: 2, validation: 0.25}}
image_size: 64
train: {{epochs: 1, warmup_epochs: 0, batch_size: 8}}
"""
COUNT = 60  # images of a data set


STORE = tempfile.mkdtemp(prefix="mdmt-checks-")  # shared: what is known is not prepared again


@pytest.fixture(scope="module")
def pictures():
    yield drawn(2 * COUNT, 220)
    shutil.rmtree(STORE, ignore_errors=True)


@pytest.fixture(scope="module")
def files(pictures, tmp_path_factory):
    """The pictures as files, written once."""
    folder = tmp_path_factory.mktemp("files")
    for i, picture in enumerate(pictures):
        name = f"{('one', 'two')[i // COUNT]}{i % COUNT:02d}.png"
        Image.fromarray(picture).save(folder / name, compress_level=1)
    return folder


@pytest.fixture
def data(tmp_path, files):
    """Two clean data sets of drawn pictures: (folder, {data set: rows of its table})."""
    tables = {}
    shutil.copytree(files, tmp_path / "images")
    for name, classes in (("one", ("MILD", "SEVERE")), ("two", ("0", "1"))):
        rows = []
        for i in range(COUNT):
            image = f"{name}{i:02d}"
            rows.append([image, f"{name[0]}{i}", classes[i % 2], "AB"[i // 2 % 2]])
        tables[name] = rows
    return tmp_path, tables


def examine(data, *changes, costs=False, text=CONFIG):
    root, tables = data
    for name, rows in tables.items():
        lines = ["image,patient,label,center", *(",".join(r) for r in rows)]
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    path = root / "small.yaml"
    path.write_text(text.format(root=root, store=STORE))
    return checks.examine(config.load(str(path), changes), None, True, costs)


def sentences(report, grade):
    return [f"{i.topic}: {i.sentence}" for i in report.items if i.grade == grade]


def test_clean_data_have_no_findings(data):
    report = examine(data, costs=True)
    assert report.items == []
    text = terminal.text(report, 100, False)
    assert text.startswith("mdmt check small: 0 errors, 0 warnings, 0 notes (")
    assert text.endswith("Training can start.")
    assert "one       60        60        2  MILD 30, SEVERE 30  60 png" in text
    assert "8 trainings: 1 backbone, 4 configurations, cv" in text
    assert report.costs["seconds"] > 0 and report.costs["disk"] > 8 * 40e6
    assert "\033" not in text and "\033[" not in terminal.text(report, 100, True)


def test_weights_of_classes_are_shown(data):
    """What `mdmt run` would count each class with: least to most over the training parts."""
    for i, row in enumerate(data[1]["two"]):
        row[2] = str(int(i % 4 == 0))
    report = examine(data, "tasks.severity.class_weights=balanced",
                     "tasks.prognosis.class_weights={SEVERE: 2.5}")  # fmt: skip
    text = " ".join(terminal.text(report, 200, False).split())
    assert "loss prognosis: MILD 1, SEVERE 2.5, class weights fixed" in text
    spans = re.search(r"severity: 0: ([\d.-]+), 1: ([\d.-]+), class weights balanced over", text)
    (release,), parts = report.study.releases, []
    for fold in release.splits["cv"]:
        labels = release.cases[1].labels[fold["two"]["train"]]
        parts.append([len(labels) / (2 * np.sum(labels == k)) for k in (0, 1)])
    for found, each in zip(spans.groups(), np.transpose(parts), strict=True):
        ends = sorted({f"{v:.2f}" for v in (each.min(), each.max())}, key=float)
        assert found == "-".join(ends)
    assert not any(name == "loss" for name, _ in terminal.cost_facts(examine(data)))


def test_classes_without_a_case(data):
    """One class alone cannot be learnt; a class too few of three is said, by its name."""
    rows = data[1]["one"]
    for row in rows:
        row[2] = "MILD"
    report = examine(data)
    assert sentences(report, "error") == [
        "one: every case has the class MILD, so there is nothing to tell apart; give cases of "
        "SEVERE, or correct the labels"
    ]
    for row in rows[:2]:
        row[2] = "SEVERE"
    for row in rows[:2]:
        row[1] = "o0"
    (found,) = sentences(examine(data), "error")
    assert re.search(
        "data set 'one': fold .: the training part has no case of class 'SEVERE'", found
    )
    for i, row in enumerate(rows):
        row[2] = ("MILD", "SEVERE")[i % 2]
    three = CONFIG.replace("[MILD, SEVERE]", "[MILD, WORSE, SEVERE]")
    report = examine(data, text=three)
    assert not report.errors
    assert [s for s in sentences(report, "warning") if "WORSE" in s] == [
        "one: no case has the class WORSE; a network cannot learn it: correct the labels, or take "
        "it out of the classes of task prognosis"
    ]


def test_the_page_is_one_file(data):
    data[1]["one"][5][:2] = "one04", "o4"  # an error, too
    html = page.page(examine(data))
    assert "image &#x27;one04&#x27; has two rows" in html
    data[1]["one"][5][:2] = "one05", "o5"
    html = page.page(examine(data))
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "<script" not in html
    assert "Contact sheets" in html and "data:image/jpeg" in html
    assert len(re.findall(r"<h2", html)) == 6


def test_suspicious_pictures_are_named(data, pictures):
    root, tables = data
    copy = np.clip(0.9 * pictures[3] + 10, 0, 255).astype(np.uint8)
    Image.fromarray(copy).save(root / "images" / "one20.png")  # of another patient
    Image.fromarray(copy[::2, ::2]).save(root / "images" / "two07.png")  # of another data set
    Image.fromarray(np.full((220, 220), 90, np.uint8)).save(root / "images" / "two11.png")
    tables["two"][9][1] = "o3"
    report = examine(data)
    found = sentences(report, "warning")
    assert len(found) == 5 and not report.errors
    assert any(
        s.startswith("one: 1 pair of pictures shows the same radiograph under 1 pair of patients")
        and "one03 of patient o3 = one20 of patient o20" in s
        for s in found
    )
    across = next(s for s in found if "of two data sets" in s)
    assert across.startswith("one and two: 2 pairs")
    assert any(s.startswith("two: 1 picture (two11): one grey value") for s in found)
    assert any(s.startswith("two: 1 picture (two07): fewer than 200 pixels") for s in found)
    assert any("1 patient ids are in both (o3)" in s for s in found)
    assert set(report.said) == set(found)  # the report of a run says so, too
    looks = report.looks
    assert {looks.kind(p) for p in looks.alike} == {"patients", "data sets"}
    html = page.page(report)
    assert "The same radiograph under two patients: 1" in html
    # They are kept together, so that the audit is clean; if not, it is not.
    report = examine(data, "data.near_duplicates=report", "data.same_patients=true")
    found = sentences(report, "warning")
    assert any("near-duplicates" in s or "near_duplicates: together" in s for s in found)
    assert not any("ids are in both" in s for s in found)


def test_inverted_pictures(tmp_path, pictures):
    from types import SimpleNamespace

    from mdmt.checks.pictures import _odd

    base = pictures[0].astype(float)
    images = [0.6 * base + 0.4 * p for p in pictures[1:41]]
    images[7] = 255 - images[7]
    images = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    store = SimpleNamespace(images=images, entries=[{"shape": [300, 300]}] * 40)
    assert _odd([store]) == {"inverted": [(0, 7)]}


def test_every_broken_file_and_table_is_reported(data):
    root, tables = data
    for name in ("one03", "one09", "two01"):
        (root / "images" / f"{name}.png").write_bytes(f"no picture {name}".encode())
    report = examine(data)
    found = sentences(report, "error")
    assert len(found) == 2
    assert "2 of 60 images are refused" in found[0] and "one03.png" in found[0]
    assert "(and 1 more); replace the file" in found[0]
    assert "1 of 60 images is refused" in found[1]
    report = examine(data, "data.on_bad_image=exclude")
    assert not report.errors and len(sentences(report, "warning")) == 2
    tables["one"][2][2] = "MIDL"
    tables["two"].append(["two99", "t99", "0", "A"])
    found = sentences(examine(data), "error")
    assert any("unknown label 'MIDL'" in s and "did you mean 'MILD'" in s for s in found)
    assert any("image 'two99' of" in s and "is missing" in s for s in found)


def test_what_would_fail_later_is_an_error_now(data, monkeypatch):
    found = sentences(examine(data, "weights=/nowhere/w.safetensors"), "error")
    assert any("neither random nor imagenet nor a file" in s for s in found)
    monkeypatch.setattr(estimate, "free", lambda out: 1000)
    found = sentences(examine(data, costs=True), "error")
    assert len(found) == 1 and "1000 B are free" in found[0]
    report = examine(data, "train.batch_size=100000000", costs=True)
    assert any("lower train.batch_size or image_size" in s for s in sentences(report, "error"))
    assert terminal.text(report, 80, False).endswith("correct the errors above.")
    data[1]["one"] = [[a, "o0", c, d] for a, _, c, d in data[1]["one"]]
    found = sentences(examine(data), "error")
    assert any("1 patient cannot fill 2 folds; give more" in s for s in found)


def test_backbones_beyond_the_budget_are_estimated(data, monkeypatch):
    monkeypatch.setattr(plan, "BUDGET", 0)
    report = examine(data, "backbones=[resnet18,shufflenet_v2_x0_5]", costs=True)
    assert report.costs["guessed"] == ["shufflenet_v2_x0_5"]
    small, large = (report.costs["backbones"][b] for b in ("shufflenet_v2_x0_5", "resnet18"))
    assert small["image"] < 0.1 * large["image"] and small["weights"] < large["weights"]
    assert "(1 backbone not measured)" in terminal.text(report, 100, False)


def test_few_patients_of_a_class_are_a_warning(data):
    found = sentences(examine(data, "train.batch_size=64"), "warning")
    assert found == [
        "plan: 8 of 8 trainings have fewer images (22 at least) than train.batch_size (64), so "
        "that an epoch is one step; lower it"
    ]
    for row in data[1]["two"][6:]:
        row[2] = "0"
    found = sentences(examine(data), "warning")
    assert any("fewer than 10 patients of class 1 (1); give more" in s for s in found)


def run(*arguments):
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "mdmt", *map(str, arguments)], capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=root, MDMT_NUM_THREADS="1"), timeout=120,
    )  # fmt: skip


def test_the_commands(data):
    root, tables = data
    examine(data)
    Image.fromarray(drawn(1, 220, 9)[0]).save(root / "images" / "one05.png")
    Image.fromarray(drawn(1, 220, 9)[0] // 2 + 40).save(root / "images" / "one06.png")
    made = root / "page" / "check.html"
    done = run("check", root / "small.yaml", "--quick", "--out", made)
    assert done.returncode == 0, done.stderr
    assert "one05 of patient o5 = one06 of patient o6" in " ".join(done.stdout.split())
    assert f"page     {made}" in done.stdout and made.is_file()
    wrong = ["--set", "train.batch_size=100000000"]
    done = run("check", root / "small.yaml", "--out", made, *wrong)
    assert done.returncode == 2
    assert "1 error" in done.stderr and "Traceback" not in done.stderr
    assert "Errors: training would fail" in made.read_text()
    done = run("run", root / "small.yaml", "--out", root / "out", *wrong)
    assert done.returncode == 2
    assert "lower train.batch_size" in done.stderr
    assert not (root / "out").exists()


@needs_covid_cxr
def test_public_radiographs(tmp_path):
    values = config.load(
        "covid_cxr",
        [f"data.root={COVID_CXR}", f"data.store={tmp_path}", "image_size=128", "data.crop=whole"],
    )
    report = checks.examine(values, None, True, False)
    assert not report.errors
    found = sentences(report, "warning")
    assert any(s.startswith("prognosis and severity: 3 pairs") for s in found)
    assert any(s.startswith("severity: 6 pairs") for s in found)
    assert any("prognosis: 3 pictures" in s and "fewer than 200 pixels" in s for s in found)
    assert any("fewer than 10 patients of class 3 (7)" in s for s in found)
    assert len(found) == 4


def _two_sets(paths=("/data/a.png", "/data/b.png")):
    """Two data sets of two pictures, the second one's patients P1 and P3."""
    one, two = (
        SimpleNamespace(name=name, images=["a", "b"], patients=list(people), warnings=[],
                        paths=list(map(Path, paths)), image_prefix="", patient_prefix="")
        for name, people in (("one", ("P1", "P2")), ("two", ("P1", "P3")))
    )  # fmt: skip
    return [one, two]


def test_one_file_in_two_data_sets_is_no_near_duplicate_of_another_patient():
    pairs = [similar.Alike((0, i), (1, i), 1.0, False, True) for i in (0, 1)]
    looks = Looks(_two_sets(), [])
    assert [looks.kind(p) for p in pairs] == ["same file", "data sets"]
    looks.shared, looks.alike = pairs[:1], pairs[1:]
    (grade, topic, sentence), other = looks.findings()
    assert (grade, topic) == ("note", "one and two") and sentence.startswith("1 picture in both")
    assert other[0] == "warning" and "b of patient P2 = b of patient P3" in other[2]


def test_equal_patient_ids_are_noted_where_the_folds_would_leak_them():
    stores = [SimpleNamespace(sources=[f"{k}0", f"{k}1"]) for k in "xy"]
    fold = {"train": [1], "val": [], "test": [0]}
    for other, noted in ((fold, False), ({"train": [0], "val": [], "test": [1]}, True)):
        cases = _two_sets()
        study.check_across(cases, stores, {"cv": [{"one": fold, "two": other}]})
        assert any("1 patient ids ('P1', ...)" in w for w in cases[0].warnings) == noted


def test_one_picture_in_two_data_sets_is_refused_only_where_it_is_learnt_from():
    stores = [SimpleNamespace(sources=["same", "x"]), SimpleNamespace(sources=["same", "y"])]
    fold = {"train": [1], "val": [], "test": [0]}
    left_out = {"train": [1], "val": [], "test": []}  # as by data.near_duplicates: together
    study.check_across(_two_sets(), stores, {"cv": [{"one": fold, "two": left_out}]})
    study.check_across(_two_sets(), stores, {"cv": [{"one": left_out, "two": fold}]})
    learnt = {"train": [1], "val": [0], "test": []}
    for one, two in ((fold, learnt), (learnt, fold)):
        with pytest.raises(BadInput, match="is the same picture as"):
            study.check_across(_two_sets(), stores, {"cv": [{"one": one, "two": two}]})


@pytest.mark.parametrize("same", (False, True))
def test_patient_ids_that_lost_their_zeros_in_one_data_set_are_named(same):
    one, two = _two_sets()
    one.patients, two.patients = ["0007", "P2"], ["7", "P3"]
    found = []
    report = SimpleNamespace(values={"data": {"same_patients": same}},
                             add=lambda *finding: found.append(finding))  # fmt: skip
    _shared_patients(report, [one, two])
    ((grade, topic, sentence),) = found
    assert (grade, topic) == ("warning", "one and two")
    assert "1 patient ids differ only in case, blanks or leading zeros ('0007' and '7')" in sentence


def test_pictures_too_small_to_look_for_near_duplicates_are_said_to_be():
    looks = Looks(_two_sets(), [], side=48)
    ((grade, topic, sentence),) = looks.findings()
    assert (grade, topic) == ("warning", "pictures")
    assert "image_size 48 is too small to look for near-duplicates (from 64 on)" in sentence
