"""Contact sheets: what was done to every image, most doubtful first, for a person to look at.

A cell shows the whole picture, the outline of the lung mask, the square that the network sees, the
file's name, the doubt and the reason. The colour of its head says what became of the image. On a
page (`html`) the cells of a sheet flow: as many stand side by side as the screen has room for, each
a window on the sheet's one picture, with its words as text.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from ..paths import atomic, make_folder
from .build import Survey
from .picture import LOOK

COLUMNS, ROWS = 8, 5
MARGIN, HEAD, TEXT = 10, 7, 64
WIDTH, HEIGHT = LOOK + 2 * MARGIN, HEAD + LOOK + 2 * MARGIN + TEXT
BACK, PAPER, INK, FAINT = (24, 24, 24), (245, 245, 245), (20, 20, 20), (95, 95, 95)
OUTLINE, SQUARE = (0, 220, 255), (255, 205, 0)
WINDOW = HEAD + LOOK + 2 * MARGIN  # height of a cell without its words
STYLE = f"""
.cells{{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.8rem .5rem;
margin:.8rem 0;content-visibility:auto;contain-intrinsic-size:auto 90rem}}
.cells figure{{margin:0;min-width:0;max-width:{1.5 * WIDTH:.0f}px;break-inside:avoid}}
.cells .window{{aspect-ratio:{WIDTH}/{WINDOW};background:var(--sheet) no-repeat;
background-size:{100 * COLUMNS}% auto;-webkit-print-color-adjust:exact;print-color-adjust:exact}}
.cells figcaption{{font-size:.8rem;line-height:1.35;overflow-wrap:anywhere;padding:.15rem .1rem}}
.cells b{{display:block}}
"""
# what became of an image -> colour of its cell's head, and what the legend says
STATES = {
    "refused": ((206, 32, 41), "refused"),
    "decided": ((36, 98, 200), "decided by a person"),
    "doubted": ((240, 150, 20), "used, doubt 0.5 or more"),
    "used": ((60, 150, 80), "used"),
}


def state(entry: dict) -> str:
    """What became of an image: a key of STATES."""
    if "reason" in entry:
        return "refused"
    if entry.get("decision") is not None:
        return "decided"
    return "doubted" if entry.get("doubt", 0) >= 0.5 else "used"


def order(survey: Survey) -> list[int]:
    """Rows of `survey.cases`: refused images first, then by falling doubt, then by name."""

    def rank(i):
        entry = survey.store.entries[i]
        return "reason" not in entry, -entry.get("doubt", 0), survey.cases.images[i]

    return sorted(range(len(survey.cases)), key=rank)


def pages(survey: Survey, most: int | None = None):
    """Yield the pages of the contact sheets as RGB arrays (h, w, 3) uint8.

    most: only so many images, the most doubtful ones.
    """
    for image in _pages(survey, most):
        yield np.asarray(image)


def write(survey: Survey, folder, most: int | None = None, progress=None) -> list[Path]:
    """Write the pages as PNG files sheet-001.png, ... into `folder`; returns them.

    Files of that name from an earlier time are removed. progress: called once per page.
    """
    folder = make_folder(folder)
    written = []
    for number, image in enumerate(_pages(survey, most), start=1):
        path = folder / f"sheet-{number:03d}.png"
        if not survey.store.settings.get("colour"):
            image = image.quantize(palette=_palette(), dither=0)
        with atomic(path, sync=False) as stream:
            image.save(stream, "PNG")
        written.append(path)
        if progress is not None:
            progress()
    for old in set(folder.glob("sheet-[0-9][0-9][0-9].png")) - set(written):
        old.unlink()
    return written


@lru_cache(maxsize=1)
def _palette():
    """A picture whose palette has every colour of the sheets and 100 greys."""
    from PIL import Image

    colours = [BACK, PAPER, OUTLINE, SQUARE, *(c for c, _ in STATES.values())]
    colours += [(g, g, g) for g in np.linspace(0, 255, 100).round().astype(int).tolist()]
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for c in colours for v in c])
    return palette


def count(survey: Survey) -> int:
    """How many pages there are."""
    return -(-len(survey.cases) // (COLUMNS * ROWS))


def html(survey: Survey, sources: list[str], most: int | None = None) -> list[str]:
    """The cells of every sheet as HTML, to be shown with STYLE.

    sources: the sheets' addresses (as of `write`, or data: ones of `pages`, with the same `most`).
    """
    rows, step = order(survey)[:most], COLUMNS * ROWS
    found = []
    for number, source in enumerate(sources):
        part = rows[number * step : (number + 1) * step]
        hidden = -(-len(part) // COLUMNS) * HEIGHT - WINDOW
        cells = []
        for k, i in enumerate(part):
            y, x = divmod(k, COLUMNS)
            place = f"{100 * x / (COLUMNS - 1):.4f}% {100 * y * HEIGHT / hidden:.4f}%"
            cells.append(
                f'<figure><div class="window" role="img" aria-label="picture {k + 1}" '
                f'style="background-position:{place}"></div>'
                f"<figcaption>{_caption(survey, i)}</figcaption></figure>"
            )
        sheet = source.replace("\\", "%5C").replace("'", "%27")
        found.append(f'<div class="cells" style="--sheet:url(\'{escape(sheet)}\')">'
                     f"{''.join(cells)}</div>")  # fmt: skip
    return found


def _caption(survey: Survey, i: int) -> str:
    """The words of a cell as HTML."""
    entry = survey.store.entries[i]
    kind, facts = state(entry), _facts(entry)
    if kind == "refused":
        facts.insert(0, STATES[kind][1])
    reason = _reason(entry)
    said = f"<b>{escape(survey.cases.paths[i].name)}</b>{escape(', '.join(facts))}"
    return f"{said}<br>{escape(reason)}" if reason else said


def _pages(survey: Survey, most: int | None):
    from PIL import Image

    rows = order(survey)[:most]
    step = COLUMNS * ROWS
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        lines = -(-len(part) // COLUMNS)
        page = Image.new("RGB", (COLUMNS * WIDTH, lines * HEIGHT), PAPER)
        for k, i in enumerate(part):
            y, x = divmod(k, COLUMNS)
            page.paste(_cell(survey, i), (x * WIDTH, y * HEIGHT))
        yield page


def _cell(survey: Survey, i: int):
    """The cell of one image."""
    from PIL import Image, ImageDraw

    entry = survey.store.entries[i]
    cell = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(cell)
    draw.rectangle((1, 0, WIDTH - 2, HEAD - 1), STATES[state(entry)][0])
    top = WINDOW
    draw.rectangle((1, HEAD, WIDTH - 2, top - 1), BACK)
    picture, mask = survey.store.look(entry)
    if picture is None:
        draw.text((WIDTH / 2, HEAD + LOOK / 2), "no picture", (200, 200, 200), _font(14), "mm")
    else:
        shown = np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture
        if mask is not None:
            shown[outline(mask)] = OUTLINE
        height, width = picture.shape[:2]
        x, y = (WIDTH - width) // 2, HEAD + MARGIN + (LOOK - height) // 2
        cell.paste(Image.fromarray(shown), (x, y))
        if entry.get("box"):
            left, above, right, below = entry["box"]
            share = width / entry["shape"][1]
            draw.rectangle(
                (
                    max(x + round(share * left), 2),
                    max(y + round(share * above), HEAD + 1),
                    min(x + round(share * right) - 1, WIDTH - 3),
                    min(y + round(share * below) - 1, top - 2),
                ),
                outline=SQUARE,
            )
    _write(draw, entry, survey.cases.paths[i].name, top)
    return cell


def _write(draw, entry: dict, name: str, top: int) -> None:
    """Name, doubt and reason below a picture."""
    room = WIDTH - 12
    draw.text((6, top + 2), _shortened(draw, name, _font(12), room), INK, _font(12))
    line = "   ".join(_facts(entry))
    draw.text((6, top + 17), _shortened(draw, line, _font(11), room), FAINT, _font(11))
    reason = _reason(entry)
    colour = STATES["refused"][0] if "reason" in entry else FAINT
    for k, text in enumerate(_wrapped(draw, reason, _font(10), room, 2)):
        draw.text((6, top + 33 + 13 * k), text, colour, _font(10))


def _facts(entry: dict) -> list[str]:
    """Doubt, decision and size of an image."""
    facts = []
    if "doubt" in entry:
        facts.append(f"doubt {entry['doubt']:.2f}")
    if entry.get("decision") is not None:
        facts.append(f"a person: {' '.join(map(str, entry['decision']))}")
    if "shape" in entry:
        facts.append(f"{entry['shape'][1]} x {entry['shape'][0]}")
    return facts


def _reason(entry: dict) -> str:
    reason = entry.get("reason") or entry.get("finding") or ""
    return reason.removeprefix("shows no plausible lungs (").removesuffix(")")


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of mask (h, w) bool that touch one outside it."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


@lru_cache(maxsize=8)
def _font(size: int):
    """DejaVu Sans as it comes with matplotlib, for its letters; else Pillow's own."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    for place in (found.submodule_search_locations if found else None) or []:
        path = Path(place) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            try:
                return ImageFont.truetype(str(path), size)
            except (OSError, ImportError):
                break
    return ImageFont.load_default()


def _shortened(draw, text: str, font, room: int) -> str:
    """`text` with its middle left out where it is wider than `room`; its ends tell files apart."""
    if draw.textlength(text, font) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if draw.textlength(short, font) <= room:
            return short
    return "…"


def _wrapped(draw, text: str, font, room: int, most: int) -> list[str]:
    """Lines of `text` no wider than `room`; the last of `most` is shortened."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        line = words.pop(0)
        while words and draw.textlength(f"{line} {words[0]}", font) <= room:
            line += f" {words.pop(0)}"
        if len(lines) == most - 1 and words:
            line = " ".join([line, *words])
            while draw.textlength(f"{line}…", font) > room:
                line = line[:-1]
            line += "…"
            words = []
        lines.append(_shortened(draw, line, font, room))
    return lines
