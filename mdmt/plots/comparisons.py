"""Slope plot, forest plot, critical-difference diagram, centers, subgroups."""

from __future__ import annotations

import numpy as np

from ..analysis.compare import METHOD, Analysis, Matrix, Ranks, by_fold, scores
from ..measures import MEASURES, drawn, grouped
from ..tables.grid import pvalue
from . import style


def _least(values: np.ndarray, name: str) -> float:
    """What an axis of a measure spans at least: 2 points, of errors a fiftieth of their values."""
    if not MEASURES[name].less:
        return 0.02 * MEASURES[name].scale
    return 0.02 * max(float(np.nanmax(np.abs(values), initial=0)), 1e-6)


def _labelled(axes, names) -> None:
    """The unit of percentages at the left; other measures have their own, and say so in words."""
    if MEASURES[names[0]].share:
        axes[0, 0].set_ylabel("percent")
    else:
        axes[0, 0].set_ylabel("in the label's unit")


def slope(m: Matrix):
    """Each backbone's way from single-task over fine-tuned to MDMT, a panel per metric."""
    names = [c for c in m.configurations if c in style.KNOWN]
    at = [m.configurations.index(c) for c in names]
    shown = drawn(m.spec)
    fig, axes = style.figure(9.4, 3.6, 1, len(shown))
    for ax, k in zip(axes[0], shown, strict=True):
        one = MEASURES[k]
        table = one.scale * scores(m, k)[:, at]
        x = np.arange(len(names))
        for row in table:
            better = row[-1] <= row[0] if one.less else row[-1] >= row[0]
            ax.plot(x, row, color=style.GREEN if better else style.ORANGE,
                    ls="-" if better else (0, (3, 2)), lw=1, marker=".", alpha=0.8)  # fmt: skip
        if len(m.backbones) > 1:
            ax.plot(x, table.mean(0), color="black", lw=2.4, marker="o")
        style.least_range(ax, _least(table, k))
        if len(m.backbones) <= 4:
            low, high = ax.get_ylim()
            ends = [(b, y) for b, y in zip(m.backbones, table[:, -1], strict=True) if y == y]
            places = style.apart([y for _, y in ends], 0.06 * (high - low))
            for (b, _), y in zip(ends, places, strict=True):
                ax.annotate(b, (x[-1], y), xytext=(5, 0), textcoords="offset points", fontsize=7,
                            va="center", annotation_clip=False)  # fmt: skip
        if not np.isfinite(table).any():
            ax.set_yticks([])
            style.say_undefined(ax)
        ax.set_xticks(x, names, rotation=30, ha="right", fontsize=7.5)
        ax.set_xlim(-0.3, len(names) - 1 + (0.9 if len(m.backbones) <= 4 else 0.3))
        ax.set_title(one.title + " (less is better)" * one.less)
    _labelled(axes, shown)
    return fig


def releases(analyses: list[Analysis]):
    """Every configuration over the releases, with 95 % intervals, a panel per metric."""
    names = list(dict.fromkeys(c for a in analyses for c in a.matrix.configurations))
    shown = drawn(analyses[0].matrix.spec)
    fig, axes = style.figure(9.4, 3.3, 1, len(shown))
    for ax, k in zip(axes[0], shown, strict=True):
        for number, c in enumerate(names):
            here = [(x, a) for x, a in enumerate(analyses) if (c, k) in a.estimates]
            found = np.array([a.estimates[c, k] for _, a in here]) * MEASURES[k].scale
            x = np.array([x for x, _ in here]) + 0.09 * (number - (len(names) - 1) / 2)
            look = style.of(c, names)
            ax.vlines(x, found[:, 1], found[:, 2], color=look["color"], lw=1.2)
            ax.plot(x, found[:, 0], **look, lw=1.2, label=c)
        ax.set_xticks(range(len(analyses)),
                      [f"{a.matrix.release}\nn = {len(set(a.matrix.image))}"
                       for a in analyses])  # fmt: skip
        ax.set(xlim=(-0.5, len(analyses) - 0.5), title=MEASURES[k].title, xlabel="release")
    _labelled(axes, shown)
    style.legend_below(fig, axes[0])
    return fig


