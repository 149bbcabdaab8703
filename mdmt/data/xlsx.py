"""Excel workbooks as text: values only, nothing is evaluated, size bounded before reading."""

from __future__ import annotations

import datetime
import warnings
import zipfile
from pathlib import Path

from ..errors import BadData

MAX_BYTES = 256 * 2**20  # of all parts together, unpacked
MAX_PARTS = 10_000
_EXACT = 10**15  # a spreadsheet keeps 15 digits of a number


def read_rows(path) -> list[list[str]]:
    """Return the cells of the first sheet as text, row by row; empty rows are kept."""
    import openpyxl

    path = Path(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which are not read
            book = openpyxl.load_workbook(
                path, read_only=True, data_only=True, keep_links=False, rich_text=False
            )
            try:
                sheet = book.worksheets[0]
                sheet.reset_dimensions()  # the declared size of a sheet can be wrong or huge
                return [
                    [_text(path, number, cell) for cell in row]
                    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1)
                ]
            finally:
                book.close()
    except (BadData, FileNotFoundError):
        raise
    except Exception as error:  # openpyxl raises nearly every type on a damaged workbook
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadData(
            f"{path}: is not an Excel workbook that can be read ({reason}); save it as CSV in UTF-8"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to too much, or whose XML declares entities."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        size = sum(p.file_size for p in parts)
        if len(parts) > MAX_PARTS or size > MAX_BYTES:
            raise BadData(
                f"{path}: unpacks to {len(parts)} parts and {size >> 20} MiB, more than a table "
                "needs; save it as CSV in UTF-8"
            )
        for part in parts:
            if part.filename.lower().endswith((".xml", ".rels")):
                with archive.open(part) as stream:
                    if b"<!DOCTYPE" in stream.read(4096):
                        raise BadData(
                            f"{path}: declares XML entities, which no table does; save it as CSV "
                            "in UTF-8"
                        )


def _text(path: Path, row: int, cell) -> str:
    """One cell as the text that a CSV would hold."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, (int, float)):
        if abs(cell) >= _EXACT:
            raise BadData(
                f"{path}: row {row} holds the number {cell!r}, of which a spreadsheet keeps only "
                "15 digits; store ids as text"
            )
        return str(int(cell)) if float(cell).is_integer() else repr(float(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        cell = cell.date()
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(cell).strip()
