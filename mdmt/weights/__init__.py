"""State dictionaries: from files, and their average."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mdmt.checked import array_of, finite
from mdmt.weights import names

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Entries of a saved model's description.
DESCRIBED = {"backbone", "heads", "image_size", "channels", "precision", "seed", "mean", "std"}
# What may be missing: of older files, and where no optimiser was kept.
OPTIONAL = {"mean", "std", "training_step", "groups", "micro_batch", "task_weights", "frozen"}
OPTIMIZER = "optimizer."  # before the keys of Adam's moments in a saved model
# What safetensors files may hold: the numbers of networks.
DTYPES = {"F32", "F64", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def load_weights(
    path: str | os.PathLike, check: Callable[[dict], None] | None = None
) -> dict[str, np.ndarray]:
    """Reads .safetensors or .pth (zip and legacy) into {key: array}, executing nothing.

    A checkpoint's container (`state_dict`, `model`, ...) is opened, prefixes that wrappers put
    before every key (`module.`, `backbone.`, ...) are removed, and old names of DenseNet's layers
    are renewed. Half floats are widened to float32. check({key: shape}), if given, is called before
    any array is read and may raise. Raises FileNotFoundError or ValueError with a sentence that
    names the file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no weight file {path}")
    kind = _kind(path)
    if kind is None:
        raise ValueError(f"{path} is neither .safetensors nor .pth")
    return _read_safetensors(path, check) if kind == "safetensors" else _read_pth(path, check)


def _kind(path):
    """ "safetensors", "pth" or None: by the name, and where that leaves it open or the content is
    clearly the other, by the content."""
    with open(path, "rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if path.endswith(".safetensors") or (start[8:] == b"{" and header <= os.path.getsize(path) - 8):
        return "safetensors"
    known = path.endswith((".pth", ".pt", ".bin", ".ckpt", ".tar"))
    return "pth" if known or start.startswith((b"PK\x03\x04", b"\x80")) else None


def _read_pth(path, check):
    from mdmt.weights.pth import read_pth

    def choose(tree):
        state = names.bare(names.innermost(tree))
        if not state:
            raise ValueError(f"{path} holds no tensors")
        if check is not None:
            check({key: tensor.shape for key, tensor in state.items()})
        return state

    return read_pth(path, choose)


def _read_safetensors(path, check):
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, "np") as file:
            keys = [key for key in file.keys() if not key.startswith(OPTIMIZER)]  # noqa: SIM118
            parts = {key: file.get_slice(key) for key in keys}
            kinds = {key: part.get_dtype() for key, part in parts.items()}
            shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
            other = [key for key, kind in kinds.items() if kind not in DTYPES]
            if other:
                raise ValueError(f"{path}: {other[0]} has the type {kinds[other[0]]}")
            if check is not None:
                check(names.bare(shapes))
            whole = {k: file.get_tensor(k) for k, kind in kinds.items() if kind != "BF16"}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None
    if len(whole) < len(kinds):
        whole |= _brain_floats(path)
    wide = {k: whole[k].astype(np.float32) if kinds[k] == "F16" else whole[k] for k in shapes}
    return names.bare(wide)


def read_moments(path):
    """What Model.save(optimizer=True) kept of Adam: {"<key>.m" or "<key>.v": array}."""
    from safetensors import safe_open

    with safe_open(os.fspath(path), "np") as file:
        keys = [key for key in file.keys() if key.startswith(OPTIMIZER)]  # noqa: SIM118
        return {key.removeprefix(OPTIMIZER): file.get_tensor(key) for key in keys}


def read_description(path):
    """What Model.save wrote beside the weights: a dictionary of plain data, in full.

    Raises FileNotFoundError or ValueError with a sentence that names the file.
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    if os.path.isfile(path) and _kind(path) == "pth":
        raise ValueError(
            f"{path} was not written by Model.save: build the model and give it the file as weights"
        )
    _check_header(path)
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("mdmt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None
    if text is None:
        raise ValueError(
            f"{path} holds weights but no description of a model: build the model and use "
            "load_state_dict"
        )
    try:
        found = json.loads(text)
        size = found["image_size"]
        whole = isinstance(found["heads"], dict) and isinstance(size, list) and len(size) == 2
        for key, low in (("mean", -1e6), ("std", 1e-6)):
            values = found.get(key, [1.0] * found["channels"])
            whole &= len(values) == found["channels"] and all(low <= v <= 1e6 for v in values)
        whole &= isinstance(found.get("training_step", 0), int)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole or set(found) - DESCRIBED - OPTIONAL or DESCRIBED - OPTIONAL - set(found):
        raise ValueError(f"{path}: its description of a model is damaged; save the model again")
    return found


def _check_header(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no weight file {path}")
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > os.path.getsize(path) - 8:
        raise ValueError(
            f"{path} is cut off or not a safetensors file: its header claims {header} bytes"
        )


def _brain_floats(path):
    """The bfloat16 arrays of a safetensors file as float32: NumPy has no such type."""
    from safetensors import deserialize

    with open(path, "rb") as file:
        content = deserialize(file.read())
    return {
        key: (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16)
        .view("<f4")
        .reshape(entry["shape"])
        for key, entry in content
        if entry["dtype"] == "BF16"
    }


def foreign(state, known):
    """Keys of `state` that are not in `known` but belong to a module which `known` has, too: those
    of a larger network of the same family. A classifier or another head is none."""
    modules = {key.partition(".")[0] for key in known}
    return [key for key in state if key not in known and key.partition(".")[0] in modules]


def average_weights(
    a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike], beta: float = 0.5
) -> dict[str, np.ndarray]:
    """beta * a + (1 - beta) * b, key by key (paper, section 3.2: the start of MDMT, beta = 0.5).

    a, b: state dictionaries of one network. Running statistics are averaged as the weights are;
    integer counters are rounded down. ValueError when the keys or shapes differ.
    """
    if not finite(beta) or not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], not {beta!r}")
    for state in (a, b):
        if not isinstance(state, Mapping):
            named = "; give its state_dict()" if hasattr(state, "state_dict") else ""
            raise ValueError(
                "average_weights takes two dictionaries of arrays, not "
                f"{type(state).__name__}{named}"
            )
    if set(a) != set(b):
        key = sorted(set(a) ^ set(b))[0]
        raise ValueError(f"weights of different networks cannot be averaged: only one has {key}")
    average = {}
    for key, left in a.items():
        left, right = array_of(left), array_of(b[key])
        if left.shape != right.shape:
            raise ValueError(
                f"weights of different networks cannot be averaged: {key} is {left.shape} in one "
                f"and {right.shape} in the other"
            )
        mixed = beta * left.astype(np.float64) + (1 - beta) * right.astype(np.float64)
        whole = np.issubdtype(left.dtype, np.integer)
        average[key] = (np.floor(mixed) if whole else mixed).astype(left.dtype)
    return average