def forest(a: Analysis):
    """Differences MDMT minus the others with 95 % intervals, a panel per metric."""
    m = a.matrix
    others = [c for c in m.configurations if c != METHOD]
    backbones = m.backbones if len(m.backbones) > 1 else []
    rows = [(c, b) for c in others for b in (*backbones, "")]
    height = 0.2 * len(rows) + 0.15 * len(others) + 1.3
    shown = drawn(m.spec)
    fig, axes = style.figure(9.4, max(2.2, height), 1, len(shown), sharey=True)
    for ax, k in zip(axes[0], shown, strict=True):
        scale = MEASURES[k].scale
        y = 0.0
        ticks, labels = [], []
        for c in others:
            for b in (*backbones, ""):
                found = a.find(c, k, b)
                ticks.append(y)
                mean = b == ""
                labels.append(
                    (b or ("mean" if backbones else "")) + f" vs {style.folded(c, 28, 1)}"
                )
                if found is not None and found.low == found.low:
                    look = style.of(c, m.configurations)
                    ax.plot([scale * found.low, scale * found.high], [y, y], color=look["color"],
                            lw=2.6 if mean else 1.1, solid_capstyle="butt")  # fmt: skip
                    ax.plot([scale * found.difference], [y], color=look["color"], ls="",
                            marker="D" if mean else "o", ms=7 if mean else 4)  # fmt: skip
                y += 1
            y += 0.7
        if any(c.metric == k and c.low == c.low for c in a.comparisons):
            ax.axvline(0, color="black", lw=0.9)
        else:
            ax.set_xticks([])
            style.say_undefined(ax)
        ax.set_title(MEASURES[k].title)
        ax.set_xlabel("points" if MEASURES[k].share else "difference")
        if MEASURES[k].less:
            ax.invert_xaxis()
    axes[0, 0].set_yticks(ticks, labels, fontsize=7.5 if len(rows) < 30 else 6)
    axes[0, 0].set_ylim(y - 0.3, -0.9)
    fig.supxlabel("\u2190 the other is better      MDMT is better \u2192", fontsize=9)
    return fig


def critical_difference(ranks: list[Ranks]):
    """Mean ranks over backbones; bars join configurations closer than the critical difference."""
    fig, axes = style.figure(7.4, 1.5 * len(ranks) + 0.3, len(ranks), 1)
    for ax, r in zip(axes[:, 0], ranks, strict=True):
        k = len(r.configurations)
        ax.set(xlim=(0.8, k + 0.2), ylim=(-1.6, 1.5), yticks=[])
        ax.set_xticks(range(1, k + 1))
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.xaxis.tick_top()
        ax.axhline(1.2, color="black", lw=0.8)
        ax.grid(False)
        order = np.argsort(r.ranks, kind="stable")
        for position, i in enumerate(order):
            look = style.of(r.configurations[i], r.configurations)
            level = -0.2 - 0.75 * (position % 2)
            ax.plot([r.ranks[i]] * 2, [1.2, level + 0.35], color="#888888", lw=0.7)
            ax.plot([r.ranks[i]], [1.2], color=look["color"], marker=look["marker"], ms=7)
            ax.text(r.ranks[i], level, f"{r.configurations[i]} {r.ranks[i]:.2f}", ha="center",
                    va="center", fontsize=8)  # fmt: skip
        for number, group in enumerate(r.groups):
            ends = [r.ranks[i] for i in group]
            ax.plot([min(ends) - 0.03, max(ends) + 0.03], [0.8 - 0.22 * number] * 2, color="black",
                    lw=3, solid_capstyle="butt")  # fmt: skip
        ax.set_title(
            f"{MEASURES[r.metric].title}: mean rank over {r.n} backbones, 1 is best; critical "
            f"difference {r.critical_difference:.2f}, Friedman p {pvalue(r.friedman)}",
            fontsize=8, loc="left",
        )  # fmt: skip
    return fig


