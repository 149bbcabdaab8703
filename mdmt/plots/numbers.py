"""Figures of numbers: predicted against label, and the difference of the two."""

from __future__ import annotations

import numpy as np

from .. import metrics
from ..analysis.compare import Matrix
from . import style


def _panels(m: Matrix, height: float):
    """(figure, [(axes, configuration, predicted (cases,), mean over the networks)])."""
    names = m.configurations
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    fig, axes = style.figure(2.6 * columns + 0.3, height * rows + 0.3, rows, columns,
                             sharex=True, sharey=True)  # fmt: skip
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    for ax in list(axes.flat)[len(names) - columns : len(names)]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
    given = [np.mean([m.p[(*net, c)][:, 0] for net in m.nets], 0) for c in names]
    return fig, axes, list(zip(axes.flat, names, given, strict=False))


def _dots(ax, x, y, look: dict, n: int) -> None:
    ax.plot(x, y, ls="", marker="o", ms=3.2, mew=0, color=look["color"],
            alpha=float(np.clip(80 / n, 0.12, 0.6)))  # fmt: skip


def scatter(m: Matrix):
    """Predicted number against the label, a panel per configuration, with the line of equality and
    the mean prediction of each fifth of the labels."""
    fig, axes, panels = _panels(m, 2.95)
    low = min(m.y.min(), *(p.min() for _, _, p in panels))
    high = max(m.y.max(), *(p.max() for _, _, p in panels))
    room = 0.04 * ((high - low) or 1)
    for ax, c, p in panels:
        _dots(ax, m.y, p, style.of(c, m.configurations), len(m.y))
        ax.plot([low, high], [low, high], color="#888888", lw=0.9)
        parts = np.array_split(np.argsort(m.y, kind="stable"), 5)
        middles = np.array([[m.y[i].mean(), p[i].mean()] for i in parts if len(i)])
        ax.plot(*middles.T, color="black", lw=1.1, marker="D", ms=4)
        ax.set_title(
            f"{style.folded(c, 34)}\nMAE {metrics.mae(m.y, p):.2f}, CCC {metrics.ccc(m.y, p):.2f}",
            fontsize=8.5,
        )
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
        ax.set_xlabel("label")
    for ax in axes[:, 0]:
        ax.set_ylabel("predicted")
    return fig


def limits(m: Matrix):
    """Predicted minus label against the mean of the two, with the mean difference and the limits
    that hold 95 % of normal differences (Bland & Altman, Lancet 327, 1986)."""
    fig, axes, panels = _panels(m, 2.5)
    for ax, c, p in panels:
        d = p - m.y
        bias, spread = float(d.mean()), float(d.std(ddof=1)) if len(d) > 1 else 0.0
        _dots(ax, (p + m.y) / 2, d, style.of(c, m.configurations), len(m.y))
        ax.axhline(0, color="#888888", lw=0.8)
        ax.axhline(bias, color="black", lw=1.3)
        for side in (-1.96, 1.96):
            ax.axhline(bias + side * spread, color="black", lw=1, ls=(0, (4, 2)))
        ax.set_title(
            f"{style.folded(c, 34)}\nmean {bias:+.2f}, {bias - 1.96 * spread:+.2f} to "
            f"{bias + 1.96 * spread:+.2f}",
            fontsize=8.5,
        )
        ax.set_xlabel("mean of label and predicted")
    for ax in axes[:, 0]:
        ax.set_ylabel("predicted - label")
    return fig
