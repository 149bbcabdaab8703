"""Reader for any table with an image folder: one row per image, one label, one task.

Ids are text and stay text. An empty label is a missing label (the row is left out and counted),
never a class. Every problem is one sentence that names the file, the row, the value and the
remedy.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import BadConfig, BadData, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".dic")
_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass
class Cases:
    """The labelled images of one data set, in the table's order.

    name: the data set's; task: its task; classes: class names.
    images, patients, centers: text, one per image (center is "" where unknown).
    labels (M,) int64: class numbers; scores (M,) float64: what the thresholds cut, or NaN.
    paths: image files. missing_labels: rows left out; warnings: sentences for the report.
    """

    name: str
    task: str
    classes: list[str]
    images: list[str]
    patients: list[str]
    centers: list[str]
    labels: np.ndarray
    scores: np.ndarray
    paths: list[Path]
    missing_labels: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows) -> Cases:
        """Return the cases of `rows` (ints), in that order."""
        rows = [int(r) for r in rows]
        return Cases(
            self.name,
            self.task,
            self.classes,
            [self.images[r] for r in rows],
            [self.patients[r] for r in rows],
            [self.centers[r] for r in rows],
            self.labels[rows],
            self.scores[rows],
            [self.paths[r] for r in rows],
            self.missing_labels,
            list(self.warnings),
        )


def read_table(path, delimiter: str = "auto") -> tuple[list[str], list[dict]]:
    """Read a delimited text file: its columns, its rows as {column: text}."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadData(_missing_file(path, "table")) from None
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({(error.strerror or '').lower()})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise BadData(f"{path}: holds zero bytes; save it as CSV in UTF-8")
    empty = f"{path}: is empty; give a table with a header line and one row per image"
    if not text.strip():
        raise BadData(empty)
    first = text.lstrip("\r\n").splitlines()[0]
    mark = _DELIMITERS.get(delimiter) or max(",;\t", key=first.count)
    try:
        lines = [
            r
            for r in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
            if any(cell.strip() for cell in r)
        ]
    except csv.Error as error:
        raise BadData(f"{path}: is not a valid table ({error}); correct it") from error
    if not lines:
        raise BadData(empty)
    header = [cell.strip() for cell in lines[0]]
    for name in header:
        if name and header.count(name) > 1:
            raise BadData(f"{path}: two columns are called '{name}'; rename one")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) > len(header):
            raise BadData(
                f"{path}: row {number} has {len(cells)} cells and the header "
                f"{len(header)}; correct the row"
            )
        cells = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
        rows.append(dict(zip(header, cells, strict=True)))
    return header, rows


def read_cases(spec: dict, task: dict, root) -> Cases:
    """Read one data set.

    spec: an entry of `data.datasets`; task: its entry of `tasks`; root: folder, or None.
    """
    folder = Path(root) if root is not None else Path()
    table = folder / spec["table"]
    columns = spec["columns"]
    header, rows = read_table(table, spec.get("delimiter", "auto"))
    for role in ("image", "patient", "label", "center"):
        name = columns[role]
        if name is not None and name not in header:
            raise BadData(f"{table}: has no column '{name}' (the {role}){nearest(name, header)}")
    if not rows:
        raise BadData(f"{table}: data set '{spec['name']}' is empty; give at least one row")
    _check_rows(table, rows, columns)
    labelled = [r for r in rows if r[columns["label"]] != ""]
    if not labelled:
        raise BadData(
            f"{table}: every cell of column '{columns['label']}' is empty; data set "
            f"'{spec['name']}' has no labels"
        )
    warnings = []
    if len(labelled) < len(rows):
        warnings.append(
            f"{table}: {len(rows) - len(labelled)} of {len(rows)} rows have no label "
            "and are left out"
        )
    patients = _patients(table, labelled, columns, warnings)
    labels, scores = _labels(table, labelled, columns, spec["task"], task)
    paths = _locate(folder / spec["images"], [r[columns["image"]] for r in labelled], table)
    center = columns["center"]
    return Cases(
        spec["name"],
        spec["task"],
        list(task["classes"]),
        [_stem(r[columns["image"]]) for r in labelled],
        patients,
        [r[center] if center else "" for r in labelled],
        labels,
        scores,
        paths,
        len(rows) - len(labelled),
        warnings,
    )


