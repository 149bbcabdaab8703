"""The masked multi-task loss against a plain float64 statement of the paper's equations (1) to (3),
against PyTorch, and in its corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mdmt
from mdmt.loss import KINDS, REDUCTIONS

quick = settings(max_examples=40, deadline=None)


# ---- the statement: float64, sample by sample, probabilities as the paper writes them ----


def softmax(o):
    e = np.exp(o - o.max())
    return e / e.sum()


def statement_of_sample(kind, o, y):
    """L(O_i, Y_i) of one sample: o (k) outputs of its head, y its target columns."""
    if kind == "ce":  # equation (3) with one-hot Y
        one_hot = np.eye(len(o))[int(y[0])]
        return -(one_hot * np.log(softmax(o))).sum()
    if kind == "bce":
        p = 1 / (1 + np.exp(-o))
        return -np.nanmean(y * np.log(p) + (1 - y) * np.log(1 - p))
    if kind == "mse":
        return ((o - y) ** 2).mean()
    below = np.cumsum(softmax(o))[:-1]
    later = int(y[0]) > np.arange(len(o) - 1)
    return -np.where(later, np.log(1 - below), np.log(below)).sum()


def has_label(kind, y):
    """Whether a sample's target columns y (..., k) are a label."""
    return ~np.isnan(y).all(-1) if kind == "bce" else ~np.isnan(y).any(-1)


def statement(logits, task, target, reduction, weights, kinds):
    """Equation (2): the indicator picks each sample's own task."""
    sums, counts = np.zeros(len(logits)), np.zeros(len(logits))
    for i, k in enumerate(task):
        for j in range(len(logits)):
            columns = logits[j].shape[1] if kinds[j] in ("bce", "mse") else 1
            if k == j and has_label(kinds[j], target[i, :columns]):
                y = np.asarray(target[i, :columns], np.float64)
                sums[j] += statement_of_sample(kinds[j], logits[j][i], y)
                counts[j] += 1
    if reduction == "per_task_mean":
        parts = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    else:
        parts = sums / (max(counts.sum(), 1) if reduction == "mean" else 1)
    return (weights * parts).sum(), np.stack([sums, counts], 1)


