"""The page of a check: one HTML file without any other, pictures and contact sheets inside."""

from __future__ import annotations

import base64
import io
from datetime import datetime, timezone
from html import escape

import numpy as np

from .. import __version__, config
from ..data.levels import shown
from ..kfold import PARTS
from ..preprocess import sheets
from ..report.page import facts, paragraph
from ..report.page import page as whole_page
from .found import GRADES, Report
from .terminal import cost_facts, data_table, headline, verdict

PAIRS = 24  # near-duplicates shown, and odd pictures of a kind
DOUBTFUL = 120  # images on the contact sheets of a data set
SHEETS = 24 * 2**20  # bytes of contact sheets in the page
TITLES = {"error": "Errors: training would fail", "warning": "Warnings: look at these",
          "note": "Notes"}  # fmt: skip
ODD = {"constant": "One {tone} only", "tiny": "Few pixels", "inverted": "Perhaps inverted"}
STYLE = (
    f"""<style>{sheets.STYLE}</style>"""
    + """<style>
ul.items{list-style:none;padding:0;max-width:none}
ul.items li{border-left:5px solid var(--line);background:var(--soft);margin:.5rem 0;
padding:.45rem .8rem;overflow-wrap:anywhere}
ul.items li.is-error{border-color:#c4232c}ul.items li.is-warning{border-color:#d68a00}
ul.items b{display:block}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem}
.pairs figure{margin:0;background:var(--soft);padding:.5rem}
.pairs .two{display:grid;grid-template-columns:1fr 1fr;gap:.3rem;background:#000}
.pairs img{width:100%;height:auto;border:0}
.pairs figcaption{overflow-wrap:anywhere}
</style>"""
)


def page(report: Report) -> str:
    """The whole file as text."""
    lead = STYLE + f'<p class="answer"><strong>{escape(verdict(report))}</strong> '
    lead += f"{escape(headline(report).split(': ', 1)[1])}</p>"
    parts = [("findings", "Findings", _findings(report))]
    if report.gathered:
        rows = data_table(report)
        heads = [h.capitalize() for h in rows[0]]
        parts.append(("data", "Data", _table("Data sets as read", heads, rows[1:])))
        parts.append(("pictures", "Pictures", _pictures(report)))
    if report.study is not None:
        parts.append(("splits", "Splits", _splits(report)))
        parts.append(("plan", "Plan", facts(cost_facts(report))))
    shown = _sheets(report)
    if shown:
        parts.append(("sheets", "Contact sheets", shown))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    foot = paragraph(
        f"Made by mdmt {__version__} on {now}. It holds pictures of the data: share it only with "
        "people who may see them. Not a medical device."
    )
    return whole_page(f"{report.values['name']}: check", lead, parts, foot, "mdmt check")


def _findings(report: Report) -> str:
    out = []
    for grade in GRADES:
        items = [i for i in report.items if i.grade == grade]
        if not items:
            continue
        inside = "".join(
            f'<li class="is-{grade}"><b>{escape(i.topic)}</b>{escape(i.sentence)}</li>'
            for i in items
        )
        out.append(f'<h3>{TITLES[grade]}</h3><ul class="items">{inside}</ul>')
    return "\n".join(out) or paragraph("None.")


