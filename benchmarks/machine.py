"""What a timing stands on: the processor, the number of cores, a process's peak memory."""

import csv
import os
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def cpu_name():
    """The processor's own name, or "unknown processor"."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown processor"


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_memory():
    """Largest resident size so far in bytes (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no line VmHWM: peak memory is measured on Linux only")


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
