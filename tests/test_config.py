"""Configuration: schema, overrides, sentences."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmt import config
from mdmt.errors import BadConfig


def load(*overrides, name="covid_cxr"):
    return config.load(name, overrides)


def test_shipped_configurations_hold_every_promised_key():
    promised = (
        "data.root backbones configurations validation folds image_size weights seeds "
        "train.epochs train.warmup_epochs train.patience train.batch_size train.lr "
        "train.weight_decay sampler.mode mdmt.beta precision"
    )
    assert {"demo", "covid_cxr"} <= set(config.shipped())
    for name in config.shipped():
        values = config.load(name)
        assert values["name"] == name
        if config.is_masks(values):
            continue
        for key in promised.split():
            config.get(values, key)


def test_resolved_configuration_resolves_to_itself():
    for name in config.shipped():
        values = config.load(name)
        again = config.resolve(config.read_yaml(config.dump(values), "dump"))
        assert again == values


def test_overrides_take_scalars_lists_and_items_of_lists():
    values = load(
        "train.lr=1e-3",
        "folds=[0, 2]",
        "image_size=96",
        "mdmt.beta=1",
        "data.datasets.1.table=other.csv",
        "train.augment=null",
        "data.root=a=b",
    )
    assert values["train"]["lr"] == 0.001
    assert values["folds"] == [0, 2]
    assert values["image_size"] == 96
    assert values["data"]["datasets"][1]["table"] == "other.csv"
    assert values["train"]["augment"] is None
    assert values["data"]["root"] == "a=b"


@pytest.mark.parametrize(
    "override, fragments",
    [
        ("trian.lr=3", ["'trian'", "did you mean 'train'"]),
        ("batch_size=3", ["'batch_size'", "did you mean 'train.batch_size'"]),
        ("train.epoch=3", ["'train.epoch'", "did you mean 'train.epochs'"]),
        ("train.lr=fast", ["train.lr", "'fast'", "a number"]),
        ("train.lr=0", ["train.lr", "above 0"]),
        ("train.eps=0", ["train.eps", "above 0"]),
        ("train.betas=[0.9]", ["train.betas", "two numbers"]),
        ("train.augment={elastic_alpha: [40, 20]}", ["augment.elastic_alpha", "low <= high"]),
        ("sampler.epoch=0", ["sampler.epoch is 0", "steps from 1"]),
        ("sampler={mode: ratio, ratio: [1, 0]}", ["sampler.ratio is [1, 0]", "above 0"]),
        ("seeds=[9223372036854775808]", ["seeds.0", "at most 9223372036854775807"]),
        ("train.lr=.nan", ["train.lr", "a number"]),
        ("train.lr=.inf", ["train.lr", "a number"]),
        (f"train.lr={10**400}", ["train.lr", "a number"]),
        ("train.schedule=cosin", ["train.schedule", "'cosine'"]),
        ("train.lr_minimum=1e-6", ["train.lr_minimum", "train.plateau.minimum"]),
        ("train={schedule: linear, lr_minimum: 1}", ["train.lr_minimum is 1", "lr 0.001"]),
        ("train.epochs=2.5", ["train.epochs", "2.5", "whole number"]),
        ("train.epochs=true", ["train.epochs", "whole number"]),
        ("mdmt.beta=1.5", ["mdmt.beta", "at most 1"]),
        ("image_size=8", ["image_size", "at least 32"]),
        ("tasks.severity.class_weights=balance", ["'balance'", "did you mean 'balanced'"]),
        ("tasks.severity.class_weights={mild: 2}", ["class_weights names 'mild'"]),
        ("tasks.prognosis.class_weights={MILD: -1}", ["class_weights.MILD", "at least 0"]),
        ("tasks.prognosis.class_weights={MILD: 0, SEVERE: 0}", ["gives every class 0"]),
        ("tasks.prognosis.class_weights={}", ["gives no class a weight", "leave it out"]),
        ("tasks.prognosis.head.smoothing=1", ["head.smoothing is 1", "at most 0.99"]),
        ("backbones=[]", ["backbones", "empty"]),
        ("backbones=[resnet18, resnet18]", ["backbones", "twice"]),
        ("validation=[lco]", ["validation.0", "did you mean 'loco'"]),
        ("sampler.mode=onion", ["sampler.mode", "did you mean 'union'"]),
        ("sampler.mode=ratio", ["sampler.ratio"]),
        ("sampler.epoch=short", ["sampler.epoch", "did you mean 'shortest'"]),
        ("tasks.severity.thresholds=[9, 5, 14]", ["tasks.severity.thresholds", "rising"]),
        ("tasks.prognosis.positive=SEVER", ["tasks.prognosis.positive", "'SEVERE'"]),
        ("data.datasets.0.task=prognoses", ["data.datasets.0.task", "'prognosis'"]),
        ("data.datasets.7.task=x", ["data.datasets", "2 items"]),
        ("data.clip=[98, 2]", ["data.clip"]),
        ("seeds=[-1]", ["seeds.0", "at least 0"]),
        ("image_size", ["key.sub=value"]),
        ("image_size=[1", ["not valid YAML"]),
        ("image_size.deep=3", ["image_size", "single value"]),
        ("weights=[1]", ["weights", "a list", "a text"]),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_key_and_remedy(override, fragments):
    with pytest.raises(BadConfig) as caught:
        load(override)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--set")
    for fragment in fragments:
        assert fragment in message


def test_what_is_wrong_in_the_file_is_said_of_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(config.find("demo").read_text().replace("image_size: 64", "image_size: 6"))
    for overrides in ([], ["train.epochs=3"], ["train.epoch=3"]):
        with pytest.raises(BadConfig, match=f"^{path}: image_size is 6"):
            config.load(path, overrides)
    assert config.load(path, ["image_size=96"])["image_size"] == 96


def test_short_run_has_a_shorter_warm_up():
    assert load("train.epochs=2")["train"]["warmup_epochs"] == 1
    assert load("train.epochs=2", "train.lr_warmup_epochs=9")["train"]["lr_warmup_epochs"] == 1


def test_unknown_configuration_names_the_nearest():
    with pytest.raises(BadConfig, match="did you mean 'covid_cxr'"):
        config.load("covid_cxrr")
    with pytest.raises(BadConfig, match="no such configuration file"):
        config.load("missing.yaml")


@pytest.mark.parametrize(
    "text, fragment",
    [
        ("name: a\nname: b\n", "occurs twice"),
        ("train: {lr: 1, lr: 2}\n", "occurs twice"),
        ("- a\n- b\n", "key: value"),
        ("name: [unclosed\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("? [a, b]\n: c\n", "plain text"),
        ("a: &x [*x]\n", "unknown key 'a'"),
        ("", "'tasks' is missing"),
    ],
)
def test_bad_files(tmp_path, text, fragment):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=fragment):
        config.load(str(path))


def test_yaml_cannot_run_code(tmp_path):
    witness = tmp_path / "witness"
    path = tmp_path / "c.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {witness}']\n")
    with pytest.raises(BadConfig):
        config.load(str(path))
    assert not witness.exists()


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    for last in ("image_size: *a11", "folds: *a11", "name: *a11"):
        path = tmp_path / "c.yaml"
        path.write_text("\n".join([*lines, last]))
        with pytest.raises(BadConfig) as caught:
            config.load(str(path))
        assert len(str(caught.value)) < 1000


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_yaml_or_a_sentence(text):
    try:
        config.read_yaml(text, "fuzz")
    except BadConfig as error:
        assert str(error).startswith("fuzz")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(config.flatten(config.load("covid_cxr")))),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
              st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.none())),
)  # fmt: skip
def test_any_value_is_taken_or_refused_with_a_sentence(key, value):
    raw = config.load("covid_cxr", check=False)
    node, *rest = raw, *key.split(".")
    for part in rest[:-1]:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {}) or {}
    if isinstance(node, list):
        node[int(rest[-1])] = value
    else:
        node[rest[-1]] = value
    try:
        first = config.resolve(raw)
    except BadConfig as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert config.resolve(first) == first


def test_differences_ignore_where_the_data_lies():
    a, b = load("data.root=/a"), load("data.root=/b", "train.checkpoint_seconds=1")
    assert config.differences(a, b) == []
    assert config.differences(a, load("train.lr=0.1"))[0] == ("train.lr", 0.001, 0.1)


def test_the_order_of_the_tasks_is_a_difference():
    a, b = load(), load()
    b["tasks"] = dict(reversed(b["tasks"].items()))
    assert config.differences(a, b)[0][0] == "tasks"


def test_the_schema_describes_every_key():
    text = config.describe()
    for key in ("image_size", "thresholds", "elastic_alpha", "on_bad_image", "positive"):
        assert f"{key}:" in text


def test_import_is_fast_and_light():
    code = (
        "import sys, mdmt; heavy = {'numpy', 'scipy', 'yaml', 'PIL', 'tqdm', 'matplotlib', "
        "'sklearn', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
