"""Store of preprocessed images: one memory-mapped uint8 file and a JSON index.

A store is a folder named by the content hash of its sources and settings: `images.u8` holds
(M, S, S) uint8 in C order, `index.json` the settings and the SHA-256 of every source. It is built
in a temporary folder and renamed, so that a store that exists is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import BadData, write_failure
from ..paths import cache_folder, digest, digest_file, make_folder, sync_folder
from . import dicom, isolated
from .table import Cases

FORMAT = 1
MAX_PIXELS = 200_000_000


def settings_of(values: dict) -> dict:
    """Return what the pixels of a store depend on besides the sources."""
    return {
        "format": FORMAT,
        "size": values["image_size"],
        "square": values["data"]["square"],
        "clip": [float(c) for c in values["data"]["clip"]],
        "voi": values["data"]["voi"],
    }


def read_grey(path, voi: bool = True) -> np.ndarray:
    """Decode an image file to grey float32 (H, W) in its own units (0..255 or 0..65535).

    voi: apply the VOI window or lookup table of a DICOM file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if dicom.is_dicom(path):
        return dicom.read_dicom(path, voi)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadData(
                    f"{path}: has {image.width} x {image.height} pixels, more than "
                    f"{MAX_PIXELS // 10**6} million; scale the image down"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(ground, image).convert("L")
            elif image.mode not in ("L", "F", "I") and not image.mode.startswith("I;16"):
                image = image.convert("L")  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
            grey = np.asarray(image).astype(np.float32)
    except BadData:
        raise
    except UnidentifiedImageError:
        raise BadData(f"{path}: is not an image that can be read; replace the file") from None
    except FileNotFoundError:
        raise BadData(f"{path}: image is missing; add the file or remove the row") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
        Image.DecompressionBombError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadData(
            f"{path}: image is damaged or truncated ({reason}); replace the file"
        ) from error
    if grey.ndim != 2 or grey.size == 0:
        raise BadData(f"{path}: is not a two-dimensional image; replace the file")
    return grey


def normalise(grey: np.ndarray, clip=(2, 98)) -> np.ndarray:
    """Clip to two percentiles and scale to 0..255: float32 (H, W)."""
    low, high = np.percentile(grey, clip)
    if high <= low:  # flat but for a few pixels
        low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return np.zeros_like(grey, np.float32)
    return ((np.clip(grey, low, high) - low) * np.float32(255.0 / (high - low))).astype(np.float32)


def squared(grey: np.ndarray, how: str = "pad") -> np.ndarray:
    """Make (H, W) square without stretching: black borders (`pad`) or the middle (`crop`)."""
    height, width = grey.shape
    if how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return grey[top : top + side, left : left + side]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    out = np.zeros((side, side), np.float32)
    out[top : top + height, left : left + width] = grey
    return out


def preprocess(path, settings: dict) -> np.ndarray:
    """Return one image as the network's input pixels: uint8 (S, S)."""
    from PIL import Image

    grey = squared(
        normalise(read_grey(path, settings["voi"]), settings["clip"]), settings["square"]
    )
    size = settings["size"]
    if grey.shape[0] != size:
        grey = np.asarray(
            Image.fromarray(grey, mode=None).resize((size, size), Image.Resampling.BILINEAR)
        )  # with antialiasing when scaling down
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


class Store:
    """A finished store: `images` (M, S, S) uint8 memory map, `key`, `folder`, `sources`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.key: str = index["key"]
        self.sources: list[str] = index["sources"]
        self.bad: list[dict] = index["bad"]
        shape = (len(self.sources), index["settings"]["size"], index["settings"]["size"])
        path = self.folder / "images.u8"
        if path.stat().st_size != shape[0] * shape[1] * shape[2]:
            raise ValueError("images.u8 has the wrong size")
        self.images = np.memmap(path, np.uint8, "r", shape=shape)


def store_folder(values: dict) -> Path:
    """Return the folder that holds the stores."""
    return Path(values["data"]["store"] or cache_folder() / "store")


def build(cases: Cases, values: dict, progress: bool = True) -> tuple[Store, Cases]:
    """Return the store of `cases` and the cases in it, building the store unless it exists.

    With `data.on_bad_image: exclude`, unreadable images are left out and named in the cases'
    warnings; otherwise the first one raises BadData.
    """
    settings = settings_of(values)
    sources = _hashes(cases)
    key = digest({"settings": settings, "sources": sources}, 24)
    _check_duplicates(cases, sources)
    folder = store_folder(values) / key
    store = _open(folder)
    if store is None:
        _create(folder, key, settings, cases, sources, values["data"]["on_bad_image"], progress)
        store = Store(folder)
    bad = {b["source"]: b["reason"] for b in store.bad}
    if bad and values["data"]["on_bad_image"] == "error":
        raise BadData(_first_bad(cases, sources, bad))
    kept = [i for i, s in enumerate(sources) if s not in bad]
    if not kept:
        raise BadData(f"data set '{cases.name}' is empty: every image is unreadable")
    result = cases if len(kept) == len(cases) else cases.take(kept)
    for i, source in enumerate(sources):
        if source in bad:
            result.warnings.append(f"excluded: {cases.paths[i]}: {bad[source]}")
    return store, result


def _first_bad(cases: Cases, sources: list[str], bad: dict) -> str:
    i = next(i for i, s in enumerate(sources) if s in bad)
    return f"{cases.paths[i]}: {bad[sources[i]]}"


def _open(folder: Path) -> Store | None:
    """Open a store; a damaged one is removed, so that it is built again."""
    if not folder.is_dir():
        return None
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _hashes(cases: Cases) -> list[str]:
    """SHA-256 of every source file."""

    def one(path):
        try:
            return digest_file(path)
        except OSError as error:
            raise BadData(
                f"{path}: image cannot be read ({(error.strerror or '').lower()}); correct the file"
            ) from error

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, cases.paths))


def _check_duplicates(cases: Cases, sources: list[str]) -> None:
    """The same picture under two patients leaks from training to test; under one it is noted."""
    seen: dict[str, int] = {}
    for i, source in enumerate(sources):
        j = seen.setdefault(source, i)
        if j == i:
            continue
        if cases.patients[i] != cases.patients[j]:
            raise BadData(
                f"{cases.paths[i]}: is the same picture as {cases.paths[j].name}, but one is of "
                f"patient '{cases.patients[i]}' and the other of '{cases.patients[j]}'; keep one"
            )
        cases.warnings.append(f"{cases.paths[i]}: is the same picture as {cases.paths[j].name}")


def _create(folder, key, settings, cases, sources, on_bad, progress) -> None:
    """Build the store of `cases` in a temporary folder and rename it to `folder`."""
    from tqdm import tqdm

    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    kept, bad = [], []

    def one(path):
        try:
            return preprocess(path, settings), None
        except BadData as error:
            return None, str(error)

    try:
        workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        with open(temporary / "images.u8", "wb") as stream, ThreadPoolExecutor(workers) as pool:
            bar = tqdm(
                pool.map(one, cases.paths),
                total=len(cases),
                unit="image",
                desc=f"preparing {cases.name}",
                file=sys.stderr,
                leave=False,
                disable=not (progress and sys.stderr.isatty()),
            )
            for i, (pixels, reason) in enumerate(bar):
                if pixels is None:
                    if on_bad == "error":
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise BadData(reason)
                    prefix = f"{cases.paths[i]}: "
                    bad.append({"source": sources[i], "reason": reason.removeprefix(prefix)})
                    continue
                stream.write(pixels.tobytes())
                kept.append(sources[i])
            stream.flush()
            os.fsync(stream.fileno())
        index = {"key": key, "settings": settings, "sources": kept, "bad": bad}
        with open(temporary / "index.json", "w", encoding="utf-8") as stream:
            json.dump(index, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process built the same store meanwhile
                raise
        sync_folder(folder.parent)
    except OSError as error:
        raise write_failure(folder, error) from error
    finally:
        isolated.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
