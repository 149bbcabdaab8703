"""How figures look: colours of Okabe & Ito that colour-blind readers can tell apart, each with a
marker and a line style of its own, so that they hold in grey print too."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from contextlib import contextmanager

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip

# configuration -> colour, marker, line style; further ones take the rest in turn
KNOWN = {
    "STL-tau1": (BLUE, "o", (0, (4, 2))),
    "STL-tau2": (SKY, "s", (0, (4, 2))),
    "FT": (ORANGE, "^", (0, (1, 1))),
    "MDMT": (RED, "D", "-"),
}
REST = (
    (GREEN, "v", (0, (6, 2, 1, 2))),
    (PURPLE, "P", (0, (3, 1, 1, 1))),
    (BLACK, "X", (0, (5, 1))),
    ("#7f7f7f", "*", (0, (2, 2))),
)
# What more configurations than REST has take, so that a colour that comes again has another form.
AGAIN = (("<", (0, (8, 2))), ("p", (0, (1, 2))), ("h", (0, (4, 1, 1, 1, 1, 1))))

SETTINGS = {
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "mdmt",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}


def of(configuration: str, names: list[str]) -> dict:
    """Keyword arguments color, marker, linestyle for `configuration` among `names`."""
    if configuration in KNOWN:
        color, marker, line = KNOWN[configuration]
    else:
        others = [n for n in names if n not in KNOWN]
        turn, number = divmod(others.index(configuration), len(REST))
        color, marker, line = REST[number]
        if turn:
            marker, line = AGAIN[(turn - 1) % len(AGAIN)]
    return {"color": color, "marker": marker, "linestyle": line}


def line(configuration: str, names: list[str]) -> dict:
    """As `of`, without the marker."""
    found = of(configuration, names)
    return {k: v for k, v in found.items() if k != "marker"}


# Fonts of other scripts on Linux, macOS and Windows, for names of centers, classes and findings.
SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Segoe UI", "Nirmala UI",
)  # fmt: skip


@contextmanager
def drawing():
    """Matplotlib's figure module without a display, with our settings, restored afterwards.

    A character that DejaVu Sans has not is drawn in the first font here that has it, or as a box.
    """
    import matplotlib
    from matplotlib import font_manager

    here = set(font_manager.get_font_names())
    family = [SETTINGS["font.family"], *(name for name in SCRIPTS if name in here)]
    with matplotlib.rc_context(SETTINGS | {"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **more):
    """(figure, array of axes) of `width` x `height` inches; no window system is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False, **more)


def folded(text: str, width: int, lines: int = 2) -> str:
    """`text` on at most `lines` lines of `width` characters; an ellipsis stands for the rest. A
    name may have any length: one line of it would lie over its neighbours, or leave no room."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="\u2026")) or text


def legend_below(fig, axes) -> None:
    """One legend of what `axes` show, below all panels, in as many lines as its names take."""
    handles: dict = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if not handles:
        return
    room = int(13 * fig.get_figwidth())  # characters of 8 points; a mark takes 7
    names = [folded(name, room - 7, 1) for name in handles]
    columns = max(1, min(len(names), room // (max(map(len, names)) + 7)))
    fig.legend(handles.values(), names, loc="outside lower center", ncols=columns)


def least_range(ax, least: float = 2.0) -> None:
    """Let the vertical axis span `least` units around what it shows: equal values are a line, not
    noise under a magnifying glass."""
    low, high = ax.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        ax.set_ylim(middle - least / 2, middle + least / 2)


def say_undefined(ax) -> None:
    """A panel without anything to show says so, instead of a scale of nothing."""
    ax.text(0.5, 0.5, "not defined:\none class", transform=ax.transAxes, ha="center",
            va="center", fontsize=8, color="#555555")  # fmt: skip
    ax.grid(False)


def apart(values, gap: float) -> list[float]:
    """Positions at least `gap` apart, in the order of `values` and near them."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    found = list(map(float, values))
    for before, i in itertools.pairwise(order):
        found[i] = max(found[i], found[before] + gap)
    shift = sum(f - v for f, v in zip(found, values, strict=True)) / max(len(found), 1)
    return [f - shift for f in found]


def render(made) -> dict[str, bytes]:
    """The figure as {"png": bytes, "svg": bytes}, laid out once for both."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for _ in range(2):  # tick labels have their final size from the second time on
        made.get_layout_engine().execute(made)
    made.set_layout_engine("none")
    png, svg = io.BytesIO(), io.BytesIO()
    made.canvas.print_png(png, metadata={"Software": "mdmt"})
    FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None, "Creator": "mdmt"})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
