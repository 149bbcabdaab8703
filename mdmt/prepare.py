"""`mdmt prepare CONFIG`: the images of a study into their stores, and contact sheets of all of it.

In the out folder, for each data set a folder with

- `sheet-001.png`, ...: contact sheets, most doubtful first (`mdmt.preprocess.sheets`),
- `images.csv`: a row per image: what became of it, doubt, finding, and the square that the network
  sees, in the form that `corrections` takes,

and `index.html`, a page with all of them, the refused images and their reasons.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from urllib.parse import quote

from . import study
from .data.store import INDEX, store_folder
from .errors import BadData
from .paths import digest, folder_lock, remove_unfinished, write_atomic, write_csv
from .preprocess import build, sheets
from .preprocess.build import Survey

COLUMNS = ["image", "file", "state", "doubt", "finding", "box", "width", "height", "decision"]
MANY = 10  # stores in the folder, above which their size is told
SHOWN = 20  # refused images that are printed; the page lists all


def prepare(values: dict, out=None, quiet: bool = False, say=print) -> list[Survey]:
    """Build the stores of a study, write the contact sheets to `out` and say what was done.

    values: the configuration; out: folder (default: results/<name>-prepare). With several releases
    all stores are built, and the last release is shown. Returns the surveys of the data sets.
    Raises BadData after all of that where images are refused and `data.on_bad_image` is error.
    """
    out = Path(out or f"results/{values['name']}-prepare")
    built: dict[str, Survey] = {}
    surveys: list[Survey] = []
    for release in study.releases_of(values):
        surveys = []
        for cases in study.read_cases(values, out, release):
            key = digest([cases.name, [str(p) for p in cases.paths], cases.patients])
            if key not in built:
                built[key] = build.inspect(cases, values, progress=not quiet)
            surveys.append(built[key])
    with folder_lock(out, "folder of contact sheets", wait=1):
        for folder in (out, *(out / _folder(s) for s in surveys)):
            remove_unfinished(folder)
        written = [_write_set(s, out, quiet) for s in surveys]
        write_atomic(out / "index.html", page(values["name"], surveys, written, out))
    for survey in surveys:
        say("\n".join(summary(survey)))
    say(f"contact sheets: {out / 'index.html'}")
    _say_size(store_folder(values), say)
    refused = [s for s in surveys if s.refused]
    if refused and values["data"]["on_bad_image"] == "error":
        raise BadData(build.refusal(refused[0], out / "index.html"))
    for survey in surveys:
        if not len(survey.usable):
            raise BadData(f"data set '{survey.cases.name}' is empty: no image of it can be used")
    return surveys


def _say_size(root: Path, say) -> None:
    """Tell of many stores: each change of a setting, a file or a decision makes another one."""
    stores = [p for p in root.glob("[!.]*") if (p / INDEX).is_file()]
    if len(stores) > MANY:
        size = sum(f.stat().st_size for p in stores for f in p.iterdir())
        say(
            f"{root}: holds {len(stores)} stores, {size / 2**30:.1f} GiB; those that no run is "
            "using can be deleted, they are made again when they are needed"
        )


def _write_set(survey: Survey, out: Path, quiet: bool) -> list[Path]:
    """Sheets and images.csv of one data set."""
    from tqdm import tqdm

    folder = out / _folder(survey)
    with tqdm(
        total=sheets.count(survey), unit="sheet", desc=f"drawing {survey.cases.name}", leave=False,
        file=sys.stderr, delay=1, disable=quiet or not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        written = sheets.write(survey, folder, progress=bar.update)
    write_csv(folder / "images.csv", COLUMNS, rows(survey))
    return written


def _folder(survey: Survey) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in survey.cases.name)
    return name.lstrip(".") or "images"


def rows(survey: Survey) -> list[dict]:
    """The rows of images.csv, in the order of the sheets.

    `box` is left top right bottom of the square that the network sees, as far as it lies in the
    picture.
    """
    found = []
    for i in sheets.order(survey):
        entry = survey.store.entries[i]
        height, width = entry.get("shape") or ("", "")
        box = ""
        if entry.get("box"):
            left, top, right, bottom = entry["box"]
            box = f"{max(left, 0)} {max(top, 0)} {min(right, width)} {min(bottom, height)}"
        found.append(
            {
                "image": survey.cases.images[i],
                "file": survey.cases.paths[i],
                "state": sheets.state(entry),
                "doubt": entry.get("doubt"),
                "finding": entry.get("reason") or entry.get("finding"),
                "box": box,
                "width": width,
                "height": height,
                "decision": " ".join(map(str, entry.get("decision") or [])),
            }
        )
    return found


def summary(survey: Survey) -> list[str]:
    """What was done with a data set, as lines of text."""
    store, cases = survey.store, survey.cases
    states = [sheets.state(e) for e in store.entries]
    counted = [f"{states.count(s)} {text}" for s, text in _COUNTED if states.count(s)]
    left = sum(w.startswith("excluded: ") for w in cases.warnings)
    if left:
        counted.append(f"{left} excluded by a person before")
    lines = [
        f"{cases.name}: {len(cases)} images: {', '.join(counted)}",
        f"  store   {store.folder} ({store.settings['size']} pixels, "
        f"{store.nbytes() / 2**20:.1f} MiB)",
        f"  work    {survey.decoded} decoded, {survey.copied} copied from other stores, "
        f"{survey.found} there already",
    ]
    if survey.decoded:
        rate = survey.decoded / survey.seconds
        alone = survey.workers * survey.decoded / max(survey.decoder_seconds, 1e-9)
        lines.append(
            f"  speed   {rate:.1f} images/s on {survey.workers} "
            f"process{'es' * (survey.workers > 1)} in {survey.seconds:.1f} s, "
            f"{100 * rate / alone:.0f} % of what the decoder alone would do ({alone:.0f} images/s)"
        )
    lines += [f"  refused {text}" for text in survey.listed()[:SHOWN]]
    if len(survey.refused) > SHOWN:
        lines.append(f"  refused ... and {len(survey.refused) - SHOWN} more, see the page")
    lines += [f"  note    {w}" for w in cases.warnings]
    return lines


_COUNTED = (
    ("used", "used"),
    ("doubted", "used with doubt of 0.5 or more"),
    ("decided", "as decided by a person"),
    ("refused", "refused"),
)

_STYLE = (
    sheets.STYLE
    + """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1780px;padding:1rem 1.2rem;
