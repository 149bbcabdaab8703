"""Learning curves, ROC, precision-recall, reliability, confusion."""

from __future__ import annotations

import numpy as np

from .. import kinds, stats
from ..analysis.compare import Matrix
from ..analysis.describe import by_finding, calibration, confusion
from ..stats import _resample
from ..stats.utility import net_benefits
from . import style

GRID = np.linspace(0, 1, 101)
BANDS = 200  # resamples of a band


def learning(stages: list[dict], units: dict):
    """Loss over epochs: a panel per stage and task; units: {task: unit of its loss}.

    stages: [{"title", "tasks": {task: {"training": [curve per network], "validation": [...]}},
    "rates": [curve per network]}], a curve is an array of losses, or learning rates, per epoch.
    Thin: every network; thick: their mean. Where a learning rate changed, a last panel shows it.
    """
    panels = [(s["title"], t, c) for s in stages for t, c in s["tasks"].items()]
    changed = any(np.ptp(curve) > 0 for s in stages for curve in s["rates"])
    columns = min(3, len(panels) + changed)
    rows = -(-(len(panels) + changed) // columns)
    fig, axes = style.figure(3.3 * columns, 2.5 * rows + 0.3, rows, columns)
    for ax, (title, task, curves) in zip(axes.flat, panels, strict=False):
        for kind, color, dash in (
            ("training", style.BLUE, (0, (4, 2))),
            ("validation", style.RED, "-"),
        ):
            _bundle(ax, curves[kind], color=color, linestyle=dash, label=kind)
        n = len(curves["training"])
        heading = style.folded(f"{title}: {task}", 40)
        ax.set_title(f"{heading}\n{n} training{'s' if n > 1 else ''}")
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"loss ({units[task]})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
    if changed:
        _rates(list(axes.flat)[len(panels)], stages)
    for ax in list(axes.flat)[len(panels) + changed :]:
        ax.set_visible(False)
    return fig


def _bundle(ax, curves: list, **look) -> None:
    """Curves over the epochs, thin, and thick their mean over those that are still running."""
    thin = max(0.08, min(0.35, 3 / max(1, len(curves))))
    for curve in curves if len(curves) > 1 else []:
        ax.plot(np.arange(1, len(curve) + 1), curve, color=look["color"], lw=0.6, alpha=thin)
    longest = max(map(len, curves))
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    ax.plot(np.arange(1, longest + 1), np.nanmean(table, 0), **look)


def _rates(ax, stages: list[dict]) -> None:
    """The learning rates of all stages."""
    titles = [s["title"] for s in stages]
    for stage in stages:
        if stage["rates"]:
            title = stage["title"]
            look = style.line(title, titles)
            _bundle(ax, stage["rates"], **look, label=style.folded(title, 40, 1))
    ax.set_title("Learning rate")
    ax.set_xlabel("epoch")
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=6.5)


