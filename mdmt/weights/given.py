"""Weights that a model is given: which of them belong to it, and whether they fit.

`shapes` is {key: shape} of everything the model has, its heads (`heads.<task>...`) included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from ..checked import array_of
from . import foreign, load_weights, names


class Loaded(list):
    """What a state dictionary had that the model did not take: a list of keys.

    unexpected_keys: those among them that are neither of an original classifier nor of GoogLeNet's
    auxiliary ones; missing_keys: what the model has and the dictionary has not. Both are empty
    after a strict load.
    """

    def __init__(self, ignored, missing=(), unexpected=()):
        super().__init__(ignored)
        self.missing_keys, self.unexpected_keys = list(missing), list(unexpected)


def check_values(arrays: dict) -> None:
    """ValueError, naming the key, for what is no number, not finite, or a negative variance."""
    for key, value in arrays.items():
        if value.dtype.kind not in "fiub":
            raise ValueError(f"{key} holds {value.dtype} in the weights, which are no numbers here")
        with np.errstate(over="ignore"):
            value = value.astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            raise ValueError(f"{key} holds NaN or infinity in the weights")
        if key.endswith(("running_var", "num_batches_tracked")) and value.size and value.min() < 0:
            raise ValueError(f"{key} is negative in the weights")


def check_shapes(found: dict, shapes: dict, backbone: str) -> None:
    """ValueError where a shape in `found` {key: shape} differs."""
    for key, shape in found.items():
        if shape != shapes[key]:
            raise ValueError(
                f"{key} has the shape {shape} in the weights and {shapes[key]} in {backbone}"
            )


def _dictionary(state) -> Mapping:
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        named = "; give its state_dict()" if hasattr(state, "state_dict") else ""
        raise ValueError(
            f"the weights must be a dictionary of arrays whose keys are text, not "
            f"{type(state).__name__}{named}"
        )
    return state


def state_of(state, shapes: dict, backbone: str, heads: dict, strict: bool, classifier) -> tuple:
    """(arrays {key: array} to take over, Loaded) of a state dictionary; ValueError where it does
    not belong to the model."""
    state = names.translate(_dictionary(state), shapes)
    if classifier is not None:
        state = _with_classifier(state, classifier, heads)
    missing = [k for k in shapes if k not in state]
    unknown = [k for k in state if k not in shapes and not k.startswith(names.IGNORED)]
    ignored = [k for k in state if k not in shapes]
    if strict and (unknown or missing):
        which = f"unknown key {unknown[0]}" if unknown else f"missing key {missing[0]}"
        alone = not unknown and all(k.startswith("heads.") for k in missing)
        remedy = "; strict=False keeps the heads as they are" if alone else ""
        raise ValueError(
            f"the weights do not belong to {backbone} with the heads {', '.join(heads)}: {which} "
            f"({len(unknown)} unknown, {len(missing)} missing){remedy}"
        )
    values = {k: array_of(v) for k, v in state.items() if k in shapes}
    if state and not values:
        raise ValueError(f"none of the weights belongs to {backbone}: not even one key")
    check_shapes({key: value.shape for key, value in values.items()}, shapes, backbone)
    check_values(values)
    return values, Loaded(ignored, missing, unknown)


def _with_classifier(state, head, heads):
    """The state with the original classifier under the name of a head."""
    if head not in heads:
        raise ValueError(f"there is no head {head!r}: choose among {', '.join(heads)}")
    if heads[head]["hidden"]:
        raise ValueError(f"the head {head} has hidden layers; a classifier is one linear layer")
    weight, bias = names.classifier(state)
    own = {f"heads.{head}.0.weight": weight, f"heads.{head}.0.bias": bias}
    return {k: v for k, v in state.items() if not k.startswith(names.CLASSIFIERS)} | own


def from_dictionary(state, shapes: dict, backbone: str) -> dict:
    """The arrays to start from: the whole backbone, and what `state` has of the heads."""
    state = {k: array_of(v) for k, v in names.translate(_dictionary(state), shapes).items()}
    lost = [k for k in shapes if not k.startswith("heads.") and k not in state]
    unknown = [k for k in state if k not in shapes and not k.startswith(names.IGNORED)]
    if lost or unknown:
        what = f"missing key {lost[0]}" if lost else f"unknown key {unknown[0]}"
        raise ValueError(f"the weights do not belong to {backbone}: {what}")
    given = {k: v for k, v in state.items() if k in shapes}
    check_shapes({k: v.shape for k, v in given.items()}, shapes, backbone)
    check_values(given)
    return given


def from_file(path, shapes: dict, backbone: str, counters) -> tuple[dict, list[str]]:
    """(the backbone's arrays in a weight file, keys that are not used). A file of another network
    is refused before any array is read. counters: keys that old files may lack."""
    path = os.fspath(path)
    shapes = {k: s for k, s in shapes.items() if not k.startswith("heads.")}

    def check(found):
        found = names.translate(found, shapes)
        # Files that PyTorch wrote before 0.4.1 count no batches.
        lost = [k for k in shapes if k not in found and k not in counters]
        extra = foreign(found, shapes)
        if lost or extra:
            what = f"has no {lost[0]}" if lost else f"has {extra[0]}"
            raise ValueError(
                f"{path} {what}: not weights of {backbone}; mdmt weights check tells whose"
            )
        try:
            check_shapes({k: s for k, s in found.items() if k in shapes}, shapes, backbone)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    state = names.translate(load_weights(path, check), shapes)
    given = {k: v for k, v in state.items() if k in shapes}
    try:
        check_values(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return given, [k for k in state if k not in shapes]


def moments(arrays, shapes: dict) -> dict:
    """{(key, "m" or "v"): array} of Adam's moments as Model.optimizer_state gives them; ValueError
    where they are not the model's."""
    taken = {}
    for name, value in _dictionary(arrays).items():
        key, _, what = name.rpartition(".")
        if what not in ("m", "v") or key not in shapes:
            raise ValueError(
                f"{name} is no moment of this model: its names are those of optimizer_state()"
            )
        value = array_of(value)
        if value.shape != shapes[key] or value.dtype.kind != "f":
            raise ValueError(
                f"{name} must be floats {shapes[key]}, not {value.dtype} {value.shape}"
            )
        if not np.isfinite(value).all() or (what == "v" and value.size and value.min() < 0):
            raise ValueError(f"{name} holds NaN, infinity or a negative second moment")
        taken[key, what] = value
    return taken
