"""Reader for any table with an image folder: one row per image, one label, one task.

CSV, TSV and Excel tables; images of every kind that the store reads. `assemble` makes the cases
of every reader from rows of text. Ids are text and stay text. An empty label is a missing label
(the row is left out and counted), never a class. Every problem is one sentence that names the
file, the row, the value and the remedy.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import kinds
from ..errors import BadConfig, BadData, nearest
from ..shown import html_table
from . import labels as labels_
from . import second
from .labels import missing
from .xlsx import read_rows

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".dic")
_MARKS = {"": False, "0": False, "0.0": False, "false": False, "no": False,
          "1": True, "1.0": True, "true": True, "yes": True}  # fmt: skip
_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass
class Cases:
    """The labelled images of one data set, in the table's order.

    name: the data set's; task: its task; kind: the task's (`mdmt.kinds`); classes: names of what is
    counted: classes, ranges of a number, findings.
    images, patients, centers: text, one per image (center is "" where unknown).
    labels (M,) int64: class numbers, or the numbers by which folds of other kinds of tasks are
    balanced; scores (M,) float64: the number or what the thresholds cut, or NaN.
    paths: image files. missing_labels: rows left out; warnings: sentences for the report.
    columns: {further column of the table: text per image}, for subgroups.
    targets (M, k) float64: finer scores where the reader has them (BRIXIA: six regions), or None.
    second: what a second reader said, as from `second.read`.
    waves: text, one per image: the release that brought it (sortable), or None.
    fixed (M,) bool: the images that are the test part of every fold, or None.
    values (M, k) float64: what is learnt where it is no class: the number, or findings (1, 0, NaN:
    not labelled); else None.
    image_prefix, patient_prefix: what tells the names of this data set from those of another with
    the same task in the files of a run; empty where they differ as they are.
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
    columns: dict[str, list[str]] = field(default_factory=dict)
    targets: np.ndarray | None = None
    second: dict[str, np.ndarray] = field(default_factory=dict)
    waves: list[str] | None = None
    fixed: np.ndarray | None = None
    kind: str = kinds.CLASSES
    values: np.ndarray | None = None
    image_prefix: str = ""
    patient_prefix: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def _repr_html_(self) -> str:
        counts = self.counts().tolist()
        rows = [
            ["images", len(self)],
            ["patients", len(set(self.patients))],
            ["centers", len({c for c in self.centers if c}) or "not recorded"],
            *([f"{self.task}: {c}", n] for c, n in zip(self.classes, counts, strict=True)),
            ["rows without a label, left out", self.missing_labels],
        ]
        return html_table(f"Data set {self.name}", ["", "count"], rows, " ".join(self.warnings))

    @property
    def members(self) -> np.ndarray:
        """Which of `classes` each case belongs to, (M, K) bool; of findings any number of them."""
        if self.kind == kinds.FINDINGS:
            return self.values == 1
        return self.labels[:, None] == np.arange(len(self.classes))

    def counts(self, rows=slice(None)) -> np.ndarray:
        """Cases of each of `classes` among `rows`, (K,) int64."""
        return self.members[rows].sum(0)

    @property
    def target(self) -> np.ndarray:
        """What the network learns: class numbers (M,), numbers (M,) or findings (M, K)."""
        if self.kind == kinds.CLASSES:
            return self.labels
        return self.values[:, 0] if self.kind == kinds.NUMBER else self.values

    @property
    def texts(self) -> list[str]:
        """The labels as predictions.csv has them."""
        return kinds.texts(self.kind, self.classes, self.target)

    @property
    def named_images(self) -> list[str]:
        """The images as the files of a run name them."""
        return [self.image_prefix + name for name in self.images]

    @property
    def named_patients(self) -> list[str]:
        """The patients as the files of a run name them."""
        return [self.patient_prefix + name for name in self.patients]

    def ids(self, row: int) -> list[str]:
        """Patient, image and center of a case as predictions.csv has them."""
        image, patient = self.images[row], self.patients[row]
        return [self.patient_prefix + patient, self.image_prefix + image, self.centers[row]]

    def stratum(self, number: int) -> str:
        """The name of one of `labels`."""
        return [*self.classes, kinds.NO_FINDING][number]

    def identity(self) -> list:
        """The labels in a form that can be hashed."""
        return self.labels.tolist() if self.kind == kinds.CLASSES else self.texts

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
            {name: [values[r] for r in rows] for name, values in self.columns.items()},
            None if self.targets is None else self.targets[rows],
            {name: values[rows] for name, values in self.second.items()},
            None if self.waves is None else [self.waves[r] for r in rows],
            None if self.fixed is None else self.fixed[rows],
            self.kind,
            None if self.values is None else self.values[rows],
            self.image_prefix,
            self.patient_prefix,
        )


