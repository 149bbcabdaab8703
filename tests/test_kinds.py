"""The kinds of tasks: configuration, labels of a table, texts, metrics, and what training makes of
numbers and findings."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmt import config, engine, kinds, metrics, splits, stats
from mdmt.data import labels, table
from mdmt.errors import BadConfig, BadData, BadInput, Interrupted
from mdmt.model import Model
from mdmt.stats import _weighted

ABC = ["Edema", "Mass", "Nodule"]


def task(loss="ce", **more):
    return {"classes": [], "labels": None, "thresholds": None, "positive": None,
            "head": {"hidden": [], "dropout": 0.0, "loss": loss}, **more}  # fmt: skip


# Configuration ------------------------------------------------------------------------------------


def study(spec, columns=None):
    return {
        "tasks": {"t": spec},
        "data": {"datasets": [{"name": "d", "table": "d.csv", "task": "t",
                               "columns": columns or {}}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "the key 'tasks.t.classes' is missing; set it"),
        ({"classes": ["a"]}, "classes has one class; give at least two"),
        ({"head": {"loss": "huber"}}, "tasks.t.head.loss is 'huber'"),
        ({"classes": ["a", "b"], "head": {"loss": "mse"}}, "classes is given, but its loss mse"),
        ({"labels": {"a": "b"}, "head": {"loss": "mse"}}, "labels is given, but its loss mse"),
        ({"positive": "a", "head": {"loss": "mse"}}, "positive is given, but its loss mse"),
        (
            {"class_weights": "balanced", "head": {"loss": "mse"}},
            "class_weights is given, but its loss mse learns a number",
        ),
        ({"head": {"loss": "mse", "smoothing": 0.1}}, "its loss mse has no target that is spread"),
        (
            {"classes": ["a", "b"], "head": {"loss": "ordinal", "smoothing": 0.1}},
            "its loss ordinal has no target that is spread over classes",
        ),
        ({"thresholds": [5], "head": {"loss": "mse"}}, "thresholds makes 2 classes of the number;"),
        (
            {"thresholds": [5], "classes": ["a", "b", "c"], "head": {"loss": "mse"}},
            r"thresholds is \[5\]; it must be 2 rising numbers",
        ),
        ({"head": {"loss": "bce"}}, "the key 'tasks.t.classes' is missing"),
        (
            {"classes": ABC, "thresholds": [1, 2], "head": {"loss": "bce"}},
            "thresholds is given, but its loss bce",
        ),
        ({"classes": ["a;b"], "head": {"loss": "bce"}}, "'a;b' must not be empty, hold ;"),
        ({"classes": ["No finding"], "head": {"loss": "bce"}}, "without any finding has; leave"),
    ],
)
def test_a_contradiction_is_one_sentence(spec, sentence):
    with pytest.raises(BadConfig, match=sentence) as error:
        config.resolve(study(spec))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "columns", "sentence"),
    [
        ({"classes": ["a", "b"]}, {"findings": {"a": "x"}}, "findings is given, but the task 't'"),
        ({"classes": ABC, "head": {"loss": "bce"}}, {"second": "x"}, "second is given, but the"),
        (
            {"classes": ABC, "head": {"loss": "bce"}},
            {"findings": {"Edma": "x"}},
            "findings names 'Edma'; did you mean 'Edema'",
        ),
        (
            {"classes": ABC, "head": {"loss": "bce"}},
            {"findings": {"Edema": "x"}},
            "findings names no column of 'Mass'",
        ),
    ],
)
def test_columns_go_with_the_kind(spec, columns, sentence):
    with pytest.raises(BadConfig, match=sentence):
        config.resolve(study(spec, columns))


def test_the_loss_says_the_kind():
    losses = {"ce": kinds.CLASSES, "ordinal": kinds.CLASSES, "mse": kinds.NUMBER,
              "bce": kinds.FINDINGS}  # fmt: skip
    assert {k: kinds.kind_of(task(k)) for k in losses} == losses
    assert kinds.outputs(task("mse", classes=["a", "b"], thresholds=[1])) == 1
    assert kinds.head_of(task("bce", classes=ABC))["classes"] == 3


# Labels -------------------------------------------------------------------------------------------


def read(tmp_path, spec, columns, rows, name="t.csv"):
    """Cases of a table of `rows` (lists of text, the first is the header)."""
    (tmp_path / "images").mkdir(exist_ok=True)
    at = rows[0].index("image")
    for row in rows[1:]:
        (tmp_path / "images" / f"{row[at]}.png").touch()
    with open(tmp_path / name, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    full = config.resolve(study(spec, columns))
    one = {**full["data"]["datasets"][0], "table": name}
    return table.read_cases(one, full["tasks"]["t"], tmp_path)


NUMBERS = [["image", "patient", "label"], ["a", "1", "7"], ["b", "2", "2.5"], ["c", "3", ""],
           ["d", "4", "-1e3"]]  # fmt: skip


def test_numbers_are_read_as_they_stand(tmp_path):
    cases = read(tmp_path, {"head": {"loss": "mse"}}, {}, NUMBERS)
    assert cases.kind == kinds.NUMBER and cases.missing_labels == 1
    assert cases.target.tolist() == [7, 2.5, -1000]
    assert cases.texts == ["7", "2.5", "-1000"]
    assert cases.classes == ["-1000", "2.5", "7"] and cases.labels.tolist() == [2, 1, 0]
    assert cases.take([2]).target.tolist() == [-1000]
    cut = read(tmp_path, {"head": {"loss": "mse"}, "classes": ["low", "high"], "thresholds": [5]},
               {}, NUMBERS)  # fmt: skip
    assert cut.classes == ["low", "high"] and cut.counts().tolist() == [2, 1]
    assert cut.target.tolist() == [7, 2.5, -1000]


@pytest.mark.parametrize("text", ["x", "inf", "1,5", "7 points"])
def test_a_bad_number_names_file_image_and_value(tmp_path, text):
    rows = [*NUMBERS, ["e", "5", text]]
    with pytest.raises(BadData) as error:
        read(tmp_path, {"head": {"loss": "mse"}}, {}, rows)
    assert str(error.value) == (
        f"{tmp_path / 't.csv'}: image 'e', column 'label': '{text}' is not a number, and task 't' "
        "learns a number; correct the cell or leave it empty"
    )


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(0, 5).map(float), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_ranges_of_a_number_hold_equal_numbers_together(values):
    values = np.array(values)
    numbers, names = kinds.strata(values)
    assert len(names) <= 4 and len(set(names)) == len(names)
    assert sorted(set(numbers.tolist())) == list(range(len(names)))
    for k in range(len(names) - 1):
        assert values[numbers == k].max() < values[numbers == k + 1].min()
    if len(set(values.tolist())) == len(values) >= 8:
        counts = np.bincount(numbers)
        assert len(names) == 4 and counts.max() - counts.min() <= 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
@settings(max_examples=60, deadline=None)
def test_numbers_survive_their_texts(values):
    for kind in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            given_ = np.array(values).astype(kind)
        given_ = given_[np.isfinite(given_)]
        again = kinds.values_of(kinds.NUMBER, [], kinds.texts(kinds.NUMBER, [], given_))
        assert np.array_equal(again.astype(kind), given_)


def test_folds_are_balanced_over_the_number():
    """The mean label of every fold's test part is near the whole's; a range need not be in each
    training part."""
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 3, 300).round(1)
    patients = [f"p{k}" for k in rng.integers(0, 200, 300)]
    numbers, _ = kinds.strata(values)
    folds = splits.stratified_group_kfold(numbers, patients, 5, needed=())
    means = [values[f["test"]].mean() for f in folds]
    plain = [values[rng.permutation(300)[:60]].mean() for _ in range(40)]
    assert np.std(means) < np.std(plain)
    few = splits.stratified_group_kfold([0, 1, 1, 1], list("abcd"), 4, needed=(), validation=0)
    assert len(few) == 4
    with pytest.raises(BadInput, match="training part has no case of class"):
        splits.stratified_group_kfold([0, 1, 1, 1], list("abcd"), 4, validation=0)


# Metrics ------------------------------------------------------------------------------------------


def pairs(n=80, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 19, n).astype(float)
    return y, 0.6 * y + 4 + rng.normal(0, 3, n)


def lin(y, p):
    """Lin's concordance as the paper of 1989 writes it, with 1 / n."""
    n = len(y)
    my, mp = sum(y) / n, sum(p) / n
    cov = sum((a - my) * (b - mp) for a, b in zip(y, p)) / n
    vy, vp = sum((a - my) ** 2 for a in y) / n, sum((b - mp) ** 2 for b in p) / n
    return 2 * cov / (vy + vp + (my - mp) ** 2)


