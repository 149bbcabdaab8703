"""Operating points: thresholds by definition, chosen on the validation part, judged on the test."""

import csv

import numpy as np
import pytest

from mdmt import analysis, engine, kinds, metrics, points, report, stats
from mdmt.analysis import points as points_
from mdmt.paths import read_json, write_json

reference = pytest.importorskip("sklearn.metrics")


def cases(seed, n=60, digits=1):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3 == 0)
    return y, np.round(np.clip(rng.normal(0.35 + 0.3 * y, 0.2), 0, 1), digits)


@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no ties"])
@pytest.mark.parametrize("seed", range(6))
def test_thresholds_are_those_of_the_roc_curve(seed, digits):
    """Of scikit-learn's curve, which calls positive from a score on."""
    y, p = cases(seed, digits=digits)
    found = points.thresholds(y, p)
    false, true, cuts = reference.roc_curve(y, p, drop_intermediate=False)
    at = {name: (np.mean(p[y] > t), np.mean(p[~y] <= t)) for name, t in found.items()}
    assert at["sensitivity"][0] >= 0.9 and at["specificity"][1] >= 0.9
    # of all cuts that are good enough, the best in the other measure
    assert at["sensitivity"][1] == pytest.approx(np.max(1 - false[true >= 0.9 - 1e-9]))
    assert at["specificity"][0] == pytest.approx(np.max(true[1 - false >= 0.9 - 1e-9]))
    assert sum(at["youden"]) == pytest.approx(1 + np.max(true - false))
    for t in found.values():
        assert t not in p  # half-way between two
        assert np.any(np.abs(cuts - t) <= np.diff(np.unique(np.append(p, (0, 1)))).max())