@st.composite
def batches(draw):
    """logits, task, target, reduction, weights, losses of a mixed batch."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    samples = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    widths = [int(rng.integers(1, 7)) for _ in kinds]
    logits = [np.float32(3 * rng.standard_normal((samples, w))) for w in widths]
    task = rng.integers(-1, len(kinds), samples)
    target = np.zeros((samples, max(widths)), np.float32)
    for i, k in enumerate(task):
        if k < 0:
            target[i] = rng.choice([np.nan, 77])
        elif kinds[k] in ("ce", "ordinal"):
            target[i, 0] = rng.integers(0, widths[k])
        elif kinds[k] == "bce":
            target[i] = rng.choice([0, 1, 0.25])
        else:
            target[i] = rng.standard_normal(len(target[i]))
        if rng.random() < 0.15:
            target[i, 0] = np.nan
        if k >= 0 and kinds[k] == "bce":
            target[i, rng.random(len(target[i])) < 0.3] = np.nan
    reduction = draw(st.sampled_from(REDUCTIONS))
    return logits, task, target, reduction, rng.uniform(0.2, 3, len(kinds)), kinds


@quick
@given(batches())
def test_value_equals_the_statement(batch):
    loss, _, per_task = mdmt.masked_loss(*batch)
    logits = [np.asarray(z, np.float64) for z in batch[0]]
    expected, expected_per_task = statement(logits, *batch[1:])
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-9)  # weights are float32
    np.testing.assert_allclose(per_task, expected_per_task, rtol=1e-11, atol=1e-12)


@quick
@given(batches(), st.randoms(use_true_random=False))
def test_gradient_equals_differences_of_the_statement(batch, random):
    logits, rest = [np.asarray(z, np.float64) for z in batch[0]], batch[1:]
    _, dlogits, _ = mdmt.masked_loss(*batch)
    for k, z in enumerate(logits):
        assert dlogits[k].shape == z.shape and dlogits[k].dtype == np.float32
        if not z.size:
            continue
        at = (random.randrange(z.shape[0]), random.randrange(z.shape[1]))

        def value(step, z=z, at=at):
            kept, z[at] = z[at], z[at] + step
            result = statement(logits, *rest)[0]
            z[at] = kept
            return result

        h = 1e-3  # 4-point difference: error h^4
        numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
        assert dlogits[k][at] == pytest.approx(numeric, rel=2e-6, abs=1e-8)


@quick
@given(batches())
def test_samples_of_other_tasks_have_exactly_zero_gradient(batch):
    logits, task, target, _, _, kinds = batch
    loss, dlogits, per_task = mdmt.masked_loss(*batch)
    assert np.isfinite(loss)
    for k, dz in enumerate(dlogits):
        columns = dz.shape[1] if kinds[k] in ("bce", "mse") else 1
        mine = (task == k) & has_label(kinds[k], target[:, :columns])
        assert (dz[~mine] == 0).all() and not np.signbit(dz[~mine]).any()
        if not mine.any():
            assert per_task[k].tolist() == [0, 0]


@quick
@given(batches(), st.integers(0, 2**32))
def test_order_of_the_samples_does_not_matter(batch, seed):
    logits, task, target, *rest = batch
    order = np.random.default_rng(seed).permutation(len(task))
    loss, dlogits, per_task = mdmt.masked_loss(*batch)
    loss2, dlogits2, per_task2 = mdmt.masked_loss(
        [z[order] for z in logits], task[order], target[order], *rest
    )
    assert loss2 == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(per_task2, per_task, rtol=1e-13)
    for dz, dz2 in zip(dlogits, dlogits2):
        np.testing.assert_array_equal(dz[order], dz2)


@quick
@given(batches())
def test_an_unlabelled_sample_changes_nothing(batch):
    logits, task, target, *rest = batch
    loss, dlogits, per_task = mdmt.masked_loss(*batch)
    more = [np.concatenate([z, np.full((1, z.shape[1]), 5, np.float32)]) for z in logits]
    for k, y in [(-1, 3), (0, np.nan)]:
        row = np.full((1, target.shape[1]), y, np.float32)
        result = mdmt.masked_loss(more, np.append(task, k), np.concatenate([target, row]), *rest)
        assert result[0] == loss
        np.testing.assert_array_equal(result[2], per_task)
        for dz, dz2 in zip(dlogits, result[1]):
            np.testing.assert_array_equal(dz, dz2[:-1])
            assert (dz2[-1] == 0).all()


def test_a_batch_of_one_task_is_the_plain_loss():
    rng = np.random.default_rng(3)
    logits = [rng.standard_normal((5, 3)), rng.standard_normal((5, 4))]
    loss, (d0, d1), per_task = mdmt.masked_loss(logits, [0] * 5, [0, 1, 2, 1, 0])
    alone, (d,), _ = mdmt.masked_loss(logits[:1], [0] * 5, [0, 1, 2, 1, 0])
    assert loss == alone and (d0 == d).all() and (d1 == 0).all()
    assert per_task[1].tolist() == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [30.0, 200.0, 1e4, 3e38])
def test_extreme_logits_give_finite_and_right_losses(kind, size):
    """The less likely side: losses are the size of the logits, gradients at most a few units."""
    z = np.array([[size, 0, -size], [-size, 0, size]], np.float32)
    target = np.array([[2, 0, 1], [0, 0, 1]], np.float32) if kind != "bce" else np.zeros((2, 3))
    loss, (dz,), _ = mdmt.masked_loss([z], [0, 0], target, losses=[kind])
    assert np.isfinite(loss) and not np.isnan(dz).any()
    if kind == "ce":
        assert loss == pytest.approx(2 * float(z[0, 0]), rel=1e-6)
        np.testing.assert_allclose(dz, [[0.5, 0, -0.5], [-0.5, 0, 0.5]], atol=1e-7)
    if kind == "bce":
        each = (float(z[0, 0]) + np.log(2)) / 3
        assert loss == pytest.approx(each, rel=1e-6)
    if kind == "ordinal":  # -log(1 - F_0) - log(1 - F_1), F_0 = 1 - e^-s, F_1 = 1 - e^-2s
        assert loss == pytest.approx(3 * float(z[0, 0]), rel=1e-6)
        np.testing.assert_allclose(dz, [[1, -0.5, -0.5], [-0.5, -0.5, 1]], atol=1e-6)


def test_tiny_losses_keep_their_digits():
    z = np.array([[0, -40.0]], np.float32)
    loss, (dz,), _ = mdmt.masked_loss([z], [0], [0])
    assert dz[0, 1] == pytest.approx(np.exp(-40.0), rel=1e-6)
    assert dz[0, 0] == pytest.approx(-np.exp(-40.0), rel=1e-6)
    loss, _, _ = mdmt.masked_loss([z[:, 1:]], [0], [0], losses=["bce"])
    assert loss == pytest.approx(np.exp(-40.0), rel=1e-12)


def test_ordinal_of_two_classes_is_cross_entropy():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((9, 2)), rng.integers(0, 2, 9)
    one = mdmt.masked_loss([z], [0] * 9, y, losses=["ordinal"])
    two = mdmt.masked_loss([z], [0] * 9, y, losses=["ce"])
    assert one[0] == pytest.approx(two[0], rel=1e-12)
    np.testing.assert_allclose(one[1][0], two[1][0], rtol=1e-6)


def test_an_output_without_a_label_is_as_if_it_were_not_there():
    rng = np.random.default_rng(0)
    z, y = np.float32(rng.standard_normal((6, 5))), np.float32(rng.integers(0, 2, (6, 5)))
    y[:, [1, 4]] = np.nan
    some = mdmt.masked_loss([z], [0] * 6, y, losses=["bce"])
    kept = [0, 2, 3]
    alone = mdmt.masked_loss([z[:, kept]], [0] * 6, y[:, kept], losses=["bce"])
    assert some[0] == alone[0] and some[2].tolist() == alone[2].tolist()
    np.testing.assert_array_equal(some[1][0][:, kept], alone[1][0])
    assert (some[1][0][:, [1, 4]] == 0).all()


def test_a_nan_logit_reaches_the_loss():
    z = np.array([[np.nan, 0], [0, 0]], np.float32)
    assert np.isnan(mdmt.masked_loss([z], [0, 0], [0, 0])[0])
    assert np.isfinite(mdmt.masked_loss([z], [-1, 0], [0, 0])[0])


@pytest.mark.oracle
def test_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    functional = torch.nn.functional
    rng = np.random.default_rng(1)
    n, widths, kinds = 64, [2, 4, 3, 6], ["ce", "ce", "bce", "mse"]
    arrays = [np.float32(2 * rng.standard_normal((n, w))) for w in widths]
    task = rng.integers(0, 4, n)
    target = np.float32(rng.integers(0, 2, (n, 6)))
    logits = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in arrays]
    parts = []
    for k, kind in enumerate(kinds):
        z, y = logits[k][task == k], torch.tensor(target[task == k, : widths[k]]).double()
        if kind == "ce":
            parts.append(functional.cross_entropy(z, y[:, 0].long()))
        elif kind == "bce":
            parts.append(functional.binary_cross_entropy_with_logits(z, y))
        else:
            parts.append(functional.mse_loss(z, y))
    counts = np.bincount(task)
    weights = [1, 0.5, 2, 3]
    for reduction, factors in (("mean", counts / n), ("per_task_mean", np.ones(4))):
        total = sum(w * f * p for w, f, p in zip(weights, factors, parts))
        expected = torch.autograd.grad(total, logits, retain_graph=True)
        loss, dlogits, _ = mdmt.masked_loss(arrays, task, target, reduction, weights, kinds)
        assert loss == pytest.approx(total.item(), rel=1e-12)
        for dz, g in zip(dlogits, expected):
            np.testing.assert_allclose(dz, g.numpy(), rtol=1e-6, atol=1e-9)


Z = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([Z], [0, 0, 0], [0, 4, 0]), "sample 1 has the class 4 for task 0, .* classes 0 to 3"),
        (([Z], [0, 0, 0], [0, 0, -1]), "sample 2 has the class -1 for task 0"),
        (([Z], [0, 0, 0], [0.5, 0, 0]), "sample 0 has the class 0.5 for task 0"),
        (([Z], [0, 1, 0], [0, 0, 0]), r"sample 1 has the task 1, outside 0 to 0 \(-1: no label\)"),
        (([Z], [0, -2, 0], [0, 0, 0]), "sample 1 has the task -2"),
        (([Z], [0, 0, 0], np.full((3, 4), 2), "mean", None, ["bce"]), "target 2 for task 0, out"),
        (([Z], [0, 0, 0], np.full((3, 4), np.inf), "mean", None, ["mse"]), "infinite target"),
        (([Z], [0, 0, 0], [0, 0, 0], "mean", None, ["mse"]), "4 outputs, .* have 1 columns"),
        (([Z], [0, 0], [0, 0]), "logits are of 3 samples, task has"),
        (([Z], [0, 0, 0], [0, 0]), "give one of each per sample"),
        (([Z], [0.0, 0.0, 0.0], [0, 0, 0]), "task must hold integers"),
        (([Z], [0, 0, 0], [0, 0, 0], "average"), "unknown reduction 'average'"),
        (([Z], [0, 0, 0], [0, 0, 0], "mean", None, ["huber"]), "unknown loss 'huber'"),
        (([Z], [0, 0, 0], [0, 0, 0], "mean", [1, 2]), "1 tasks need as many weights"),
        (([], [0, 0, 0], [0, 0, 0]), "takes 1 to 16 tasks"),
        (([Z[:, :0]], [0, 0, 0], [0, 0, 0]), "task 0 has 0 outputs"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        mdmt.masked_loss(*arguments)
    assert "\n" not in str(error.value)