def test_numbers_are_measured_as_scikit_learn_and_scipy_do():
    from scipy import stats as scipy_stats
    from sklearn import metrics as sklearn

    y, p = pairs()
    found = metrics.number_summary(y, p)
    assert found["n"] == 80
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(y, p), rel=1e-13)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(y, p), rel=1e-13)
    assert found["r2"] == pytest.approx(sklearn.r2_score(y, p), rel=1e-13)
    assert found["pearson"] == pytest.approx(scipy_stats.pearsonr(y, p).statistic, rel=1e-12)
    assert found["spearman"] == pytest.approx(scipy_stats.spearmanr(y, p).statistic, rel=1e-12)
    assert found["ccc"] == pytest.approx(lin(y.tolist(), p.tolist()), rel=1e-12)
    for same in (1.0, 0.1, 0.7):  # the mean of six times 0.1 is not 0.1
        once = metrics.number_summary(np.full(6, same), np.full(6, same))
        assert np.isnan([once[k] for k in ("r2", "pearson", "spearman", "ccc")]).all()
        once = metrics.number_summary(np.arange(6.0), np.full(6, same))
        assert np.isnan(once["pearson"]) and np.isfinite(once["r2"])
        once = metrics.number_summary(np.full(6, same), np.arange(6.0))
        assert np.isnan([once["r2"], once["pearson"]]).all()
    constant = metrics.number_summary(np.ones(4), np.arange(4.0))
    assert np.isnan([constant["r2"], constant["pearson"], constant["spearman"]]).all()


