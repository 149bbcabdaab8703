"""Metrics against scikit-learn."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from mdmt import metrics, stats


def draw(seed, n, classes):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    p[np.arange(n), y] += 0.3
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(classes, n, seed):
    y, p = draw(seed, n, classes)
    hard = p.argmax(1)
    assert metrics.accuracy(y, hard) == pytest.approx(reference.accuracy_score(y, hard))
    present = np.unique(y)
    want = reference.f1_score(y, hard, average="weighted", zero_division=0)
    assert metrics.f1(y, hard, "weighted") == pytest.approx(want)
    want = reference.f1_score(y == 1, hard == 1, zero_division=0) if 1 in present else np.nan
    assert metrics.f1(y, hard) == pytest.approx(want, nan_ok=True)
    if len(present) == 1:  # scikit-learn says 0 where nothing is defined
        assert np.isnan([metrics.f1(y, hard, "macro"), metrics.gmean(y, hard)]).all()
        return
    want = reference.f1_score(y, hard, average="macro", zero_division=0)
    assert metrics.f1(y, hard, "macro") == pytest.approx(want)
    recall = reference.recall_score(y, hard, average=None, labels=present, zero_division=0)
    assert metrics.gmean(y, hard) == pytest.approx(np.prod(recall) ** (1 / len(present)))
    if len(present) == classes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = p[:, 1] if classes == 2 else p
            want = reference.roc_auc_score(y, score, multi_class="ovr", average="macro")
        assert metrics.auc(y, p) == pytest.approx(want)


def test_auc_counts_ties_half():
    assert metrics.auc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0.5
    y, score = [0, 0, 1, 1, 1], [0.1, 0.4, 0.4, 0.8, 0.4]
    assert metrics.auc(y, score) == pytest.approx(reference.roc_auc_score(y, score))


@pytest.mark.parametrize("called", [[0, 0, 0], [1, 0, 1], [1, 1, 1]])
def test_cases_of_one_class_define_what_needs_no_other(called):
    p = np.eye(2)[called]
    none = metrics.summary([0, 0, 0], p)
    right = 1 - np.mean(called)
    assert none["accuracy"] == pytest.approx(right)
    assert none["f1_weighted"] == pytest.approx(2 * right / (1 + right))
    assert np.isnan([none[k] for k in ("f1", "f1_macro", "gmean", "auc")]).all()
    assert np.isnan([stats.balanced_accuracy([0] * 3, called), stats.mcc([0] * 3, called)]).all()
    every = metrics.summary([1, 1, 1], p)  # the positive class has an F1
    assert every["f1"] == pytest.approx(reference.f1_score([1, 1, 1], called))
    assert np.isnan([every[k] for k in ("f1_macro", "gmean", "auc")]).all()


def test_gmean_is_the_root_of_sensitivity_times_specificity():
    y, hard = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1]
    assert metrics.gmean(y, hard) == pytest.approx((3 / 4 * 1 / 2) ** 0.5)


def test_summary_takes_f1_of_the_positive_class_for_two_and_macro_for_more():
    y, p = draw(0, 100, 2)
    found = metrics.summary(y, p, positive=0)
    assert found["f1"] == pytest.approx(reference.f1_score(y, p.argmax(1), pos_label=0))
    assert found["auc"] == pytest.approx(reference.roc_auc_score(y == 0, p[:, 0]))
    assert metrics.summary(y, p)["f1"] == pytest.approx(reference.f1_score(y, p.argmax(1)))
    y, p = draw(0, 100, 4)
    assert metrics.summary(y, p)["f1"] == metrics.summary(y, p)["f1_macro"]


def test_stats_has_the_same_functions():
    assert stats.accuracy is metrics.accuracy
    assert stats.gmean([0, 1], [0, 1]) == stats.f1([0, 1], [0, 1]) == 1.0
    assert stats.auc([0, 1], [0.1, 0.9]) == 1.0


@pytest.mark.parametrize("y, hard", [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_shapes_that_do_not_fit(y, hard):
    with pytest.raises(ValueError, match="must be"):
        metrics.accuracy(y, hard)


def test_unknown_average():
    with pytest.raises(ValueError, match="micro"):
        metrics.f1([0, 1], [0, 1], "micro")
