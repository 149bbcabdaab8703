"""Groups of parameters and clipped gradients: by definition, against torch.optim, on every path."""

import copy
import pickle

import numpy as np
import pytest

import mdmt
from mdmt import _core, groups
from mdmt.errors import BadConfig, BadInput
from mdmt.model import Model
from tests import cudahost, oracle
from tests.test_model import HEADS, batch, same

gpu, no_race = cudahost.gpu, cudahost.no_race
GROUPS = {
    "backbone": {"lr": 0.1},
    "stage4.*": {"lr": 0.5, "weight_decay": 3},
    "norm": {"weight_decay": 0},
    "bias": {"weight_decay": 0},
    "conv1.0.weight": {"lr": 0},
}
HOW = {"lr": 1e-3, "weight_decay": 1e-2}
AT_ONCE = {"lr": 1e-3, "weight_decay": 1e-2, "augment": {}, "epoch": 1}


def paths():
    """Instruction sets of this build that this processor has."""
    return sorted({isa for _, isa in _core.op_kernels("add")})


def tiny(backbone="shufflenet_v2_x0_5", **options):
    return Model(backbone, **{"heads": HEADS, "image_size": 32, "seed": 3, **options})


@pytest.mark.oracle
def test_factors_of_every_parameter():
    """GROUPS by hand; which are batch normalisations says torchvision."""
    torch = oracle.need("torch")
    theirs = dict(oracle.backbone("shufflenet_v2_x0_5")[0].named_modules())
    found = groups.factors(GROUPS, tiny()._entries, "shufflenet_v2_x0_5")
    assert found.keys() == tiny()._learnt.keys()
    for key, pair in found.items():
        head, layer = key.startswith("heads."), theirs.get(key.rpartition(".")[0])
        assert head == (layer is None), key
        lr = 1 if head else 0.5 if key.startswith("stage4.") else 0.1
        decay = 3 if key.startswith("stage4.") else 1
        decay = 0 if isinstance(layer, torch.nn.BatchNorm2d) or key.endswith(".bias") else decay
        assert pair == (0 if key == "conv1.0.weight" else lr, decay), key
    assert len(set(found.values())) == 7


def trained_by_torch(model, data, steps, decoupled, clip, dtype):
    """Weights after steps of torch.optim on the gradients that the model has before each step; the
    norms before clipping. The model is trained along."""
    torch = oracle.need("torch")
    factors = groups.factors(model.groups, model._entries, model.backbone)
    weights = {k: torch.tensor(model.state_dict()[k], dtype=dtype) for k in factors}
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    rows = [
        {"params": [weights[k]], "lr": HOW["lr"] * lr, "weight_decay": HOW["weight_decay"] * decay}
        for k, (lr, decay) in factors.items()
    ]
    optimizer, norms = make(rows), []
    for _ in range(steps):
        for key, gradient in model.loss_and_gradients(*data)[1].items():
            weights[key].grad = torch.tensor(gradient, dtype=dtype)
        if clip:
            norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), clip)))
        optimizer.step()
        model.train_step(*data, **HOW, decoupled=decoupled, clip=clip)
        if clip:
            np.testing.assert_allclose(model.gradient_norms, norms[-1:], rtol=1e-5)
    return {k: v.numpy() for k, v in weights.items()}, norms


def check_against_torch(model, start, weights):
    """Each tensor's change within 1e-3, and rounding of its weights."""
    state, norm = model.state_dict(), np.linalg.norm
    for key, value in weights.items():
        moved = norm(value - start[key])
        assert norm(state[key] - value) <= 1e-3 * moved + 1e-7 * norm(value), key
        assert (moved == 0) == (key == "conv1.0.weight"), key


