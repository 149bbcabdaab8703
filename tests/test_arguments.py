"""Arguments of public functions that are no number, name or list: a ValueError of one sentence."""

import numpy as np
import pytest

import mdmt
from mdmt import schedule

SQUARE = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mdmt.Model("resnet18", precision=["fp32"]), "precision on the CPU must be one of"),
        (lambda: mdmt.masked_loss(None, [0], [0]), "logits must be a list of one array per task"),
        (lambda: mdmt.masked_loss([SQUARE], [0] * 3, {}), "target must hold numbers"),
        (lambda: mdmt.masked_loss([[[1], [1, 2]]], [0] * 2, [0, 0]), r"logits\[0\] must hold num"),
        (lambda: mdmt.masked_loss([SQUARE], [0] * 3, [0] * 3, {}), "unknown reduction {}"),
        (lambda: mdmt.masked_loss([SQUARE], [0] * 3, [0] * 3, losses=[[]]), r"unknown loss \[\]"),
        (lambda: mdmt.masked_loss([SQUARE], [0] * 3, [0] * 3, weights=3), "weights must be a list"),
        (lambda: schedule.TrainingSchedule(lr={}), "lr must be a number, not {}"),
        (lambda: schedule.TrainingSchedule(patience="x"), "patience must be a number, not 'x'"),
        (lambda: schedule.TrainingSchedule(lr=10**400), "must hold numbers"),
        (lambda: schedule.TrainingSchedule(kind=[]), "kind is "),
        (lambda: mdmt.MixedBatchSampler([3], 2, mode=np.zeros(2)), "unknown sampler mode array"),
        (lambda: mdmt.metrics.auc([0, 1], {}), "score must hold numbers"),
    ],
)
def test_what_is_no_number_or_name_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, 3])
def test_what_is_no_list_of_data_sets_is_told(data):
    with pytest.raises(ValueError, match="attach takes a list of data sets"):
        mdmt.Model("shufflenet_v2_x0_5", {"p": 2}, image_size=32).attach(data)
