"""The backbones, and networks for masks. A family is one file with VARIANTS and
build(builder, variant)."""

import difflib
import importlib

# variant -> module of its family
FAMILIES = {
    "densenet121": "densenet",
    "densenet161": "densenet",
    "densenet169": "densenet",
    "densenet201": "densenet",
    "efficientnet_b0": "efficientnet",
    "efficientnet_b1_pruned": "efficientnet",
    "efficientnet_es": "efficientnet",
    "efficientnet_es_pruned": "efficientnet",
    "efficientnet_lite0": "efficientnet",
    "googlenet": "googlenet",
    "mobilenet_v2": "mobilenet",
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "resnet101": "resnet",
    "wide_resnet50_2": "resnet",
    "shufflenet_v2_x0_5": "shufflenet",
    "shufflenet_v2_x1_0": "shufflenet",
}

# Networks for masks: not among the paper's backbones, but used alike.
SEGMENTERS = {"unet": "unet", "unet_tiny": "unet"}


def backbones() -> list[str]:
    """Names of the backbones, sorted."""
    return sorted(FAMILIES)


def segmenters() -> list[str]:
    """Names of the backbones that a mask head fits on, sorted."""
    return sorted(SEGMENTERS)


def multiple(name):
    """What the sides of the images must be multiples of."""
    return getattr(family(name), "multiple", lambda variant: 1)(name)


def family(name):
    """The module that describes a backbone; ValueError, naming the nearest, if there is none."""
    known = {**FAMILIES, **SEGMENTERS}
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no backbone {name!r}; did you mean {near!r}? "
            f"All of them: {', '.join(backbones())}; for masks: {', '.join(segmenters())}"
        )
    return importlib.import_module(f"mdmt.nets.{known[name]}")
