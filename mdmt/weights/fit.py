"""Which backbones a state dictionary belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import nets
from ..nets.builder import Builder
from . import foreign
from .names import translate

SIZE = 224  # of the input; the shapes of weights do not depend on it


@dataclass(frozen=True)
class Fit:
    """How a state dictionary and a backbone agree.

    shapes: (key, shape in the dictionary, shape in the backbone) where they differ; missing: keys
    that only the backbone has (counters of batches are not needed); extra: keys in modules of the
    backbone that only the dictionary has; others: further such keys, of a classifier for example.
    """

    backbone: str
    agreeing: int
    shapes: list[tuple]
    missing: list[str]
    extra: list[str]
    others: list[str]

    @property
    def faults(self) -> int:
        """Arrays for which the backbone cannot start from the dictionary."""
        return len(self.shapes) + len(self.missing) + len(self.extra)

    @property
    def whole(self) -> bool:
        """Whether the backbone can start from the dictionary."""
        return not self.faults


def entries(backbone: str) -> list[tuple]:
    """(key, role, shape) of a backbone's state dictionary for images of three channels."""
    builder = Builder(SIZE, SIZE, 3)
    nets.family(backbone).build(builder, backbone)
    return [(key, role, tuple(shape)) for key, role, _, shape in builder.entries]


def _shape(value) -> tuple:
    return tuple(getattr(value, "shape", value))


def fit(state: dict, backbone: str) -> Fit:
    """Compare a state dictionary, of arrays or of their shapes, with one backbone."""
    shapes, missing, agreeing = [], [], 0
    listed = entries(backbone)
    known = dict.fromkeys(key for key, _, _ in listed)
    state = translate(state, known)
    for key, role, shape in listed:
        if key not in state:
            if role != "counter":
                missing.append(key)
        elif _shape(state[key]) != shape:
            shapes.append((key, _shape(state[key]), shape))
        else:
            agreeing += 1
    extra = foreign(state, known)
    others = [k for k in state if k not in known and k not in extra]
    return Fit(backbone, agreeing, shapes, missing, extra, others)


def fits(state: dict) -> list[Fit]:
    """Compare with every backbone, the best first."""
    found = [fit(state, backbone) for backbone in nets.backbones()]
    return sorted(found, key=lambda f: (-f.whole, f.faults - f.agreeing))


def not_finite(state: dict) -> list[str]:
    """Keys of arrays that hold NaN or infinity."""
    return [
        key
        for key, value in state.items()
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all()
    ]
