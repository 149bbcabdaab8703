"""Objects that show themselves in a notebook: small HTML tables, nothing else."""

from __future__ import annotations

import html


def html_table(caption: str, heads: list[str], rows: list[list], note: str = "") -> str:
    """A table with a caption and scoped headers; the first column heads its row. Texts are
    escaped."""

    def cells(row):
        first, *rest = (html.escape(str(c)) for c in row)
        return f'<th scope="row" style="text-align:left">{first}</th>' + "".join(
            f"<td>{c}</td>" for c in rest
        )

    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    below = f"<p>{html.escape(note)}</p>" if note else ""
    return (
        f'<table><caption style="text-align:left;font-weight:600">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
    )


def html_text(caption: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    head = f"<summary>{html.escape(caption)}</summary>"
    return f"<details>{head}<pre>{html.escape(text)}</pre></details>"
