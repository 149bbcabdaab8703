"""Store of preprocessed images: one memory-mapped uint8 file, small looks, and a JSON index.

A store is a folder `<settings>-<content>` of two content hashes: of what its pixels depend on
besides the sources, and of its sources in order, each by the SHA-256 of its bytes and what a person
decided about it. In it are

- `images.u8`: (M, S, S) uint8 in C order, the images that can be used; (M, 3, S, S) where they are
  kept in colour: red, green and blue planes;
- `looks.bin`: for each image a small JPEG of the whole picture and a PNG of the lung mask;
- `index.json`: the settings and an entry per image, refused ones included, with the reason.

It grows in a hidden folder `.building-<key>` beside a journal of one line per image and is renamed
when it is whole. A journal's line follows the pixels it speaks of and holds their checksum, so that
whatever was cut off is found and made again, and the rest is not. Entries of other stores with the
same settings are copied, not computed: a changed file costs one image.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from ..errors import BadInput, NoSpace, write_failure
from ..paths import cache_folder, digest, flush_to_disk, make_folder, sync_folder

FORMAT = 3  # of pixels, too: raised where a file is read or prepared otherwise than before
IMAGES, LOOKS, INDEX, JOURNAL = "images.u8", "looks.bin", "index.json", "entries.jsonl"
BUILDING = ".building-"
LOOK_BYTES = 8192  # of an image, about, for the estimate of a store's size
RETIRED = "-retired"
STALE = 14 * 86400.0  # seconds after which a preparation that nobody went on with is removed


class Store:
    """A finished store.

    images (M, S, S) or (M, 3, S, S) uint8 memory map; key, folder; settings; entries: a dictionary
    per image, refused ones included; sources: SHA-256 of each usable image's file; bad: the refused
    entries.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        self.key: str = index["key"]
        self.settings: dict = index["settings"]
        self.entries: list[dict] = index["entries"]
        self.sources: list[str] = [e["source"] for e in self.entries if "reason" not in e]
        self.bad: list[dict] = [e for e in self.entries if "reason" in e]
        shape = (len(self.sources), *picture_shape(self.settings))
        path = self.folder / IMAGES
        if path.stat().st_size != math.prod(shape):
            raise ValueError(f"{IMAGES} has the wrong size")
        self.images = (
            np.memmap(path, np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
        )

    def __reduce__(self):
        return Store, (self.folder,)  # another process maps the file itself

    def whole(self) -> bool:
        """Whether the pixels of every image are those that were written."""
        good = (e for e in self.entries if "reason" not in e)
        return all(
            zlib.crc32(np.ascontiguousarray(x)) == e.get("crc", -1)
            for x, e in zip(self.images, good, strict=True)
        )

    def look(self, entry: dict) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The whole picture of an entry, small, and its lung mask (h, w) bool.

        The picture (h, w) or, in colour, (h, w, 3) uint8. None for what there is not.
        """
        start, picture, mask = entry.get("look") or (0, 0, 0)
        if not picture:
            return None, None
        with open(self.folder / LOOKS, "rb") as stream:
            stream.seek(start)
            raw = stream.read(picture + mask)
        return _decoded(raw[:picture]), _decoded(raw[picture:], bool) if mask else None

    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(p.stat().st_size for p in self.folder.iterdir())


def _decoded(raw: bytes, kind=np.uint8) -> np.ndarray:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image).astype(kind)


def picture_shape(settings: dict) -> tuple[int, ...]:
    """Shape of an image's pixels under the settings of a store: (S, S) or (3, S, S)."""
    size = settings["size"]
    return (3, size, size) if settings.get("colour") else (size, size)


def store_folder(values: dict) -> Path:
    """Return the folder that holds the stores."""
    return Path(values["data"]["store"] or cache_folder() / "store")


def key_of(settings: dict, names: list) -> str:
    """Name of the store of images `names` (`entry_name`, in order) under `settings`."""
    return f"{digest(settings, 12)}-{digest(names, 16)}"


def entry_name(entry: dict) -> str:
    """What an entry is recognised by: the source's bytes and a person's decision about it."""
    return f"{entry['source']}:{json.dumps(entry.get('decision'))}"


def needs_package(entry: dict) -> bool:
    """True for an image that was refused only because a package is not installed."""
    return "install it with" in entry.get("reason", "")


def open_store(folder) -> Store | None:
    """Open a store; a damaged one is removed, so that it is built again.

    BadInput where the system does not let it be read now (rights, memory, open files): others may
    use it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    try:
        return Store(folder)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise BadInput(f"{folder}: cannot be read ({why}); correct that and run again") from error


class Builder:
    """Writes one store; only one process at a time does, the others wait for it.

    with Builder(folder, settings, total) as builder: `done` says that another process was first;
    `entries` are those that an interrupted one left; `add` appends, `finish` makes the store.
    Raises NoSpace; then nothing is left.
    """

    def __init__(self, folder, settings: dict, total: int):
        self.folder, self.settings, self.total = Path(folder), settings, total
        self.building = self.folder.parent / f"{BUILDING}{self.folder.name}"
        self.entries: list[dict] = []
        self.done = False
        self._lock = None
        self._streams: list = []
        self._pixels = math.prod(picture_shape(settings))

    def __enter__(self) -> Builder:
        make_folder(self.folder.parent)
        try:
            self._lock = _locked(Path(f"{self.building}.lock"))
            self.done = self.folder.is_dir()
            if not self.done:
                self._begin()
        except OSError as error:
            self.__exit__(OSError, error, None)
        except BaseException:
            self._release()
            raise
        return self

    def _begin(self) -> None:
        self.building.mkdir(exist_ok=True)
        self.entries = _journal(self.building, self._pixels)
        rows = sum("reason" not in e for e in self.entries)
        looks = max((sum(e["look"]) for e in self.entries if e.get("look")), default=0)
        self._check_space()
        for name, size in ((IMAGES, rows * self._pixels), (LOOKS, looks)):
            stream = open(self.building / name, "ab")  # noqa: SIM115
            self._streams.append(stream)
            stream.truncate(size)
        self._streams.append(open(self.building / JOURNAL, "wb"))  # noqa: SIM115
        self._looks = looks
        self._streams[2].writelines(_line(e) for e in self.entries)
        self._streams[2].flush()

    def _check_space(self) -> None:
        needed = (self.total - len(self.entries)) * (self._pixels + LOOK_BYTES)
        free = shutil.disk_usage(self.building).free
        if needed > free:
            shutil.rmtree(self.building, ignore_errors=True)
            raise NoSpace(
                f"{self.folder.parent}: {self.total} images need {needed / 2**20:.1f} MiB and the "
                f"disk has {free / 2**20:.1f} MiB left; free some space or set data.store to a "
                "folder of another disk"
            )

    def add(self, entries: list[tuple]) -> None:
        """Append (entry, pixels uint8 of the shape `picture_shape` or None, look (JPEG bytes, PNG
        bytes) or None)."""
        images, looks, journal = self._streams
        lines = []
        for entry, pixels, look in entries:
            entry = dict(entry)
            if pixels is not None:
                raw = np.ascontiguousarray(pixels).tobytes()
                images.write(raw)
                entry["crc"] = zlib.crc32(raw)
            entry.pop("look", None)
            if look is not None:
                looks.write(look[0] + look[1])
                entry["look"] = [self._looks, len(look[0]), len(look[1])]
                self._looks += len(look[0]) + len(look[1])
            self.entries.append(entry)
            lines.append(_line(entry))
        images.flush()
        looks.flush()
        journal.writelines(lines)
        journal.flush()

    def finish(self) -> None:
        """Write the index and give the store its name."""
        for stream in self._streams[:2]:
            stream.flush()
            flush_to_disk(stream.fileno())
        index = {"key": self.folder.name, "settings": self.settings, "entries": self.entries}
        with open(self.building / INDEX, "w", encoding="utf-8") as stream:
            json.dump(index, stream)
            stream.flush()
            flush_to_disk(stream.fileno())
        os.unlink(self.building / JOURNAL)
        os.rename(self.building, self.folder)
        sync_folder(self.folder.parent)

    def __exit__(self, kind, error, trace) -> bool:
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        failed = isinstance(error, OSError)
        if failed and self._lock is not None:  # a stop leaves what is done, a full disk nothing
            shutil.rmtree(self.building, ignore_errors=True)
        self._release()
        if failed:
            raise write_failure(self.folder, error) from error
        return False

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.building}.lock")
            os.close(self._lock)
            self._lock = None


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _locked(path: Path, wait: bool = True) -> int | None:
    """Hold the lock file `path`, which the holder removes when it is done; None where another
    process has it and this one does not wait for that."""
    import fcntl

    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            if not wait:
                os.close(handle)
                return None
            if not told and sys.stderr.isatty():
                print("waiting for another process that prepares these images", file=sys.stderr)
            told = True
            time.sleep(0.1)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _journal(folder: Path, pixels: int) -> list[dict]:
    """The entries of an unfinished store up to the first whose data are not whole."""
    try:
        lines = (folder / JOURNAL).read_bytes().split(b"\n")[:-1]
        looks = os.path.getsize(folder / LOOKS)
        raw = open(folder / IMAGES, "rb")  # noqa: SIM115
    except OSError:
        return []
    found = []
    with raw as images:
        for line in lines:
            try:
                entry = json.loads(line)
                if "reason" not in entry and zlib.crc32(images.read(pixels)) != entry["crc"]:
                    break
                if sum(entry.get("look") or (0,)) > looks:
                    break
            except (ValueError, KeyError, TypeError):
                break
            found.append(entry)
    return found


class Known:
    """Entries of the stores beside `folder` that have the same settings, finished or not."""

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        """shape: of an image's pixels, as from `picture_shape`."""
        self._shape, self._pixels = shape, math.prod(shape)
        self._where: dict[str, tuple[Path, dict, int]] = {}
        prefix = folder.name.split("-")[0]
        parent = folder.parent
        for other in sorted(parent.glob(f"{BUILDING}{prefix}-*")):
            if other.is_dir() and other.name != f"{BUILDING}{folder.name}":
                self._take(other, _journal(other, self._pixels))
        for other in sorted(parent.glob(f"{prefix}-*")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._take(other, json.loads((other / INDEX).read_text("utf-8"))["entries"])

    def _take(self, folder: Path, entries: list[dict]) -> None:
        row = 0
        for entry in entries:
            self._where[entry_name(entry)] = (folder, entry, row)
            row += "reason" not in entry

    def has(self, wanted: dict) -> bool:
        """True if an entry of that name was seen."""
        found = self._where.get(entry_name(wanted))
        return found is not None and not needs_package(found[1])

    def find(self, wanted: dict) -> tuple | None:
        """(entry, pixels, look) of an image as `Builder.add` takes it, or None."""
        found = self._where.get(entry_name(wanted))
        if found is None:
            return None
        folder, entry, row = found
        pixels = look = None
        try:
            if "reason" not in entry:
                raw = _part(folder / IMAGES, row * self._pixels, self._pixels)
                if zlib.crc32(raw) != entry["crc"]:
                    return None
                pixels = np.frombuffer(raw, np.uint8).reshape(self._shape)
            if entry.get("look"):
                start, picture, mask = entry["look"]
                raw = _part(folder / LOOKS, start, picture + mask)
                look = (raw[:picture], raw[picture:])
        except (OSError, EOFError):
            return None
        return {**entry, **wanted}, pixels, look


def _part(path: Path, start: int, count: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(start)
        raw = stream.read(count)
    if len(raw) != count:
        raise EOFError
    return raw


def retire(store: Store) -> None:
    """Put a store out of the way; a new one of its name can still copy its entries."""
    away = f"{store.folder}{RETIRED}"
    shutil.rmtree(away, ignore_errors=True)  # of a preparation that was killed
    with contextlib.suppress(OSError):
        os.rename(store.folder, away)


def remove_old(folder: Path) -> None:
    """Remove retired stores in `folder`, and preparations interrupted long ago and left alone."""
    limit = time.time() - STALE
    for path in folder.glob(f"*{RETIRED}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in {
        p.with_suffix("") if p.suffix == ".lock" else p for p in folder.glob(f"{BUILDING}*")
    }:
        with contextlib.suppress(OSError):
            lock = Path(f"{path}.lock")
            known = [p for p in (path, lock, *path.glob("*")) if p.exists()]
            if max(p.stat().st_mtime for p in known) >= limit:
                continue
            handle = _locked(lock, wait=False)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.unlink(lock)
                os.close(handle)