def test_cut_numbers_have_the_metrics_of_their_classes():
    from sklearn import metrics as sklearn

    y, p = pairs()
    spec = task("mse", classes=list("0123"), thresholds=[5, 9, 14])
    found = metrics.task_summary(spec, y, p[:, None])
    true, called = np.digitize(y, [5, 9, 14]), np.digitize(p, [5, 9, 14])
    assert found["accuracy"] == pytest.approx(np.mean(true == called))
    assert found["f1"] == pytest.approx(sklearn.f1_score(true, called, average="macro"))
    assert found["f1_weighted"] == pytest.approx(sklearn.f1_score(true, called, average="weighted"))
    assert found["mae"] == metrics.mae(y, p) and np.isnan(found["auc"])
    for positive, sign in (("high", 1), ("low", -1)):
        two = task("mse", classes=["low", "high"], thresholds=[9], positive=positive)
        found = metrics.task_summary(two, y, p[:, None])
        assert found["auc"] == pytest.approx(
            sklearn.roc_auc_score((y >= 9) == (sign > 0), sign * p)
        )
        assert found["f1"] == pytest.approx(
            sklearn.f1_score((y >= 9) == (sign > 0), (p >= 9) == (sign > 0))
        )


@pytest.mark.parametrize("name", _weighted.NUMBER_METRICS)
def test_resampled_numbers_are_those_of_repeated_cases(name):
    y, p = pairs(30)
    y += 1e4  # moments about 0 would lose their digits
    p += 1e4
    weights = np.random.default_rng(1).integers(0, 4, (50, 30)).astype(float)
    weights[0] = 0
    weights[0, 3] = 5  # one case alone
    found = _weighted.evaluator(name, y, p)(weights)
    for row, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(30), row.astype(int))
        want = getattr(metrics, name)(y[rows], p[rows])
        assert value == pytest.approx(want, rel=1e-7, abs=1e-9, nan_ok=True)


def test_differences_of_numbers_have_intervals_by_patient():
    y, p = pairs(60)
    groups = np.arange(60) // 2
    better = y + 0.5 * (p - y)
    found = stats.paired_bootstrap(y, better, p, "mae", groups, n=500)
    assert found.difference == pytest.approx(metrics.mae(y, better) - metrics.mae(y, p))
    assert found.high < 0 and found.pvalue < 0.01
    drawn = stats.resample(y, [("rmse", better), ("rmse", p)], groups, 500)
    assert drawn.difference(0, 1) == stats.paired_bootstrap(y, better, p, "rmse", groups, n=500)


# Training -----------------------------------------------------------------------------------------


def number_parts(scale=1.0, shift=0.0, spoil=False):
    rng = np.random.default_rng(0)
    y = rng.uniform(0, 10, 24)
    images = (rng.integers(0, 60, (24, 32, 32)) + 15 * y[:, None, None]).astype(np.uint8)
    train, val = np.arange(16), np.arange(16, 24)
    y = scale * y + shift
    if spoil:
        y[val] = 77
    other = engine.Part(images[::-1].copy(), np.arange(24) % 3, 1, train, val)
    return [engine.Part(images, y, 0, train, val), other]


