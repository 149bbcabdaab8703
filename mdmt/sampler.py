"""Mixed batches over several data sets; the drawing is in csrc/train/sampler.c."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mdmt import _core
from mdmt.checked import chosen, integer, whole

MODES = ("union", "balanced", "ratio")
EPOCHS = ("union", "longest", "shortest")


class MixedBatchSampler:
    """Which samples of which data sets make each batch of an epoch.

    sizes: samples of each data set. batch_size: exact for every batch but perhaps the last one of
    an epoch, which drop_last leaves out.

    mode
        "union": every sample of the union is equally likely at every place and comes exactly once
        per epoch. "balanced": each batch holds equally many samples of each data set, a remainder
        going round. "ratio": each batch holds the shares given by `ratio` (positive, of any sum).
        In the last two a data set that is through before the epoch ends is shuffled anew and goes
        on; a batch holds its data sets one after the other.
    epoch
        How long an epoch is: "union", as many samples as all data sets have; "longest", until the
        data set that lasts longest at its share was seen exactly once; "shortest", likewise for
        the first to end; or a number of full batches.
    seed
        Batches depend on these arguments, the epoch and the position alone.

    Iterating yields (dataset, index), two int64 arrays (batch_size), for one epoch; it starts at
    the first batch, or after load_state_dict where that state stood. The next epoch is chosen with
    set_epoch. Raises ValueError for an empty data set or a bad argument.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        mode: str = "union",
        ratio: Sequence[float] | None = None,
        epoch: str | int = "union",
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if not chosen(mode, MODES):
            raise ValueError(f"unknown sampler mode {mode!r}: choose one of {', '.join(MODES)}")
        steps = epoch if isinstance(epoch, numbers.Integral) else 0
        if isinstance(epoch, bool) or (not steps and epoch not in EPOCHS and epoch != 0):
            raise ValueError(
                f"unknown epoch {epoch!r}: choose one of {', '.join(EPOCHS)} or a number of steps"
            )
        if (mode == "ratio") != (ratio is not None):
            raise ValueError(
                "the sampler mode 'ratio' needs a ratio per data set"
                if ratio is None
                else f"a ratio goes with the sampler mode 'ratio', not with {mode!r}"
            )
        try:
            sizes = list(sizes)
        except TypeError:
            raise ValueError(f"sizes must be a list of numbers of samples, not {sizes!r}") from None
        if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**64:
            raise ValueError(f"the seed must be a number from 0 to 2**64 - 1, not {seed!r}")
        self._settings = {
            "sizes": [integer(f"the size of data set {i}", n) for i, n in enumerate(sizes)],
            "batch_size": integer("batch_size", batch_size),
            "mode": mode,
            "ratio": None if ratio is None else [float(r) for r in ratio],
            "epoch_rule": epoch if isinstance(epoch, str) else int(epoch),
            "drop_last": bool(drop_last),
            "seed": int(seed),
        }
        self._sampler = _core.Sampler(
            np.array(self._settings["sizes"], np.int64),
            self._settings["batch_size"],
            MODES.index(mode),
            self._settings["ratio"],
            EPOCHS.index(epoch) if isinstance(epoch, str) else len(EPOCHS),
            int(steps),
            self._settings["drop_last"],
            self._settings["seed"],
        )
        self.epoch = 0
        self._position = 0  # batches of this epoch that were handed out
        self._start = 0  # where the next iteration starts

    def __repr__(self):
        s = self._settings
        ratio = f", ratio {s['ratio']}" if s["ratio"] else ""
        return (
            f"MixedBatchSampler({s['mode']}{ratio} of {s['sizes']} samples, batches of "
            f"{s['batch_size']}, {len(self)} an epoch ({s['epoch_rule']}), seed {s['seed']}; "
            f"epoch {self.epoch})"
        )

    def __getstate__(self):
        return self.state_dict()

    def __setstate__(self, state):
        settings = {k: v for k, v in state.items() if k not in ("epoch", "position", "epoch_rule")}
        self.__init__(**settings, epoch=state["epoch_rule"])
        self.load_state_dict(state)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._sampler.steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._position, self._start = self._start, 0
        epoch = self.epoch
        for step in range(self._position, len(self)):
            batch = self._sampler.batch(epoch, step)
            self._position = step + 1
            yield batch

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `step` of `epoch`, at once: (dataset, index)."""
        return self._sampler.batch(epoch, step)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch. Where it is the one that load_state_dict restored, the position stays:
        a loop that was interrupted sets its epoch again and goes on in its middle."""
        epoch = whole("epoch", epoch, 0, (1 << 32) - 1)  # as many as the random numbers tell apart
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._start = 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position (batches handed out) and the settings; plain values, fit for JSON."""
        position = self._position or self._start
        return {"epoch": self.epoch, "position": position, **self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where that state stood. Raises ValueError where its settings differ from ours:
        it would be another sequence of batches."""
        for key, ours in self._settings.items():
            if state.get(key) != ours:
                raise ValueError(
                    f"the sampler state was saved with {key} = {state.get(key)!r}, but this "
                    f"sampler has {ours!r}"
                )
        if not 0 <= state["position"] <= len(self):
            raise ValueError(
                f"the sampler state stands at batch {state['position']} of {len(self)}"
            )
        self.epoch = int(state["epoch"])
        self._position = 0
        self._start = int(state["position"])
