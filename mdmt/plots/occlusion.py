"""A picture as the network sees it, beside the places that its class hangs on."""

from __future__ import annotations

import numpy as np

from . import available, style

__all__ = ["available", "draw"]


def draw(pixels: np.ndarray, found: np.ndarray, title: str, networks: int) -> bytes:
    """PNG of pixels (S, S) uint8 and the fall of the probability found (S, S)."""
    with style.drawing():
        return style.render(_figure(pixels, found, title, networks))["png"]


def _figure(pixels, found, title: str, networks: int):
    fig, axes = style.figure(7.2, 3.9, 1, 2)
    most = max(100 * float(np.abs(found).max()), 0.1)
    for ax in axes[0]:
        ax.set_axis_off()
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    shown = axes[0, 1].imshow(100 * found, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.5)
    axes[0, 0].set_title(title, fontsize=8.5)
    axes[0, 1].set_title(
        "fall of this probability where a square is hidden\n"
        f"(mean of {networks} network{'s' if networks > 1 else ''})",
        fontsize=8.5,
    )
    bar = fig.colorbar(shown, ax=axes[0, 1], shrink=0.85)
    bar.set_label("points; red speaks for the class", fontsize=8)
    bar.solids.set_alpha(1)
    return fig
