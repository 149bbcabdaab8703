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


# ---- weights of the samples, smoothing, and weights that balance classes ----


@st.composite
def weighted_batches(draw):
    """A batch with the weight of each target, and smoothing of its ce tasks."""
    logits, task, target, *rest, kinds = draw(batches())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = np.float32(rng.choice([0, 0.25, 1, 4], target.shape))
    smoothing = [float(rng.choice([0, 0.125, 0.5])) if k == "ce" else 0.0 for k in kinds]
    return logits, task, target, *rest, kinds, weight, smoothing


def pytorch(torch, logits, task, target, reduction, weights, kinds, weight, smoothing):
    """The same with PyTorch's losses in float64: reduction "none", weighted, then summed over the
    samples; the ranked score as the binary cross-entropies of its cumulative probabilities."""
    f = torch.nn.functional
    sums, counts = [], []
    for k, kind in enumerate(kinds):
        width = logits[k].shape[1] if kind in ("bce", "mse") else 1
        mine = np.flatnonzero((task == k) & has_label(kind, target[:, :width]))
        z, w = logits[k][mine], torch.tensor(weight[mine, :width]).double()
        y = torch.tensor(target[mine, :width]).double()
        if kind == "ce":
            one = f.cross_entropy(z, y[:, 0].long(), reduction="none", label_smoothing=smoothing[k])
            each = w[:, 0] * one
        elif kind == "mse":
            each = (w * f.mse_loss(z, y, reduction="none")).mean(1)
        elif kind == "bce":
            known = ~y.isnan()
            one = f.binary_cross_entropy_with_logits(z, y.nan_to_num(), reduction="none")
            each = (w * one * known).sum(1) / known.sum(1)
        else:
            below = torch.logcumsumexp(z, 1)[:, :-1] - z.logsumexp(1, keepdim=True)
            above = z.flip(1).logcumsumexp(1).flip(1)[:, 1:] - z.logsumexp(1, keepdim=True)
            later = y > torch.arange(z.shape[1] - 1)
            each = -w[:, 0] * torch.where(later, above, below).sum(1)
        sums.append(each.sum())
        counts.append(len(mine))
    over = {"mean": max(sum(counts), 1), "sum": 1}.get(reduction)
    total = sum(w * s / (over or max(n, 1)) for w, s, n in zip(weights, sums, counts))
    return total, sums, counts


