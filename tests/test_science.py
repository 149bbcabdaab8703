"""The science check: what it draws, trains and counts, on cohorts of a few networks."""

import csv

import numpy as np
import pytest

from benchmarks import science, smallnets
from mdmt import config, nets

FEW = ("small_plain", "small_five")


@pytest.fixture(autouse=True)
def unregistered():
    """The small networks are known only here."""
    before = dict(nets.FAMILIES)
    yield
    nets.FAMILIES.clear()
    nets.FAMILIES.update(before)


@pytest.fixture
def quick(monkeypatch):
    """Two networks, one epoch, few resamples."""
    settings = {**science.STUDY["train"], "epochs": 2, "warmup_epochs": 1}
    monkeypatch.setattr(science, "STUDY", {**science.STUDY, "train": settings})
    monkeypatch.setattr(science, "RESAMPLES", 100)
    monkeypatch.setattr(science, "IMAGES", {"prognosis": 80, "severity": 100})
    monkeypatch.setattr(smallnets, "NETS", {k: smallnets.NETS[k] for k in FEW})


def test_sizes_and_prevalence_are_the_papers_scaled_down():
    severe, classes = [], np.zeros(4)
    for seed in range(30):
        _, labels, patients = science.cohort_of("prognosis", "prognosis", seed)
        assert len(labels) == 1586 // science.SCALE and len(set(patients)) < len(labels)
        severe.append(labels.mean())
    for seed in range(20):
        classes += np.bincount(science.cohort_of("severity", "severity", seed)[1], minlength=4)
    assert np.mean(severe) == pytest.approx(746 / 1585, abs=0.03)
    assert classes / classes.sum() == pytest.approx(
        np.array([1035, 1385, 1679, 596]) / 4695, abs=0.03
    )


def test_exchange_leaves_no_difference():
    """Exchanged by patient, the two sides are draws of one distribution; images of a patient go
    together."""
    patient = np.repeat(np.arange(50), 2)
    coins = np.array([science.exchange(patient, [s]) for s in range(400)])
    assert (coins[:, ::2] == coins[:, 1::2]).all()
    assert coins.mean() == pytest.approx(0.5, abs=0.02)


def test_rows_say_what_the_predictions_are():
    rng = np.random.default_rng(0)
    y, patient = rng.integers(0, 2, 60), np.arange(60) // 2
    fold = np.repeat([0, 1, 2], 20)
    ours, theirs = (np.clip(0.3 * y + 0.7 * rng.random((3, 60)), 0, 1) for _ in range(2))
    found = science.tested(y, patient, fold, ours, theirs, 0)
    mean = np.mean([[np.mean((p[fold == f] > 0.5) == y[fold == f]) for f in range(3)]
                    for p in ours], 1)  # fmt: skip
    assert found["accuracy"]["ours"] == pytest.approx(mean.mean())
    swapped = science.tested(y, patient, fold, theirs, ours, 0)
    for metric, row in found.items():
        assert row["difference"] == pytest.approx(-swapped[metric]["difference"])
        assert row["pvalue_fixed"] == pytest.approx(swapped[metric]["pvalue_fixed"])
    same = science.tested(y, patient, fold, ours, ours, 0)
    assert all(r["pvalue"] == r["pvalue_fixed"] == r["pvalue_paper"] == 1 for r in same.values())


def test_a_run_goes_on_and_refuses_other_settings(quick, tmp_path, capsys):
    path = tmp_path / "science.csv"
    whole = science.run(path, 1, say=lambda _: None)
    assert {(r["scenario"], r["against"]) for r in whole} == {
        ("shared", "STL-tau1"), ("shared", "FT"), ("shared", "STL-tau1-long"),
        ("exchanged", "STL-tau1"), ("exchanged", "FT"),
        ("unrelated", "MDMT, other data"), ("unrelated", "STL-tau1"),
    }  # fmt: skip
    # without the second kind, as if stopped between the two: the same again
    rows = [r for r in whole if r["scenario"] != "unrelated"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, science.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    said = []
    assert science.run(path, 1, say=said.append) == whole and len(said) == 1
    assert science.main(["--report", "--csv", str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 7 * len(science.METRICS) and printed[2].startswith("| shared |")
    path.write_text(path.read_text().replace(rows[0]["settings"], "00000000", 1))
    assert science.main(["--report", "--csv", str(path)]) == 2
    assert "run with other settings" in capsys.readouterr().err


def test_stages_start_where_the_experiments_say(quick):
    """MDMT starts from the mean of the two single-task networks of the same fold; the long control
    takes as many steps as all behind MDMT together; a stage that agrees is trained once."""
    smallnets.register()
    values = config.resolve(science.STUDY, "science")
    data = {
        "prognosis": science.draw("prognosis", "prognosis", 0, 32),
        "severity": science.draw("severity", "severity", 0, 32),
    }
    trainer = science.Trainer(values, science.World(data, 0), FEW[0], 0, 0)
    started = {}
    train = trainer.train

    def watched(stage, before, steps):
        found = train(stage, before, steps)
        started[tuple(stage["tasks"]), len(before), stage["steps_of"]] = (before, found[1])
        return found

    trainer.train = watched
    for name in ("STL-tau1", "FT", "MDMT", "STL-tau1-long"):
        assert trainer.probabilities(name).shape == (
            len(trainer.world.folds["prognosis"][0]["test"]),
            2,
        )
    assert len(started) == 5
    steps = {k[:2]: v[1] for k, v in started.items() if k[2] is None}
    both = ("prognosis", "severity")
    assert [len(s[0]) for s in started.values()] == [0, 0, 1, 2, 0]
    long = started[("prognosis",), 0, "MDMT"][1]
    assert long == steps[("prognosis",), 0] + steps[("severity",), 0] + steps[both, 2]


def test_shuffled_labels_keep_their_counts():
    drawn = science.draw("severity", "severity", 0, 32)
    images, labels, patients = science.shuffled(drawn, [1])
    assert images is drawn[0] and patients is drawn[2]
    assert sorted(labels) == sorted(drawn[1]) and (labels != drawn[1]).any()