def number_fit(parts, path=None, stop=None, kept=(), weights=None, **more):
    heads = {"n": {"classes": 1, "hidden": [4], "dropout": 0.2, "loss": "mse"},
             "c": {"classes": 3, "hidden": [], "loss": "ordinal"}}  # fmt: skip
    train = config.load("demo", ["train.epochs=3", "train.warmup_epochs=1"])["train"]
    train |= {"batch_size": 8, "augment": None, "lr": 0.01, "patience": 3} | more
    model = Model("shufflenet_v2_x0_5", heads=heads, image_size=32, seed=1, weights=weights)
    sampler = {"mode": "union", "ratio": None, "epoch": "union", "drop_last": False}
    return engine.Fit(model, parts, ["n", "c"], train, sampler, checkpoint=path, stop=stop,
                      kept=kept)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    fit = number_fit(number_parts())
    return fit, fit.run()


def predicted(model, parts):
    return engine.predict(model, 0, np.arange(24))["n"][:, 0].astype(np.float64)


def test_training_does_not_see_the_unit_of_a_number(trained):
    """The network of 100 y + 7 says 100 times and 7 more than that of y."""
    fit, state = trained
    parts = number_parts(100, 7)
    other = number_fit(parts)
    moved = other.run()
    ours, theirs = predicted(fit.model, None), predicted(other.model, parts)
    np.testing.assert_allclose(theirs, 100 * ours + 7, rtol=1e-4, atol=1e-2)
    for a, b in zip(state.history, moved.history, strict=True):
        assert b["val_loss_n"] == pytest.approx(a["val_loss_n"], rel=1e-4)
        assert b["val_mae_n"] == pytest.approx(100 * a["val_mae_n"], rel=1e-4)
        assert b["loss_c"] == pytest.approx(a["loss_c"], rel=1e-4)


def test_the_unit_is_that_of_the_training_part(trained):
    fit, _ = trained
    unit = engine.Unit.of(number_parts()[0].labels[:16])
    assert fit.units == {"n": unit}
    assert number_fit(number_parts(spoil=True)).units == {"n": unit}
    assert engine.Unit.of([3.0, 3.0]) == engine.Unit(3.0, 1.0)


