"""A table as data, and its forms: HTML with scoped headers, LaTeX without packages, CSV records."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from ..measures import MEASURES

# What a table needs to look like one; report.html adds its own colours.
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:1rem;color-scheme:light dark}
.wide{overflow-x:auto;position:relative}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding-bottom:.4rem}
th,td{padding:.25rem .6rem;text-align:right}
th[scope=row],th.stub{text-align:left;font-weight:400}
th[scope=colgroup]{text-align:center}
thead tr:last-child>*{border-bottom:1px solid}
.rule>*{border-top:1px solid}
.paper>*{font-style:italic;opacity:.8}
.note{font-size:.9rem;max-width:60rem}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
"""


@dataclass
class Cell:
    """Text of a cell; mark "best", "second" or ""."""

    text: str
    mark: str = ""


@dataclass
class Row:
    """heads: row headers ("" repeats nothing); cells: one per column; kind: "", "paper" (values
    printed in the paper), "control" or "mean"; rule: a line above."""

    heads: list[str]
    cells: list[Cell]
    kind: str = ""
    rule: bool = False


@dataclass(repr=False)
class Table:
    """One table. stubs: headings of the row headers; groups: [(heading, columns)] of the upper
    heading; columns: headings of the columns; records: rows of the CSV form."""

    name: str
    title: str
    stubs: list[str]
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    records: list[dict] = field(default_factory=list)

    def _repr_html_(self) -> str:
        # a notebook aligns every cell to the right, whatever it is
        left, middle = ' style="text-align:left"', ' style="text-align:center"'
        text = to_html(self).replace('<th scope="row">', f'<th scope="row"{left}>')
        text = text.replace('<th class="stub"', f'<th{left} class="stub"')
        text = text.replace('<th scope="colgroup"', f'<th{middle} scope="colgroup"')
        text = text.replace("<caption>", f"<caption{left}>")
        return re.sub(r'<span class="unseen">[^<]*</span>', "", text)

    def __repr__(self) -> str:
        return to_text(self)


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """`value` with `digits` decimals and a true minus sign; "–" where it is undefined."""
    if value is None or value != value:
        return "–"
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A fraction in percent (or, signed, percentage points)."""
    return "–" if value is None or value != value else number(100 * value, digits, signed)


def measured(name: str, value: float | None, signed: bool = False, digits=None) -> str:
    """A measure as it is shown: in percent (a difference in points), or in its own unit."""
    one = MEASURES[name]
    if one.share:
        return percent(value, 1 if digits is None else digits, signed)
    return number(value, one.digits, signed)


def pvalue(p: float) -> str:
    """A p-value with three decimals, and more where these would put it on the other side of 0.05;
    "–" where it is undefined."""
    if p != p:
        return "–"
    if p < 0.001:
        return "< 0.001"
    texts = (f"{min(p, 1):.{digits}f}" for digits in range(3, 17))
    return next((text for text in texts if (float(text) < 0.05) == (p < 0.05)), f"{p:.3f}")


def marks(values: list, digits: int = 1, less: bool = False) -> list[str]:
    """ "best" for the largest (less: the smallest) of `values` as printed with `digits` decimals,
    "second" for the next; ties share.

    values: numbers or None. A single value gets no mark.
    """
    shown = [None if v is None or v != v else round(v, digits) for v in values]
    levels = sorted({v for v in shown if v is not None}, reverse=not less)
    if len(levels) < 2:
        return [""] * len(values)
    names = {levels[0]: "best", levels[1]: "second"}
    return [names.get(v, "") if v is not None else "" for v in shown]


def to_text(table: Table) -> str:
    """Plain text for a terminal; best marked by **, second best by *."""
    head = [*table.stubs, *table.columns]
    star = {"best": "**", "second": "*", "": ""}
    lines = [[*r.heads, *(star[c.mark] + c.text for c in r.cells)] for r in table.rows]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = [table.title]
    for line in [head, *lines]:
        cells = [
            c.ljust(w) if i < len(table.stubs) else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*text, *table.notes])


def _cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    if cell.mark == "best":
        return f'<strong>{text}</strong><span class="unseen"> (best)</span>'
    if cell.mark == "second":
        return f'<u>{text}</u><span class="unseen"> (second best)</span>'
    return text


def to_html(table: Table) -> str:
    """HTML with caption, scoped headers and the notes below."""
    lines = ['<div class="wide" role="region" tabindex="0" '
             f'aria-label="{html.escape(table.title, quote=True)}">', "<table>",
             f"<caption><span>{html.escape(table.title)}</span></caption>", "<thead>"]  # fmt: skip
    if any(g for g, _ in table.groups):
        cells = "".join(
            (f'<th scope="colgroup" colspan="{n}">{html.escape(g)}</th>')
            if g
            else f'<td colspan="{n}"></td>'
            for g, n in table.groups
        )
        stub = "".join(
            f'<th class="stub" scope="col" rowspan="2">{html.escape(s)}</th>' for s in table.stubs
        )
        lines.append(f"<tr>{stub}{cells}</tr>")
        heads = ""
    else:
        heads = "".join(f'<th class="stub" scope="col">{html.escape(s)}</th>' for s in table.stubs)
    heads += "".join(f'<th scope="col">{html.escape(c)}</th>' for c in table.columns)
    lines += [f"<tr>{heads}</tr>", "</thead>", "<tbody>"]
    for row in table.rows:
        style = " ".join(x for x in (row.kind, "rule" if row.rule else "") if x)
        opening = f'<tr class="{style}">' if style else "<tr>"
        heads = "".join(f'<th scope="row">{html.escape(h)}</th>' for h in row.heads)
        cells = "".join(f"<td>{_cell(c)}</td>" for c in row.cells)
        lines.append(f"{opening}{heads}{cells}</tr>")
    lines += ["</tbody>", "</table>", "</div>"]
    if table.notes:
        lines.append(f'<p class="note">{html.escape(" ".join(table.notes))}</p>')
    return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$", "≥": r"$\geq$", "≤": r"$\leq$",
    "τ": r"$\tau$", "μ": r"$\mu$", "σ": r"$\sigma$", "→": r"$\rightarrow$", "*": "$*$",
    "∞": r"$\infty$", "²": r"$^2$", "ρ": r"$\rho$",
    "'": "'", "\N{NO-BREAK SPACE}": "~", "×": r"$\times$",
}  # fmt: skip


def tex(text: str) -> str:
    """`text` in LaTeX; characters that a plain installation does not know become "?"."""
    found = []
    for c in text:
        if c in _TEX:
            found.append(_TEX[c])
        elif ord(c) < 128 or c in "äöüÄÖÜßéèêëáàâíìîóòôúùûñçåÅøØæÆ":
            found.append(c)
        else:
            found.append("?")
    return re.sub(r"\$\$", "", "".join(found))


# A file can be \input into a document, or compiled alone: \@nodocument is \relax from
# \begin{document} on.
_OPEN = r"""% Written by mdmt. \input{%(name)s} it, or compile it alone: pdflatex %(name)s.tex
\makeatletter
\ifx\@nodocument\relax
  \def\mdmtend{}
