"""A network in the C engine with its weights: what every Model is."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmt import _core, inputs, nets, system
from mdmt.alone import Lock, alone
from mdmt.checked import chosen, whole
from mdmt.nets import heads as heads_
from mdmt.nets.builder import Builder
from mdmt.nets.init import initial_value
from mdmt.weights import given, names
from mdmt.weights.catalogue import default_size, normalisation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Largest Winograd tile (F(4x4), none), and whether maps are stored in bfloat16.
PRECISIONS = {
    "fp32": {"winograd": 2},
    "fp32-direct": {"winograd": 0},
    "bf16": {"winograd": 2, "bf16": True},
}
GPU_PRECISIONS = {"fp32": "fp32", "fp32-direct": "fp32", "tf32": "tf32", "bf16": "bf16"}


class Network:
    """A backbone with one head per task in the engine. Parameters as of Model."""

    def __init__(
        self,
        backbone: str,
        heads: Mapping[str, int | Mapping[str, Any]] | None,
        image_size: int | Sequence[int] | None,
        channels: int,
        device: str,
        precision: str,
        seed: int,
        weights: str | os.PathLike | Mapping[str, ArrayLike] | None,
    ) -> None:
        if heads is None:
            heads = {"prognosis": 2, "severity": 4}
        self._lock = Lock()  # one thread at a time
        self._on = system.open_device(device)
        allowed = PRECISIONS if self._on is None else GPU_PRECISIONS
        if not chosen(precision, allowed):
            where = "the CPU" if self._on is None else "a GPU"
            raise ValueError(
                f"precision on {where} must be one of {', '.join(allowed)}, not {precision!r}"
            )
        self._backbone = backbone
        self._heads = heads_.normalise(heads)
        self.image_size = default_size(backbone) if image_size is None else image_size
        self._channels = whole("channels", channels, 1, 4)
        self._device, self._precision = device, precision
        self.seed = whole("seed", seed, 0, (1 << 63) - 1)
        #: Training steps done: keys the dropout and counts for Adam's bias correction.
        self.training_step = 0
        self._batches = 0  # training passes since the counters below were set
        b = self._describe()
        #: Normalisation of resident images, per channel, of values in 0..1; that of the backbone's
        #: ImageNet weights. forward takes images to which it was applied.
        self.mean, self.std = normalisation(backbone, channels)
        #: Keys of `weights` that the model does not use.
        self.unused = []
        self._build(b, {} if weights is None else self._initial(weights))

    # What the network was built with: a change needs another model.

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self._backbone

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """{task: full description} in the order of the tasks' numbers."""
        return self._heads

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self._channels

    @property
    def device(self) -> str:
        """Where the network is: "cpu", "cuda" or "cuda:i"."""
        return self._device

    @property
    def precision(self) -> str:
        """In which precision the network computes."""
        return self._precision

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of resident images in the network; may be changed at any time."""
        return self._image_size

    @image_size.setter
    def image_size(self, size: int | Sequence[int]) -> None:
        self._image_size = inputs.sides(size)

    def _draw(self):
        """A Builder with the network as ops on tensors, with its heads, for images of
        image_size."""
        family, b = nets.family(self.backbone), Builder(*self.image_size, self.channels)
        try:
            features = family.build(b, self.backbone)
        except ValueError as error:
            size = " x ".join(map(str, self.image_size))
            raise ValueError(f"{self.backbone} with images of {size} pixels: {error}") from None
        b.graph.output(features, "features")
        self._features = b.shape(features)[1]
        for task, head in self.heads.items():
            b.graph.output(heads_.build(b, features, task, head), task)
        return b

    def _describe(self):
        """The network, and what it holds."""
        b = self._draw()
        self._masks = [k for k, head in enumerate(self.heads.values()) if heads_.is_mask(head)]
        self._entries = b.entries
        self._rows = b.rows
        self._shapes = {key: tuple(shape) for key, _, _, shape in b.entries}
        self._learnt = {k: tuple(s) for k, role, _, s in b.entries if role == "param"}
        self._counters = {key: 0 for key, role, _, _ in b.entries if role == "counter"}
        return b

    def _build(self, b, initial):
        """The network in the engine; initial: arrays to start from, the others are drawn."""
        how = PRECISIONS.get(self.precision, {}) | {"seed": self.seed}
        if self._on is not None:
            how["device"] = (*self._on, GPU_PRECISIONS[self.precision])
        self._network = _core.Network(b.graph, **how)
        for key, role, init, shape in b.entries:
            if role == "counter":
                self._counters[key] = int(initial.get(key, 0))
            elif key in initial:
                self._set(key, initial[key])
            else:
                self._set(key, initial_value(key, init, shape, self.seed))

    def _set(self, key, value, *what):
        value = np.asarray(value)
        self._network.set(
            key, value.reshape(value.shape[:2]) if key in self._rows else value, *what
        )

    def _get(self, key, *what):
        value = self._network.get(key, *what)
        return value.reshape(*value.shape, 1, 1) if key in self._rows else value

    def _keep_tuning(self):
        """On a GPU: engines that were measured for new shapes go to the cache folder."""
        if self._on is not None:
            system.keep_tuning(sys.modules["mdmt._cuda"], self._on[1])

    # Weights, and the state of the optimiser

    def _collect(self, what):
        return {key: self._get(key, what) for key, role, _, _ in self._entries if role == "param"}

    @alone
    def state_dict(self) -> dict[str, np.ndarray]:
        """{key: array}: float32 in the layout of PyTorch (O, I, kh, kw), counters int64."""
        state = {}
        for key, role, _, _ in self._entries:
            if role == "counter":
                state[key] = np.array(self._counters[key] + self._batches, np.int64)
            else:
                state[key] = self._get(key)
        return state

    @alone
    def load_state_dict(
        self, state: Mapping[str, ArrayLike], strict: bool = True, classifier: str | None = None
    ) -> given.Loaded:
        """Takes over the weights. Returns the keys that were ignored, those of an original
        classifier among them: a list, with `missing_keys` and `unexpected_keys` for strict=False.

        state: {key: array}, of this model or of a torchvision or timm module (tensors will do).
        classifier: name of the head, of one linear layer (hidden: []), that takes the original
        classifier over. ValueError, and nothing changed, when keys are missing or unknown (strict),
        a shape does not fit or a value is not finite.
        """
        values, loaded = given.state_of(
            state, self._shapes, self.backbone, self.heads, strict, classifier
        )
        counters = {k: n + self._batches for k, n in self._counters.items()}
        for key, value in values.items():
            if key in counters:
                counters[key] = int(value)
            else:
                self._set(key, value)
        self._counters, self._batches = counters, 0
        return loaded

    def _initial(self, weights):
        """The arrays to start from; what a file has besides goes to `unused`."""
        if isinstance(weights, Mapping):
            return given.from_dictionary(weights, self._shapes, self.backbone)
        if isinstance(weights, str) and weights == "imagenet":
            from mdmt.weights.fetch import obtain

            weights = obtain(self.backbone)
        if not isinstance(weights, str | os.PathLike):
            named = "; give its state_dict()" if hasattr(weights, "state_dict") else ""
            raise ValueError(
                "weights must be None, 'imagenet', a file or a dictionary, not "
                f"{type(weights).__name__}{named}"
            )
        arrays, self.unused = given.from_file(weights, self._shapes, self.backbone, self._counters)
        left = sorted({k.partition(".")[0] for k in self.unused if k.startswith(names.AUXILIARY)})
        if left:
            warnings.warn(
                f"{os.fspath(weights)}: {' and '.join(left)} are ignored: {self.backbone} has no "
                "auxiliary classifiers here",
                stacklevel=4,
            )
        return arrays

    @alone
    def optimizer_state(self) -> tuple[dict[str, np.ndarray], int]:
        """({"<key>.m": first moment, "<key>.v": second moment}, training steps done)."""
        arrays = {}
        for what in ("m", "v"):
            arrays |= {f"{key}.{what}": value for key, value in self._collect(what).items()}
        return arrays, self.training_step

    @alone
    def load_optimizer_state(self, arrays: Mapping[str, ArrayLike], step: int) -> None:
        """Takes over what optimizer_state gave. ValueError, and nothing changed, where it is not of
        this model."""
        moments = given.moments(arrays, self._learnt)
        step = whole("step", step, 0, (1 << 63) - 1)
        for (key, what), value in moments.items():
            self._set(key, value, what)
        self.training_step = step

    def description(self) -> dict[str, Any]:
        """What is needed to build this model again, as plain data."""
        return {
            "backbone": self.backbone,
            "heads": self.heads,
            "image_size": list(self.image_size),
            "channels": self.channels,
            "precision": self.precision,
            "seed": self.seed,
            "mean": [float(v) for v in self.mean],
            "std": [float(v) for v in self.std],
        }