def test_validation_is_of_what_the_network_says(trained):
    fit, state = trained
    y = number_parts()[0].labels
    p = predicted(fit.model, None)
    best = state.history[state.best_epoch]
    assert best["val_mae_n"] == pytest.approx(np.mean(np.abs(p - y)[16:]), rel=1e-5)
    loss = np.mean(((p - y)[16:] / fit.units["n"].deviation) ** 2)
    assert best["val_loss_n"] == pytest.approx(loss, rel=1e-5)
    logits = engine.predict(fit.model, 1, np.arange(16, 24))["c"].astype(np.float64)
    labels_ = np.arange(24)[16:] % 3
    below = np.cumsum(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1)[:, :-1]
    ranked = np.where(labels_[:, None] <= [0, 1], np.log(below), np.log(1 - below))
    assert best["val_loss_c"] == pytest.approx(-ranked.sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("step", [2, 7])
def test_an_interrupted_training_of_numbers_goes_on_to_the_same_bits(trained, tmp_path, step):
    fit, state = trained
    path, done = tmp_path / "c.safetensors", []
    first = number_fit(number_parts(), path, stop=lambda: done.append(0) or len(done) > step)
    with pytest.raises(Interrupted):
        first.run()
    again = number_fit(number_parts(), path)
    assert again.run().history == state.history
    ours = again.model.state_dict()
    assert all(np.array_equal(v, ours[k]) for k, v in fit.model.state_dict().items())


def test_kept_heads_go_on_in_their_unit(trained):
    """A stage without training that keeps the heads of another says what that one said."""
    fit, state = trained
    weights = fit.model.state_dict()
    again = number_fit(number_parts(), kept=["n", "c"], weights=weights, epochs=0)
    again.run()
    np.testing.assert_allclose(
        predicted(again.model, None), predicted(fit.model, None), rtol=1e-5, atol=1e-5
    )
    assert again.best_loss() == pytest.approx(fit.best_loss(), rel=1e-5)


def test_a_rescaled_head_gives_its_line():
    model = Model("shufflenet_v2_x0_5", heads={"n": {"classes": 1, "loss": "mse"}}, image_size=32)
    x = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    before = model.forward(x)["n"].astype(np.float64)
    model.rescale_head("n", -2.5, 40.0)
    np.testing.assert_allclose(model.forward(x)["n"], -2.5 * before + 40, rtol=1e-6)


# Findings -----------------------------------------------------------------------------------------

FINDINGS = {"classes": ABC, "head": {"loss": "bce"}}
WIDE = [["image", "patient", "Edema", "Mass", "Nodule"], ["a", "1", "1", "0", ""],
        ["b", "2", "0", "0", "0"], ["c", "3", "", "-1", ""],
        ["d", "4", "1.0", "yes", "-1"]]  # fmt: skip
LONG = [["image", "patient", "label"], ["a", "1", "Edema|Nodule"], ["b", "2", "No Finding"],
        ["c", "3", ""], ["d", "4", "mass; Edema"]]  # fmt: skip


def test_findings_in_columns_of_their_own(tmp_path):
    cases = read(tmp_path, FINDINGS, {}, WIDE)
    assert cases.kind == kinds.FINDINGS and cases.classes == ABC and cases.missing_labels == 1
    np.testing.assert_array_equal(cases.target, [[1, 0, np.nan], [0, 0, 0], [1, 1, np.nan]])
    assert cases.texts == ["Edema;?Nodule", "", "Edema;Mass;?Nodule"]
    assert cases.counts().tolist() == [2, 1, 0] and not cases.columns
    # balanced by the rarest finding that a case has; the last number is of none
    assert cases.labels.tolist() == [0, 3, 1]
    assert [cases.stratum(k) for k in cases.labels] == ["Edema", "No Finding", "Mass"]
    renamed = [["image", "patient", "x", "y", "z"], *WIDE[1:]]
    other = read(tmp_path, FINDINGS, {"findings": dict(zip(ABC, "xyz", strict=True))}, renamed)
    assert other.texts == cases.texts


def test_findings_in_one_column(tmp_path):
    cases = read(tmp_path, FINDINGS, {}, LONG)
    assert cases.target.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert cases.missing_labels == 1
    spec = {**FINDINGS, "labels": {"Lump": "Mass", "Hernia": "No Finding"}}
    rows = [*LONG, ["e", "5", "Lump|Hernia"]]
    assert read(tmp_path, spec, {}, rows).texts[-1] == "Mass"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([*WIDE, ["e", "5", "2", "0", "0"]], "'e', column 'Edema': '2' must be 1 .there., 0 "),
        ([*LONG, ["e", "5", "Edma"]], "'e', column 'label': unknown finding 'Edma' for task 't'"),
        ([r[:4] for r in WIDE], "neither a column 'label' of findings nor one .* called 'Nodule'"),
        ([r[:2] + ["", "-1", ""] if k else r for k, r in enumerate(WIDE)], "has no labels"),
    ],
)
def test_bad_findings_name_file_image_and_value(tmp_path, rows, sentence):
    with pytest.raises(BadData, match=sentence) as error:
        read(tmp_path, FINDINGS, {}, rows)
    assert str(tmp_path / "t.csv") in str(error.value) and "\n" not in str(error.value)


@given(st.lists(st.lists(st.sampled_from([0, 1, np.nan]), min_size=3, max_size=3), min_size=1))
@settings(max_examples=60, deadline=None)
def test_findings_survive_their_texts(values):
    values = np.array(values)
    texts = kinds.texts(kinds.FINDINGS, ABC, values)
    np.testing.assert_array_equal(kinds.values_of(kinds.FINDINGS, ABC, texts), values)


def findings(n=60, seed=0, known=0.8):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.3, 0.12]).astype(float)
    p = np.clip(0.35 * y + rng.random((n, 3)) * 0.6, 0.01, 0.99)
    y[rng.random((n, 3)) > known] = np.nan
    return y, p


