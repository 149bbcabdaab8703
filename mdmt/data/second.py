"""A second reader's scores of the same images: how far two people agree is what networks are held
against."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import BadData
from .labels import missing

ROLES = ("second", "regions", "second_regions")
REGIONS = "ABCDEF"


def six_digits(text: str) -> tuple[int, ...]:
    """Six regional scores 0-3 of a written score: "23013", "[23013]" and "023013" are the same."""
    found = re.fullmatch(r"\[?(\d{1,6})(?:\.0)?\]?", text.strip())
    if not found or re.search("[4-9]", found[1]):
        raise BadData(f"'{text}' is not a Brixia score, six digits from 0 to 3")
    return tuple(int(d) for d in found[1].zfill(6))


def read(table: Path, rows: list[dict], columns: dict, stated, label) -> dict:
    """What the columns `second`, `regions` and `second_regions` say, {} where none is named.

    rows: the labelled rows; stated(row) -> bool: whether the second reader has labelled it;
    label(rows) -> (class numbers, scores) of the
    column `second`. Returns {"labels": (M,) int64, -1 where the second reader is missing;
    "scores": (M,) float64, NaN; "regions", "second_regions": (M, 6) float64, NaN}.
    Raises BadData, naming table, image and value.
    """
    found: dict = {}
    name = columns.get("second")
    if name is not None:
        here = [i for i, r in enumerate(rows) if stated(r)]
        found["labels"] = np.full(len(rows), -1, np.int64)
        found["scores"] = np.full(len(rows), np.nan)
        if here:
            labels, scores = label([rows[i] for i in here])
            found["labels"][here], found["scores"][here] = labels, scores
    for role in ("regions", "second_regions"):
        name = columns.get(role)
        if name is None:
            continue
        found[role] = np.full((len(rows), len(REGIONS)), np.nan)
        for i, row in enumerate(rows):
            if missing(row[name]):
                continue
            try:
                found[role][i] = six_digits(row[name])
            except BadData as error:
                raise BadData(
                    f"{table}: image '{row[columns['image']]}', column '{name}': {error}; correct "
                    "the cell or leave it empty"
                ) from None
    return found
