"""Groups of parameters: factors of the learning rate and of the weight decay, by patterns of names.

`{"backbone": {"lr": 0.1}, "norm": {"weight_decay": 0}}`: a pattern is one of WORDS, or a name of
the state dictionary with `*`, `?` and `[...]` as in file names, where `*` crosses dots. A parameter
takes each factor of the last pattern that names it and gives the factor; without one it is 1.
"""

from __future__ import annotations

import fnmatch
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from . import nets
from .checked import finite
from .errors import nearest
from .nets import heads as heads_
from .nets.builder import Builder
from .weights.catalogue import default_size

FACTORS = ("lr", "weight_decay")
MOST = 256  # different pairs of factors in the engine
WORDS = {
    "backbone": "all outside the heads",
    "heads": "all of the heads",
    "norm": "weights and biases of batch normalisations",
    "bias": "biases, those of batch normalisations among them",
}
Entries = Iterable[tuple[str, str, Any, Any]]  # (key, role, ...), as Builder.entries


def entries(backbone: str, heads: Mapping[str, Any]) -> list[tuple]:
    """The parameters of a network that is not built, as below. ValueError for a backbone that is
    none."""
    size = default_size(backbone)
    b = Builder(size, size, 3)
    features = nets.family(backbone).build(b, backbone)
    for task, head in heads_.normalise(heads).items():
        heads_.build(b, features, task, head)
    return b.entries


def checked(groups: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`groups` as plain data. ValueError where it is not {pattern: {"lr", "weight_decay"}} of
    numbers from 0."""
    if not isinstance(groups, Mapping):
        raise ValueError(
            "groups must be a dictionary such as {'backbone': {'lr': 0.1}}, not "
            f"{reprlib.repr(groups)}"
        )
    plain = {}
    for pattern, factors in groups.items():
        if not isinstance(pattern, str) or not isinstance(factors, Mapping):
            raise ValueError(
                "groups must give a dictionary with lr or weight_decay for each pattern, not "
                f"{reprlib.repr(factors)} for {pattern!r}"
            )
        for name, value in factors.items():
            if name not in FACTORS:
                raise ValueError(
                    f"groups: '{pattern}' gives '{name}'; a group has factors of lr and "
                    "weight_decay"
                )
            if not finite(value) or isinstance(value, bool) or value < 0:
                raise ValueError(
                    f"groups: the factor of {name} of '{pattern}' must be a number from 0, not "
                    f"{value!r}"
                )
        plain[pattern] = {n: float(factors[n]) for n in FACTORS if n in factors}
    return plain


def named(pattern: str, entries: Entries) -> set[str]:
    """Keys of the parameters that a pattern names."""
    entries = list(entries)
    keys = [key for key, role, *_ in entries if role == "param"]
    if pattern == "norm":
        norms = {k.rpartition(".")[0] for k, *_ in entries if k.endswith(".running_mean")}
        return {key for key in keys if key.rpartition(".")[0] in norms}
    if pattern == "bias":
        return {key for key in keys if key.endswith(".bias")}
    if pattern in ("backbone", "heads"):
        return {k for k in keys if k.startswith("heads.") == (pattern == "heads")}
    return {key for key in keys if fnmatch.fnmatchcase(key, pattern)}


def suggestion(pattern: str, entries: Entries) -> str:
    """What a pattern that names nothing may have meant, as the end of a sentence."""
    keys = [key for key, role, *_ in entries if role == "param"]
    parts: dict[str, None] = {}
    for key in keys:
        for n in range(1, key.count(".") + 1):
            parts[".".join(key.split(".")[:n]) + ".*"] = None
    if pattern + ".*" in parts:
        return f"; did you mean '{pattern}.*'?"
    return nearest(pattern, [*WORDS, *parts, *keys])


def factors(
    groups: Mapping[str, Mapping[str, float]], entries: Entries, network: str
) -> dict[str, tuple[float, float]]:
    """{key: (factor of lr, of weight decay)} of every parameter. `groups` as `checked` gives them.
    ValueError, with near names, for a pattern that names none of `network`."""
    entries = list(entries)
    found = {key: [1.0, 1.0] for key, role, *_ in entries if role == "param"}
    for pattern, given in groups.items():
        mine = named(pattern, entries)
        if not mine:
            raise ValueError(
                f"groups: '{pattern}' names no parameter of {network}{suggestion(pattern, entries)}"
            )
        for at, name in enumerate(FACTORS):
            for key in mine if name in given else ():
                found[key][at] = given[name]
    return {key: (lr, decay) for key, (lr, decay) in found.items()}


def numbered(
    groups: Mapping[str, Mapping[str, float]], entries: Entries, network: str
) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """The groups as the engine takes them: their factors, and which each parameter is of; without
    any where all factors are 1. Raises as `factors` does."""
    each = factors(groups, entries, network)
    pairs = list(dict.fromkeys(each.values()))
    if len(pairs) > MOST:
        raise ValueError(
            f"groups: there are {len(pairs)} different pairs of factors; at most {MOST} can be"
        )
    if pairs == [(1.0, 1.0)]:
        return [], {}
    number = {pair: i for i, pair in enumerate(pairs)}
    return pairs, {key: number[pair] for key, pair in each.items()}


def text(groups: Mapping[str, Mapping[str, float]]) -> str:
    """The groups in words: "backbone: lr x 0.1; norm: weight decay x 0"."""
    parts = []
    for pattern, given in groups.items():
        inside = [f"{n.replace('_', ' ')} x {given[n]:g}" for n in FACTORS if n in given]
        parts.append(f"{pattern}: {', '.join(inside) or 'as all'}")
    return "; ".join(parts)
