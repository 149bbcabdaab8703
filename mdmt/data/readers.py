"""The readers of data sets by name. A reader is a function from a description to `Cases`."""

from __future__ import annotations

from . import aiforcovid, brixia, table

READERS = {
    "table": lambda spec, task, root, release: table.read_cases(spec, task, root),
    "aiforcovid": aiforcovid.read_cases,
    "brixia": lambda spec, task, root, release: brixia.read_cases(spec, task, root),
}


def read_cases(spec: dict, task: dict, root, release: str = "1") -> table.Cases:
    """Read one data set: an entry of `data.datasets` with its entry of `tasks`.

    root: `data.root`, or None; release: `data.release`. Raises BadData or BadConfig.
    """
    return READERS[spec.get("reader", "table")](spec, task, root, release)