@pytest.mark.oracle
@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("decoupled", [False, True], ids=["L2", "decoupled"])
def test_as_param_groups_of_torch(monkeypatch, isa, decoupled):
    """On every instruction set, with and without clipping, in float64."""
    torch = oracle.need("torch")
    monkeypatch.setenv("MDMT_CPU", isa)
    for clip in (None, 0.5):
        model, data = tiny(), batch(4)
        model.groups = GROUPS
        start = model.state_dict()
        weights, norms = trained_by_torch(model, data, 2, decoupled, clip, torch.float64)
        assert all(n > 2 * clip for n in norms)  # all are clipped
        check_against_torch(model, start, weights)
        assert np.array_equal(model.state_dict()["conv1.0.weight"], start["conv1.0.weight"])


@pytest.mark.oracle
def test_as_float32_of_torch_on_a_large_network():
    torch = oracle.need("torch")
    model, data = tiny("resnet18"), batch(4)
    model.groups = {"backbone": {"lr": 0.1}, "norm": {"weight_decay": 0}, "layer4.*": {"lr": 0.5}}
    start = model.state_dict()
    weights, _ = trained_by_torch(model, data, 2, False, 5.0, torch.float32)
    check_against_torch(model, start, weights)


def test_no_group_and_groups_of_ones_are_the_same_bits():
    plain, ones, data = tiny(), tiny(), batch(4)
    ones.groups = {"backbone": {"lr": 1}, "heads": {"weight_decay": 1}, "bias": {}}
    split, whole = tiny(), tiny()
    split.groups = {"stage2.*": {"lr": 0.5}, "stage3.*": {"lr": 0.5}, "heads": {"lr": 1}}
    whole.groups = {"stage[23].*": {"lr": 0.5}}
    for _ in range(2):
        plain.train_step(*data, **HOW)
        ones.train_step(*data, **HOW, clip=1e9)
        split.train_step(*data, **HOW)
        whole.train_step(*data, **HOW)
    assert same(plain.state_dict(), ones.state_dict())
    assert same(split.state_dict(), whole.state_dict())
    assert not same(plain.state_dict(), split.state_dict())


def test_a_rate_of_zero_leaves_the_weights_and_moves_the_moments():
    model, data = tiny(), batch(4)
    model.groups = {"stage2.*": {"lr": 0}}
    start = model.state_dict()
    model.train_step(*data, **HOW)
    state, (moments, _) = model.state_dict(), model.optimizer_state()
    held = groups.named("stage2.*", model._entries)
    for key in model._learnt:
        assert np.array_equal(state[key], start[key]) == (key in held), key
        assert moments[f"{key}.m"].any(), key


def attached(model):
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (2, 6, 32, 32), np.uint8)
    model.attach([{"images": pictures[k], "task": k, "target": np.arange(6.0) % 2} for k in (0, 1)])
    return model


def rows(steps=4, n=6):
    rng = np.random.default_rng(1)
    return rng.integers(0, 2, (steps, n)), rng.integers(0, 6, (steps, n))


def in_series(model, calls, frozen=False, clip=0.5):
    """(losses, norms, weights) of rows() in calls of so many steps."""
    attached(model).groups = GROUPS
    model.freeze_backbone(frozen)
    (dataset, index), at, losses, norms = rows(), 0, [], []
    for n in calls:
        out = model.fit_steps(dataset[at : at + n], index[at : at + n], clip=clip, **AT_ONCE)
        losses.append(out[0])
        norms.append(model.gradient_norms)
        at += n
    weights = {k: v for k, v in model.state_dict().items() if k in model._learnt}
    return np.concatenate(losses), np.concatenate(norms), weights