class Row(dict):
    """A row of a table, {column: text}; number: where it stands in the file, the first row being 1,
    as a spreadsheet counts."""

    def __init__(self, cells, number: int):
        super().__init__(cells)
        self.number = number


def read_table(path, delimiter: str = "auto") -> tuple[list[str], list[Row]]:
    """Read a delimited text file or the first sheet of an Excel workbook.

    Returns its columns and its rows; empty rows are left out.
    """
    path = Path(path)
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        try:
            lines = read_rows(path)
        except FileNotFoundError:
            raise BadData(_missing_file(path, "table")) from None
        return _with_header(path, lines)
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
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    except csv.Error as error:
        raise BadData(f"{path}: is not a valid table ({error}); correct it") from error
    return _with_header(path, lines)


def _with_header(path: Path, lines: list[list[str]]) -> tuple[list[str], list[Row]]:
    """Return the columns of the first line that is not empty, and those after it as rows."""
    numbered = [(n, r) for n, r in enumerate(lines, 1) if any(cell.strip() for cell in r)]
    if not numbered:
        raise BadData(f"{path}: is empty; give a table with a header line and one row per image")
    header = [cell.strip() for cell in numbered[0][1]]
    while header and not header[-1]:  # empty columns at the right of a spreadsheet
        header.pop()
    for name in header:
        if name and header.count(name) > 1:
            raise BadData(f"{path}: two columns are called '{name}'; rename one")
    rows = []
    for number, cells in numbered[1:]:
        while len(cells) > len(header) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) > len(header):
            raise BadData(
                f"{path}: row {number} has {len(cells)} cells and the header "
                f"{len(header)}; correct the row"
            )
        cells = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
        rows.append(Row(zip(header, cells, strict=True), number))
    return header, rows


def folder_of(spec: dict, root) -> Path:
    """Folder that a data set lies in."""
    folder = Path(root) if root is not None else Path()
    return folder / spec["folder"] if spec.get("folder") else folder


def read_cases(spec: dict, task: dict, root) -> Cases:
    """Read one data set.

    spec: an entry of `data.datasets`; task: its entry of `tasks`; root: folder, or None.
    """
    folder = folder_of(spec, root)
    table = folder / spec["table"]
    columns = spec["columns"]
    images = folder / (spec.get("images") or "images")
    header, rows = read_table(table, spec.get("delimiter", "auto"))
    own = labels_.finding_columns(table, header, columns, task)
    columns = {**columns, "findings": own, **({"label": None} if own else {})}
    _check_header(table, header, columns)
    return assemble(table, rows, columns, spec, task, lambda found: _locate(images, found, table))


def _check_header(table: Path, header: list[str], columns: dict) -> None:
    """Every column that is named must be there."""
    for role in ("image", "patient", "label", "center", "test", "targets", *second.ROLES):
        named = columns.get(role)
        for name in named if isinstance(named, list) else [named]:
            if name is not None and name not in header:
                raise BadData(
                    f"{table}: has no column '{name}' (the {role}){nearest(name, header)}"
                )
    for finding, name in (columns["findings"] or {}).items():
        if name not in header:
            raise BadData(
                f"{table}: has no column '{name}' (the finding {finding}){nearest(name, header)}"
            )


