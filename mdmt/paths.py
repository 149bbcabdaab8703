"""Files and folders: atomic writes, locks, content hashes, the cache folder."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

from .errors import BadInput, NoSpace, write_failure

UNFINISHED = ".tmp"  # end of the name of a file that is being written


def cache_folder() -> Path:
    """Folder for preprocessed images: $MDMT_CACHE, else $XDG_CACHE_HOME/mdmt or ~/.cache/mdmt."""
    if os.environ.get("MDMT_CACHE"):
        return Path(os.environ["MDMT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mdmt"


def make_folder(path) -> Path:
    """Create `path` with its parents; a failure is one sentence."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(path, error) from error
    return path


def flush_to_disk(handle: int) -> None:
    """Bring what was written to an open file to the disk itself. macOS' fsync leaves it in the
    disk's own cache, out of order; F_FULLFSYNC, which not every file system has, empties that, too.
    """
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def sync_folder(path) -> None:
    """Flush the folder entry itself, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(handle)
    except OSError:
        pass  # some network file systems refuse fsync on a folder
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic(path, sync: bool = True):
    """Open `path` for writing UTF-8 text or bytes (a binary stream) so that a reader sees the old
    file or the new one, never a part.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. sync=False leaves
    both fsync out, for files that are written anew before they are read.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent
        )
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if sync:
                flush_to_disk(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def remove_unfinished(folder) -> None:
    """Remove what a killed process left of `atomic` and of a checkpoint that was being written, in
    a folder that nobody else writes to now."""
    for leftover in Path(folder).glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def write_atomic(path, content: bytes | str, sync: bool = True) -> None:
    """Write `content` to `path` with `atomic`."""
    with atomic(path, sync) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def check_replaced(path, start: str, what: str) -> None:
    """BadInput, before any work, where writing the file `path` would take the place of a folder or
    of what does not begin with `start` and so is no `what`: a picture or a configuration whose name
    followed --out by mistake, or a file of a run."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"--out {path}: is a folder; give the name of a file")
    if not path.is_file():
        return
    wanted = start.encode()
    try:
        with open(path, "rb") as stream:
            found = stream.read(len(wanted))
    except OSError as error:
        raise BadInput(
            f"--out {path}: cannot be read ({error.strerror}); choose another name"
        ) from error
    if found and found != wanted:
        raise BadInput(f"--out {path}: is there already and is no {what}; choose another name")


def write_json(path, value, sync: bool = True) -> None:
    """Write `value` as JSON, atomically; floats keep every bit (shortest round-trip form)."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", sync)


def read_json(path):
    """Read a JSON file that mdmt wrote; a damaged one is one sentence."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({(error.strerror or '').lower()})") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not valid JSON; delete it and run again") from error


def write_csv(path, columns, rows) -> None:
    """Write dictionaries `rows` with exactly `columns`, atomically; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({c: ("" if row.get(c) is None else row[c]) for c in columns})
    write_atomic(path, text.getvalue())


def read_csv(path) -> list[dict]:
    """Read a CSV that mdmt wrote; every cell is text."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def canonical(value) -> str:
    """One text per value: JSON with sorted keys and no spaces, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value, length: int = 64) -> str:
    """Hex SHA-256 of the canonical text of `value`, cut to `length` digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def digest_file(path) -> str:
    """Hex SHA-256 of a file's bytes."""
    value = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            value.update(chunk)
    return value.hexdigest()


@contextlib.contextmanager
def folder_lock(folder, what: str, wait: float = 0.0):
    """Hold an exclusive lock on `folder` (file `.lock`); gives its handle.

    Another process that holds it gets `wait` seconds to let go; then BadInput is raised. NoSpace
    where the file system has no locks.
    """
    import errno
    import fcntl
    import time

    make_folder(folder)
    path = Path(folder) / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_failure(path, error) from error
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise NoSpace(
                        f"{path}: cannot be locked ({(error.strerror or str(error)).lower()}), so "
                        "that two runs could write here at once; choose a folder of another disk"
                    ) from error
                if time.monotonic() >= deadline:
                    raise BadInput(
                        f"{folder}: another process is working on this {what}; wait for it or "
                        "choose another folder"
                    ) from error
            time.sleep(0.1)
        yield handle
    finally:
        os.close(handle)
