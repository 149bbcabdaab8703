"""The backbones. A family is one file with VARIANTS and build(builder, variant)."""

import difflib
import importlib

# variant -> module of its family
FAMILIES = {
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "resnet101": "resnet",
    "wide_resnet50_2": "resnet",
}


def backbones():
    """Names of the backbones, sorted."""
    return sorted(FAMILIES)


def family(name):
    """The module that describes a backbone; ValueError, naming the nearest, if there is none."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no backbone {name!r}; did you mean {near!r}? "
            f"All of them: {', '.join(backbones())}"
        )
    return importlib.import_module(f"mdmt.nets.{FAMILIES[name]}")