def test_findings_are_measured_as_scikit_learn_does():
    from sklearn import metrics as sklearn

    y, p = findings(known=1)
    found = metrics.finding_summary(y, p, ABC)
    assert found["f1"] == found["f1_macro"]
    assert found["f1"] == pytest.approx(sklearn.f1_score(y, p > 0.5, average="macro"))
    assert found["f1_weighted"] == pytest.approx(sklearn.f1_score(y, p > 0.5, average="weighted"))
    assert found["auc"] == pytest.approx(sklearn.roc_auc_score(y, p, average="macro"))
    assert found["accuracy"] == pytest.approx(1 - sklearn.hamming_loss(y, p > 0.5))
    y, p = findings()
    found, known = metrics.finding_summary(y, p, ABC), ~np.isnan(y)
    for k, name in enumerate(ABC):
        mine = known[:, k]
        assert found[f"auc_{name}"] == pytest.approx(sklearn.roc_auc_score(y[mine, k], p[mine, k]))
        assert found[f"f1_{name}"] == pytest.approx(sklearn.f1_score(y[mine, k], p[mine, k] > 0.5))
    y[:, 2] = 0  # a finding that nobody has is in no mean but the accuracy's
    some = metrics.finding_summary(y, p, ABC)
    assert np.isnan(some["auc_Nodule"]) and np.isnan(some["f1_Nodule"])
    assert some["auc"] == pytest.approx((found["auc_Edema"] + found["auc_Mass"]) / 2)


@pytest.mark.parametrize("name", ["accuracy", "f1", "gmean", "auc", "brier"])
def test_resampled_findings_are_those_of_repeated_cases(name):
    y, p = findings(30)
    given_ = p if name in ("auc", "brier") else (p > 0.5).astype(float)
    weights = np.random.default_rng(1).integers(0, 3, (40, 30)).astype(float)
    weights[0] = 0
    weights[0, 5] = 1
    found = _weighted.evaluator(name, y, given_)(weights)
    for row, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(30), row.astype(int))
        want = metrics.mean_of_findings(name, y[rows], given_[rows])
        assert value == pytest.approx(want, rel=1e-12, nan_ok=True)


def test_differences_of_findings_do_not_depend_on_the_order_of_the_rows():
    y, p = findings(40)
    better = np.where(np.isnan(y), p, 0.5 * p + 0.5 * np.nan_to_num(y))
    groups = np.arange(40) // 2
    wanted = [("auc", better), ("auc", p)]
    first = stats.resample(y, wanted, groups, 300).difference(0, 1)
    order = np.random.default_rng(3).permutation(40)
    again = stats.resample(y[order], [(k, v[order]) for k, v in wanted], groups[order], 300)
    assert again.difference(0, 1) == first and first.low > 0
    with pytest.raises(ValueError, match=r"findings \(n, K\) are 0, 1, or NaN"):
        stats.resample(y * 3, wanted, groups, 100)


def test_training_leaves_out_what_is_not_labelled():
    """The label of an output that has none changes nothing; validation counts what is known."""
    rng = np.random.default_rng(0)
    y = (rng.random((24, 3)) < 0.5).astype(float)
    images = (rng.integers(0, 60, (24, 32, 32)) + 60 * y.sum(1)[:, None, None]).astype(np.uint8)
    y[::3, 1] = np.nan
    y[5] = np.nan  # a case without any label, as if it were not there

    def fit():
        heads = {"f": {"classes": 3, "hidden": [], "dropout": 0.0, "loss": "bce"}}
        train = config.load("demo", ["train.epochs=2", "train.warmup_epochs=1"])["train"]
        train |= {"batch_size": 8, "augment": None}
        model = Model("shufflenet_v2_x0_5", heads=heads, image_size=32, seed=1)
        sampler = {"mode": "union", "ratio": None, "epoch": "union", "drop_last": False}
        part = engine.Part(images, y, 0, np.arange(16), np.arange(16, 24))
        return engine.Fit(model, [part], ["f"], train, sampler)

    one = fit()
    state = one.run()
    z = engine.predict(one.model, 0, np.arange(16, 24))["f"].astype(np.float64)
    t, known = y[16:], ~np.isnan(y[16:])
    each = np.logaddexp(0, z) - z * np.nan_to_num(t)
    loss = np.mean([e[k].mean() for e, k in zip(each, known, strict=True) if k.any()])
    best = state.history[state.best_epoch]
    assert best["val_loss_f"] == pytest.approx(loss, rel=1e-5)
    assert best["val_accuracy_f"] == pytest.approx(np.mean(((z > 0) == t)[known]))
    probabilities = engine.decoded(kinds.FINDINGS, z)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-z)), rtol=1e-6)