def equal(a, b):
    return all(np.array_equal(a[i], b[i]) for i in (0, 1)) and same(a[2], b[2])


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "frozen"])
def test_steps_in_a_row_and_threads_give_the_same_bits(frozen):
    before = _core.get_num_threads()
    found = in_series(tiny(), [4], frozen)
    try:
        mdmt.set_num_threads(3)
        single = in_series(tiny(), [1, 1, 1, 1], frozen)
    finally:
        mdmt.set_num_threads(before)
    assert equal(found, single) and len(found[1]) == 4 and found[1].max() > 0.5
    start = tiny().state_dict()
    for key, value in found[2].items():
        held = key == "conv1.0.weight" or (frozen and not key.startswith("heads."))
        assert np.array_equal(value, start[key]) == held, key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(gpu, precision):
    """Recorded, in single steps and not recorded, frozen or not, as on the CPU."""
    put, _ = gpu
    for frozen in (False, True):
        put("capture", 1)
        found = in_series(tiny(device="cuda", precision=precision), [4], frozen)
        single = in_series(tiny(device="cuda", precision=precision), [1, 1, 1, 1], frozen)
        assert equal(found, single)
        put("capture", 0)
        assert equal(found, in_series(tiny(device="cuda", precision=precision), [4], frozen))
        if precision == "fp32":  # later steps go ways of their own
            cpu = in_series(tiny(), [4], frozen)
            np.testing.assert_allclose(found[1][0], cpu[1][0], rtol=1e-3)


def test_switched_between_calls_on_a_gpu(gpu):
    """A recording holds for what it was made with; what is off leaves nothing behind."""
    put, get = gpu
    choices = [({}, None), (GROUPS, None), (GROUPS, 0.5), ({}, 0.5), ({"norm": {"lr": 0}}, None)]

    def train(steps):
        model = attached(tiny(device="cuda"))
        for given, clip in choices:
            model.groups = given
            for part in np.split(np.arange(4), 4 // steps):
                model.fit_steps(*(r[part] for r in rows()), clip=clip, **AT_ONCE)
        return model.state_dict()

    recorded = train(4)
    assert get("captures") == 5
    assert same(recorded, train(2))
    put("capture", 0)
    assert same(recorded, train(4))


@pytest.mark.oracle
def test_train_step_on_a_gpu(gpu):
    model, data = tiny(device="cuda"), batch(4)
    model.groups = GROUPS
    start = model.state_dict()
    weights, _ = trained_by_torch(model, data, 2, True, 0.5, oracle.need("torch").float64)
    check_against_torch(model, start, weights)


def overflowing(device):
    """A model, and a batch whose loss is finite and whose gradient is not: the hidden layer's
    outputs are 2e-38, weights of 5e37 follow, and large features go before."""
    head = {"classes": 2, "hidden": [8], "dropout": 0.0}
    model = tiny(heads={"a": head}, device=device)
    state = model.state_dict()
    state["conv5.1.weight"][:] = 1000
    state["heads.a.0.weight"][:] = 0
    state["heads.a.0.bias"][:] = 2e-38
    state["heads.a.1.weight"][:] = np.array([[5e37], [-5e37]])
    model.load_state_dict(state)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 32, 32), np.uint8)
    model.attach([{"images": pictures, "task": 0, "target": np.ones(6)}])
    return model, (model.normalise(pictures[:4]), np.zeros(4, int), np.ones(4))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gradient_that_is_not_finite_updates_nothing(gpu, device):
    """From outside and in a series, whose first step is as it should be."""
    words = "gradient holds NaN or infinity at training step"
    model, data = overflowing(device)
    start = model.state_dict()
    loss, gradients = model.loss_and_gradients(*data)
    assert np.isfinite(loss) and not all(np.isfinite(g).all() for g in gradients.values())
    with pytest.raises(FloatingPointError, match=f"{words} 0"):
        model.train_step(*data, clip=1.0)
    zeros = np.zeros((3, 4), np.int64)
    with pytest.raises(FloatingPointError, match=f"{words} 0"):
        model.fit_steps(zeros, zeros + np.arange(4), clip=1.0)
    state = model.state_dict()
    assert all(np.array_equal(state[key], start[key]) for key in model._learnt)
    assert model.training_step == 0 and model.gradient_norms is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps_before_a_gradient_that_is_not_finite_count(gpu, device):
    model, _ = overflowing(device)
    state = model.state_dict()
    state["conv5.1.weight"][:] = 1e-3  # gradients begin small
    model.load_state_dict(state)
    rest = {"lr": 0, "weight_decay": 0}
    model.groups = {"*": rest, "conv5.1.weight": {"lr": 1, "weight_decay": 1}}
    zeros = np.zeros((4, 4), np.int64)
    with pytest.raises(FloatingPointError, match="training step 1, although the loss is finite"):
        model.fit_steps(zeros, zeros + np.arange(4), clip=1.0, lr=1e5)
    assert model.training_step == 1
    assert np.abs(model.state_dict()["conv5.1.weight"]).max() > 1e4


