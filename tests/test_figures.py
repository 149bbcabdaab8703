"""Figures of names of any length and of many configurations: nothing lies over anything else."""

import numpy as np
import pytest

from mdmt import config, kinds
from mdmt.analysis.compare import Matrix
from mdmt.plots import curves, numbers, style

LONG = ["Mild course, discharged home without any oxygen", "Sehr langer Name einer Klasse " * 3]


def drawn_matrix(configurations, n=40, task=None):
    """A place of drawn predictions; task: of the configuration, else one of two long names."""
    task = task or {"classes": LONG}
    raw = {
        "name": "x",
        "tasks": {"f": task},
        "data": {"root": ".", "datasets": [{"name": "d", "table": "t.csv", "task": "f"}]},
    }
    spec = config.resolve(raw, "x")["tasks"]["f"]
    rng = np.random.default_rng(0)
    names = np.array([f"i{i}" for i in range(n)])
    kind, k = kinds.kind_of(spec), kinds.outputs(spec)
    y = {kinds.CLASSES: lambda: np.arange(n) % k, kinds.NUMBER: lambda: np.arange(n) * 1.0,
         kinds.FINDINGS: lambda: rng.integers(0, 2, (n, k)) * 1.0}[kind]()  # fmt: skip
    p = {("resnet18", 0, c): rng.dirichlet(np.ones(max(k, 2)), n)[:, :k] for c in configurations}
    return Matrix("1", "cv", "f", spec, configurations, [("resnet18", 0)], y,
                          np.arange(n) // 4 % 2, names, names, np.full(n, ""), p)  # fmt: skip


def lying_over(fig):
    """Pairs of panels' titles that share a place, and those that leave the figure."""
    style.render(fig)
    box = fig.bbox
    found = [(ax.get_title(), ax.title.get_window_extent()) for ax in fig.axes if ax.get_visible()]
    out = [t for t, b in found if b.x0 < box.x0 - 1 or b.x1 > box.x1 + 1]
    return out + [(s, t) for i, (s, a) in enumerate(found) for t, b in found[:i] if a.overlaps(b)]


@pytest.mark.filterwarnings("error")
def test_long_names_leave_the_figures_readable():
    names = ["STL-tau1", "MDMT", "JOINT-FROM-SEVERITY-WITH-UNCERTAINTY-WEIGHTS"]
    four = [f"{name} {i}" for i in range(2) for name in LONG]
    with style.drawing():
        for task in ({"classes": LONG}, {"classes": four}):
            m = drawn_matrix(names, task=task)
            fig = curves.confusions(m)
            assert not lying_over(fig)
            assert min(ax.bbox.width for ax in fig.axes) > 0.8 * fig.dpi
        m = drawn_matrix(names)
        aucs = dict.fromkeys(names, (0.5, 0.4, 0.6))
        for fig in (curves.discrimination(m, aucs), curves.reliability(m)):
            assert not lying_over(fig)
        fig = curves.decisions(m)
        style.render(fig)
        label = fig.axes[0].xaxis.label.get_window_extent()
        assert label.x0 >= 0 and label.x1 <= fig.bbox.x1
        task = {"classes": LONG, "head": {"loss": "bce"}}
        assert not lying_over(curves.findings(drawn_matrix(names, task=task)))


def test_many_configurations_are_told_apart_and_hide_no_curve():
    names = ["STL-tau1", "FT", "MDMT", *(f"further-{i}" for i in range(12))]
    looks = [style.of(n, names) for n in names]
    assert len({(x["color"], x["marker"]) for x in looks}) == len(names)
    assert len({(x["color"], x["linestyle"]) for x in looks}) == len(names)
    m = drawn_matrix(names[:8])
    with style.drawing():
        fig = curves.discrimination(m, dict.fromkeys(names, (0.5, 0.4, 0.6)))
        style.render(fig)
        assert fig.axes[0].get_legend() is None and len(fig.legends) == 1
        below = fig.legends[0].get_window_extent()
        assert not below.overlaps(fig.axes[0].bbox) and below.x0 >= 0 and below.x1 <= fig.bbox.x1


def test_the_lowest_panel_of_every_column_has_its_scale():
    with style.drawing():
        for draw in (numbers.scatter, numbers.limits):
            fig = draw(drawn_matrix(["a", "b", "c", "d", "e"], task={"head": {"loss": "mse"}}))
            style.render(fig)
            axes = [ax for ax in fig.axes if ax.get_visible()]
            told = [any(t.get_visible() for t in ax.get_xticklabels()) for ax in axes]
            assert told == [False, True, True, True, True]
