"""What the report says in words where a study is small, one-sided or incomplete."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mdmt import analysis, config, kinds, report, stats
from mdmt.analysis import cohort, describe
from mdmt.analysis.compare import Comparison, missing
from mdmt.analysis.compare import matrix as matrix_of
from mdmt.analysis.sensitivity import Sensitivity
from mdmt.data import similar
from mdmt.paths import read_json, write_json
from mdmt.report import checklists, sections, sensitivity, words
from mdmt.study import Release
from mdmt.tables import table1, table_s1
from tests import outfolder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A study with cv and loco, of which severity has no centers."""
    out = outfolder.make(tmp_path_factory.mktemp("words") / "out", validation=["cv", "loco"])
    return analysis.read(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One fold of three, no MDMT."""
    out = outfolder.make(tmp_path_factory.mktemp("words") / "small",
                         configurations=["STL-tau1", "STL-tau2", "FT"], folds=[1])  # fmt: skip
    path = out / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *(x for x in lines[1:] if x.split(",")[2] == "1")]))
    return analysis.read(out, verify=False)


def matrix(outcome, validation, task):
    return matrix_of(outcome, outcome.values["data"]["release"], validation, task)


def test_folds_of_a_data_set_without_centers_are_never_called_leave_one_center_out(both):
    m = matrix(both, "loco", "prognosis")
    assert m.scheme == "leave one center out (3 folds)" and not m.centerless
    m = matrix(both, "loco", "severity")
    assert m.scheme == "folds of patients beside another data set's centers (3 folds)"
    assert m.centerless
    assert matrix(both, "cv", "severity").scheme == "3-fold cross-validation"
    analyses = analysis.compare(both, 200)
    said = " ".join(words.limits(both, analyses))
    assert "severity, loco: This data set records no centers" in said
    assert "prognosis, loco: This data set records no centers" not in said
    tables = {t.title: " ".join(t.notes) for t in table1(both, analysis.results(both))}
    noted = {
        title.split()[2].rstrip(","): "severity records none" in n for title, n in tables.items()
    }
    assert noted == {"prognosis": False, "severity": True}


def test_some_folds_are_not_all_folds(small):
    m = matrix(small, "cv", "prognosis")
    assert m.scheme == "1 of 3 folds of a cross-validation"


def test_a_run_without_joint_training_asks_no_question_about_it(small, both):
    assert "How well do networks predict prognosis and severity" in sections.question(small)
    assert "become better when it learns severity" in sections.question(both)
    analyses = analysis.compare(small, 200)
    known = checklists.answers(small, analyses)
    assert "joint" not in known["question"].lower() and "Holm" not in known["statistics"]
    assert "MDMT" not in known["initial"] and "FT from the network" in known["initial"]
    assert known["robustness"] == "Subgroups."
    said = " ".join(words.limits(small, analyses))
    assert "FT starts from networks" in said and "MDMT" not in said
    written = report.make(small.out, resamples=100, figures=False, verify=False)
    page = written["written"][-1].read_text()
    assert page.count("No comparison of MDMT with another configuration here.") == 2


def test_events_are_counted_once_per_image(both):
    analyses = analysis.compare(both, 200)
    first = next(a.matrix for a in analyses)
    events = checklists.answers(both, analyses)["events"]
    image = dict(zip(first.image.tolist(), first.y.tolist(), strict=True))
    severe = sum(v == 1 for v in image.values())
    assert f"(MILD {len(image) - severe}, SEVERE {severe})" in events


def test_the_checklist_names_the_augmentation_that_is_on():
    values = config.load("covid_cxr", [])
    assert checklists._augmented(values["train"]) == "shift, zoom, flip, rotation, elastic"
    off = ["train.augment.shift=0", "train.augment.flip=false", "train.augment.noise=0.1"]
    values = config.load("covid_cxr", off)
    assert checklists._augmented(values["train"]) == "zoom, rotation, elastic, noise"
    assert checklists._augmented({"augment": None}) == "none"


def test_class_names_that_are_numbers_are_told_from_their_counts():
    assert kinds.counted(["0", "1"], [58, 7]) == "0: 58, 1: 7"
    assert kinds.counted(["MILD", "SEVERE"], [58, 7]) == "MILD 58, SEVERE 7"


def test_patients_of_one_radiograph_are_one_in_all_that_is_by_patient(tmp_path):
    out = outfolder.make(tmp_path / "out")
    record = read_json(out / "cohort.json")
    cases = record["datasets"][0]["cases"]
    one, two = cases["patient"][0], next(p for p in cases["patient"] if p != cases["patient"][0])
    before = analysis.read(out)
    cases["person"] = [one if p == two else p for p in cases["patient"]]
    write_json(out / "cohort.json", record)
    joined = analysis.read(out)
    m = matrix(joined, "cv", "prognosis")
    assert two not in m.patient and two in matrix(before, "cv", "prognosis").patient
    n = len(set(m.patient.tolist()))
    assert m.notes == [
        f"prognosis, cv: {n + 1} patient ids are {n} patients, since some show the same "
        "radiograph; these count as one."
    ]
    assert f"<td>{n}</td>" in sections._tested(joined)
    path = out / "predictions.csv"  # what it would be, had the table one id for both
    path.write_text(path.read_text().replace(f",{two},", f",{one},"))
    (out / "cohort.json").unlink()
    again = analysis.compare(analysis.read(out), 200)
    assert analysis.compare(joined, 200)[0].comparisons == again[0].comparisons


def test_a_run_records_who_has_several_ids():
    cases = outfolder.draw_cases("one", "prognosis", ["MILD", "SEVERE"], 40, 0)
    other = next(i for i, p in enumerate(cases.patients) if p != cases.patients[0])
    alike = [similar.Alike((0, 0), (0, other), 0.97, False, False)]
    store = SimpleNamespace(folder=Path("store"))
    release = Release("1", [cases], [store], {}, alike)
    data = {"near_duplicates": "together", "same_patients": False, "datasets": [{"name": "one"}]}
    values, kept = {"data": data}, {"data": {**data, "near_duplicates": "report"}}
    found = cohort.record([release], values)["datasets"][0]["cases"]
    ids = {cases.patients[0], cases.patients[other]}
    assert len(set(found["person"])) == len(set(cases.patients)) - 1
    assert len({x for x, p in zip(found["person"], cases.patients, strict=True) if p in ids}) == 1
    alone = Release("1", [cases], [store], {}, [])
    for apart in (cohort.record([release], kept), cohort.record([alone], values)):
        assert "person" not in apart["datasets"][0]["cases"]


def calibrated(name, slope, intercept):
    """A `Calibration` from (value, low, high) of slope and intercept."""
    return describe.Calibration(name, 0.2, 0.1, 0.1, slope[0], intercept[0], slope[1:],
                                intercept[1:])  # fmt: skip


def test_a_fault_of_calibration_is_named_only_where_its_interval_shows_it():
    found = [
        calibrated("A", (0.5, 0.2, 0.8), (-0.5, -0.9, -0.1)),
        calibrated("B", (0.5, 0.2, 1.1), (-0.5, -1.1, 0.1)),
        calibrated("C", (-2.0, -3.0, -1.0), (0.4, 0.1, 0.7)),
        calibrated("D", (2.0, 1.5, 2.5), (0.0, -0.1, 0.1)),
        calibrated("E", (609773.4, -1e6, 2e6), (0.0, -0.1, 0.1)),
    ]
    said = words.calibration(found)
    assert "A too extreme and too high on average (slope 0.50, 0.20 to 0.80" in said
    assert "B no fault established (slope 0.50, 0.20 to 1.10" in said
    assert "C lower where they should be higher and too low on average" in said
    assert "D too timid (slope" in said
    assert "E no fault established (slope not determined: the probabilities hardly differ" in said


def test_networks_that_call_one_class_are_said_to(tmp_path):
    out = outfolder.make(tmp_path / "out")
    outcome = analysis.read(out)
    for part in outcome.parts:
        if part.task == "prognosis" and part.configuration in ("STL-tau1", "MDMT"):
            part.p[:] = [0.2, 0.8]
            part.p[:, 1] += 1e-3 * np.arange(len(part.p)) / len(part.p)
            part.p[:, 0] = 1 - part.p[:, 1]
    a = analysis.compare(outcome, 200)[0]
    assert words.one_class(a.matrix) == "STL-tau1 and MDMT call every case SEVERE."
    assert "call every case SEVERE" in " ".join(sections.all_metrics(a).notes)
    same = "in accuracy by 0.0 points (the same in every resample, which says nothing of other"
    assert same in words.headline(a) and "0.0 to 0.0" not in words.others(a)[0]
    assert "Accuracy, F1, G-mean and AUC the same in every resample" in words.others(a)[0]


def test_one_fold_has_no_deviation(small, both):
    notes = {t.title: t.notes[0] for t in table_s1(small, analysis.results(small))}
    assert set(notes.values()) == {"Percent; mean over one test fold, which has no deviation."}
    assert "± standard deviation" in table_s1(both, analysis.results(both))[0].notes[0]


def beside(agrees, test="DeLong", against="FT"):
    primary = Comparison("", against, "auc", 0.1, 0, 0.2, 0.5, 0.5, 0.5)
    return Sensitivity(test, against, "auc", "patients", 9, 0.1, 0, 0.2, 1.0, 0.01, 0.01, primary,
                       agrees, "", "")  # fmt: skip


def test_one_test_is_not_all_of_one_test():
    one = sensitivity.conclusion([beside(True)])
    assert one == "The one test that could be done comes to the conclusion of the primary analysis."
    assert sensitivity.conclusion([beside(True)] * 2).startswith("All of 2 tests come to")
    assert sensitivity.conclusion([beside(True), beside(False)]).startswith("1 of 2 tests comes to")
    assert sensitivity.conclusion([beside(False)]).startswith("None of 1 test come to")


def test_tests_that_are_left_out_say_it_once_and_in_words(tmp_path):
    out = outfolder.make(tmp_path / "out", folds=[0])
    path = out / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *(x for x in lines[1:] if x.split(",")[2] == "0")]))
    outcome = analysis.read(out, verify=False)
    a = analysis.compare(outcome, 200)[0]
    said = sensitivity.left_out(analysis.sensitivity(outcome, a))
    assert [s for s in said if s.startswith("Nadeau")] == [
        "Nadeau-Bengio: needs two folds whose differences are defined and not the same."
    ]
    assert any(s.endswith("here is 1 backbone and 1 fold.") for s in said)


def test_intervals_of_the_calibration_take_patients_as_independent():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 40, 150)
    z = rng.normal(size=40)[patient] + 0.5 * rng.normal(size=150)
    y = (rng.random(150) < 1 / (1 + np.exp(-0.6 * z - 0.3))).astype(int)
    p = 1 / (1 + np.exp(-z))
    found = describe.stats.grouped_recalibration(y, [p], patient)
    groups = len(set(patient.tolist()))
    more = {"groups": patient, "use_correction": False}
    slope = sm.GLM(y, sm.add_constant(z), sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds=more)  # fmt: skip
    shift = sm.GLM(y, np.ones(150), sm.families.Binomial(), offset=z).fit(
        cov_type="cluster", cov_kwds=more)  # fmt: skip
    for value, low, high, fit in ((*found[3:], slope), (*found[:3], shift)):
        half = 1.959964 * fit.bse[-1] * np.sqrt(groups / (groups - 1))
        assert [value, low, high] == pytest.approx(
            [fit.params[-1], fit.params[-1] - half, fit.params[-1] + half], rel=1e-5)  # fmt: skip
    # two equal networks say what one says; of patients of one image each it is Huber's
    twice = describe.stats.grouped_recalibration(y, [p, p], patient)
    assert twice == pytest.approx(found)


def test_what_means_are_over_is_said_of_backbones_and_of_seeds(tmp_path):
    more = {"backbones": ["resnet18", "resnet34"], "seeds": [0, 1], "validation": ["cv", "loco"]}
    outcome = analysis.read(outfolder.make(tmp_path / "out", one_class=True, **more))
    analyses = analysis.compare(outcome, 200)
    said = words.method(analyses[0])
    assert "Means over 2 backbones, which are taken as given. Means over 2 seeds: the" in said
    assert "of each fold are resampled, too (percentile interval, with Student" in said
    known = checklists.answers(outcome, analyses)
    assert known["internal"].startswith("Cross-validation and leave one center out, inside")
    found = cohort.findings(outcome.cohort, outcome.splits)
    assert any(f.startswith("loco, one: classes without a case in a part: 1 (") for f in found)


def test_mean_counts_of_a_confusion_matrix_add_up_to_the_cases(tmp_path):
    pytest.importorskip("matplotlib")
    from mdmt.plots import curves, style

    outcome = analysis.read(outfolder.make(tmp_path / "out", seeds=[0, 1]))
    m = matrix(outcome, "cv", "severity")
    with style.drawing():
        texts = [t.get_text().split("\n")[0] for t in curves.confusions(m).axes[0].texts]
    counts = np.array(texts, float).reshape(4, 4)
    assert counts.sum(1).tolist() == np.bincount(m.y, minlength=4).tolist()
    assert any(t.endswith(".5") for t in texts) and not any(t.endswith(".0") for t in texts)


def test_the_schedule_is_described():
    def said(**changes):
        return checklists._rate({**config.load("demo")["train"], "lr": 0.01, **changes})

    assert said() == (
        "0.01 (times 0.65 after more than 15 epochs without a lower validation loss, at least "
        "1e-08)"
    )
    assert said(schedule="constant") == "0.01, constant"
    assert said(schedule="cosine", lr_minimum=1e-6, lr_warmup_epochs=5) == (
        "0.01 (reached in 5 epochs of linear warm-up), cosine schedule to 1e-06 at the end"
    )


def test_how_often_a_class_is_missing_in_resamples_is_said(both):
    m = matrix(both, "cv", "severity")
    assert missing(matrix(both, "cv", "prognosis")) == ""
    share = stats.missing_class(m.y, m.patient, m.fold)
    assert share > 0.01
    said = (
        f"a class is missing in {100 * share:.0f} % of the resampled test parts, whose F1 and "
        "G-mean are then not defined and in no mean over folds."
    )
    assert missing(m) == said
    notes = [a.notes for a in analysis.compare(both, 100) if a.matrix.place == m.place]
    assert f"severity, cv: {said}" in notes[0]


def test_learning_rates_are_drawn_where_they_change():
    from mdmt.plots import curves, style

    losses = {"training": [np.ones(4), np.ones(3)], "validation": [np.ones(4), np.ones(3)]}

    def drawn(*rates):
        stages = [{"title": "FT", "tasks": {"t": losses}, "rates": list(rates)}]
        with style.drawing():
            return [ax for ax in curves.learning(stages, {"t": "nats"}).axes if ax.get_visible()]

    assert len(drawn(np.full(4, 0.1), np.full(3, 0.1))) == 1
    last = drawn(np.array([0.1, 0.1, 0.05, 0.05]), np.full(3, 0.1))[-1]
    assert last.get_title() == "Learning rate"
    assert last.lines[-1].get_ydata() == pytest.approx([0.1, 0.1, 0.075, 0.05])


@pytest.mark.parametrize(
    "beta, heads, start",
    [
        (0.5, "new", "the mean of the two single-task networks"),
        (0.3, "new", "the single-task networks averaged with shares of 0.3 and 0.7"),
        (1, "keep", "the single-task networks averaged with shares of 1 and 0 with their heads"),
    ],
)
def test_the_report_says_what_mdmt_starts_from(tmp_path, beta, heads, start):
    own = {
        "A": [{"tasks": ["tau1"]}, {"tasks": ["tau2"]}, {"tasks": ["tau1"], "init": [0, 1]}],
        "B": [{"tasks": ["tau1"]}, {"tasks": ["tau2"]},
              {"tasks": ["tau1"], "init": [0, 1], "shares": [0.9, 0.1]}],
    }  # fmt: skip
    names = ["STL-tau1", "STL-tau2", "MDMT", "MDMT-beta0.25", "FT-tau2", "A", "B"]
    out = outfolder.make(tmp_path / "out", n=40, cv={"folds": 2}, configurations=names,
                         experiments=own, mdmt={"beta": beta, "heads": heads})  # fmt: skip
    report.make(out, resamples=100, figures=False, samples=False)
    page = (out / "report.html").read_text()
    more = " with their heads" if heads == "keep" else ""
    quarter = f"the single-task networks averaged with shares of 0.25 and 0.75{more}"
    assert f"starting from {start} of the same fold" in page
    assert f"starting from {quarter} of the same fold" in page
    assert (
        f"Weights: random; MDMT from {start}, MDMT-beta0.25 from {quarter}, FT-tau2 from the "
        "network of the first task, of the same fold."
    ) in page
    shares = f" with shares of {beta:g} and {1 - beta:g}" if beta != 0.5 else ""
    assert f"from mean of stages 1 and 2{shares}<" in page
    assert "from mean of stages 1 and 2 with shares of 0.9 and 0.1<" in page


@pytest.mark.parametrize(
    "configurations, title",
    [
        (["STL-tau1", "FT"], "configurations compared"),
        (["STL-tau1"], "results"),
        (["MDMT-plain"], "multi-data-set multi-task training compared"),
    ],
)
def test_the_title_is_of_what_was_trained(configurations, title, tmp_path):
    out = outfolder.make(tmp_path / "out", configurations=configurations)
    report.make(out, resamples=100, figures=False)
    assert f": {title}</title>" in (out / "report.html").read_text()