def _steps(y: np.ndarray, score: np.ndarray, weights: np.ndarray):
    """Cumulated weight of positive and of negative cases (R, thresholds) from the highest score
    down, ties taken together; weights (R, cases)."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    sorted_ = weights[:, order]
    yes = np.cumsum(sorted_ * y[order], 1)[:, last]
    no = np.cumsum(sorted_ * (1 - y[order]), 1)[:, last]
    return yes, no


def _roc(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """Sensitivity on GRID of 1 - specificity (101,), NaN where a class is missing."""
    if yes[-1] == 0 or no[-1] == 0:
        return np.full(len(GRID), np.nan)
    x, y = np.append(0, no / no[-1]), np.append(0, yes / yes[-1])
    return np.interp(GRID, x, y)


def _pr(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """Precision on GRID of sensitivity (101,)."""
    if yes[-1] == 0:
        return np.full(len(GRID), np.nan)
    both = yes + no
    precision = np.divide(yes, both, out=np.ones_like(yes), where=both > 0)
    first = np.searchsorted(yes / yes[-1], np.maximum(GRID, 1e-9) - 1e-12, "left")
    return precision[np.minimum(first, len(precision) - 1)]


def _bands(m: Matrix, configuration: str, weights: np.ndarray, make, classes=None):
    """Curves (R, 101), averaged over folds, networks and `classes` (default: the positive one of
    two, else all); row 0 is of the cases."""
    total, count = np.zeros((len(weights), len(GRID))), np.zeros((len(weights), 1))
    if classes is None:
        classes = [m.positive] if m.two else range(len(m.classes))
    for net in m.nets:
        p = m.p[(*net, configuration)]
        for f in m.folds:
            for k in classes:
                target = m.y == k if m.kind == kinds.CLASSES else m.y[:, k]
                rows = np.flatnonzero((m.fold == f) & (target == target))
                if not len(rows):
                    continue
                yes, no = _steps(target[rows].astype(float), p[rows, k], weights[:, rows])
                for r in range(len(weights)):
                    curve = make(yes[r], no[r])
                    if np.isfinite(curve).all():
                        total[r] += curve
                        count[r] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _weights(m: Matrix, n: int) -> np.ndarray:
    """Ones, then n resamples of the patients (n + 1, cases)."""
    codes = np.unique(m.patient.astype(str), return_inverse=True)[1]
    drawn = _resample.weights(0, n, int(codes.max()) + 1, 0)[:, codes]
    return np.vstack([np.ones((1, len(m.y))), drawn])


def discrimination(m: Matrix, aucs: dict):
    """ROC and precision-recall curves with 95 % bands by patient.

    aucs: {configuration: (estimate, low, high)}.
    """
    # The bands' cost grows with the networks: a band needs no more than its eye can see.
    n = max(40, min(BANDS, 4000 // (len(m.nets) * len(m.folds) * len(m.configurations))))
    weights = _weights(m, n)
    below = _below(m.configurations, 4, 20)
    fig, axes = style.figure(7.4, 3.9 + 0.1 * below * len(m.configurations), 1, 2)
    two = m.two
    for ax, make in zip(axes[0], (_roc, _pr), strict=True):
        for c in m.configurations:
            curves = _bands(m, c, weights, make)
            if not np.isfinite(curves[0]).all():
                continue
            low, high = np.nanquantile(curves[1:], [0.025, 0.975], axis=0)
            look = style.line(c, m.configurations)
            ax.fill_between(GRID, low, high, color=look["color"], alpha=0.13, lw=0)
            estimate, least, most = aucs[c]
            text = f"{c}: AUC {estimate:.2f} ({least:.2f} to {most:.2f})" if make is _roc else c
            ax.plot(GRID, curves[0], **look, label=text)
        if not ax.lines:
            style.say_undefined(ax)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.set_aspect("equal")
    roc, pr = axes[0]
    if roc.lines:
        roc.plot([0, 1], [0, 1], color="#888888", lw=0.8)
    each = "finding" if m.kind == kinds.FINDINGS else "class"
    of = m.classes[m.positive] if two else f"each {each}, averaged"
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=style.folded(f"ROC, {of}", 42))
    pr.set(xlabel="sensitivity (recall)", ylabel="precision",
           title=style.folded(f"Precision-recall, {of}", 42))  # fmt: skip
    if two and pr.lines:
        share = float(np.mean(m.y == m.positive))
        pr.axhline(share, color="#888888", lw=0.8)
        pr.text(0.02, share + 0.015, f"prevalence {share:.2f}", fontsize=7.5, color="#555555")
    if below:
        style.legend_below(fig, [roc])
    elif roc.get_legend_handles_labels()[0]:
        roc.legend(loc="lower right", fontsize=7)
    return fig


def _below(names: list[str], most: int, longest: int) -> bool:
    """True where a legend of `names` would cover the curves of a panel."""
    return len(names) > most or max(map(len, names), default=0) > longest


def decisions(m: Matrix):
    """Decision curves of two classes with 95 % bands by patient: net benefit at every threshold."""
    weights = _weights(m, max(40, min(BANDS, 4000 // (len(m.nets) * len(m.configurations)))))
    thresholds = np.arange(1, 100) / 100
    event = m.target().astype(np.float64)
    share = float(event.mean()) or 1.0  # without an event there is nothing to gain, only to lose
    fig, axes = style.figure(5.4, 3.9, 1, 1)
    ax = axes[0, 0]
    for c in m.configurations:
        each = [net_benefits(event, m.score(m.p[(*n, c)]), thresholds, weights) for n in m.nets]
        values = np.mean(each, 0)
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        look = style.line(c, m.configurations)
        ax.fill_between(thresholds, low, high, color=look["color"], alpha=0.13, lw=0)
        ax.plot(thresholds, values[0], **look, label=c)
    everybody = net_benefits(event, np.ones(len(event)), thresholds, weights[:1])[0]
    ax.plot(thresholds, everybody, color="#555555", lw=1, label="treat all")
    ax.axhline(0, color="#555555", lw=1, ls=(0, (1, 2)), label="treat none")
    of = f"threshold: probability of {m.classes[m.positive]} from which on one treats"
    ax.set(xlabel=style.folded(of, 62, 3), ylabel="net benefit (true positives per case)",
           xlim=(0, 1), ylim=(-0.15 * share, 1.05 * share))  # fmt: skip
    if _below(m.configurations, 8, 40):
        style.legend_below(fig, [ax])
    else:
        ax.legend(fontsize=7)
    return fig


def findings(m: Matrix):
    """ROC curves of each finding, a panel each; means over folds and networks."""
    columns = min(4, len(m.classes))
    rows = -(-len(m.classes) // columns)
    below = _below(m.configurations, 4, 20)
    fig, axes = style.figure(2.5 * columns + 0.2, 3.0 * rows + 0.5 + 0.3 * below, rows, columns)
    auc = {c: by_finding(m, c)["auc"] for c in m.configurations}
    ones = np.ones((1, len(m.y)))
    for k, (ax, name) in enumerate(zip(axes.flat, m.classes, strict=False)):
        values = [f"{auc[c][k]:.2f}" if auc[c][k] == auc[c][k] else "not defined"
                  for c in m.configurations]  # fmt: skip
        for c in m.configurations:
            curve = _bands(m, c, ones, _roc, [k])[0]
            ax.plot(GRID, curve, **style.line(c, m.configurations), label=c)
        # the names of many configurations are below all panels, in the panel their values alone
        told = values if below else [
            f"{c} {v}" for c, v in zip(m.configurations, values, strict=True)
        ]  # fmt: skip
        ax.legend(list(ax.lines), told, loc="lower right", fontsize=6.5, title="AUC",
                  title_fontsize=6.5, labelspacing=0.2 if below else 0.5)  # fmt: skip
        ax.plot([0, 1], [0, 1], color="#888888", lw=0.8)
        known = m.y[m.once, k][~np.isnan(m.y[m.once, k])]
        ax.set_title(f"{style.folded(name, 32)}\n{int(known.sum())} of {len(known)}", fontsize=8.5)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    if below:
        style.legend_below(fig, [axes[0, 0]])
    for ax in axes[-1]:
        ax.set_xlabel("1 - specificity")
    for ax in axes[:, 0]:
        ax.set_ylabel("sensitivity")
    for ax in list(axes.flat)[len(m.classes) :]:
        ax.set_visible(False)
    return fig


def reliability(m: Matrix):
    """Reliability diagrams, a panel per configuration, with the histogram of the probabilities."""
    names = m.configurations
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    fig, axes = style.figure(2.6 * columns + 0.2, 2.95 * rows + 0.2, rows, columns, sharey=True)
    two = m.two or m.kind == kinds.FINDINGS
    bins = int(np.clip(len(m.y) // 20, 4, 10))
    for ax, c in zip(axes.flat, names, strict=False):
        look = style.of(c, names)
        pairs = [m.pooled(m.p[(*net, c)]) for net in m.nets]
        y, p = (np.concatenate(some) for some in zip(*pairs, strict=True))
        curve = stats.reliability_curve(y, p, bins)
        # images tested in several folds are no further ones
        each = curve.count / len(m.nets) * len(m.once) / len(m.y)
        _, low, high = stats.wilson(curve.observed * each, each)
        ax.plot([0, 1], [0, 1], color="#888888", lw=0.8)
        error = [np.maximum(0, curve.observed - low), np.maximum(0, high - curve.observed)]
        ax.errorbar(curve.predicted, curve.observed, error, **look, elinewidth=0.8, lw=1.2)
        shown = p if p.ndim == 1 else p.max(1)
        counts, edges = np.histogram(shown, 20, (0, 1))
        ax.bar(edges[:-1], 0.18 * counts / counts.max(), 0.05, align="edge", color="#bbbbbb")
        found = calibration(m, c)
        text = f"ECE {found.ece:.2f}, Brier {found.brier:.2f}"
        if two and np.isfinite(found.slope) and abs(found.slope) < 100:
            text += f"\nslope {found.slope:.2f}, intercept {found.intercept:+.2f}"
        ax.set_title(f"{style.folded(c, 34)}\n{text}", fontsize=8)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_xlabel("predicted probability" if two else "probability of the called class")
    axes[0, 0].set_ylabel("observed share")
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    return fig


def confusions(m: Matrix):
    """Confusion matrices, a panel per configuration; colour and percent are of the true class."""
    names = m.configurations
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    k = len(m.classes)
    # names that are wider than a cell stand beside the panel and below it, which takes room
    beside = k * max(map(len, m.classes), default=0) > 24
    classes = [style.folded(c, 20) for c in m.classes] if beside else m.classes
    room = 0.075 * max(len(x) for c in classes for x in c.split("\n")) if beside else 0.0
    side = 2.35 + max(0.0, 0.34 * (k - 5))
    fig, axes = style.figure(
        (side + room) * columns + 0.4, (side + 0.15 + room) * rows + 0.3, rows, columns
    )
    small = 7.5 if k > 2 else 9
    for ax, c in zip(axes.flat, names, strict=False):
        table = confusion(m, c)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
        for i in range(len(table)):
            for j in range(len(table)):
                count = f"{table[i, j]:.{int(table[i, j] % 1 > 0)}f}"
                ax.text(j, i, f"{count}\n{100 * share[i, j]:.0f} %", ha="center", va="center",
                        fontsize=small,
                        color="black" if share[i, j] > 0.55 else "white")  # fmt: skip
        size = {"fontsize": 7.5} if beside else {}
        ax.set_xticks(range(len(table)), classes, rotation=90 if beside else 0, **size)
        ax.set_yticks(range(len(table)), classes, rotation=0 if beside else 90, va="center", **size)
        ax.grid(False)
        ax.set(title=style.folded(c, 30), xlabel="predicted", ylabel="true")
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    return fig
