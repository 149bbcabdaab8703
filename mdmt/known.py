"""Which pictures the networks of a run learnt from, as files and as what they show.

A network knows the pictures in the training and validation parts of its own training and of those
that it started from. A further picture is one of them if it is the same file, comes out of the
preparation with the same pixels, or is a near-duplicate (`mdmt.data.similar`): re-saved, resized,
mirrored or cropped by a little.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data import similar
from .data.store import Store
from .errors import BadInput
from .paths import digest_file, read_json


class Shown(NamedTuple):
    """A picture of the run that another one shows: SHA-256 of its file, its name; likeness: 1 for
    the same file or pixels, else the correlation of the thumbnails; same_file."""

    source: str
    name: str
    likeness: float
    same_file: bool


class Known:
    """The pictures of a run that its networks learnt from, by the SHA-256 of their files.

    equal_only: drawn pictures all look alike, so that only equal files or pixels count.
    """

    def __init__(self, equal_only: bool = False):
        self.equal_only = equal_only
        self._stores: dict[str, Store] = {}
        self._learnt: dict[Path, set | None] = {}
        self._places: dict[str, tuple[Store, int]] = {}
        self._by_pixels: dict[int, list[str]] | None = None

    def learnt_from(self, folder: Path) -> set | None:
        """Pictures in the training and validation parts of the training in `folder` and of those
        that it started from; None where a store or a file of the run is gone."""
        if folder not in self._learnt:
            try:
                self._learnt[folder] = self._read(folder)
            except (BadInput, OSError, ValueError, KeyError, IndexError):
                self._learnt[folder] = None
        return self._learnt[folder]

    def _read(self, folder: Path) -> set | None:
        found: set[str] = set()
        inputs = read_json(folder / "inputs.json")
        for given in inputs["datasets"].values():
            name = given["store"]
            if name not in self._stores:
                self._stores[name] = Store(name)
            store = self._stores[name]
            # In the run's folder, wherever that is by now: the file's name says what is in it.
            own = folder.parent.parent / "inputs" / Path(given["rows"]).name
            rows = read_json(own if own.is_file() else given["rows"])
            for row in (r for part in ("train", "val") for r in rows[part]):
                found.add(store.sources[row])
                self._places.setdefault(store.sources[row], (store, row))
        for name, _ in read_json(folder / "job.json")["description"]["init"].get("jobs", []):
            earlier = self.learnt_from(folder.parent / name)
            if earlier is None:
                return None
            found |= earlier
        return found

    def shown(self, paths: list[Path], pixels: list[np.ndarray]) -> list[list[Shown]]:
        """For each picture those of the run that it shows, the most alike first.

        pixels: (S, S) or (3, S, S) uint8 each, prepared as the run's were.
        """
        found: list[dict[str, Shown]] = []
        for path, image in zip(paths, pixels, strict=True):
            same = {source: self._shown(source, 1.0) for source in self._equal(image)}
            source = digest_file(path)
            if source in self._places:
                same[source] = self._shown(source, 1.0, True)
            found.append(same)
        if pixels and not self.equal_only and pixels[0].shape[-1] >= similar.SMALLEST:
            names = list(self._places)
            known = [store.images[row] for store, row in self._places.values()]
            for pair in similar.copies(pixels, known):
                source = names[pair.b]
                found[pair.a].setdefault(source, self._shown(source, pair.correlation))
        return [
            sorted(some.values(), key=lambda s: (-s.same_file, -s.likeness, s.name))
            for some in found
        ]

    def _shown(self, source: str, likeness: float, same_file: bool = False) -> Shown:
        store, row = self._places[source]
        entry = [e for e in store.entries if "reason" not in e][row]
        return Shown(source, entry.get("file", source[:12]), likeness, same_file)

    def _equal(self, image: np.ndarray) -> list[str]:
        """Sources of the pictures with the same pixels."""
        if self._by_pixels is None:
            self._by_pixels = {}
            for source, (store, row) in self._places.items():
                key = zlib.crc32(np.ascontiguousarray(store.images[row]).tobytes())
                self._by_pixels.setdefault(key, []).append(source)
        alike = self._by_pixels.get(zlib.crc32(np.ascontiguousarray(image).tobytes()), [])
        places = ((source, self._places[source]) for source in alike)
        return [s for s, (store, row) in places if similar.equal(store.images[row], image)]
