"""State dictionaries: from files, and their average."""

import os
import re

import numpy as np

# Where checkpoints keep the weights, and what wrappers put before the keys.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")
# torchvision before 0.3 wrote denselayer1.norm.1.weight for denselayer1.norm1.weight.
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def load_weights(path):
    """Reads .safetensors or .pth (zip and legacy) into {key: array}, executing nothing.

    A checkpoint's container (`state_dict`, `model`, ...) is opened, prefixes that wrappers put
    before every key (`module.`, `backbone.`, ...) are removed, and old names of DenseNet's layers
    are renewed. Raises FileNotFoundError or ValueError with a sentence that names the file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.endswith(".safetensors"):
        return _clean(_read_safetensors(path))
    if path.endswith((".pth", ".pt", ".bin", ".ckpt", ".tar")):
        from mdmt.weights.pth import read_pth

        state = _clean(_open_container(read_pth(path)))
        if not state:
            raise ValueError(f"{path} holds no tensors")
        return state
    raise ValueError(f"{path} is neither .safetensors nor .pth")


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > os.path.getsize(path) - 8:
        raise ValueError(
            f"{path} is cut off or not a safetensors file: its header claims {header} bytes"
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None


def _open_container(tree):
    """The innermost dictionary that holds the weights."""
    for name in CONTAINERS:
        if isinstance(tree.get(name), dict) and tree[name]:
            return _open_container(tree[name])
    return {k: v for k, v in tree.items() if not isinstance(v, dict)}


def _clean(state):
    found = True
    while found and state:
        found = next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)
        if found:
            state = {k[len(found) :]: v for k, v in state.items()}
    return {OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items()}


def foreign(state, known):
    """Keys of `state` that are not in `known` but belong to a module which `known` has, too: those
    of a larger network of the same family. A classifier or another head is none."""
    modules = {key.partition(".")[0] for key in known}
    return [key for key in state if key not in known and key.partition(".")[0] in modules]


def average_weights(a, b, beta=0.5):
    """beta * a + (1 - beta) * b, key by key (paper, section 3.2: the start of MDMT, beta = 0.5).

    a, b: state dictionaries of one network. Running statistics are averaged as the weights are;
    integer counters are rounded down. ValueError when the keys or shapes differ.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], not {beta}")
    if set(a) != set(b):
        key = sorted(set(a) ^ set(b))[0]
        raise ValueError(f"weights of different networks cannot be averaged: only one has {key}")
    average = {}
    for key, left in a.items():
        left, right = np.asarray(left), np.asarray(b[key])
        if left.shape != right.shape:
            raise ValueError(
                f"weights of different networks cannot be averaged: {key} is {left.shape} in one "
                f"and {right.shape} in the other"
            )
        mixed = beta * left.astype(np.float64) + (1 - beta) * right.astype(np.float64)
        whole = np.issubdtype(left.dtype, np.integer)
        average[key] = (np.floor(mixed) if whole else mixed).astype(left.dtype)
    return average