def centers(m: Matrix, found: list):
    """Leave one center out: `grouped` measures of each center, with intervals by patient.

    found: the Subgroups of the variable center.
    """
    return _dots(m, found, "center left out")


def subgroups(m: Matrix, found: list):
    """`grouped` measures within the levels of every variable, with intervals by patient."""
    return _dots(m, found, None)


def _dots(m: Matrix, found: list, title: str | None):
    names = next((list(s.found) for s in found if s.found), m.configurations)
    kinds = grouped(m.spec)
    fig, axes = style.figure(
        3.1 * len(kinds) + 2.4, 0.17 * len(names) * len(found) + 0.12 * len(found) + 1.5,
        1, len(kinds), sharey=True,
    )  # fmt: skip
    for ax, k in zip(axes[0], kinds, strict=True):
        one = MEASURES[k]
        y, ticks, labels, previous = 0.0, [], [], None
        for s in found:
            if previous not in (None, s.variable):
                ax.axhline(y - 0.4, color="#aaaaaa", lw=0.8)
                y += 0.5
            previous = s.variable
            middle = y + (len(names) - 1) / 2
            ticks.append(middle)
            n = f"n = {s.n}"
            if m.two:
                n += f", {s.positive} {style.folded(m.classes[m.positive], 28, 1)}"
            level = style.folded(f"{s.variable}: {s.level}" if title is None else s.level, 42, 1)
            labels.append(f"{level}\n{n}")
            scored = 0
            for c in names:
                interval = s.found.get(c, {}).get(k)
                if interval is not None and interval.low == interval.low:
                    look = style.of(c, names)
                    ax.plot([one.scale * interval.low, one.scale * interval.high], [y, y], lw=1.2,
                            color=look["color"])  # fmt: skip
                    ax.plot([one.scale * interval.estimate], [y], ls="", color=look["color"],
                            marker=look["marker"], clip_on=False, zorder=3, label=c)  # fmt: skip
                    scored += 1
                y += 1
            if not scored:
                why = "one class only" if s.found else "too few cases"
                ax.text(0.5, middle, why, ha="center", va="center", fontsize=7.5,
                        color="#666666", transform=ax.get_yaxis_transform())  # fmt: skip
            y += 0.8
        ax.set(xlabel="percent" if one.share else "", title=one.title)
        if one.share:
            ax.set_xlim(0, 100)
        elif one.less:
            ax.set(xlim=(0, None), xlabel="in the label's unit")
    axes[0, 0].set_yticks(ticks, labels, fontsize=7.5)
    axes[0, 0].set_ylim(y, -1)
    style.legend_below(fig, axes[0])
    return fig


def fold_values(m: Matrix):
    """Every fold's values, a panel per metric: how much the folds differ."""
    shown = drawn(m.spec)
    fig, axes = style.figure(9.4, 2.9, 1, len(shown))
    for ax, k in zip(axes[0], shown, strict=True):
        every = []
        for x, c in enumerate(m.configurations):
            values = MEASURES[k].scale * by_fold(m, k, c)
            every += values.tolist()
            look = style.of(c, m.configurations)
            spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [0]
            ax.plot(x + np.array(spread), values, ls="", color=look["color"],
                    marker=look["marker"], alpha=0.75)  # fmt: skip
            if np.isfinite(values).any():
                ax.plot([x - 0.3, x + 0.3], [np.nanmean(values)] * 2, color="black", lw=1.4)
        style.least_range(ax, _least(np.array(every), k))
        ax.set_xticks(range(len(m.configurations)), m.configurations, rotation=30, ha="right",
                      fontsize=7.5)  # fmt: skip
        ax.set_title(MEASURES[k].title)
    _labelled(axes, shown)
    return fig
