"""What a timing stands on: the processor, the number of cores, a process's peak memory."""

import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def cpu_name():
    """The processor's own name, or "unknown processor"."""
    from mdmt import _core

    return _core.cpu_info()["name"]


def cores():
    """Cores that this process may use."""
    from mdmt import _core

    return _core.cpu_info()["cores"]


def peak_memory():
    """Largest resident size so far in bytes."""
    from mdmt.system import peak_memory

    return peak_memory()


def append_csv(path, rows):
    """Adds rows (dictionaries with the same keys) to a CSV file, with a header if it is new or has
    other columns; then the old one is kept under its name with .old."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    if path.exists():
        with path.open(newline="") as file:
            if next(csv.reader(file), None) != columns:
                path.replace(path.with_suffix(".old.csv"))
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)
