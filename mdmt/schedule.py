"""Learning rate, best epoch and early stopping; the rules are in csrc/train/schedule.c."""

from __future__ import annotations

import numbers
import reprlib
from typing import Any

import numpy as np

from mdmt import _core

from .checked import chosen, floats
from .errors import nearest

CONFIG = (
    "lr",
    "factor",
    "patience",
    "threshold",
    "min_lr",
    "cooldown",
    "warmup",
    "stop_patience",
    "max_epochs",
    "kind",
    "lr_warmup",
    "length",
)
KINDS = ("plateau", "cosine", "linear", "constant")  # as mdmt_rate_kind numbers them
# What a state written before there were these settings stands for.
FORMER = {"kind": "plateau", "lr_warmup": 0.0, "length": 0.0}
STATE = (
    "lr",
    "plateau_best",
    "plateau_bad",
    "cooldown_left",
    "best_loss",
    "best_epoch",
    "stale",
    "epochs",
)


def _numbers(values: dict[str, Any]) -> np.ndarray:
    """The settings as the engine takes them, float64 in the order of CONFIG."""
    if not chosen(values["kind"], KINDS):
        raise ValueError(f"kind is {values['kind']!r}{nearest(str(values['kind']), KINDS)}")
    values = {**values, "kind": KINDS.index(values["kind"])}
    for name in CONFIG:
        if not isinstance(values[name], numbers.Real):
            raise ValueError(f"{name} must be a number, not {reprlib.repr(values[name])}")
    return floats("the settings", [values[name] for name in CONFIG])


class TrainingSchedule:
    """What a training does with the validation loss of each epoch.

    kind: how the learning rate goes from `lr` on, as the schedulers of torch.optim.lr_scheduler.
    "plateau" is ReduceLROnPlateau (mode min, relative threshold): after more than `patience` epochs
    in a row without a loss below best * (1 - threshold) it is multiplied by `factor`, not below
    min_lr. "cosine" (CosineAnnealingLR) and "linear" fall to min_lr over the training, "constant"
    stays. Epoch t of `length` has min_lr + (lr - min_lr) * (1 + cos(pi * t / length)) / 2, so that
    min_lr is what would follow the last epoch. length: epochs, None for max_epochs; it need not be
    whole where a training ends inside an epoch.

    lr_warmup: in so many epochs at the start the learning rate rises to lr in equal steps, from
    lr / (lr_warmup + 1) on (LinearLR before the others in SequentialLR); the rule above takes the
    epochs that are left, and a plateau counts losses from there on.

    warmup, which is none of the learning rate, is the paper's: in the first `warmup` epochs no
    epoch is selected and early stopping does not count. After that the epoch of the lowest loss is
    the best one, and after stop_patience epochs in a row without a new best the training stops, as
    it does after max_epochs. If it ends inside that warm-up, its last epoch is the selected one.

    Raises ValueError for settings that make no schedule.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        factor: float = 0.65,
        patience: int = 15,
        threshold: float = 1e-4,
        min_lr: float = 1e-8,
        cooldown: int = 0,
        warmup: int = 40,
        stop_patience: int = 40,
        max_epochs: int = 300,
        kind: str = "plateau",
        lr_warmup: int = 0,
        length: float | None = None,
    ) -> None:
        values = locals() | {"length": 0.0 if length is None else length}
        self._config = _numbers(values)
        self._state = np.zeros(len(STATE))
        _core.schedule_start(self._config, self._state)

    @property
    def lr(self) -> float:
        """Learning rate of the next epoch."""
        return float(self._state[STATE.index("lr")])

    @property
    def best_epoch(self) -> int:
        """The selected epoch, -1 where there is none yet."""
        return int(self._state[STATE.index("best_epoch")])

    @property
    def best_loss(self) -> float:
        """Its validation loss, infinity where there is none yet."""
        return float(self._state[STATE.index("best_loss")])

    def __repr__(self):
        done = int(self._state[STATE.index("epochs")])
        best = f"best {self.best_epoch} (loss {self.best_loss:.6g})" if self.best_epoch >= 0 else ""
        return f"TrainingSchedule(lr {self.lr:g}, {done} epochs done{', ' * bool(best)}{best})"

    def update(self, epoch: int, val_loss: float) -> tuple[float, bool, bool]:
        """Takes the validation loss of `epoch`, which counts from 0. Returns (lr, is_best, stop):
        the learning rate of the next epoch, whether to keep this epoch's weights, and whether the
        training has ended. Raises ValueError where `epoch` is not the next one."""
        is_best, stop = _core.schedule_update(self._config, self._state, epoch, val_loss)
        return self.lr, is_best, stop

    def state_dict(self) -> dict[str, Any]:
        """Settings and state: plain floats (JSON needs allow_nan for the infinities), and the name
        of the kind."""
        config = dict(zip(CONFIG, self._config.tolist()))
        return {
            "config": {**config, "kind": KINDS[int(config["kind"])]},
            "state": dict(zip(STATE, self._state.tolist())),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from that state, with its settings."""
        config = _numbers({**FORMER, **state["config"]})
        values = np.array([state["state"][name] for name in STATE], np.float64)
        _core.schedule_start(config, np.zeros(len(STATE)))  # checks the settings
        self._config, self._state = config, values
