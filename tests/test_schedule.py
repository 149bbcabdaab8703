"""The schedule against PyTorch's schedulers and a plain statement of warm-up, selection and early
stopping."""

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


def optimiser(lr):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), torch.optim.lr_scheduler


def rates_of_pytorch(kind, lr, low, warmup, epochs):
    """Learning rates of epochs 0 to `epochs`, of LinearLR and then the scheduler of that kind."""
    sgd, schedulers = optimiser(lr)
    after = {
        "cosine": lambda: schedulers.CosineAnnealingLR(sgd, epochs - warmup, low),
        "linear": lambda: schedulers.LinearLR(sgd, 1.0, low / lr, epochs - warmup),
        "constant": lambda: schedulers.ConstantLR(sgd, 1.0),
    }[kind]
    if warmup:
        first = schedulers.LinearLR(sgd, 1 / (warmup + 1), 1.0, warmup)
        oracle = schedulers.SequentialLR(sgd, [first, after()], [warmup])
    else:
        oracle = after()
    found = [sgd.param_groups[0]["lr"]]
    for _ in range(epochs):
        sgd.step()
        oracle.step()
        found.append(sgd.param_groups[0]["lr"])
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "epochs"), [(0, 1), (0, 7), (1, 2), (3, 20), (5, 6)])
def test_rates_that_need_no_loss_are_those_of_pytorch(kind, warmup, epochs):
    want = rates_of_pytorch(kind, 3e-3, 2e-5, warmup, epochs)
    schedule = TrainingSchedule(
        3e-3, min_lr=2e-5, max_epochs=epochs, kind=kind, lr_warmup=warmup, stop_patience=epochs
    )
    rates = [schedule.lr, *(lr for lr, _, _ in run(schedule, [1.0] * epochs))]
    assert rates == pytest.approx(want, rel=1e-12)
    assert rates[-1] == pytest.approx(3e-3 if kind == "constant" else 2e-5, rel=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("length", [2.25, 6.5, 9.999])
def test_a_length_that_ends_inside_an_epoch_is_the_closed_form(length):
    sgd, schedulers = optimiser(0.1)
    oracle = schedulers.CosineAnnealingLR(sgd, length, 0.01)
    epochs = math.ceil(length)
    schedule = TrainingSchedule(0.1, min_lr=0.01, max_epochs=epochs, kind="cosine", length=length)
    for epoch in range(epochs):
        oracle.last_epoch = epoch
        assert schedule.lr == pytest.approx(oracle._get_closed_form_lr()[0], rel=1e-12)
        schedule.update(epoch, 1.0)
    assert schedule.lr == pytest.approx(0.01)  # it does not rise again after its end


@pytest.mark.oracle
def test_a_plateau_counts_from_the_end_of_the_warm_up_of_the_learning_rate():
    sgd, schedulers = optimiser(0.1)
    oracle = schedulers.ReduceLROnPlateau(sgd, patience=1, factor=0.5)
    schedule = TrainingSchedule(0.1, factor=0.5, patience=1, lr_warmup=3)
    losses = [0.1, 0.1, 0.1, 5, 4, 4, 4, 4, 3, 3, 3]
    rates = [lr for lr, _, _ in run(schedule, losses)]
    assert rates[:3] == pytest.approx([0.05, 0.075, 0.1])
    for loss, lr in zip(losses[3:], rates[3:], strict=True):
        oracle.step(loss)
        assert lr == sgd.param_groups[0]["lr"]
    assert rates[-1] < 0.1


def test_plateau_reduces_after_more_than_patience_epochs():
    schedule = TrainingSchedule(lr=1.0, patience=2, factor=0.5, max_epochs=100)
    rates = [lr for lr, _, _ in run(schedule, [1.0] * 8)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


@quick
@given(LOSSES, st.integers(0, 10), st.integers(1, 10), st.integers(1, 90))
def test_selection_and_early_stopping_follow_the_paper(losses, warmup, stop_patience, max_epochs):
    schedule = TrainingSchedule(warmup=warmup, stop_patience=stop_patience, max_epochs=max_epochs)
    other = TrainingSchedule(
        warmup=warmup, stop_patience=stop_patience, max_epochs=max_epochs, kind="cosine",
        lr_warmup=min(3, max_epochs - 1),
    )  # fmt: skip
    for epoch, loss in enumerate(losses[:max_epochs]):
        _, is_best, stop = schedule.update(epoch, loss)
        other.update(epoch, loss)
        assert (other.best_epoch, other.best_loss) == (schedule.best_epoch, schedule.best_loss)
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
@given(LOSSES, st.sampled_from(["plateau", "cosine", "linear", "constant"]), st.data())
def test_any_epoch_is_restored(losses, kind, data):
    arguments = {"patience": 2, "warmup": 3, "stop_patience": 9, "cooldown": 1, "kind": kind}
    arguments |= {"lr_warmup": 2, "length": 40.5}
    whole = run(TrainingSchedule(**arguments), losses)
    stop = data.draw(st.integers(0, len(losses)))
    first = TrainingSchedule(**arguments)
    run(first, losses[:stop])
    second = TrainingSchedule()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(second, losses[stop:], stop) == whole[stop:]


def test_a_state_without_the_newer_settings_goes_on_as_it_was():
    """As checkpoints hold it that were written when there was only the plateau."""
    old = {
        "config": {
            "lr": 0.001, "factor": 0.5, "patience": 1.0, "threshold": 0.0001, "min_lr": 1e-08,
            "cooldown": 0.0, "warmup": 0.0, "stop_patience": 40.0, "max_epochs": 300.0,
        },
        "state": {
            "lr": 0.0005, "plateau_best": 0.75, "plateau_bad": 1.0, "cooldown_left": 0.0,
            "best_loss": 0.75, "best_epoch": 4.0, "stale": 3.0, "epochs": 8.0,
        },
    }  # fmt: skip
    schedule = TrainingSchedule(kind="cosine", lr_warmup=7)
    schedule.load_state_dict(old)
    rates = [lr for lr, _, _ in run(schedule, [1.0, 1.0, 0.7], 8)]
    assert rates == [0.00025, 0.00025, 0.00025]
    assert (schedule.best_epoch, schedule.best_loss) == (10, 0.7)
    assert schedule.state_dict()["config"] == {
        **old["config"], "kind": "plateau", "lr_warmup": 0, "length": 0
    }  # fmt: skip


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
        "kind": "plateau",
        "lr_warmup": 0,
        "length": 0,
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
        ({"kind": "cosin"}, "kind is 'cosin'; did you mean 'cosine'"),
        ({"lr_warmup": -1}, "lr_warmup must be at least 0, not -1"),
        ({"lr_warmup": 300}, "lr_warmup must be below the 300 epochs of the training, not 300"),
        ({"length": -1.0}, "length must be at least 0, not -1"),
        ({"kind": "linear", "min_lr": 0.1}, "cannot fall from 0.001 to 0.1: min_lr"),
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