def _missing_file(path: Path, what: str) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"{path}: the folder {parent} does not exist; set data.root to the data's folder"
    hint = nearest(path.name, sorted(os.listdir(parent))[:1000])
    return f"{path}: no such {what}{hint if 'did you mean' in hint else '; correct the name'}"


def _stem(name: str) -> str:
    """Image id: the file name without a known image extension."""
    lower = name.lower()
    for extension in EXTENSIONS:
        if lower.endswith(extension):
            return name[: -len(extension)]
    return name


def _check_rows(table: Path, rows: list[dict], columns: dict) -> None:
    """An image has one row, one patient."""
    seen: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, start=2):
        image = _stem(row[columns["image"]])
        if not image:
            raise BadData(f"{table}: row {number} has no image; fill column '{columns['image']}'")
        patient = row[columns["patient"]] if columns["patient"] else image
        if image in seen:
            before, other = seen[image]
            if other != patient:
                raise BadData(
                    f"{table}: image '{image}' is listed under two patients, '{other}' "
                    f"(row {before}) and '{patient}' (row {number}); keep the right one"
                )
            raise BadData(f"{table}: image '{image}' has two rows, {before} and {number}; keep one")
        seen[image] = (number, patient)


def _patients(table: Path, rows: list[dict], columns: dict, warnings: list[str]) -> list[str]:
    if columns["patient"] is None:
        warnings.append(f"{table}: no patient column, so every image counts as its own patient")
        return [f"image:{_stem(r[columns['image']])}" for r in rows]
    patients = [r[columns["patient"]] for r in rows]
    empty = sum(p == "" for p in patients)
    if empty:
        warnings.append(
            f"{table}: {empty} rows have no patient id; each of these images counts "
            "as its own patient"
        )
    return [p or f"image:{_stem(r[columns['image']])}" for p, r in zip(patients, rows, strict=True)]


def _labels(table: Path, rows: list[dict], columns: dict, name: str, task: dict):
    """Return class numbers (M,) int64 and scores (M,) float64 (NaN where there is no score)."""
    classes, cuts = list(task["classes"]), task["thresholds"]
    mapping = {c: i for i, c in enumerate(classes)}
    if task["labels"]:
        mapping = {label: classes.index(target) for label, target in task["labels"].items()}
    labels = np.zeros(len(rows), np.int64)
    scores = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = row[columns["label"]]
        where = f"{table}: image '{_stem(row[columns['image']])}', column '{columns['label']}'"
        if cuts is None:
            if text not in mapping:
                raise BadData(
                    f"{where}: unknown label '{text}' for task '{name}'{nearest(text, mapping)}"
                )
            labels[i] = mapping[text]
            continue
        try:
            scores[i] = float(text)
        except ValueError:
            scores[i] = np.nan
        if not np.isfinite(scores[i]):
            raise BadData(
                f"{where}: '{text}' is not a number, and task '{name}' cuts a score at "
                f"{cuts}; correct the cell or leave it empty"
            )
        labels[i] = int(np.searchsorted(np.asarray(cuts, float), scores[i], side="right"))
    return labels, scores


def _locate(folder: Path, names: list[str], table: Path) -> list[Path]:
    """Return the file of each image: `names` with or without extension, in `folder`."""
    if not folder.is_dir():
        raise BadConfig(f"{folder}: no such image folder; set data.root or the data set's `images`")
    inside = folder.resolve()
    stems: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        stems.setdefault(_stem(entry.name), []).append(entry.name)
    paths, missing = [], []
    for name in names:
        path = folder / name
        if _stem(name) != name or os.sep in name:
            if inside not in path.resolve().parents:
                raise BadData(
                    f"{table}: image '{name}' lies outside {folder}; give a name inside "
                    "the image folder"
                )
            found = [path] if path.is_file() else []
        else:
            found = [folder / f for f in sorted(stems.get(name, []))]
        if len(found) > 1:
            raise BadData(
                f"{folder}: image '{name}' of {table} could be "
                f"{' or '.join(f.name for f in found)}; write the extension"
            )
        if found:
            paths.append(found[0])
        else:
            missing.append(name)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise BadData(
            f"{folder}: image '{missing[0]}' of {table} is missing{more}; add the file "
            "or remove the row"
        )
    return paths
