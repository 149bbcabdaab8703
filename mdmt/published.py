"""Fold files as the paper's authors published them: read, audited, and used as they are.

Layout: `<data set>/5/<fold>/{train,val,test}.txt` (cross-validation) and
`<data set>/loCo/<fold>/...` (leave one center out), with `all.txt` and `centers` where given. Each
file is text separated by single blanks, with a header line: `img label center`, or
`img label_dim scores center` for BRIXIA, whose scores stand in brackets and lost their leading
zeros. A cell may be empty. Ids are text.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .errors import BadData, BadInput

SCHEMES = {"cv": "5", "loco": "loCo"}
PARTS = ("train", "val", "test")
_COLUMNS = {"img": "image", "label": "label", "label_dim": "label", "scores": "score",
            "center": "center"}  # fmt: skip


class PublishedFolds(list):
    """Folds {"fold", "train", "val", "test": int64 rows of `cases`}, with "center" in loco.

    cases: {"image", "patient", "label", "center", "score": text per case, "" where unknown};
    a patient is an image, as these files know no others. folder: where they were read.
    """

    def __init__(self, folds, cases: dict, folder: Path):
        super().__init__(folds)
        self.cases = cases
        self.folder = folder


def read_published(folder) -> PublishedFolds | dict[str, PublishedFolds]:
    """Read published folds.

    folder: one scheme (it holds 0/, 1/, ...), or one data set (it holds 5/ and loCo/). Returns its
    folds, or {"cv": folds, "loco": folds} over the same cases. Raises BadInput.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder of published folds; correct the path")
    if _numbers(folder):
        names = _names(folder, folder.parent)
        return _scheme(folder, names, _cases(folder.parent, [folder]))
    found = {k: folder / v for k, v in SCHEMES.items() if (folder / v).is_dir()}
    if not found:
        raise BadInput(
            f"{folder}: holds no folds; give a folder with {' or '.join(SCHEMES.values())}, or "
            "with one folder per fold"
        )
    cases = _cases(folder, list(found.values()))
    return {k: _scheme(path, _names(path, folder), cases) for k, path in found.items()}


def _numbers(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()
                  and (p / "test.txt").is_file())  # fmt: skip


def _rows(path: Path) -> list[dict]:
    """Rows of one file as {column: text}."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: cannot be read as text ({error}); correct the file") from error
    header = lines[0].split(" ") if lines else []
    if not header or header[0] != "img":
        raise BadData(f"{path}: has no header line 'img ...'; it is no published fold file")
    names = [_COLUMNS.get(h) for h in header]
    rows, seen = [], set()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split(" ")
        if len(cells) > len(header):
            raise BadData(f"{path}: line {number} has {len(cells)} cells, the header {len(header)}")
        row = {n: c for n, c in zip(names, cells) if n}
        if not row["image"] or row["image"] in seen:
            raise BadData(f"{path}: line {number}: image '{row['image']}' is empty or listed twice")
        seen.add(row["image"])
        row["score"] = _score(path, number, row.get("score", ""))
        rows.append(row)
    return rows


def _score(path: Path, number: int, text: str) -> str:
    """Six digits with the leading zeros restored, or ""."""
    if not text:
        return ""
    found = re.fullmatch(r"\[([0-3]{1,6})\]", text)
    if not found:
        raise BadData(f"{path}: line {number} has the score '{text}'; it must be [six digits]")
    return found[1].zfill(6)


def _cases(folder: Path, schemes: list[Path]) -> dict:
    """All images of a data set, in the order of all.txt and then of the fold files."""
    files = [folder / "all.txt"] if (folder / "all.txt").is_file() else []
    for scheme in schemes:
        files += [scheme / "all.txt"] if (scheme / "all.txt").is_file() else []
        files += [scheme / str(n) / f"{p}.txt" for n in _numbers(scheme) for p in PARTS]
    known: dict[str, dict] = {}
    for path in files:
        for row in _rows(path):
            own = known.setdefault(row["image"], {"label": "", "center": "", "score": ""})
            for name in own:
                value = row.get(name, "")
                if value and own[name] and value != own[name]:
                    raise BadData(
                        f"{path}: image '{row['image']}' has {name} '{value}', but "
                        f"'{own[name]}' in another file; keep the right one"
                    )
                own[name] = value or own[name]
    images = list(known)
    return {
        "image": images,
        "patient": images,
        **{n: [known[i][n] for i in images] for n in ("label", "center", "score")},
    }


def _names(scheme: Path, folder: Path) -> dict[int, str] | None:
    """{fold: center} of the file `centers`; {} if there is none; None where folds mean nothing."""
    if scheme.name.lower() != "loco":
        return None
    path = folder / "centers"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return {int(n): name for n, name in re.findall(r"(\d+)\s*:\s*'([^']*)'", text)}


def _scheme(folder: Path, names: dict | None, cases: dict) -> PublishedFolds:
    row_of = {image: i for i, image in enumerate(cases["image"])}
    folds = []
    for number in _numbers(folder):
        fold = {"fold": number}
        for part in PARTS:
            images = [r["image"] for r in _rows(folder / str(number) / f"{part}.txt")]
            fold[part] = np.array([row_of[i] for i in images], np.int64)
        if names is not None:
            centers = [cases["center"][r] for r in fold["test"]]
            most = max(sorted(set(centers)), key=centers.count, default="")
            fold["center"] = names.get(number, most)
        folds.append(fold)
    return PublishedFolds(folds, cases, folder)


def folds_for(cases, folder, validation: str) -> list[dict]:
    """Published folds of a scheme (`cv` or `loco`) as rows of `cases` (with `images`).

    Every published image must be among the cases; cases that the files do not name are in no part.
    """
    found = read_published(folder)
    if validation not in SCHEMES:
        what = " or ".join(found if isinstance(found, dict) else SCHEMES)
        raise BadInput(
            f"{folder}: holds folds of validation {what}, not of {validation}; choose one of "
            "those, or leave `published` out"
        )
    if isinstance(found, dict):
        if validation not in found:
            raise BadInput(f"{folder}: holds no {SCHEMES[validation]}/ for validation {validation}")
        found = found[validation]
    row_of = {image: i for i, image in enumerate(cases.images)}
    used = {found.cases["image"][r] for fold in found for p in PARTS for r in fold[p]}
    absent = sorted(used - set(row_of))
    if absent:
        raise BadInput(
            f"{found.folder}: {len(absent)} of {len(used)} images are not in the data set (such as "
            f"'{absent[0]}'); give all of them, or the folds of the right release"
        )
    return [
        {
            **fold,
            **{
                p: np.sort(np.array([row_of[found.cases["image"][r]] for r in fold[p]], np.int64))
                for p in PARTS
            },
        }
        for fold in found
    ]


def differences(schemes: dict[str, PublishedFolds]) -> dict[str, list[str]]:
    """Images that one scheme of a data set uses and another does not: {"cv not loco": [image]}."""
    used = {
        name: {f.cases["image"][r] for fold in f for p in PARTS for r in fold[p].tolist()}
        for name, f in schemes.items()
    }
    return {
        f"{a} not {b}": sorted(used[a] - used[b])
        for a in used
        for b in used
        if a != b and used[a] - used[b]
    }
