"""Where the ImageNet weights of the backbones are published.

Addresses and sizes as in torchvision 0.28 (the weights IMAGENET1K_V1) and timm 1.0.31 (`url` of the
default configurations). By the convention of both, the digits before the extension of a file's
name are the beginning of its SHA-256. The normalisation is the one that the weights were trained
with: (values in 0..1 - mean) / std, for red, green and blue.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadInput, nearest
from ..nets import SEGMENTERS

TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # values in -1..1


@dataclass(frozen=True)
class Source:
    """One published file; mebibytes: its size as published, None where no size is published; mean,
    std: of the input; size: side of the images that it was made for, in pixels."""

    backbone: str
    url: str
    mebibytes: float | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    size: int = 224

    @property
    def file(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]

    @property
    def digits(self) -> str:
        """Beginning of the file's SHA-256 in hexadecimal digits."""
        return self.file.rpartition(".")[0].rpartition("-")[2]


SOURCES = {
    source.backbone: source
    for source in (
        Source("densenet121", TORCHVISION + "densenet121-a639ec97.pth", 30.845),
        Source("densenet161", TORCHVISION + "densenet161-8d451a50.pth", 110.369),
        Source("densenet169", TORCHVISION + "densenet169-b2777c0a.pth", 54.708),
        Source("densenet201", TORCHVISION + "densenet201-c1103571.pth", 77.373),
        Source("efficientnet_b0", TIMM + "v0.1-weights/efficientnet_b0_ra-3dd342df.pth"),
        Source(
            "efficientnet_b1_pruned",
            TIMM + "v0.1-tresnet/effnetb1_pruned-bea43a3a.pth",
            mean=HALF,
            std=HALF,
            size=240,
        ),
        Source("efficientnet_es", TIMM + "v0.1-weights/efficientnet_es_ra-f111e99c.pth"),
        Source(
            "efficientnet_es_pruned", TIMM + "v0.1-weights/efficientnet_es_pruned75-1b7248cf.pth"
        ),
        Source("efficientnet_lite0", TIMM + "v0.1-weights/efficientnet_lite0_ra-37913777.pth"),
        # torchvision turns ImageNet's normalisation into this one before the first layer
        # (transform_input, which goes with these weights).
        Source("googlenet", TORCHVISION + "googlenet-1378be20.pth", 49.731, HALF, HALF),
        Source("mobilenet_v2", TORCHVISION + "mobilenet_v2-b0353104.pth", 13.555),
        Source("resnet101", TORCHVISION + "resnet101-63fe2227.pth", 170.511),
        Source("resnet18", TORCHVISION + "resnet18-f37072fd.pth", 44.661),
        Source("resnet34", TORCHVISION + "resnet34-b627a593.pth", 83.275),
        Source("resnet50", TORCHVISION + "resnet50-0676ba61.pth", 97.781),
        Source("shufflenet_v2_x0_5", TORCHVISION + "shufflenetv2_x0.5-f707e7126e.pth", 5.282),
        Source("shufflenet_v2_x1_0", TORCHVISION + "shufflenetv2_x1-5666bf0f80.pth", 8.791),
        Source("wide_resnet50_2", TORCHVISION + "wide_resnet50_2-95faca4d.pth", 131.82),
    )
}


def source(backbone: str) -> Source:
    """The published file of `backbone`; BadInput, naming the nearest, if there is none."""
    if backbone not in SOURCES:
        raise BadInput(
            f"no ImageNet weights are known for '{backbone}'{nearest(backbone, SOURCES)}"
        )
    return SOURCES[backbone]


def _known(backbone) -> Source | None:
    return SOURCES.get(backbone) if isinstance(backbone, str) else None


def default_size(backbone: str) -> int:
    """Side of the images in pixels that the backbone's weights were made for."""
    one = _known(backbone)
    return one.size if one else 256 if backbone in SEGMENTERS else 224


def normalisation(backbone: str, channels: int = 3) -> tuple[tuple, tuple]:
    """(mean, std) of each of `channels` channels as the backbone's weights expect them.

    A fourth channel takes the average of the three.
    """
    one = _known(backbone)
    both = (one.mean, one.std) if one else (IMAGENET_MEAN, IMAGENET_STD)
    return tuple((*values, sum(values) / 3)[:channels] for values in both)
