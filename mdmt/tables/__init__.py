"""Tables 1, 2 and S1 in the paper's form, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path

from ..paths import write_atomic, write_csv
from . import grid
from .grid import Cell, Row, Table, to_html, to_tex
from .paper import table1, table2, table_s1

__all__ = ["Cell", "Row", "Table", "paper_tables", "table1", "table2", "table_s1", "to_html",
           "to_tex", "write"]  # fmt: skip


def paper_tables(outcome, results: list[dict]) -> dict[str, list[Table]]:
    """{"table1": [Table per release and task], "table2": ..., "tableS1": ...}."""
    return {
        "table1": table1(outcome, results),
        "table2": table2(outcome, results),
        "tableS1": table_s1(outcome, results),
    }


def write(out, tables: dict[str, list[Table]]) -> list[Path]:
    """Write <name>.csv, .tex and .html of every table to the folder `out`; return the paths."""
    written = []
    for name, some in tables.items():
        records = [r for t in some for r in t.records]
        columns = list(dict.fromkeys(c for r in records for c in r))
        path = Path(out) / f"{name}.csv"
        write_csv(path, columns or ["release", "task"], records)
        write_atomic(path.with_suffix(".tex"), to_tex(some, name))
        write_atomic(path.with_suffix(".html"), _page(name, some))
        written += [path, path.with_suffix(".tex"), path.with_suffix(".html")]
    return written


def _page(name: str, some: list[Table]) -> str:
    body = "\n".join(map(to_html, some)) or "<p>No comparison of this kind in this run.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{grid.STYLE}</style></head>\n'
        f"<body><main><h1>{name}</h1>\n{body}\n</main></body></html>\n"
    )
