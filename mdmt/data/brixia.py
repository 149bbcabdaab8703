"""BRIXIA as downloaded: `metadata_global_v2.csv` (`;`, byte order mark) and `dicom_clean/`.

A score is six digits 0-3 for the regions A to F: A, B, C are the upper, middle and lower right
lung, D, E, F the left one. The table lost the leading zeros; they are restored. The global score
is the sum (0-18), the lungs' are the sums of three (0-9); the task's thresholds make classes of
it, [5, 9, 14] for equation (4) of the paper, [1, 4, 7] for a lung.

Centers are manufacturers. The default rule is the published folds': the first word of the name
(AGFA-GEVAERT is AGFA) if it is SIEMENS, AGFA or CARESTREAM, 2,197, 576 and 1,805 of the 4,695
images; the 117 images of other manufacturers have no center. `groups` replaces the rule.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import BadData, nearest
from .second import six_digits as regions
from .table import Cases, Row, _locate, _stem, assemble, folder_of, missing, read_table

TABLE, IMAGES = "metadata_global_v2.csv", "dicom_clean"
GROUPS = ("SIEMENS", "AGFA", "CARESTREAM")
REGIONS = "ABCDEF"
TARGETS = {"global": "ABCDEF", "right": "ABC", "left": "DEF", **{r: r for r in REGIONS}}
_ROUNDED = re.compile(r"\d([.,]\d+)?[eE]\+?\d+(\.dcm)?")


def score(six, target: str = "global") -> int:
    """Sum of the regions that `target` names."""
    return sum(six[REGIONS.index(r)] for r in TARGETS[target])


def group_of(manufacturer: str, groups: dict | None = None) -> str:
    """Center of a manufacturer; "" if it has none."""
    name = " ".join(manufacturer.upper().split())
    if groups is not None:
        return {" ".join(k.upper().split()): v for k, v in groups.items()}.get(name, "")
    first = re.split(r"[\s\-_,]", name, maxsplit=1)[0]
    return first if first in GROUPS else ""


def read_cases(spec: dict, task: dict, root) -> Cases:
    """Read BRIXIA in the form of the table reader; `targets` (M, 6) are the regions' scores."""
    folder = folder_of(spec, root)
    table = folder / (spec.get("table") or TABLE)
    images = folder / (spec.get("images") or IMAGES)
    header, rows = read_table(table, spec.get("delimiter", "auto"))
    names = {h.lower(): h for h in header}
    for wanted in ("Filename", "BrixiaScore"):
        if wanted.lower() not in names:
            raise BadData(f"{table}: has no column '{wanted}'{nearest(wanted, header)}")
    patient = spec["columns"]["patient"]
    patient = patient if patient in header else names.get("patientid")
    rows = [Row({k: v for k, v in r.items() if k}, r.number) for r in rows]
    rows, notes = _consensus(table, rows, names, spec.get("consensus", "keep"))
    for row in rows:
        _fill(table, row.number, row, names, spec)
    columns = {"image": names["filename"], "patient": patient, "label": "score", "center": "center"}
    cases = assemble(table, rows, columns, spec, task, lambda n: _locate(images, n, table))
    cases.targets = np.array(
        [regions(s) for s in cases.columns[names["brixiascore"]]], np.float64
    ).reshape(len(cases), 6)
    if spec.get("consensus") == "test":
        cases.fixed = np.array([c == "1" for c in cases.columns["consensus"]])
    without = sum(c == "" for c in cases.centers)
    if without:
        notes.append(
            f"{table}: {without} images are of manufacturers without a center, so no fold of a "
            "leave-one-center-out tests them"
        )
    cases.warnings += notes
    return cases


def _consensus(table: Path, rows, names: dict, what: str) -> tuple[list[dict], list[str]]:
    """Keep, exclude, separate or mark the consensus test set (then row "consensus" is "1")."""
    if what == "keep":
        return rows, []
    column = names.get("consensustestset")
    if column is None:
        raise BadData(f"{table}: has no column 'ConsensusTestset'{nearest('Consensus', names)}")
    inside = []
    for row in rows:
        text = row[column].strip().lower()
        if text not in ("0", "1", "0.0", "1.0", "true", "false"):
            raise BadData(
                f"{table}: row {row.number} has ConsensusTestset '{row[column]}'; it must be 0 or 1"
            )
        inside.append(text in ("1", "1.0", "true"))
    if what == "test":
        for row, test in zip(rows, inside, strict=True):
            row["consensus"] = "1" if test else ""
        return rows, [f"{table}: the {sum(inside)} images of the consensus test set are the test "
                      "part of every fold"]  # fmt: skip
    kept = [r for r, i in zip(rows, inside, strict=True) if i == (what == "only")]
    return kept, [f"{table}: {len(rows) - len(kept)} images left out by consensus: {what}"]


def _fill(table: Path, number: int, row: dict, names: dict, spec: dict) -> None:
    """Add `score` and `center` to a row, and check what the row says twice."""
    name, text = row[names["filename"]], row[names["brixiascore"]]
    where = f"{table}: image '{_stem(name)}'"
    if _ROUNDED.fullmatch(name):
        raise BadData(
            f"{table}: row {number} has the image '{name}', an id that a spreadsheet has rounded; "
            "use the table as it was downloaded"
        )
    row["score"] = ""
    if not missing(text):
        try:
            six = regions(text)
        except BadData as error:
            raise BadData(f"{where}: {error}; correct the cell or leave it empty") from None
        row[names["brixiascore"]] = "".join(map(str, six))
        row["score"] = str(score(six, spec.get("target", "global")))
        total = row.get(names.get("brixiascoreglobal", ""), "")
        if not missing(total) and total.split(".")[0] != str(sum(six)):
            raise BadData(
                f"{where}: the regions {row[names['brixiascore']]} sum to {sum(six)}, but "
                f"BrixiaScoreGlobal is '{total}'; correct it or name the image in leave_out"
            )
    row["center"] = group_of(row.get(names.get("manufacturer", ""), ""), spec.get("groups"))
