"""SHA-256 of source files, remembered by what the file system says of them.

A file whose device, number, size, modification and change time are as they were is not read again:
no program can set the change time back. A file that was changed within the last seconds is not
remembered, since the clock of a file system is coarse.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import MdmtError
from ..paths import digest_file, write_atomic

NAME = ".hashes.json"
MOST = 200_000  # files remembered
YOUNG = 2.0  # seconds


def hashes(paths, folder: Path, threads: int = 4, progress=None) -> list:
    """SHA-256 of each file; an OSError in its place where it cannot be read.

    folder: where they are remembered. progress: called once per file.
    """
    remembered = _load(folder)
    begin = time.time()
    fresh: dict[str, list] = {}

    def one(path):
        try:
            name, state = os.path.abspath(path), _state(path)
            known = remembered.get(name)
            if known is not None and known[:-1] == state:
                return known[-1]
            value = digest_file(path)
            if _state(path) == state and begin - max(state[3:]) / 1e9 > YOUNG:
                fresh[name] = [*state, value]
            return value
        except OSError as error:
            return error
        finally:
            if progress is not None:
                progress()

    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = list(pool.map(one, paths))
    if fresh:
        _save(folder, fresh)
    return found


def _state(path) -> list[int]:
    s = os.stat(path)
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _load(folder: Path) -> dict:
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _save(folder: Path, fresh: dict) -> None:
    """Add to what is remembered; that it cannot be written costs time, nothing else."""
    merged = {**_load(folder), **fresh}
    kept = dict(list(merged.items())[-MOST:])
    with contextlib.suppress(MdmtError, OSError):
        write_atomic(folder / NAME, json.dumps(kept), sync=False)