def _table(caption: str, heads: list[str], rows: list[list[str]]) -> str:
    """A table of short cells, which a narrow screen scrolls; the first column heads the rows."""
    head = f'<th scope="col" class="stub">{escape(heads[0])}</th>'
    head += "".join(f'<th scope="col">{escape(h)}</th>' for h in heads[1:])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}">'
        f"<table><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _pictures(report: Report) -> str:
    """Near-duplicates side by side, then what looks odd."""
    looks, out = report.looks, []
    what = config.pictured(report.values)
    groups: dict[str, list] = {}
    for pair in looks.alike if looks else []:
        groups.setdefault(looks.kind(pair), []).append(pair)
    heads = {
        "data sets": f"The same {what} in two data sets",
        "patients": f"The same {what} under two patients",
        "same patient": f"The same {what} twice under one patient",
    }
    for kind, title in heads.items():
        pairs = groups.get(kind, [])
        if not pairs:
            continue
        out.append(f"<h3>{title}: {len(pairs)}</h3>")
        cells = []
        for p in pairs[:PAIRS]:
            mirror = ", mirrored" if p.mirrored else ""
            said = f"{looks.name(p.one)} and {looks.name(p.two)}"
            both = _image(looks, p.one) + _image(looks, p.two)
            cells.append(
                f'<figure><div class="two">{both}</div><figcaption>{escape(said)}: correlation '
                f"{p.correlation:.3f}{mirror}</figcaption></figure>"
            )
        out.append(f'<div class="pairs">{"".join(cells)}</div>')
        if len(pairs) > PAIRS:
            out.append(paragraph(f"... and {len(pairs) - PAIRS} more pairs.", "note"))
    for kind, places in (looks.odd if looks else {}).items():
        title = ODD[kind].format(tone=looks.tone)
        out.append(f"<h3>{title}: {len(places)}</h3>")
        cells = "".join(
            f"<figure>{_image(looks, p)}<figcaption>{escape(looks.name(p))}</figcaption></figure>"
            for p in places[:PAIRS]
        )
        out.append(f'<div class="pairs">{cells}</div>')
    if report.values["data"]["synthetic"] is not None:
        return paragraph("Drawn pictures, which all look alike: not looked at.")
    return "\n".join(out) or paragraph("No near-duplicates, and none that looks odd.")


def _image(looks, place: tuple[int, int]) -> str:
    """The small look at a whole picture, or the network's input where there is none."""
    store = looks.stores[place[0]]
    usable = [e for e in store.entries if "reason" not in e]
    picture, _ = store.look(usable[place[1]])
    if picture is None:
        picture = np.ascontiguousarray(shown(store.images[place[1]]))
    return _inside(picture, looks.cases[place[0]].images[place[1]])


def _inside(picture: np.ndarray, name: str) -> str:
    """An <img> that holds the picture (h, w) or (h, w, 3) uint8."""
    return (
        f'<img loading="lazy" src="{_address(picture)}" width="{picture.shape[1]}" '
        f'height="{picture.shape[0]}" alt="{escape(name, quote=True)}">'
    )


def _address(picture: np.ndarray) -> str:
    """A picture (h, w) or (h, w, 3) uint8 as an address that holds it, a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _splits(report: Report) -> str:
    """A table per release, scheme and data set."""
    out = []
    many = len(report.study.releases) > 1
    for r in report.study.releases:
        for validation, folds in r.splits.items():
            for cases in r.cases:
                rows = []
                for i, fold in enumerate(folds):
                    part = fold[cases.name]
                    more = [f"fold {part['fold']}"] if part["fold"] != i else []
                    more += [part["center"]] if "center" in part else []
                    cells = [f"{i}{' (' + ', '.join(more) + ')' if more else ''}"]
                    for p in PARTS:
                        counts = cases.counts(part[p])
                        patients = len({cases.patients[k] for k in part[p]})
                        cells.append(f"{' / '.join(map(str, counts))} ({patients})")
                    rows.append(cells)
                release = f", release {r.name}" if many else ""
                title = (
                    f"{validation}, {cases.name}{release}: images of {' / '.join(cases.classes)} "
                    "(patients)"
                )
                out.append(_table(title, ["Fold", "Training", "Validation", "Test"], rows))
    return "\n".join(out)


def _sheets(report: Report) -> str:
    """The most doubtful images of each data set, as `mdmt prepare` draws them."""
    out, room = [], SHEETS
    last = {name: survey for (_, name), survey in report.surveys.items()}
    for name, survey in last.items():
        if not len(survey.cases):
            continue
        sources = [_address(image) for image in sheets.pages(survey, DOUBTFUL)]
        pages = sheets.html(survey, sources, DOUBTFUL)
        kept = []
        for text in pages:
            room -= len(text)
            if room > 0:
                kept.append(text)
        most = min(len(survey.cases), DOUBTFUL)
        colour = survey.store.settings.get("colour")
        said = (
            f"{most} of {len(survey.cases)} images, refused ones first"
            if colour
            else f"The {most} most doubtful of {len(survey.cases)} images"
        ) + "; `mdmt prepare` draws all. Yellow: what the network sees"
        said += "." if colour else "; cyan: the lung mask."
        out.append(f"<h3>{escape(name)}</h3>{paragraph(said, 'note')}{''.join(kept)}")
    return "\n".join(out)