def test_the_memory_of_findings_is_planned():
    from mdmt import summary

    heads = {"f": {"classes": 14, "hidden": [], "loss": "bce"}, "n": {"classes": 1, "loss": "mse"}}
    model = Model("shufflenet_v2_x0_5", heads=heads, image_size=32)
    planned = model.memory(4)
    assert min(planned.values()) > 0 and model.cost()["macs"] > 0
    network = summary.build("shufflenet_v2_x0_5", heads, 32)
    assert network.memory(4, True)["activations"] == planned["activations"]


# Splits -------------------------------------------------------------------------------------------


def center_rows(value):
    """Two centers, one of which has the low numbers; value(center, k) -> label."""
    rows = [[f"{c}{k}", f"p{c}{k}", c, value(c, k)] for c in "AB" for k in range(12)]
    return [["image", "patient", "center", "label"], *rows]


def made(cases, validation):
    values = config.resolve({
        **study({"head": {"loss": "mse"}}), "validation": [validation],
        "cv": {"folds": 3, "validation": 0.25},
    })  # fmt: skip
    return [f["d"] for f in splits.make([cases], values)[validation]]


def test_a_center_left_out_may_have_all_of_a_range(tmp_path):
    cases = read(tmp_path, {"head": {"loss": "mse"}}, {"center": "center"},
                 center_rows(lambda c, k: str(k if c == "A" else 50 + k)))  # fmt: skip
    folds = made(cases, "loco")
    assert [f["center"] for f in folds] == ["A", "B"]
    assert cases.target[folds[0]["train"]].min() >= 50 > cases.target[folds[0]["test"]].max()
    found = {f.kind for f in splits.audit(folds, cases)}
    assert "class_missing" not in found
    classes = read(tmp_path, {"classes": ["low", "high"], "thresholds": [50]},
                   {"center": "center"},
                   center_rows(lambda c, k: str(k if c == "A" else 50 + k)))  # fmt: skip
    with pytest.raises(BadInput, match="training part has no case of class 'low'"):
        made(classes, "loco")


def test_the_audit_speaks_of_ranges(tmp_path):
    cases = read(tmp_path, {"head": {"loss": "mse"}}, {}, [
        ["image", "patient", "label"], *([f"i{k}", f"p{k}", str(k)] for k in range(80))
    ])  # fmt: skip
    rows = np.arange(80)
    fold = {"fold": 0, "train": rows[40:], "val": rows[:0], "test": rows[:40]}
    (found,) = [f for f in splits.audit([fold], cases) if f.kind == "class_balance"]
    assert found.message == "ranges of the number out of balance"
    assert "fold 0: range 0 to 19 is 50% of test, 0% of training" in found.examples


def test_brixia_scores_are_numbers(tmp_path):
    from mdmt.data import readers
    from tests import replicas

    replicas.make_brixia(tmp_path / "BRIXIA", count=40, size=32)
    spec = study({"head": {"loss": "mse"}})
    spec["data"]["datasets"][0] |= {"reader": "brixia", "folder": "BRIXIA", "table": None}
    full = config.resolve(spec)
    cases = readers.read_cases(full["data"]["datasets"][0], full["tasks"]["t"], tmp_path)
    assert cases.kind == kinds.NUMBER
    np.testing.assert_array_equal(cases.target, cases.targets.sum(1))


def test_folds_hold_each_of_many_findings_about_as_often():
    """14 findings as rare as those of ChestX-ray14: the deviation of a finding's cases over folds
    is less than half of what drawing patients by chance gives."""
    rng = np.random.default_rng(0)
    shares = np.array([18, 12, 11, 5.6, 5.2, 4.7, 4.2, 3, 2.5, 2.2, 2, 1.5, 1.5, 0.5]) / 100
    patient = rng.integers(0, 700, 1500)
    y = rng.random((1500, 14)) + 0.6 * rng.random((700, 14))[patient]
    y = (y < np.quantile(y, shares, axis=0).diagonal()).astype(float)
    names = [f"p{p}" for p in patient]
    folds = splits.stratified_group_kfold(labels.rarest(y), names, 5, needed=())

    def deviation(parts):
        counts = np.array([y[rows].sum(0) for rows in parts])
        return counts.std(0) / counts.mean(0)

    drawn = [rng.integers(0, 5, 700)[patient] for _ in range(10)]
    chance = np.mean([deviation([d == k for k in range(5)]) for d in drawn], 0)
    assert deviation([f["test"] for f in folds]).mean() < 0.5 * chance.mean()