@pytest.mark.parametrize("p", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
def test_equal_probabilities_call_everybody_or_nobody(p):
    found = points.thresholds([1, 0], p)
    assert (np.array(p) > found["sensitivity"]).all()
    assert not (np.array(p) > found["specificity"]).any()


def test_what_has_no_thresholds():
    assert points.thresholds([1, 1], [0.1, 0.2]) == {}
    for y, p in (([1, 0], [0.1]), ([1, 0], [0.1, 1.2]), ([1, 0], [0.1, np.nan])):
        with pytest.raises(ValueError, match="both must be"):
            points.thresholds(y, p)


@pytest.mark.parametrize("seed", range(4))
def test_predictive_values_are_scikit_learns(seed):
    y, p = cases(seed)
    y, called = y.astype(int), (p > 0.5).astype(int)
    assert metrics.ppv(y, called) == pytest.approx(reference.precision_score(y, called))
    expected = reference.precision_score(y, called, pos_label=0)
    assert metrics.npv(y, called) == pytest.approx(expected)
    assert np.isnan(metrics.ppv([0, 1], [0, 0])) and np.isnan(metrics.npv([0, 1], [1, 1]))
    for name in ("ppv", "npv"):
        drawn = stats.resample(y, [(name, called)], n=50)
        assert drawn.values[0] == pytest.approx(getattr(metrics, name)(y, called))
        rows = np.random.default_rng(0).integers(0, len(y), len(y))
        found = stats.resample(y[rows], [(name, called[rows])], n=50).values[0]
        assert found == pytest.approx(getattr(metrics, name)(y[rows], called[rows]))


# Of a study ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished and reported run of two folds."""
    from tests.test_run import two_folds

    out, _ = two_folds(tmp_path_factory.mktemp("points"))
    report.make(out, resamples=200, figures=False)
    return out


def test_a_training_keeps_the_thresholds_of_its_validation_part(run):
    from mdmt.data.store import Store
    from mdmt.model import Model

    jobs = [f for f in sorted((run / "runs").iterdir()) if (f / "result.json").is_file()]
    seen = 0
    for folder in jobs:
        job, kept = read_json(folder / "job.json"), read_json(folder / "result.json")
        tasks = [t["name"] for t in job["description"]["tasks"]]
        assert set(kept.get("thresholds", {})) == {t for t in tasks if t == "prognosis"}
        if "prognosis" not in tasks:
            continue
        name = next(d["name"] for d in job["description"]["datasets"] if d["task"] == "prognosis")
        given = read_json(folder / "inputs.json")["datasets"][name]
        rows = read_json(given["rows"])["val"]
        model = Model.load(folder / "model.safetensors")
        labels = np.zeros(len(rows), np.float32)
        images = np.ascontiguousarray(Store(given["store"]).images[rows])
        model.attach([{"images": images, "task": 0, "target": labels}])
        logits = model.predict(0 * np.array(rows), np.arange(len(rows)))["prognosis"]
        p = engine.decoded(kinds.CLASSES, logits)[:, 1]  # as rounded there: some nearly agree
        classes = job["description"]["tasks"][tasks.index("prognosis")]["classes"]
        positive = np.array(read_json(given["labels"]))[rows] == classes.index("SEVERE")
        expected = points.thresholds(positive, p)
        for key, value in kept["thresholds"]["prognosis"].items():
            assert value == pytest.approx(expected[key], abs=1e-6)
        seen += 1
    assert seen


def test_the_report_judges_them_on_the_test_part(run):
    outcome = analysis.read(run)
    place = next(p for p in outcome.places if p[2] == "prognosis")
    m = analysis.compare(outcome, 200)[outcome.places.index(place)].matrix
    rows = analysis.operating_points(outcome, m, 300)
    assert [(r.configuration, r.name) for r in rows] == [
        (c, name) for c in m.configurations for name in points.POINTS
    ]
    with (run / "operating.csv").open(newline="") as stream:
        written = {(r["configuration"], r["chosen_for"], r["measure"]): r
                   for r in csv.DictReader(stream)}  # fmt: skip
    for r in rows:
        called = np.zeros(len(m.y), int)
        for f, cut in zip(m.folds, r.thresholds, strict=True):  # of one network
            mine = m.fold == f
            called[mine] = m.score(m.p[(*m.nets[0], r.configuration)])[mine] > cut
        for k, interval in r.found.items():
            expected = getattr(metrics, k)(m.target(), called)
            said = written[r.configuration, r.name, k]["value"]
            if interval is None:
                assert np.isnan(expected) and said == ""
                continue
            assert interval.estimate == pytest.approx(expected)
            assert interval.low <= interval.estimate <= interval.high
            assert float(said) == pytest.approx(expected)
    page = (run / "report.html").read_text()
    assert "operating points that each fold&#x27;s validation part chose" in page


def test_a_share_of_all_is_not_certain(run, monkeypatch):
    """Where every case is called rightly, the interval is Wilson's of the patients, by definition
    (k = n): n / (n + z^2) to 1; and 0 to z^2 / (n + z^2) of what is never right."""
    outcome = analysis.read(run)
    place = next(p for p in outcome.places if p[2] == "prognosis")
    m = analysis.compare(outcome, 200)[outcome.places.index(place)].matrix
    for right, value in ((1.0, 1), (0.0, 0)):
        for key, p in m.p.items():
            truth = np.eye(2)[m.y] if right else 1 - np.eye(2)[m.y]
            m.p[key] = truth.astype(p.dtype)
        monkeypatch.setattr(points_, "_thresholds", half_everywhere)
        for point in analysis.operating_points(outcome, m, 200):
            for k, side in (("sensitivity", 1), ("specificity", 0), ("ppv", None), ("npv", None)):
                side = {"ppv": right, "npv": 1 - right}.get(k, side)
                n = len(set(m.patient[m.target() == side]))
                low, high = (n / (n + 1.959964**2), 1) if right else (0, 3.841459 / (n + 3.841459))
                assert tuple(point.found[k]) == pytest.approx((value, low, high), abs=1e-6), k


def half_everywhere(outcome, m):
    cuts = dict.fromkeys(points.POINTS, 0.5)
    return {(*net, c, f): cuts for net in m.nets for c in m.configurations for f in m.folds}


def test_a_network_that_calls_nobody_leaves_the_others_uncertain():
    """Its predictive value is not defined; that of the other is of three patients."""
    y, patient = np.array([1, 1, 1, 0, 0, 0]), np.array(list("abcdef"))
    drawn = stats.resample(y, [("ppv", y), ("ppv", 0 * y)], patient, 200, 0)
    found = points_._interval(drawn, [0, 1], [3, 0])
    assert tuple(found) == pytest.approx(tuple(stats.wilson(3, 3)))


def test_without_thresholds_there_is_no_table(run, tmp_path):
    """As of trainings made before there were any."""
    import shutil

    old = tmp_path / "old"
    shutil.copytree(run, old)
    for path in old.glob("runs/*/result.json"):
        kept = read_json(path)
        kept.pop("thresholds", None)
        write_json(path, kept)
    (old / "operating.csv").unlink()
    made = report.make(old, resamples=100, figures=False)
    assert not (old / "operating.csv").exists()
    assert "operating.csv" not in [p.name for p in made["written"]]
    assert "validation part chose" not in (old / "report.html").read_text()