def assemble(table: Path, rows: list[dict], columns: dict, spec: dict, task: dict, locate) -> Cases:
    """Make the cases of a data set from its rows.

    rows: {column: text} per image; columns: {"image", "patient", "label", "center": column or
    None}; locate: function from image names to their paths. Rows named by `leave_out`, rows not
    named by `keep` and rows without a label are left out.
    """
    warnings: list[str] = []
    rows = _chosen(table, rows, columns, spec, warnings)
    if not rows:
        raise BadData(f"{table}: data set '{spec['name']}' is empty; give at least one row")
    _check_rows(table, rows, columns)
    labelled = [r for r in rows if labels_.stated(r, columns, task)]
    if not labelled:
        where = columns["label"] or "', '".join(columns["findings"].values())
        raise BadData(
            f"{table}: every cell of column '{where}' is empty; data set '{spec['name']}' has no "
            "labels"
        )
    if len(labelled) < len(rows):
        warnings.append(
            f"{table}: {len(rows) - len(labelled)} of {len(rows)} rows have no label "
            "and are left out"
        )
    patients = _patients(table, labelled, columns, warnings)
    place = _place(table, columns)
    labels = labels_.read(place, labelled, columns, spec["task"], task)
    center = columns["center"]
    centers = [r[center] if center else "" for r in labelled]
    if columns["patient"]:
        warnings += _doubtful_ids(table, [r[columns["patient"]] for r in labelled], "patient")
    warnings += _doubtful_ids(table, centers, "center")
    paths = locate([r[columns["image"]] for r in labelled])
    other = second.read(
        table, labelled, columns,
        lambda row: labels_.stated(row, {"label": columns["second"]}, task),
        lambda some: labels_.read(
            place, some, {**columns, "label": columns["second"]}, spec["task"], task)[1:3],
    )  # fmt: skip
    used = {c for c in columns.values() if isinstance(c, str)}
    used |= set((columns.get("findings") or {}).values())
    further = [c for c in labelled[0] if c and c not in used]
    return Cases(
        spec["name"],
        spec["task"],
        labels.classes,
        [_stem(r[columns["image"]]) for r in labelled],
        patients,
        centers,
        labels.numbers,
        labels.scores,
        paths,
        len(rows) - len(labelled),
        warnings,
        {name: [r[name] for r in labelled] for name in further},
        targets=_targets(table, labelled, columns),
        fixed=_fixed(table, labelled, columns),
        second=other,
        kind=kinds.kind_of(task),
        values=labels.values,
    )


def _chosen(table: Path, rows, columns: dict, spec: dict, warnings: list[str]) -> list[dict]:
    """Rows after `leave_out` (image names) and `keep` (a file whose first column names images)."""
    out = {_stem(name) for name in spec.get("leave_out") or []}
    names = {_stem(r[columns["image"]]) for r in rows}
    for name in out:
        if name not in names:
            raise BadConfig(f"{table}: leave_out names '{name}'{nearest(name, names)}")
    kept = [r for r in rows if _stem(r[columns["image"]]) not in out]
    if spec.get("keep"):
        wanted = _listed(Path(spec["keep"]))
        kept = [r for r in kept if _stem(r[columns["image"]]) in wanted]
        absent = len(wanted - names)
        if absent:
            warnings.append(f"{table}: {absent} images of {spec['keep']} have no row")
    if len(kept) < len(rows):
        warnings.append(f"{table}: {len(rows) - len(kept)} of {len(rows)} images are left out")
    return kept


