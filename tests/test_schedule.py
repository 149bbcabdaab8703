"""The schedule against PyTorch's ReduceLROnPlateau and a plain statement of warm-up, selection and
early stopping."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmt.schedule import TrainingSchedule

LOSSES = st.lists(
    st.sampled_from([0.3, 0.5, 0.5 * (1 - 1e-4), 0.49996, 0.7, 1.0, math.nan, math.inf])
    | st.floats(0, 2),
    min_size=1,
    max_size=80,
)
quick = settings(max_examples=60, deadline=None)


def run(schedule, losses, start=0):
    return [schedule.update(start + i, loss) for i, loss in enumerate(losses)]


@pytest.mark.oracle
@quick
@given(
    LOSSES,
    st.integers(0, 6),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.integers(0, 3),
    st.sampled_from([0.65, 0.1, 1e-4]),
    st.sampled_from([0.0, 1e-8, 2e-4]),
)
def test_learning_rate_is_that_of_pytorch(losses, patience, threshold, cooldown, factor, min_lr):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        min_lr=min_lr,
    )
    ours = TrainingSchedule(1e-3, factor, patience, threshold, min_lr, cooldown, max_epochs=1000)
    for epoch, loss in enumerate(losses):
        oracle.step(loss)
        assert ours.update(epoch, loss)[0] == optimiser.param_groups[0]["lr"]


def test_plateau_reduces_after_more_than_patience_epochs():
    schedule = TrainingSchedule(lr=1.0, patience=2, factor=0.5, max_epochs=100)
    rates = [lr for lr, _, _ in run(schedule, [1.0] * 8)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


@quick
@given(LOSSES, st.integers(0, 10), st.integers(1, 10), st.integers(1, 90))
def test_selection_and_early_stopping_follow_the_paper(losses, warmup, stop_patience, max_epochs):
    schedule = TrainingSchedule(warmup=warmup, stop_patience=stop_patience, max_epochs=max_epochs)
    for epoch, loss in enumerate(losses[:max_epochs]):
        _, is_best, stop = schedule.update(epoch, loss)
        counted = [
            (e, x) for e, x in enumerate(losses[: epoch + 1]) if e >= warmup and x < math.inf
        ]
        last = epoch == max_epochs - 1
        if not counted and last and loss < math.inf:
            counted = [(epoch, loss)]  # a training that ends in the warm-up keeps its last epoch
        best = min(counted, key=lambda pair: pair[1])[0] if counted else -1
        assert schedule.best_epoch == best
        assert schedule.best_loss == (losses[best] if counted else math.inf)
        assert is_best == (best == epoch)
        since = epoch - max(best, warmup - 1)
        assert stop == (last or since >= stop_patience)
        if stop:
            break


def test_warm_up_neither_selects_nor_stops():
    schedule = TrainingSchedule(warmup=5, stop_patience=2)
    results = run(schedule, [0.1, 0.9, 0.9, 0.9, 0.9, 0.8, 0.9, 0.9])
    assert [best for _, best, _ in results] == [False] * 5 + [True, False, False]
    assert [stop for _, _, stop in results] == [False] * 7 + [True]
    assert schedule.best_epoch == 5 and schedule.best_loss == 0.8


@quick
@given(LOSSES, st.data())
def test_any_epoch_is_restored(losses, data):
    arguments = {"patience": 2, "warmup": 3, "stop_patience": 9, "cooldown": 1}
    whole = run(TrainingSchedule(**arguments), losses)
    stop = data.draw(st.integers(0, len(losses)))
    first = TrainingSchedule(**arguments)
    run(first, losses[:stop])
    second = TrainingSchedule()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(second, losses[stop:], stop) == whole[stop:]


def test_defaults_are_those_of_the_paper():
    config = TrainingSchedule().state_dict()["config"]
    assert config == {
        "lr": 1e-3,
        "factor": 0.65,
        "patience": 15,
        "threshold": 1e-4,
        "min_lr": 1e-8,
        "cooldown": 0,
        "warmup": 40,
        "stop_patience": 40,
        "max_epochs": 300,
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"lr": 0}, "learning rate must be positive, not 0"),
        ({"lr": math.nan}, "learning rate must be positive, not nan"),
        ({"factor": 1.0}, "factor .* not 1"),
        ({"threshold": -1}, "threshold .* not -1"),
        ({"patience": -1}, "patience must be at least 0, not -1"),
        ({"stop_patience": 0}, "stop_patience must be at least 1, not 0"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, not 0"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainingSchedule(**arguments)


def test_an_epoch_out_of_turn_is_refused():
    schedule = TrainingSchedule()
    schedule.update(0, 1.0)
    with pytest.raises(ValueError, match="expects the validation loss of epoch 1, not of epoch 0"):
        schedule.update(0, 1.0)
