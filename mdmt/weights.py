"""State dictionaries: from files, and their average."""

import os

import numpy as np


def load_weights(path):
    """Reads a .safetensors file into {key: array}.

    Raises FileNotFoundError or ValueError with a sentence that names the file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no weight file {path}")
    if not path.endswith(".safetensors"):
        raise ValueError(f"{path} is not a .safetensors file")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None


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