def _listed(path: Path) -> set[str]:
    """Image ids in the first column of a text file with a header line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({(error.strerror or '').lower()})") from error
    return {_stem(re.split(r"[\s,;]", line.strip(), maxsplit=1)[0]) for line in lines[1:] if line}


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
    for row in rows:
        image, number = _stem(row[columns["image"]]), row.number
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


def plain_id(name: str) -> str:
    """An id without what programs change: case, blanks, leading zeros of a number."""
    plain = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def _doubtful_ids(table: Path, ids: list[str], what: str) -> list[str]:
    """Warnings on ids of patients or centers that may not mean what they say.

    Nothing is changed: whoever counts as two here may be in training and test, and only a person
    knows whether "P1" and "p01" are the same.
    """
    same: dict[str, list[str]] = {}
    for name in dict.fromkeys(ids):
        same.setdefault(plain_id(name), []).append(name)
    groups = [names for names in same.values() if len(names) > 1]
    found = []
    if groups:
        shown = "; ".join(" and ".join(map(repr, names)) for names in groups[:3])
        found.append(
            f"{table}: {len(groups)} {what} ids are written in several ways ({shown}"
            f"{'; ...' if len(groups) > 3 else ''}) that differ in case, blanks or leading zeros, "
            f"and count as different {what}s; write them alike if they are the same"
        )
    for name in dict.fromkeys(ids):
        if name and missing(name):
            found.append(
                f"{table}: {ids.count(name)} rows are of {what} '{name}', which counts as one "
                f"{what}; leave the cells empty if it means that the {what} is not known"
            )
    return found


def _place(table: Path, columns: dict):
    """Function from a row and a column to the beginning of a sentence about that cell."""
    return lambda row, column: f"{table}: image '{_stem(row[columns['image']])}', column '{column}'"


def _targets(table: Path, rows: list[dict], columns: dict) -> np.ndarray | None:
    """Values (M, k) float64 of the columns `targets`, NaN where a cell is empty, or None."""
    names = columns.get("targets") or []
    if not names:
        return None
    values = np.full((len(rows), len(names)), np.nan)
    for i, row in enumerate(rows):
        for k, name in enumerate(names):
            if missing(row[name]):
                continue
            try:
                values[i, k] = float(row[name])
            except ValueError:
                values[i, k] = np.inf
            if not np.isfinite(values[i, k]):
                raise BadData(
                    f"{table}: image '{_stem(row[columns['image']])}', column '{name}': "
                    f"'{row[name]}' is not a number; correct the cell or leave it empty"
                )
    return values


def _fixed(table: Path, rows: list[dict], columns: dict) -> np.ndarray | None:
    """Which rows (M,) bool the column `test` marks as the test part of every fold, or None."""
    name = columns.get("test")
    if name is None:
        return None
    marked = np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        text = row[name].strip().lower()
        if text not in _MARKS:
            raise BadData(
                f"{table}: image '{_stem(row[columns['image']])}', column '{name}': "
                f"'{row[name]}' must be 0 or 1"
            )
        marked[i] = _MARKS[text]
    return marked


def _one_form(name: str) -> str:
    """The name with its extension in small letters and its accents composed: a Mac's tools write an
    é of a file name as two characters, a table holds it as one."""
    stem = _stem(name)
    return unicodedata.normalize("NFC", stem + name[len(stem) :].lower())


class _Files:
    """The files of an image folder by name, with and without extension, in subfolders too."""

    def __init__(self, folder: Path):
        self.folder, self.inside, self.deep = folder, folder.resolve(), False
        self.known: dict[str, list[str]] = {}
        for entry in os.scandir(folder):
            self._add(entry.name, entry.name)

    def _add(self, name: str, relative: str) -> None:
        name = _one_form(name)
        for key in {_stem(name), name}:
            self.known.setdefault(key, []).append(relative)

    def _walk(self) -> None:
        """Take the subfolders in; only done when a name is not found without them."""
        self.deep = True
        for top, _, files in os.walk(self.folder):
            if Path(top) == self.folder:
                continue
            for file in files:
                relative = os.path.relpath(os.path.join(top, file), self.folder)
                self._add(file, relative)
                self._add(relative, relative)

    def find(self, name: str, table: Path) -> list[Path]:
        """Files that `name` can mean: a path or a name, with or without extension."""
        if "\\" in name and os.sep != "\\" and not (self.folder / name).exists():
            name = name.replace("\\", os.sep)  # written on Windows
        if os.sep in name and self.inside not in (self.folder / name).resolve().parents:
            raise BadData(
                f"{table}: image '{name}' lies outside {self.folder}; give a name inside "
                "the image folder"
            )
        if _stem(name) != name and (self.folder / name).is_file():
            return [self.folder / name]
        if os.path.isabs(name):
            name = os.path.relpath(Path(name).resolve(), self.inside)
        key = _one_form(os.path.normpath(name))
        if key not in self.known and not self.deep:
            self._walk()
        found = [self.folder / f for f in sorted(set(self.known.get(key, [])))]
        return [f for f in found if f.is_file()]

    def of_another_kind(self, name: str) -> str:
        """A file that has the name and an extension of pictures that are not read, or ""."""
        named = next((k for k in self.known if k.startswith(f"{_one_form(name)}.")), None)
        return self.known[named][0] if named else ""


def _locate(folder: Path, names: list[str], table: Path) -> list[Path]:
    """Return the file of each image in `folder`; see `_Files`."""
    if not folder.is_dir():
        raise BadConfig(f"{folder}: no such image folder; set data.root or the data set's `images`")
    files = _Files(folder)
    paths, absent = [], []
    for name in names:
        found = files.find(name, table)
        if len(found) > 1:
            could = " or ".join(str(f.relative_to(folder)) for f in found)
            raise BadData(
                f"{folder}: image '{name}' of {table} could be {could}; write the path with its "
                "extension"
            )
        if found:
            paths.append(found[0])
        else:
            absent.append(name)
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        other = files.of_another_kind(absent[0])
        hint = f" ({other} is of no kind that is read: PNG, JPEG, TIFF, BMP, DICOM)" * bool(other)
        raise BadData(
            f"{folder}: image '{absent[0]}' of {table} is missing{more}{hint}; add the file "
            "or remove the row"
        )
    return paths
