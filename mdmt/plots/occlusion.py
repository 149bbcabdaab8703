"""A picture as the network sees it, beside the places that its class hangs on."""

from __future__ import annotations

import numpy as np

from ..data.levels import luminance, shown
from . import available, style

__all__ = ["available", "draw"]


def draw(
    pixels: np.ndarray, found: np.ndarray, title: str, networks: int, number: bool = False
) -> bytes:
    """PNG of pixels, (S, S) or (3, S, S) uint8, and the fall (S, S) of a probability or number."""
    with style.drawing():
        return style.render(_figure(pixels, found, title, networks, number))["png"]


def _figure(pixels, found, title: str, networks: int, number: bool):
    fig, axes = style.figure(7.2, 3.9, 1, 2)
    scale = 1 if number else 100
    most = max(scale * float(np.abs(found).max()), 0.001 * scale)
    under = pixels if pixels.ndim == 2 else luminance(pixels)  # the colours there are the map's
    for ax, seen in zip(axes[0], (shown(pixels), under), strict=True):
        ax.set_axis_off()
        ax.imshow(seen, cmap="gray", vmin=0, vmax=255)
    falls = axes[0, 1].imshow(scale * found, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.5)
    axes[0, 0].set_title(title, fontsize=8.5)
    axes[0, 1].set_title(
        f"fall of this {'number' if number else 'probability'} where a square is hidden\n"
        f"(mean of {networks} network{'s' if networks > 1 else ''})",
        fontsize=8.5,
    )
    bar = fig.colorbar(falls, ax=axes[0, 1], shrink=0.85)
    bar.set_label(
        "red speaks for a higher number" if number else "points; red speaks for the class",
        fontsize=8,
    )
    bar.solids.set_alpha(1)
    return fig