NETWORKS = ["resnet18", "shufflenet_v2_x0_5", "efficientnet_b0"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_pads_the_gradients_does_not_count(gpu, device, name):
    """Heads of 3 and 2 outputs, 24 channels and so on: the norm is that of the gradients alone."""
    model, data = tiny(name, heads={"a": 2, "b": 4}, device=device), batch(2)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum()
                       for g in model.loss_and_gradients(*data)[1].values()))  # fmt: skip
    model.train_step(*data, clip=1.0)
    np.testing.assert_allclose(model.gradient_norms, [norm], rtol=1e-6)


def test_copies_pickles_and_files_keep_the_groups(tmp_path):
    model, data = tiny(), batch(4)
    model.groups = GROUPS
    model.train_step(*data, **HOW)
    model.save(tmp_path / "whole.safetensors", optimizer=True)
    model.save(tmp_path / "weights.safetensors")
    loaded = Model.load(tmp_path / "whole.safetensors")
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]
    assert "stage4.*: lr x 0.5, weight decay x 3; norm: weight decay x 0" in repr(model)
    assert Model.load(tmp_path / "weights.safetensors").groups == {}
    model.train_step(*data, **HOW)
    for twin in twins:
        assert twin.groups == GROUPS
        twin.train_step(*data, **HOW)
        assert same(twin.state_dict(), model.state_dict())
    given = model.groups
    given["backbone"]["lr"] = 7  # a copy
    assert model.groups == GROUPS and "groups" not in repr(tiny())


BAD = [
    (
        {"stage5.*": {"lr": 1}},
        r"'stage5.\*' names no parameter of shuff.*; did you mean 'stage",
    ),
    ({"stage4": {"lr": 1}}, r"did you mean 'stage4.\*'"),
    ({"Heads": {"lr": 1}}, "did you mean 'heads'"),
    ({"heads": {"rate": 1}}, "gives 'rate'; a group has factors of lr and weight_decay"),
    ({"heads": {"lr": -1}}, "must be a number from 0, not -1"),
    ({"heads": {"lr": float("nan")}}, "must be a number from 0"),
    ({"heads": {"lr": True}}, "must be a number from 0"),
    ({"heads": 0.1}, "must give a dictionary"),
    ([("heads", 1)], "must be a dictionary"),
]


@pytest.mark.parametrize("given, words", BAD)
def test_bad_groups_are_refused_and_change_nothing(given, words):
    model = tiny()
    model.groups = GROUPS
    with pytest.raises(ValueError, match=words):
        model.groups = given
    assert model.groups == GROUPS


def test_more_groups_than_the_engine_has():
    model = Model("densenet121", {"a": 2}, image_size=32)
    keys = list(model._learnt)
    with pytest.raises(ValueError, match="different pairs of factors; at most 256"):
        model.groups = {k: {"lr": n + 2} for n, k in enumerate(keys)}
    model.groups = {k: {"lr": n + 2} for n, k in enumerate(keys[:255])}


@pytest.mark.parametrize("clip", [0, -1, float("inf"), float("nan"), "1"])
def test_bad_clips_are_refused(clip):
    with pytest.raises(ValueError, match="clip must be a number above 0"):
        tiny().train_step(*batch(2), clip=clip)


# In studies ----------------------------------------------------------------------------------

RECIPE = {"groups": {"backbone": {"lr": 0.3}, "bias": {"weight_decay": 0}}, "clip_norm": 2.0}


