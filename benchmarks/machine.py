"""What a timing stands on: the processor, the number of cores, a process's peak memory."""

import argparse
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


def parser(name, text):
    """An argument parser with what the comparisons of whole networks share."""
    made = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=text)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--image-size", type=int, help="default: what each was published with")
    made.add_argument("--threads", type=int, default=cores())
    made.add_argument("--repeats", type=int, default=9)
    made.add_argument("--all", action="store_true", help="every backbone")
    return made


def backbones(options):
    """The names asked for; options.image_size becomes that of each."""
    import mdmt
    from mdmt.weights import catalogue

    size = options.image_size
    for name in mdmt.backbones() if options.all else [options.backbone]:
        options.image_size = size or catalogue.source(name).size
        yield name
