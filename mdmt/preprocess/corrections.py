"""What a person decided about single images, after a look at the contact sheets.

A data set's `accept` lists images whose lungs are right as found although the software doubts
them. Its `corrections` names a table with the columns `image` and `box` (others are ignored, so
that rows of the `images.csv` of `mdmt prepare` can be taken as they are); `box` is

- `accept`: the lungs are right as found,
- `whole`: the whole picture is used,
- `exclude`: the picture is not used,
- four numbers `left top right bottom`: this part of the picture, in its pixels; it becomes square
  by taking more of the picture, as every box does;
- empty: nothing is decided.

A corrected part is never masked.
"""

from __future__ import annotations

import re

from ..data.table import Cases, _stem, folder_of, read_table
from ..errors import BadConfig, BadData, nearest

EXCLUDE = ["exclude"]
_WORDS = ("accept", "whole", "exclude")


def decisions(cases: Cases, values: dict) -> list:
    """What was decided about each image of `cases`: None, or a `Task.decision`, or EXCLUDE.

    values: the configuration. Raises BadConfig and BadData for names and boxes that cannot be.
    """
    specs = [d for d in values["data"]["datasets"] if d["name"] == cases.name]
    spec = specs[0] if specs else {}
    found: dict[str, list] = {}
    images = set(cases.images)
    for name in spec.get("accept") or []:
        if _stem(name) not in images:
            raise BadConfig(
                f"data set '{cases.name}': accept names '{name}'{nearest(name, cases.images)}"
            )
        found[_stem(name)] = ["accept"]
    if spec.get("corrections"):
        table = folder_of(spec, values["data"]["root"]) / spec["corrections"]
        for image, decision in _read(table).items():
            if image not in images:
                raise BadData(f"{table}: image '{image}'{nearest(image, cases.images)}")
            if found.setdefault(image, decision) != decision:
                raise BadData(
                    f"{table}: image '{image}' is corrected, but data set '{cases.name}' accepts "
                    "it as found; keep one"
                )
    return [found.get(image) for image in cases.images]


def _read(table) -> dict[str, list]:
    header, rows = read_table(table)
    for name in ("image", "box"):
        if name not in header:
            raise BadData(f"{table}: has no column '{name}'{nearest(name, header)}")
    found: dict[str, list] = {}
    for row in rows:
        image, text = _stem(row["image"]), row["box"].strip().lower()
        if not text:
            continue
        if image in found:
            raise BadData(f"{table}: image '{image}' has two rows; keep one")
        sides = re.fullmatch(r"(\d{1,6})[\s,;]+(\d{1,6})[\s,;]+(\d{1,6})[\s,;]+(\d{1,6})", text)
        if text in _WORDS:
            found[image] = [text]
        elif sides:
            left, top, right, bottom = map(int, sides.groups())
            if left >= right or top >= bottom:
                raise BadData(
                    f"{table}: row {row.number}: the box '{row['box']}' is empty; give left top "
                    "right bottom, in pixels"
                )
            found[image] = ["box", left, top, right, bottom]
        else:
            raise BadData(
                f"{table}: row {row.number}: '{row['box']}' is neither accept, whole, exclude nor "
                f"four numbers left top right bottom{nearest(text, _WORDS)}"
            )
    return found
