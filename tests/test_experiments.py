"""Experiments as data: jobs, their ids, what they start from."""

import copy

import numpy as np
import pytest

from mdmt import config, experiments, splits, study
from mdmt.data.table import Cases
from mdmt.errors import BadConfig, BadInput
from mdmt.paths import digest


def cohort(name, task, classes, patients=60, centers=("A", "B", "C")):
    labels = np.arange(patients) % len(classes)
    return Cases(
        name, task, list(classes), [f"{name}{i}" for i in range(patients)],
        [f"{name}-p{i}" for i in range(patients)],
        [centers[(i // len(classes)) % len(centers)] if centers else "" for i in range(patients)],
        labels, np.full(patients, np.nan), [],
    )  # fmt: skip


def setup(*overrides, name="covid_cxr"):
    values = config.load(name, ["backbones=[resnet18]", *overrides])
    cases = [
        cohort("prognosis", "prognosis", ["MILD", "SEVERE"]),
        cohort("severity", "severity", ["0", "1", "2", "3"], 80, None),
    ]
    made = splits.make(cases, values)
    return values, [(c, f"hash-{c.name}") for c in cases], made


def plan(*overrides):
    return experiments.plan(*setup(*overrides))


def by_name(jobs, fold=0, **where):
    return {
        j.label: j
        for j in jobs
        if j.description["fold"] == fold and all(j.description[k] == v for k, v in where.items())
    }


def test_four_configurations_are_four_trainings_per_fold():
    jobs = plan()
    assert len(jobs) == 4 * 5
    assert len({j.id for j in jobs}) == len(jobs)
    assert [j.reported for j in jobs[:4]] == [["STL-tau1"], ["STL-tau2"], ["FT"], ["MDMT"]]
    # the full study of the paper: 18 backbones, 5 + 6 folds, 4 configurations
    two = plan("validation=[cv, loco]", "backbones=[resnet18, resnet34]", "seeds=[0, 1]")
    assert len(two) == 4 * (5 + 3) * 2 * 2


def test_a_task_without_validation_cases_is_told_where_it_is_trained():
    values, datasets, made = setup()
    made["cv"][2]["severity"] = made["cv"][2]["severity"] | {"val": np.zeros(0, np.int64)}
    with pytest.raises(
        BadConfig, match="cv, fold 2: the validation part of data set 'severity' is"
    ):
        experiments.plan(values, datasets, made)
    assert experiments.plan(values | {"configurations": ["STL-tau1"]}, datasets, made)
    assert experiments.plan(values | {"folds": [0, 1]}, datasets, made)


def test_keys_that_came_later_change_no_job():
    """At their defaults: studies begun with an earlier version go on with the jobs they have."""
    for task in plan()[3].description["tasks"]:
        assert set(task) == {"name", "classes", "positive", "head"}
        assert set(task["head"]) == {"hidden", "dropout", "loss"}
    assert digest([j.id for j in plan("validation=[cv, loco]")])[:16] == "c7ac73f8a70705bb"
    assert digest([j.id for j in plan("tasks.severity.head.loss=mse")])[:16] == "3eb47b5e731d5ef0"


def test_a_study_begun_without_the_keys_goes_on(tmp_path):
    """Its config.yaml lacks them; one that says otherwise is another configuration."""
    values = setup()[0]
    old = copy.deepcopy(values)
    for task in old["tasks"].values():
        del task["class_weights"], task["head"]["smoothing"]
    (tmp_path / "config.yaml").write_text(config.dump(old))
    study.claim(tmp_path, values)
    with pytest.raises(BadInput, match=r"severity\.class_weights is 'none' there"):
        study.claim(tmp_path, setup("tasks.severity.class_weights=balanced")[0])


def test_recipes_are_of_their_task_alone():
    weights, smooth = "tasks.severity.class_weights=balanced", "tasks.severity.head.smoothing=0.1"
    before = by_name(plan())
    for key, found in ((weights, by_name(plan(weights))), (smooth, by_name(plan(smooth)))):
        assert found["STL-tau1"].id == before["STL-tau1"].id
        assert all(found[c].id != before[c].id for c in ("STL-tau2", "FT", "MDMT")), key
    task = by_name(plan(weights, smooth))["MDMT"].description["tasks"][1]
    assert task["class_weights"] == "balanced" and task["head"]["smoothing"] == 0.1


def test_ft_and_mdmt_start_from_the_stl_trainings_of_their_own_fold():
    jobs = plan("seeds=[0, 1]", "validation=[cv, loco]", "backbones=[resnet18, resnet34]")
    known = {j.id: j for j in jobs}
    place = ("release", "validation", "fold", "backbone", "seed")
    for job in jobs:
        for source in job.needs:
            for key in place:
                assert known[source].description[key] == job.description[key]
    found = by_name(jobs, 2, seed=1, validation="cv", backbone="resnet34")
    assert found["FT"].needs == [found["STL-tau2"].id]
    assert found["MDMT"].needs == [found["STL-tau1"].id, found["STL-tau2"].id]
    assert found["FT"].description["select"] == "prognosis"
    assert found["MDMT"].description["select"] == "prognosis"
    assert found["STL-tau2"].description["select"] == "severity"
    assert found["MDMT"].description["init"]["jobs"] == [
        [found["STL-tau1"].id, 0.5],
        [found["STL-tau2"].id, 0.5],
    ]


def test_no_job_sees_a_test_case_of_its_sources():
    """What a job tests, none of the trainings it comes from has seen."""
    jobs = plan("validation=[cv, loco]")
    known = {j.id: j for j in jobs}
    for job in jobs:
        for source in job.needs:
            for name, rows in known[source].rows.items():
                seen = {*rows["train"].tolist(), *rows["val"].tolist()}
                tested = job.rows[name]["test"].tolist() if name in job.rows else []
                assert not seen & set(tested)


def test_wanting_only_mdmt_trains_what_it_needs_and_reports_only_it():
    jobs = plan("configurations=[MDMT]", "folds=[1]")
    assert [j.reported for j in jobs] == [[], [], ["MDMT"]]
    every = plan("folds=[1]")
    assert jobs[-1].id == every[-1].id


def test_a_key_of_later_is_in_a_description_only_where_it_is_used():
    """So that what was trained before there was the key is found again."""
    for job in plan("train.lr_warmup_epochs=0", "train.schedule=plateau"):
        assert list(job.description["train"]) == [
            "epochs", "warmup_epochs", "patience", "batch_size", "lr", "betas", "eps",
            "weight_decay", "decoupled", "plateau", "augment",
        ]  # fmt: skip
    # the digest that the version without these keys gave
    assert by_name(plan())["MDMT"].id.endswith("-a4b927083a4a")
    used = by_name(plan("train.schedule=cosine", "train.lr_minimum=1e-6"))["MDMT"]
    assert used.description["train"]["schedule"] == "cosine"
    assert used.description["train"]["lr_minimum"] == 1e-6
    assert "lr_warmup_epochs" not in used.description["train"]
    stage = {"tasks": ["tau1"], "train": {"schedule": "linear", "lr_warmup_epochs": 900}}
    train = own(stage)[0].description["train"]
    assert train["schedule"] == "linear" and train["lr_warmup_epochs"] == train["epochs"] - 1


def test_an_id_depends_on_everything_that_matters_and_on_nothing_else():
    base = by_name(plan())["MDMT"].id
    same = ["train.checkpoint_seconds=5", "data.root=/x", "configurations=[MDMT]", "folds=[0]"]
    for override in same:
        assert by_name(plan(override))["MDMT"].id == base
    others = ["train.lr=0.01", "image_size=96", "mdmt.beta=0.3", "mdmt.heads=keep", "seeds=[3]",
              "cv.seed=1", "train.augment=null", "precision=fp32-direct", "data.release=2",
              "sampler.mode=balanced", "tasks.severity.head.hidden=[64]"]  # fmt: skip
    ids = [by_name(plan(o))["MDMT"].id for o in others]
    assert len({base, *ids}) == len(others) + 1


def test_a_changed_image_or_label_changes_the_ids_of_all_that_come_after():
    values, datasets, made = setup()
    before = by_name(experiments.plan(values, datasets, made))
    changed = [datasets[0], (datasets[1][0], "another-hash")]
    after = by_name(experiments.plan(values, changed, made))
    assert before["STL-tau1"].id == after["STL-tau1"].id
    for name in ("STL-tau2", "FT", "MDMT"):
        assert before[name].id != after[name].id


def test_beta_does_not_touch_the_stl_trainings():
    a, b = by_name(plan()), by_name(plan("mdmt.beta=0.9"))
    assert {n: a[n].id == b[n].id for n in a} == {
        "STL-tau1": True, "STL-tau2": True, "FT": True, "MDMT": False,
    }  # fmt: skip


def test_jobs_come_after_what_they_need_and_waves_respect_it():
    jobs = plan()
    done = set()
    for job in jobs:
        assert set(job.needs) <= done
        done.add(job.id)
    first = experiments.waves(jobs)
    assert {tuple(j.reported) for j in first} == {("STL-tau1",), ("STL-tau2",)}
    second = experiments.waves(jobs, {first[0].id, first[1].id})
    assert any(j.reported == ["MDMT"] for j in second)


def three_tasks():
    values, _, _ = setup()
    raw = copy.deepcopy(values)
    raw["tasks"]["extent"] = {"classes": ["small", "large"]}
    raw["data"]["datasets"].append({"name": "extent", "table": "e.csv", "task": "extent"})
    raw["experiments"] = {
        "ALL": [{"tasks": ["tau2"]}, {"tasks": ["tau3"]},
                {"tasks": ["tau1", "severity", "tau3"], "init": [0, 1]}]
    }  # fmt: skip
    raw["configurations"] = ["STL-tau3", "MDMT", "ALL"]
    return raw


def test_a_third_data_set_and_task_need_only_configuration():
    values = config.resolve(three_tasks())
    cases = [
        cohort("prognosis", "prognosis", ["MILD", "SEVERE"]),
        cohort("severity", "severity", ["0", "1", "2", "3"], 80, None),
        cohort("extent", "extent", ["small", "large"]),
    ]
    jobs = experiments.plan(values, [(c, c.name) for c in cases], splits.make(cases, values))
    found = by_name(jobs)
    assert [t["name"] for t in found["ALL"].description["tasks"]] == [
        "prognosis", "severity", "extent",
    ]  # fmt: skip
    assert found["STL-tau3"].id in found["ALL"].needs


@pytest.mark.parametrize(
    "stages, fragment",
    [
        ([{"tasks": ["tau1"], "init": 0}], "not before stage 0"),
        ([{"tasks": ["tau1"]}, {"tasks": ["tau1"], "init": [0]}], "must be two or more"),
        ([{"tasks": ["tau1"], "init": "weigths"}], "it must be weights"),
        ([{"tasks": ["prognose"]}], "did you mean 'prognosis'"),
    ],
)
def test_a_bad_experiment_is_one_sentence(stages, fragment):
    raw = three_tasks()
    raw["experiments"] = {"MINE": stages}
    values = config.resolve(raw)
    with pytest.raises(BadConfig, match=fragment):
        experiments.stages_of(values, "MINE")


@pytest.mark.parametrize(
    "override, fragment",
    [
        ("configurations=[MDTM]", "did you mean 'MDMT'"),
        ("folds=[5]", "no fold 5"),
        ("weights=imagenet", "weights: https://.*cannot be fetched"),
        ("weights=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(override, fragment, tmp_path, monkeypatch):
    monkeypatch.setenv("MDMT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(BadConfig, match=fragment):
        plan(override)


def test_ratio_is_cut_to_the_data_sets_of_a_stage():
    jobs = by_name(plan("sampler.mode=ratio", "sampler.ratio=[3, 1]"))
    assert jobs["MDMT"].description["sampler"]["ratio"] == [3, 1]
    assert jobs["STL-tau1"].description["sampler"]["mode"] == "union"
    with pytest.raises(BadConfig, match="3 numbers for 2"):
        plan("sampler.mode=ratio", "sampler.ratio=[3, 1, 1]")


def test_controls_are_shipped_and_start_where_they_say():
    found = by_name(plan("configurations=[MDMT, controls]"))
    mdmt, one, two = found["MDMT"], found["prognosis"], found["severity"]
    long, plain, average = found["STL-tau1-long"], found["MDMT-plain"], found["AVG"]
    assert long.description["steps_of"] == sorted([one.id, two.id, mdmt.id])
    assert set(long.needs) == {one.id, two.id, mdmt.id}
    assert long.description["init"] == one.description["init"]
    assert plain.needs == []
    assert plain.description["datasets"] == mdmt.description["datasets"]
    assert average.description["init"] == mdmt.description["init"]
    assert average.description["train"]["epochs"] == 0
    assert average.description["heads"] == "keep"
    assert set(experiments.CONTROLS) == {"STL-tau1-long", "MDMT-plain", "AVG"}


def test_a_beta_sweep_needs_only_names():
    names = "configurations=[MDMT, MDMT-beta0, MDMT-beta0.25, MDMT-beta1]"
    found = by_name(plan(names))
    shares = {n: [s for _, s in found[n].description["init"]["jobs"]] for n in found if "beta" in n}
    assert shares == {"MDMT-beta0": [0, 1], "MDMT-beta0.25": [0.25, 0.75], "MDMT-beta1": [1, 0]}
    assert by_name(plan("configurations=[MDMT-beta0.5]"))["MDMT-beta0.5"].id == found["MDMT"].id


def own(*stages):
    values, datasets, made = setup()
    raw = copy.deepcopy(values)
    raw["experiments"], raw["configurations"] = {"MINE": list(stages)}, ["MINE"]
    return experiments.plan(config.resolve(raw), datasets, made)


@pytest.mark.parametrize("init", [1, -1, -5, [0, 1]])
def test_a_stage_starts_from_one_before_it(init):
    with pytest.raises(
        BadConfig, match=r"MINE\.1\.init names stage (1|-1|-5), which is not before"
    ):
        own({"tasks": ["tau1"]}, {"tasks": ["tau1"], "init": init})


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"train": {"lr": 0}}, "MINE.0.train.lr is 0; it must be above 0"),
        ({"train": {"eps": 0}}, "MINE.0.train.eps is 0; it must be above 0"),
        ({"train": {"betas": [0.9]}}, "MINE.0.train.betas must be two numbers"),
        ({"train": {"augment": {"elastic_alpha": [3]}}}, "MINE.0.train.augment.elastic_alpha must"),
        ({"sampler": {"epoch": 0}}, "MINE.0.sampler.epoch is 0; it must be"),
    ],
)
def test_keys_of_a_stage_are_checked_as_those_of_all(changed, words):
    with pytest.raises(BadConfig, match=words):
        own({"tasks": ["tau1", "tau2"], **changed})


def test_a_stage_may_differ_in_training_sampling_weights_and_freezing():
    jobs = own(
        {"tasks": ["tau2"], "train": {"epochs": 7, "plateau": {"patience": 2}}},
        {
            "tasks": ["tau1", "tau2"],
            "init": 0,
            "freeze": True,
            "sampler": {"mode": "balanced"},
            "task_weights": {"tau1": 3},
        },
    )
    first, second = jobs[0].description, jobs[1].description
    assert first["train"]["epochs"] == 7
    assert first["train"]["plateau"] == {"patience": 2, "factor": 0.65, "minimum": 1e-8}
    assert first["train"]["lr"] == second["train"]["lr"] == 0.001
    assert second["sampler"]["mode"] == "balanced"
    assert second["task_weights"] == {"prognosis": 3}
    assert second["freeze"] is True
    assert "freeze" not in first and "task_weights" not in first


def test_three_stages_are_averaged_in_equal_shares():
    stages = [{"tasks": ["tau1"], "train": {"lr": r}} for r in (0.1, 0.2, 0.3)]
    jobs = own(*stages, {"tasks": ["tau1"], "init": [0, 1, 2]})
    assert [s for _, s in jobs[3].description["init"]["jobs"]] == [1 / 3] * 3


@pytest.mark.parametrize(
    "stages, fragment",
    [
        ([{"tasks": ["tau1"], "trian": {}}], "unknown key 'experiments.MINE.0.trian'.*'.*train'"),
        ([{"tasks": ["tau1"], "train": {"epoch": 3}}], "did you mean '.*train.epochs'"),
        ([{"tasks": ["tau1"], "task_weights": "uncertain"}], "did you mean 'uncertainty'"),
        ([{"tasks": ["tau1"], "task_weights": {"prognose": 1}}], "did you mean 'prognosis'"),
        ([{"tasks": ["tau1"], "sampler": {"mode": "ratio"}}], "sampler.ratio must be given"),
        ([{"tasks": ["tau1"], "steps_of": "MDTM"}], "did you mean 'MDMT'"),
        ([{"tasks": ["tau1"], "steps_of": "MINE"}], "name one that does not"),
        ([{"tasks": ["tau1"], "train": {"schedule": "cosin"}}], "train.schedule is 'cosin'"),
        (
            [{"tasks": ["tau1"], "train": {"schedule": "cosine", "lr_minimum": 0.1}}],
            "MINE.0.train.lr_minimum is 0.1 and lr 0.001",
        ),
        ([{"tasks": ["tau1"], "freeze": True}], "random weights that never learns"),
        (
            [{"tasks": ["tau1"]}, {"tasks": ["tau1"], "init": [0, 0], "shares": [0.5, 0.6]}],
            "2 numbers that sum to 1",
        ),
    ],
)
def test_a_bad_stage_is_one_sentence(stages, fragment):
    with pytest.raises(BadConfig, match=fragment):
        own(*stages)


def test_ft_the_other_way_round_starts_from_the_prognosis_of_its_fold():
    values = config.load("covid_cxr")
    first, second = experiments.stages_of(values, "FT-tau2")
    assert first["tasks"] == ["prognosis"]
    assert (second["tasks"], second["init"]) == (["severity"], 0)
    assert first == experiments.stages_of(values, "STL-tau1")[0], "the same training"


@pytest.mark.parametrize("name", ["MDMT-beta1.5", "MDMT-beta", "MDMT-beta-0.5", "MDMT-beta0,5"])
def test_a_beta_that_is_none_is_a_sentence(name):
    values = config.load("covid_cxr", [f"configurations=['{name}']"])
    with pytest.raises(BadConfig, match="with a number from 0 to 1, such as MDMT-beta0"):
        experiments.stages_of(values, name)


def test_weights_may_be_named_for_each_backbone(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    given = f"weights={{resnet18: random, resnet34: '{path}', unused: imagenet}}"
    values, datasets, made = setup("backbones=[resnet18, resnet34]", given)
    kinds = {"resnet18": "random", "resnet34": "file"}
    for job in experiments.plan(values, datasets, made):
        init = job.description["init"]
        if "weights" in init:
            assert init["weights"]["kind"] == kinds[job.description["backbone"]]
    assert experiments.weights_text(values) == f"random (resnet18); {path} (resnet34)"
    # The jobs are those that one value for all would make.
    alone = {j.id for j in plan("backbones=[resnet18]", "weights=random")}
    assert alone <= {j.id for j in experiments.plan(values, datasets, made)}
    with pytest.raises(BadConfig, match="'unused' is no backbone"):
        study.check_names(values)
    with pytest.raises(BadConfig, match="names no weights of the backbone 'resnet34'"):
        plan("backbones=[resnet18, resnet34]", "weights={resnet18: random}")
    with pytest.raises(BadConfig, match=r"weights\.resnet18 is"):
        plan("weights={resnet18: [1]}")