@pytest.mark.oracle
@quick
@given(weighted_batches())
def test_weights_and_smoothing_equal_pytorch(batch):
    """Divided by the number of samples: torch's reduction "none" with weights, summed / N."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    logits = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in batch[0]]
    loss, dlogits, per_task = mdmt.masked_loss(*batch)
    total, sums, counts = pytorch(torch, logits, *batch[1:])
    assert loss == pytest.approx(
        float(total.detach()), rel=1e-6, abs=1e-9
    )  # task weights are float32
    assert per_task[:, 0] == pytest.approx([float(s.detach()) for s in sums], rel=1e-10, abs=1e-11)
    assert per_task[:, 1].tolist() == counts
    if sum(counts):
        expected = torch.autograd.grad(total, logits, allow_unused=True)
        for dz, g in zip(dlogits, expected):
            g = np.zeros(dz.shape) if g is None else g.numpy()
            np.testing.assert_allclose(dz, g, rtol=2e-6, atol=1e-8)


@quick
@given(batches())
def test_weights_of_one_and_no_smoothing_change_no_bit(batch):
    loss, dlogits, per_task = mdmt.masked_loss(*batch)
    kinds = batch[-1]
    for weight in (np.ones(len(batch[1])), np.ones(np.shape(batch[2]))):
        again = mdmt.masked_loss(*batch, weight, [0.0] * len(kinds))
        assert again[0] == loss and again[2].tobytes() == per_task.tobytes()
        assert [d.tobytes() for d in again[1]] == [d.tobytes() for d in dlogits]


def test_a_weight_of_zero_is_counted():
    z = np.array([[1, 2], [0, 3]], np.float32)
    alone, (dz,), _ = mdmt.masked_loss([z[:1]], [0], [0])
    loss, (both,), per_task = mdmt.masked_loss([z], [0, 0], [0, 1], sample_weight=[1, 0])
    assert loss == alone / 2 and per_task[0].tolist() == [alone, 2]
    np.testing.assert_array_equal(both, [dz[0] / 2, [0, 0]])


def test_a_weight_per_sample_is_that_of_all_its_targets():
    rng = np.random.default_rng(0)
    z, y = np.float32(rng.standard_normal((4, 3))), rng.integers(0, 2, (4, 3))
    weight = np.array([0.5, 2, 0, 3])
    for kind in ("bce", "mse"):
        one = mdmt.masked_loss([z], [0] * 4, y, losses=[kind], sample_weight=weight)
        columns = np.repeat(weight[:, None], 3, 1)
        two = mdmt.masked_loss([z], [0] * 4, y, losses=[kind], sample_weight=columns)
        assert one[0] == two[0] and (one[1][0] == two[1][0]).all()


@pytest.mark.parametrize(
    ("weight", "smoothing", "kind", "sentence"),
    [
        ([1, -1, 1], None, "ce", "sample 1 has the weight -1 for task 0; a weight is a finite"),
        ([1, 1, np.nan], None, "ce", "sample 2 has the weight nan for task 0"),
        (np.full((3, 4), np.inf), None, "bce", "sample 0 has the weight inf for task 0"),
        ([1, 1], None, "ce", r"must be \(3,\), or \(3, k\) with a column per target .* not \(2,\)"),
        (np.ones((3, 2)), None, "bce", "task 0 reads 4 targets, but sample_weight has 2 columns"),
        (["a", "b", "c"], None, "ce", "sample_weight must hold numbers"),
        (None, [1.0], "ce", "task 0: smoothing must be a number of at least 0 and below 1, not 1"),
        (None, [0.1], "bce", "loss bce has no such target; leave it out"),
        (None, [0, 0], "ce", "1 tasks need as many weights, losses and smoothing, not 1, 1 and 2"),
    ],
)
def test_bad_weights_are_one_sentence(weight, smoothing, kind, sentence):
    target = np.zeros((3, 4)) if kind == "bce" else [0, 1, 2]
    with pytest.raises(ValueError, match=sentence) as error:
        mdmt.masked_loss([Z], [0, 0, 0], target, "mean", None, [kind], weight, smoothing)
    assert "\n" not in str(error.value)


def test_weights_of_what_has_no_label_are_not_looked_at():
    loss, _, per_task = mdmt.masked_loss(
        [Z], [0, -1, 0], [0, 1, np.nan], sample_weight=[2, -1, np.nan]
    )
    assert per_task[0, 1] == 1 and loss == pytest.approx(2 * np.log(4))


def test_balanced_weights_are_those_of_scikit_learn():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    rng = np.random.default_rng(5)
    for k in (2, 3, 7):
        labels = np.concatenate([np.arange(k), rng.integers(0, k, 50) ** 2 // k])
        expected = compute("balanced", classes=np.arange(k), y=labels)
        for loss in ("ce", "ordinal"):
            found = mdmt.class_weights(np.append(labels, np.nan), k, loss)
            np.testing.assert_allclose(found, expected, rtol=1e-15)
        assert found[labels].mean() == pytest.approx(1)
    found = mdmt.class_weights([0, 0, 0, 2], 3)  # a class that does not occur
    assert found == pytest.approx([4 / 6, 1, 2])


def test_weights_of_findings_are_negatives_over_positives():
    labels = np.zeros((1000, 5))
    labels[:250, 0], labels[:800, 1], labels[:, 2], labels[:1, 4] = 1, 1, 1, 1
    labels[900:, 0] = np.nan
    assert mdmt.class_weights(labels, 5, "bce").tolist() == [650 / 250, 0.25, 1, 1, 100]


@pytest.mark.oracle
def test_weights_of_positives_are_pytorchs_pos_weight():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(2)
    z, y = np.float32(rng.standard_normal((40, 3))), np.float32(rng.random((40, 3)) < 0.2)
    weights = mdmt.class_weights(y, 3, "bce")
    weight = np.where(y == 1, weights, 1)
    loss = mdmt.masked_loss([z], [0] * 40, y, losses=["bce"], sample_weight=weight)[0]
    own = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))
    assert loss == pytest.approx(float(own(torch.tensor(z).double(), torch.tensor(y).double())))


@pytest.mark.parametrize("kind", ["ce", "ordinal", "bce"])
def test_what_weights_make_of_probabilities(kind):
    """The loss is least where each class has its share times its weight (Elkan 2001), as the report
    says: of one network that says the same of all samples."""
    counts, weights = np.array([70, 20, 10]), np.array([0.5, 1, 4])
    if kind == "bce":
        target = np.repeat([[0, 0], [1, 0], [1, 1]], counts, 0)
        z = np.log(np.array([30 * 3, 10 * 4]) / [70, 90])  # odds times the positives' weights
        weight = np.where(target == 1, [3, 4], 1)
    else:
        target = np.repeat(np.arange(3), counts)
        z, weight = np.log(counts * weights), weights[target]
    logits, task = np.tile(z, (100, 1)), np.zeros(100, int)
    least = mdmt.masked_loss([logits], task, target, losses=[kind], sample_weight=weight)
    np.testing.assert_allclose(least[1][0].sum(0), 0, atol=1e-6)  # of logits in float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0, 3], 3), "labels must be 0 to 2, NaN for none, not 3"),
        (([0, 0.5], 3), "not 0.5"),
        (([0, 1], 2, "bce"), r"labels of the loss bce must be \(n, 2\), not \(2,\)"),
        (([[0, 2]], 2, "bce"), "labels of findings must be 1, 0 or NaN, not 2"),
        (([0, 1], 2, "mse"), "class weights are of the losses ce, ordinal and bce, not 'mse'"),
    ],
)
def test_labels_that_cannot_be_balanced(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        mdmt.class_weights(*arguments)