color:#141414;background:#f5f5f5}
h1{font-size:1.5rem;margin:.3rem 0}
h2{margin:2rem 0 .3rem;border-top:2px solid #bbb;padding-top:1rem}
table{border-collapse:collapse;background:#fff}td,th{border:1px solid #ccc;padding:.2rem .6rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}
td:first-child{min-width:6rem}
.tag{color:#fff;padding:.1rem .5rem;border-radius:.2rem;display:inline-block}
pre{background:#fff;border:1px solid #ccc;padding:.6rem;white-space:pre-wrap;
overflow-wrap:anywhere}p{max-width:75rem}code{overflow-wrap:anywhere}
.one{margin:1.4rem 0 0;font-size:.85rem}@media (max-width:30rem){body{padding:.6rem .7rem}}
"""
)


def page(name: str, surveys: list[Survey], written: list, out: Path) -> str:
    """index.html: how to read the sheets, and per data set the figures, the refused, the sheets."""
    tags = " ".join(
        f'<span class="tag" style="background:rgb{colour}">{escape(text)}</span>'
        for state, (colour, text) in sheets.STATES.items()
        if not (state == "doubted" and _colour(surveys))
    )
    sections = "".join(
        _section(survey, paths, out) for survey, paths in zip(surveys, written, strict=True)
    )
    words = "<code>whole</code>, <code>exclude</code>"
    if not _colour(surveys):
        words = f"<code>accept</code> (the lungs are right as\noutlined), {words}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}: prepared images</title><style>{_STYLE}</style></head><body>
<h1>{escape(name)}: prepared images</h1>
<p>{_reading(surveys, tags)}</p>
<p>To decide about single images, write a table with the columns <code>image</code> and
<code>box</code> into the data set's folder and name it in the configuration as
<code>corrections</code>; <code>box</code> is {words}, or four numbers <code>left top right
bottom</code> in pixels of the picture. Rows of <code>images.csv</code> can be taken over for the
images that you decide about; leave the others out, since a box that is named is taken as it is:
nothing beyond the picture's edge is added to it, and nothing in it is masked. Only the images named
are prepared again.</p>
{sections}</body></html>
"""


def _colour(surveys: list[Survey]) -> bool:
    """Whether the pictures are in colour, so that no lungs were looked for."""
    return any(s.store.settings.get("colour") for s in surveys)


def _reading(surveys: list[Survey], tags: str) -> str:
    """How to read the sheets."""
    if _colour(surveys):
        return (
            "Every cell is the whole picture with the square that the network sees (yellow); below "
            f"it the file. The head of a cell says what became of the image: {tags}. Refused "
            "images come first."
        )
    return (
        "Every cell is the whole picture with the outline of the lung mask (cyan) and the square "
        "that the\nnetwork sees (yellow); below it the file, how doubtful the lungs are (0: not at "
        "all; 1: refused) and\nwhy. The head of a cell says what became of the image: "
        f"{tags}. Refused images come first, then the\nothers by falling doubt."
    )


def _section(survey: Survey, paths: list[Path], out: Path) -> str:
    cases = survey.cases
    lines = escape("\n".join(line for line in summary(survey) if not line.startswith("  refused")))
    body = "".join(
        f"<tr><td>{escape(cases.images[i])}</td><td>{escape(reason)}</td></tr>"
        for i, reason in survey.refused.items()
    )
    table = (
        f"<details{' open' if len(survey.refused) <= SHOWN else ''}><summary>"
        f"{len(survey.refused)} refused, and why</summary><table>{body}</table></details>"
        if body
        else ""
    )
    listed = (
        f'<p><a href="{escape(_folder(survey))}/images.csv">images.csv</a>: a row per image</p>'
    )
    sources = [quote(p.relative_to(out).as_posix()) for p in paths]
    shown = "".join(
        f'<p class="one"><a href="{escape(source)}">sheet {k} of {len(paths)}</a></p>{cells}'
        for k, (source, cells) in enumerate(
            zip(sources, sheets.html(survey, sources), strict=True), start=1
        )
    )
    return f"<h2>{escape(cases.name)}</h2><pre>{lines}</pre>{table}{listed}{shown}"
