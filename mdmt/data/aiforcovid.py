"""AIforCOVID as downloaded: three cumulative releases, each a workbook and a folder of DICOM.

| release | table | images | patients |
|---|---|---|---|
| 1 | AIforCOVID.xlsx | imgs | 820 |
| 2 | AIforCOVID_r2.xlsx | imgs_r2 | + 284 |
| 3 | AIforCOVID_r3.xlsx | imgs_r3 | + 482 |

One image per patient, so the patient is the image. `data.release` 1, 2 or 3 reads the tables up to
that one. The clinical columns stay with the cases (`Cases.columns`), with the release's number.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ..errors import BadConfig, BadData, nearest
from .table import Cases, Row, _locate, _stem, assemble, folder_of, missing, read_table

RELEASES = (("AIforCOVID", "imgs"), ("AIforCOVID_r2", "imgs_r2"), ("AIforCOVID_r3", "imgs_r3"))
OUTCOMES = ("MILD", "SEVERE")
_COLUMNS = {"image": "ImageFile", "patient": None, "label": "Prognosis", "center": "Hospital"}
_HOSPITAL = re.compile(r"(?:HOSPITAL|CENT(?:ER|RE)|OSPEDALE)?[\s_.-]*([A-F])\.?", re.IGNORECASE)
_YES = {"1", "YES", "Y", "TRUE", "SI", "DEATH", "DEAD"}


def read_cases(spec: dict, task: dict, root, release: str = "3") -> Cases:
    """Read the releases up to `release` ("1", "2" or "3") in the form of the table reader."""
    if str(release) not in ("1", "2", "3"):
        raise BadConfig(
            f"data.release is '{release}'; AIforCOVID has the cumulative releases 1, 2 and 3"
        )
    folder = folder_of(spec, root)
    notes: list[str] = []
    rows: list[dict] = []
    where: dict[str, tuple[Path, Path]] = {}
    for number, (stem, images) in enumerate(RELEASES[: int(release)], start=1):
        table = _table(folder, stem)
        for row in _rows(table, number, notes):
            image = row["ImageFile"]
            key = _stem(image)
            if key in where:
                _check_same(table, row, next(r for r in rows if _stem(r["ImageFile"]) == key))
                continue
            where[key] = (folder / images, table)
            rows.append(row)
    every = {name: None for row in rows for name in row}
    rows = [Row({name: row.get(name, "") for name in every}, row.number) for row in rows]

    def locate(names):
        paths = {}
        for place in dict.fromkeys(where.values()):
            own = [n for n in names if where[_stem(n)] == place]
            if own:
                paths.update(zip(own, _locate(place[0], own, place[1]), strict=True))
        return [paths[n] for n in names]

    columns = {**_COLUMNS, "patient": "ImageFile"}
    cases = assemble(table, rows, columns, spec, task, locate)
    cases.patients = list(cases.images)  # without the extension that some tables write
    cases.waves = list(cases.columns["Release"])
    cases.warnings += notes
    return cases


def _table(folder: Path, stem: str) -> Path:
    """The release's table; a workbook saved as text is taken too."""
    for suffix in (".xlsx", ".csv", ".tsv"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    if not folder.is_dir():
        raise BadData(f"{folder}: no such folder; set data.root and the data set's `folder`")
    raise BadData(
        f"{folder / stem}.xlsx: is missing; put the release's table there or set data.release to "
        "an earlier one"
    )


def _rows(table: Path, number: int, notes: list[str]) -> list[dict]:
    """Rows of one table with canonical column names and normalised outcome and center."""
    header, rows = read_table(table)
    names = {_plain(h): h for h in header}
    rename = {}
    for wanted in ("ImageFile", "Hospital", "Prognosis"):
        if _plain(wanted) not in names:
            raise BadData(f"{table}: has no column '{wanted}'{nearest(wanted, header)}")
        rename[names[_plain(wanted)]] = wanted
    fixed, empty, contradictions = [], 0, 0
    found = []
    for row in rows:
        position = row.number
        row = Row({rename.get(k, k): v for k, v in row.items() if k}, position)
        row["Prognosis"], changed = _outcome(row["Prognosis"])
        if changed:
            fixed.append(f"row {position} '{changed}'")
        row["Hospital"] = _center(table, position, row["Hospital"])
        empty += row["Hospital"] == ""
        died = next((row[k] for k in row if _plain(k) == "death"), "")
        contradictions += died.strip().upper() in _YES and row["Prognosis"] == "MILD"
        row["Release"] = str(number)
        found.append(row)
    if fixed:
        notes.append(
            f"{table}: {len(fixed)} of {len(found)} outcomes are misspelt and were read "
            f"as MILD or SEVERE ({', '.join(fixed[:5])})"
        )
    if empty:
        notes.append(f"{table}: {empty} of {len(found)} rows name no hospital")
    if contradictions:
        notes.append(
            f"{table}: {contradictions} of {len(found)} patients died although their "
            "outcome is MILD"
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()


def _outcome(text: str) -> tuple[str, str]:
    """(MILD or SEVERE where the cell clearly means it, the cell if it was misspelt)."""
    upper = text.strip().upper()
    if missing(upper) or upper in OUTCOMES:
        return upper, ""
    close = difflib.get_close_matches(upper, OUTCOMES, n=1, cutoff=0.75)
    return (close[0], text) if close else (text, "")


def _center(table: Path, position: int, text: str) -> str:
    if missing(text):
        return ""
    found = _HOSPITAL.fullmatch(text.strip())
    if not found:
        raise BadData(
            f"{table}: row {position} has the hospital '{text}'; it must be one of A to F, or empty"
        )
    return found[1].upper()


def _check_same(table: Path, row: dict, before: dict) -> None:
    """A patient of an earlier release may be listed again, but not with another outcome."""
    for name in ("Prognosis", "Hospital"):
        if row[name] != before[name]:
            raise BadData(
                f"{table}: '{row['ImageFile']}' has {name} '{row[name]}', but '{before[name]}' in "
                f"release {before['Release']}; keep the right one"
            )
    if before["Release"] == row["Release"]:
        raise BadData(f"{table}: image '{row['ImageFile']}' has two rows; keep one")