\else
  \documentclass[10pt,a4paper]{article}
  \usepackage[utf8]{inputenc}
  \usepackage[margin=15mm]{geometry}
  \def\mdmtend{\end{document}}
  \begin{document}
\fi
\makeatother
"""


def to_tex(tables: list[Table], name: str) -> str:
    """LaTeX of several tables in one file; needs no package to be \\input."""
    parts = [_OPEN.replace("%(name)s", name)]
    parts += [_tex_table(t, k) for k, t in enumerate(tables)]
    return "\n".join([*parts, "\\mdmtend", ""])


def _tex_cell(cell: Cell) -> str:
    text = tex(cell.text)
    if cell.mark == "best":
        return rf"\textbf{{{text}}}"
    return rf"\underline{{{text}}}" if cell.mark == "second" else text


def _tex_table(table: Table, number_: int) -> str:
    stubs, columns = len(table.stubs), len(table.columns)
    size = r"\footnotesize" if len(table.rows) < 40 and columns < 8 else r"\scriptsize"
    lines = [
        r"\begin{table}[p]", r"\centering", size, r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{tex(table.title)}. {' '.join(tex(n) for n in table.notes)}}}",
        rf"\label{{tab:{table.name}-{number_ + 1}}}",
        rf"\begin{{tabular}}{{{'l' * stubs}{'r' * columns}}}", r"\hline",
    ]  # fmt: skip
    if any(g for g, _ in table.groups):
        cells = [rf"\multicolumn{{{n}}}{{c}}{{{tex(g)}}}" for g, n in table.groups]
        lines.append(" & ".join([""] * stubs + cells) + r" \\")
    lines.append(" & ".join(map(tex, [*table.stubs, *table.columns])) + r" \\ \hline")
    for row in table.rows:
        if row.rule:
            lines.append(r"\hline")
        heads = [rf"\textit{{{tex(h)}}}" if row.kind == "paper" and h else tex(h)
                 for h in row.heads]  # fmt: skip
        lines.append(" & ".join(heads + [_tex_cell(c) for c in row.cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}", ""])