def test_a_training_is_resumed_within_an_epoch_to_the_same_bits(tmp_path):
    from tests import test_engine

    history = test_engine.stopped_and_resumed(tmp_path, **RECIPE)
    assert all(row["grad_norm"] > 0 for row in history)
    plain = test_engine.fit(epochs=1)
    assert "grad_norm" not in plain.run().history[0]
    norms = []
    again = test_engine.fit(
        epochs=1, progress=lambda state, loss: norms.extend(again.model.gradient_norms), **RECIPE
    )
    assert again.run().history[0]["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-12)


def test_a_pattern_that_names_nothing_stops_a_training():
    from tests import test_engine

    with pytest.raises(BadInput, match=r"^train.groups: 'layer5' names no .* did you mean 'layer"):
        test_engine.fit(groups={"layer5": {"lr": 1}})


def test_descriptions_have_the_groups_that_name_something_in_them():
    from tests.test_experiments import by_name, own, plan

    given = "train.groups={backbone: {lr: 0.1}, heads.severity.*: {lr: 2}, layer4.*: {lr: 0.5}}"
    found = by_name(plan(given, "train.clip_norm=1", "backbones=[resnet18]"))
    groups_of = {name: job.description["train"]["groups"] for name, job in found.items()}
    assert groups_of["STL-tau1"] == {"backbone": {"lr": 0.1}, "layer4.*": {"lr": 0.5}}
    assert list(groups_of["MDMT"]) == ["backbone", "heads.severity.*", "layer4.*"]
    assert found["MDMT"].description["train"]["clip_norm"] == 1
    only = "train.groups={heads.severity.*: {lr: 2}}"
    assert by_name(plan(only))["STL-tau1"].id == by_name(plan())["STL-tau1"].id
    two = plan(given, "backbones=[resnet18, densenet121]")
    dense = [j.description for j in two if j.description["backbone"] == "densenet121"]
    assert not any("layer4.*" in d["train"]["groups"] for d in dense)
    stages = [
        {"tasks": ["tau1"], "train": {"groups": {"norm": {"weight_decay": 0}}, "clip_norm": 3}},
        {"tasks": ["tau1"], "init": 0},
    ]
    first, second = (job.description["train"] for job in own(*stages)[:2])
    assert first["groups"] == {"norm": {"weight_decay": 0}} and first["clip_norm"] == 3
    assert "groups" not in second and "clip_norm" not in second


@pytest.mark.parametrize(
    "override, fragment",
    [
        ("train.groups={layer5.*: {lr: 2}}", r"train.groups: 'layer5.\*' names no parameter of a"),
        ("train.groups={heads.prognose.*: {lr: 2}}", r"did you mean 'heads.prognosis"),
        ("train.groups={heads: {lr: -2}}", "train.groups.heads.lr is -2; it must be at least 0"),
        ("train.groups={heads: {rate: 2}}", "unknown key 'train.groups.heads.rate'"),
        ("train.clip_norm=0", "train.clip_norm is 0; it must be at least"),
    ],
)
def test_a_bad_recipe_is_one_sentence(override, fragment):
    from tests.test_experiments import own, plan

    with pytest.raises(BadConfig, match=fragment):
        plan(override)
    if "layer5" in override:
        with pytest.raises(BadConfig, match=r"experiments.MINE.0.train.groups: 'layer5.\*'"):
            own({"tasks": ["tau1"], "train": {"groups": {"layer5.*": {"lr": 2}}}})


def test_the_report_names_them():
    from mdmt import config
    from mdmt.report import recipe

    values = config.load("demo")
    assert recipe.optimiser(values) == ""
    values["train"].update(RECIPE)
    stages = [{"train": None}, {"train": {"groups": {}, "clip_norm": 3}}, {"train": {"lr": 1}}]
    values["experiments"] = {"MINE": stages, "NOT-RUN": stages}
    values["configurations"] = ["MDMT", "MINE"]
    assert recipe.optimiser(values) == (
        ", factors by parameters (backbone: lr x 0.3; bias: weight decay x 0), gradients clipped "
        "to a norm of 2 (in stage 1 of MINE, no factors by parameters, gradients clipped to a norm "
        "of 3)"
    )
