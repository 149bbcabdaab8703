"""Names of weights: what wrappers, older versions and other code bases call them, turned into ours.

Ours are those of torchvision and timm. The EfficientNet-PyTorch family (efficientnet_pytorch and
its relatives, files with keys such as `_blocks.3._depthwise_conv.weight`) counts the blocks of a
network through, where timm counts them by stage; so its names can be translated only for a given
network.
"""

from __future__ import annotations

import re

import numpy as np

# Where checkpoints keep the weights, and what wrappers put before the keys.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")
# torchvision before 0.3 wrote denselayer1.norm.1.weight for denselayer1.norm1.weight.
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")

# Keys of original classifiers, which the heads take the place of: the last one, and GoogLeNet's two
# auxiliary ones, which its backbone here does not have.
CLASSIFIERS = ("fc.", "classifier.")
AUXILIARY = ("aux1.", "aux2.")
IGNORED = (*CLASSIFIERS, *AUXILIARY, "n_averaged")  # a counter of PyTorch's AveragedModel

# EfficientNet-PyTorch -> timm: outside the blocks, in a block, and in a block without expansion.
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST = {**INNER, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def innermost(tree: dict) -> dict:
    """The part of a checkpoint's nested dictionaries that holds the weights."""
    for name in CONTAINERS:
        if isinstance(tree.get(name), dict) and tree[name]:
            return innermost(tree[name])
    return {k: v for k, v in tree.items() if not isinstance(v, dict)}


def bare(state: dict) -> dict:
    """Keys without the prefixes that all of them have, and with DenseNet's new names."""
    found = True
    while found and state:
        found = next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)
        if found:
            state = {k[len(found) :]: v for k, v in state.items()}
    return {OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items()}


def translate(state: dict, known) -> dict:
    """A state dictionary under the names of a network.

    known: the network's keys. A prefix that only the backbone's keys have is removed, and names of
    the EfficientNet-PyTorch family are translated; other keys stay as they are.
    """
    state = _unwrapped(state, known)
    if not any(key.startswith("_blocks.") for key in state):
        return state
    blocks = (key.split(".") for key in known if key.startswith("blocks."))
    places = list(dict.fromkeys(tuple(parts[:3]) for parts in blocks))
    expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
    return {_timm_name(key, places, expanded): value for key, value in state.items()}


def _unwrapped(state, known):
    """Without what stands before the names of a backbone's keys, where another part (a head) of
    the same file does not have it."""
    first = next(iter(known), None)
    if first is None or any(key in state for key in known):
        return state
    prefixes = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    if not prefixes:
        return state
    best = max(prefixes, key=lambda p: sum(f"{p}{key}" in state for key in known))
    return {key.removeprefix(best): value for key, value in state.items()}


def _timm_name(key, places, expanded):
    """places: ("blocks", stage, number) of the network's blocks in order; expanded: numbers of the
    blocks that have an expansion."""
    parts = key.split(".")
    if parts[0] in OUTER:
        return ".".join((OUTER[parts[0]], *parts[1:]))
    if parts[0] != "_blocks" or len(parts) < 4:
        return key
    number, layer, rest = parts[1], parts[2], parts[3:]
    if not number.isdecimal() or int(number) >= len(places):
        return key.removeprefix("_")  # of a larger network: found to be foreign under this name
    inner = INNER if number in expanded else FIRST
    return ".".join((*places[int(number)], inner.get(layer, layer), *rest))


def classifier(state: dict) -> tuple:
    """(weight (classes, C), bias (classes)) of the original classifier; ValueError if there is
    none."""
    for key, value in state.items():
        bias = f"{key.removesuffix('.weight')}.bias"
        found = key.startswith(CLASSIFIERS) and key.endswith(".weight") and bias in state
        if found and np.ndim(value) == 2:
            return value, state[bias]
    raise ValueError("the weights hold no classifier (fc or classifier, with weight and bias)")
