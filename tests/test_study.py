"""Whole studies without training: the paper's graph, its cost, reading 2,376 finished runs."""

import json
import subprocess
import time
import types
from collections import Counter

import numpy as np
import pytest

from mdmt import config, experiments, results, splits
from mdmt.data.table import Cases
from mdmt.errors import BadConfig, BadInput
from mdmt.runner import display, estimate, slurm, sweep
from mdmt.study import check_same_data, claim, split_record
from mdmt.system import peak_memory

PATIENTS = {"1": 820, "2": 1104, "3": 1586}


def cohort(name, task, classes, count, centers):
    labels = (np.arange(count) * 7 + np.arange(count) // 5) % len(classes)
    return Cases(
        name, task, list(classes), [f"{name}{i}" for i in range(count)],
        [f"{name}-p{i}" for i in range(count)], [centers[i % len(centers)] for i in range(count)],
        labels, np.full(count, np.nan), [],
    )  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    """The paper's configuration on cohorts of its sizes: (values, {release: (cases, splits)})."""
    values = config.load("paper", ["weights=random"])
    severity = cohort("BRIXIA", "severity", "0123", 4703, ["AGFA", "CARESTREAM", "SIEMENS"])
    releases, memo = {}, {}
    for name, count in PATIENTS.items():
        cases = [cohort("AIforCOVID", "prognosis", ["MILD", "SEVERE"], count, "ABCDEF"), severity]
        releases[name] = (cases, splits.make(cases, values, memo))
    return values, releases


def planned(values, releases):
    jobs = []
    for name, (cases, made) in releases.items():
        jobs += experiments.plan(values, [(c, f"hash-{c.name}-{name}") for c in cases], made, name)
    return jobs


@pytest.fixture(scope="module")
def jobs(paper):
    return planned(*paper)


def test_the_papers_study_is_2376_trainings_planned_in_two_seconds(paper):
    best = float("inf")
    for _ in range(3):  # other work runs beside it
        begin = time.process_time()
        jobs = planned(*paper)
        best = min(best, time.process_time() - begin)
    assert len(jobs) == len({j.id for j in jobs}) == 3 * 18 * (5 + 6) * 4 == 2376
    assert best < 2


def test_every_source_is_of_the_same_place(jobs):
    known = {j.id: j for j in jobs}
    place = ("release", "validation", "fold", "backbone", "seed")
    count = 0
    for job in jobs:
        for source in job.needs:
            count += 1
            assert all(known[source].description[k] == job.description[k] for k in place)
    assert count == 3 * 18 * 11 * 3


def test_the_graph_runs_every_job_once_and_after_its_sources(jobs):
    graph, done = sweep.Graph(jobs, ()), []
    begin = time.process_time()
    while graph.left:
        job = graph.take()
        assert set(job.needs) <= set(done)
        done.append(job.id)
        graph.finish(job.id)
    assert time.process_time() - begin < 2
    assert sorted(done) == sorted(j.id for j in jobs)


def test_a_failed_job_takes_only_what_needs_it(jobs):
    some = jobs[:8]  # two folds' worth of four configurations
    graph = sweep.Graph(some, ())
    lost = graph.fail(some[1].id)  # STL-tau2
    assert sorted(lost) == sorted([some[2].id, some[3].id])
    assert graph.left == 5
    seen = []
    while (job := graph.take()) is not None:
        seen.append(job.id)
        if job.id != some[1].id:
            graph.finish(job.id)
    assert some[2].id not in seen
    assert some[4].id in seen


def test_two_failed_sources_lose_a_job_once(jobs):
    some = jobs[:4]
    graph = sweep.Graph(some, ())
    assert sorted(graph.fail(some[1].id)) == sorted([some[2].id, some[3].id])
    assert graph.fail(some[0].id) == []
    assert graph.left == 0


class Pretended:
    """Executor that finishes every training at once, or kills it."""

    workers = 4

    def __init__(self, runs, deaths=()):
        self.runs, self.deaths, self.events, self.started = runs, dict(deaths), [], []

    def free(self):
        return self.workers - len(self.events)

    def start(self, job, folder):
        self.started.append(job.id)
        if self.deaths.get(job.id, 0) > 0:
            self.deaths[job.id] -= 1
            self.events.append((job.id, {"event": "exit", "code": -9, "words": ""}))
            return
        finish(folder, job)
        self.events.append((job.id, {"event": "exit", "code": 0}))

    def poll(self, seconds):
        found, self.events = self.events, []
        return found

    def stop(self):
        pass

    close = stop


def finish(folder, job, tested=24):
    """What a finished training leaves, with made-up predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    d = job.description
    lines = ["dataset,task,row,label,predicted,p0,p1,p2,p3"]
    for part in d["datasets"]:
        classes = next(t["classes"] for t in d["tasks"] if t["name"] == part["task"])
        for row in job.rows[part["name"]]["test"][:tested].tolist():
            label, guess = classes[row % len(classes)], classes[row * 3 % len(classes)]
            p = [f"{0.4 if c == guess else 0.6 / (len(classes) - 1):.9f}" for c in classes]
            cells = p + [""] * (4 - len(p))
            head = [part["name"], part["task"], str(row), label, guess]
            lines.append(",".join([*head, *cells]))
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    result = {
        "version": "0", "epochs": 1, "best_epoch": 0, "images": 100, "resumed": 0, "steps": 3,
        "val_loss": 0.5, "seconds": 1.0, "cpu": ["avx2"],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def study_of(values, releases, jobs):
    made = [types.SimpleNamespace(name=n, cases=c, splits=s) for n, (c, s) in releases.items()]
    return types.SimpleNamespace(values=values, releases=made, jobs=jobs)


def test_2376_trainings_cost_the_coordinator_little(paper, jobs, tmp_path):
    """Scheduling, then reading the folder: seconds, and less than 50 MB more."""
    values, releases = paper
    warm = study_of(values, releases, jobs[:4])
    ended = sweep.run(warm.jobs, tmp_path / "warm" / "runs", lambda job: {}, Pretended(tmp_path))
    results.collect(warm, tmp_path / "warm", set(ended.done))  # imports are not counted
    before = peak_memory()
    begin = time.process_time()
    where = Pretended(tmp_path)
    outcome = sweep.run(jobs, tmp_path / "runs", lambda job: {}, where, quiet=True)
    spent = time.process_time() - begin
    assert len(outcome.done) == len(set(outcome.done)) == 2376
    assert len(where.started) == 2376
    assert spent < 2376 * 0.02  # 20 ms a training, of which finish() here takes a part
    begin = time.process_time()
    again = sweep.run(jobs, tmp_path / "runs", lambda job: {}, Pretended(tmp_path), quiet=True)
    assert len(again.done) == 2376
    study = study_of(values, releases, jobs)
    found = results.collect(study, tmp_path, set(again.done))
    assert time.process_time() - begin < 20
    assert len(found) == 3 * 18 * 11 * 5
    grown = peak_memory() - before
    assert grown < 50 * 2**20
    with open(tmp_path / "predictions.csv") as stream:
        assert sum(1 for _ in stream) == 1 + 24 * len(found)


def test_a_training_that_dies_is_tried_again_and_a_poison_one_fails_alone(jobs, tmp_path):
    some = jobs[:4]
    deaths = {some[0].id: 2, some[1].id: 99}
    where = Pretended(tmp_path, deaths)
    outcome = sweep.run(some, tmp_path / "runs", lambda job: {}, where, quiet=True, retries=2)
    assert outcome.done == [some[0].id]
    assert where.started.count(some[0].id) == where.started.count(some[1].id) == 3
    message, code = outcome.failed[some[1].id]
    assert "SIGKILL" in message and "tried 3 times" in message and code == 1
    assert f"because {some[1].id} failed" in outcome.failed[some[2].id][0]
    error = json.loads((tmp_path / "runs" / some[1].id / "error.json").read_text())
    assert error["message"] == message


def test_splits_of_several_releases_name_them(paper, tmp_path):
    values, releases = paper
    record = split_record(study_of(values, releases, []))
    folds = record["validation"]["loco"]
    assert [(f["release"], f["fold"]) for f in folds[:7]] == [
        *(("1", i) for i in range(6)), ("2", 0),
    ]  # fmt: skip
    (tmp_path / "splits.json").write_text(json.dumps(record))
    check_same_data(tmp_path, record)
    assert splits.read(tmp_path / "splits.json") == record


def test_levels_of_an_array_hold_what_earlier_levels_allow(jobs):
    first, second = slurm.levels_of(jobs)
    assert len(first) == len(second) == 1188
    done = {j.id for j in first}
    assert all(set(j.needs) <= done for j in second)


def test_what_is_the_same_training_in_another_place_is_made_once(paper):
    """BRIXIA does not change from release to release, and its three groups of makers are gone
    through twice in the six folds of loco: 2 of 3 cv trainings and 5 of 6 loco ones are copies."""
    values, releases = paper
    jobs = []
    for name, (cases, made) in releases.items():
        known = [(cases[0], f"hash-{name}"), (cases[1], "hash")]
        jobs += experiments.plan(values, known, made, name)
    names = [j.id for j in jobs]
    before = {j.id: list(j.needs) for j in jobs}
    experiments.share(jobs)
    assert [j.id for j in jobs] == names and len(names) == 2376
    by_id = {j.id: j for j in jobs}
    copies = [j for j in jobs if j.twin]
    assert Counter(j.label for j in copies) == {"STL-tau2": 18 * (2 * 5 + 3 * 6 - 3)}
    for job in copies:
        source = by_id[job.twin]
        assert job.needs == [source.id] and source.twin is None
        for key, value in job.description.items():
            assert key in experiments.PLACE or source.description[key] == value
        for name, parts in job.rows.items():
            assert all(np.array_equal(parts[p], source.rows[name][p]) for p in parts)
    assert all(j.needs == before[j.id] for j in jobs if not j.twin)
    assert estimate.size(jobs).splitlines() == [
        "2232 dependencies, chains of at most 3, 450 the same training as another and copied",
        "2376 jobs",
    ]
    images = display.expected_images(jobs)
    assert all((images[j.id] == 0) == (j.twin is not None) for j in jobs)


def test_copies_of_copies_and_what_starts_from_them():
    """Chains are compared by what they are made of, not by the names of their parts."""

    def job(name, fold, needs=(), **more):
        made = {"jobs": [[n, 1.0] for n in needs]} if needs else {"weights": "random"}
        return experiments.Job(name, "", {"fold": fold, "init": made, **more}, {}, list(needs))

    jobs = [job("a", 0), job("b", 1), job("c", 0, ["a"]), job("d", 1, ["b"]),
            job("e", 2, seed=1), job("f", 2, ["e"]),
            job("g", 0, steps_of=["b", "f"]), job("h", 1, steps_of=["a", "f"])]  # fmt: skip
    experiments.share(jobs)
    assert {j.id: j.twin for j in jobs if j.twin} == {"b": "a", "d": "c", "h": "g"}
    assert jobs[3].needs == ["c"]


def test_time_is_estimated_from_a_measured_step(paper, jobs, tmp_path):
    values = config.load("covid_cxr", ["train.batch_size=4", "image_size=32"])
    own = [j for j in jobs if j.description["backbone"] == "resnet18"][:4]
    text = estimate.estimate(values, own, tmp_path, 2)
    assert "resnet18" in text and "img/s" in text
    assert "time    about" in text and "where nothing else runs" in text and "2 at a time" in text
    assert "memory  " in text and "disk    about" in text
    assert estimate.size(jobs).splitlines() == [
        "1782 dependencies, chains of at most 2",
        "2376 jobs",
    ]
    assert estimate.listing(jobs).split() == [
        word for name in ("STL-tau1", "STL-tau2", "FT", "MDMT") for word in ("594", name)
    ]


def test_a_large_sweep_is_quiet_where_there_is_no_terminal(jobs, capsys, monkeypatch):
    totals = dict.fromkeys((j.id for j in jobs), 100)
    view = display.Display(jobs, totals, 0, quiet=False)
    result = {"images": 100, "resumed": 0, "epochs": 1, "best_epoch": 0, "seconds": 1.0,
              "val_loss": 0.25}  # fmt: skip
    for job in jobs[:50]:
        view.started(job)
        view.finish(job, result)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(display, "EVERY", 0.0)
    view.started(jobs[60])
    view.finish(jobs[50], result)
    line = capsys.readouterr().err
    assert "51/2376 done, 1 running, 2324 waiting; " in line
    assert "img/s, about " in line and "best prognosis validation loss 0.250" in line
    view.fail(jobs[60], "a sentence")
    assert "FAILED: a sentence" in capsys.readouterr().err
    view.close()


def test_a_run_of_another_version_is_a_sentence(tmp_path):
    values = config.load("covid_cxr")
    (tmp_path / "config.yaml").write_text(config.dump(values))
    (tmp_path / "environment.json").write_text('{"mdmt": "0.0.1"}')
    with pytest.raises(BadInput, match=r"begun with mdmt 0\.0\.1 and this is .*--mix-versions"):
        claim(tmp_path, values)
    claim(tmp_path, values, mix=True)


def test_a_run_of_before_a_key_existed_is_still_the_same(tmp_path):
    values = config.load("covid_cxr")
    older = {k: v for k, v in values.items() if k != "cluster"}
    older["mdmt"] = {k: v for k, v in values["mdmt"].items() if k != "task_weights"}
    (tmp_path / "config.yaml").write_text(config.dump(older))
    claim(tmp_path, values)
    with pytest.raises(BadInput, match=r"mdmt\.beta is 0\.5 there and 0\.25 here"):
        claim(tmp_path, config.load("covid_cxr", ["mdmt.beta=0.25"]))


def test_the_papers_backbones_must_be_known(paper):
    from mdmt.nets import backbones
    from mdmt.study import check_names

    values, _ = paper
    absent = [b for b in values["backbones"] if b not in backbones()]
    if absent:
        with pytest.raises(BadConfig, match=f"backbones: '{absent[0]}' is unknown"):
            check_names(values)
    else:
        check_names(values)
    assert len(values["backbones"]) == 18


def test_several_releases_of_the_papers_data_are_one_study(tmp_path):
    """Replicas of both data sets as downloaded, two releases, one fold, the smallest network."""
    from tests import replicas, sweeps

    replicas.make_aiforcovid(tmp_path / "AIforCOVID", counts=(48, 24, 24), size=48)
    replicas.make_brixia(tmp_path / "BRIXIA", count=60, size=48)
    wanted = {
        "data.root": tmp_path, "data.store": tmp_path / "store", "data.releases": "['1', '3']",
        "data.crop": "whole", "weights": "random", "image_size": 32, "train.epochs": 1,
        "train.batch_size": 8,
        "backbones": "[shufflenet_v2_x0_5]", "configurations": "[STL-tau2, FT]",
        "validation": "[cv]", "folds": "[0]",
    }  # fmt: skip
    line = sweeps.command("paper", "--out", tmp_path / "out")
    line += [a for k, v in wanted.items() for a in ("--set", f"{k}={v}")]
    done = subprocess.run(line, env=sweeps.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "releases 1, 3" in done.stderr
    assert "prognosis, release 1, cv" in done.stdout
    found = sweeps.rows(tmp_path / "out" / "results.csv")
    assert [(r["release"], r["configuration"]) for r in found] == [
        ("1", "STL-tau2"), ("1", "FT"), ("3", "STL-tau2"), ("3", "FT"),
    ]  # fmt: skip
    assert int(found[3]["n"]) > int(found[1]["n"])
    jobs = {(r["release"], r["configuration"]): r["job"] for r in found}
    for release in "13":
        text = (tmp_path / "out" / "runs" / jobs[release, "FT"] / "job.json").read_text()
        init = json.loads(text)["description"]["init"]
        assert init == {"jobs": [[jobs[release, "STL-tau2"], 1.0]]}


def test_results_are_in_the_order_of_the_configuration(jobs, paper):
    values, releases = paper
    turned = {**values, "backbones": values["backbones"][::-1]}
    some = [j for j in jobs if j.description["release"] == "2" and j.description["fold"] == 0]
    entries = results._entries(study_of(turned, releases, some), {j.id for j in some})
    assert len(entries) == len(some) * 5 // 4
    assert list(dict.fromkeys(p["backbone"] for p, _, _ in entries)) == turned["backbones"]
    assert list(dict.fromkeys(p["validation"] for p, _, _ in entries)) == ["cv", "loco"]
    one = [(p["configuration"], t["name"]) for p, t, _ in entries[:5]]
    assert one == [
        ("STL-tau1", "prognosis"), ("STL-tau2", "severity"), ("FT", "prognosis"),
        ("MDMT", "prognosis"), ("MDMT", "severity"),
    ]  # fmt: skip


def left_weights(runs):
    return {p.parent.name for p in runs.glob("*/model.safetensors")}


def test_weights_that_nothing_needs_any_more_are_deleted_where_asked(jobs, tmp_path):
    some = jobs[:8]
    where = Pretended(tmp_path, {some[2].id: 99})  # FT of the first place fails
    where.workers = 1
    outcome = sweep.run(some, tmp_path / "runs", lambda job: {}, where, quiet=True, keep=False)
    assert list(outcome.failed) == [some[2].id]
    assert left_weights(tmp_path / "runs") == {some[1].id}, "FT, which failed, still needs it"
    where = Pretended(tmp_path)
    outcome = sweep.run(some, tmp_path / "runs", lambda job: {}, where, quiet=True, keep=False)
    assert where.started == [some[2].id]
    assert sorted(outcome.done) == sorted(j.id for j in some)
    assert left_weights(tmp_path / "runs") == set()


def test_deleted_weights_that_are_needed_again_are_trained_again(jobs, tmp_path):
    some, runs = jobs[:4], tmp_path / "runs"
    first = some[:2]  # the single tasks alone
    sweep.run(first, runs, lambda job: {}, Pretended(tmp_path), quiet=True, keep=False)
    assert left_weights(runs) == set()
    again = Pretended(tmp_path)
    sweep.run(first, runs, lambda job: {}, again, quiet=True, keep=False)
    assert again.started == []
    where = Pretended(tmp_path)
    outcome = sweep.run(some, runs, lambda job: {}, where, quiet=True)
    assert where.started == [j.id for j in some]
    assert sorted(outcome.done) == sorted(j.id for j in some)
    assert left_weights(runs) == {j.id for j in some}


def test_a_sweep_notes_what_it_cost(jobs, tmp_path):
    sweep.run(jobs[:4], tmp_path / "runs", lambda job: {}, Pretended(tmp_path), quiet=True)
    sweep.run(jobs[:4], tmp_path / "runs", lambda job: {}, Pretended(tmp_path), quiet=True)
    lines = (tmp_path / "sweeps.jsonl").read_text().splitlines()
    assert len(lines) == 1, "a sweep that starts nothing notes nothing"
    noted = json.loads(lines[0])
    assert (noted["jobs"], noted["done"], noted["processes"], noted["slots"]) == (4, 4, 4, 4)
    assert noted["images"] == 400
    assert 0 < noted["coordinator_seconds"] < 5
    assert noted["coordinator_bytes"] > 10 << 20


def test_the_table_at_the_end_has_room_for_every_backbone(paper):
    values, _ = paper
    rows = [
        {"release": "1", "validation": "cv", "task": "severity", "fold": 0, "seed": 0,
         "backbone": b, "configuration": "MDMT", "accuracy": 0.5, "f1": 0.5, "gmean": 0.5,
         "auc": 0.5}
        for b in values["backbones"]
    ]  # fmt: skip
    text = results.final_table(rows, values)
    assert "efficientnet_b1_pruned  MDMT  " in text
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len({len(line) for line in lines}) == 1


def test_the_table_at_the_end_has_room_for_every_name_and_takes_no_more():
    demo_values = config.load("demo")
    long = "JOINT-FROM-SEVERITY-WITH-UNCERTAINTY"
    rows = [
        {"release": "1", "validation": "cv", "task": "prognosis", "fold": fold, "seed": 0,
         "backbone": "resnet18", "configuration": c, "accuracy": 0.5, "f1": 0.5, "gmean": 0.5,
         "auc": 0.5}
        for c in ("STL-tau1", long) for fold in (0, 1)
    ]  # fmt: skip
    text = results.final_table(rows, demo_values)
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len({len(line) for line in lines}) == 1 and f" {long}  50.0 ± 0.0" in text
    text = results.final_table([r for r in rows if r["configuration"] != long], demo_values)
    assert max(map(len, text.splitlines())) <= 79
    demo_values["tasks"]["prognosis"]["classes"][1] = "a very long name of a positive class"
    demo_values["tasks"]["prognosis"]["positive"] = "a very long name of a positive class"
    assert "  F1 of a very long name of\u2026  " in results.final_table(rows, demo_values)
