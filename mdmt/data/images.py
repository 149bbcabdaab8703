"""Image files of every kind that is read: JPEG, PNG, TIFF, BMP (8 to 16 bits) and DICOM to grey."""

from __future__ import annotations

import warnings

import numpy as np

from ..errors import BadData
from . import dicom
from .levels import Levels, of_integers

MAX_PIXELS = 200_000_000
NEW_SUBFILE_TYPE = 254  # TIFF 6.0, page 36: bit 0 marks a smaller copy of another page


def read_grey(path, voi: bool = True) -> np.ndarray:
    """Decode an image file to grey float32 (H, W) in its own units (0..255 or 0..65535).

    voi: apply the VOI window or lookup table of a DICOM file. Raises BadData.
    """
    return read_levels(path, voi).grey


def read_levels(path, voi: bool = True, alone: bool = False) -> Levels:
    """`read_grey` as codes and a table.

    alone: this process may be ended by a decoder (a worker's may), so that no helper process is
    needed for compressed DICOM files.
    """
    if dicom.is_dicom(path):
        return dicom.read_levels(path, voi, alone=alone)
    values = _read_picture(path)
    if values.ndim != 2 or values.size == 0:
        raise BadData(f"{path}: is not a two-dimensional image; replace the file")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadData(f"{path}: holds values that are not finite; replace the file")
    return of_integers(values)


def _pages(image) -> int:
    """Pictures in an open file; a JPEG's previews and a TIFF's reduced copies do not count."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format in ("JPEG", "MPO"):
        return 1
    if image.format != "TIFF":
        return count
    full = 0
    for page in range(count):
        image.seek(page)
        full += not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1
    image.seek(0)
    return full


def _read_picture(path) -> np.ndarray:
    """Grey values of a file that Pillow reads: (H, W)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # what is too large is decided here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadData(
                    f"{path}: has {image.width} x {image.height} pixels, more than "
                    f"{MAX_PIXELS // 10**6} million; scale the image down"
                )
            pages = _pages(image)
            if pages > 1:
                raise BadData(
                    f"{path}: holds {pages} pictures; keep the right one in a file of its own"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(ground, image).convert("L")
            elif image.mode not in ("L", "F", "I") and not image.mode.startswith("I;16"):
                image = image.convert("L")  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
            return np.asarray(image)
    except BadData:
        raise
    except UnidentifiedImageError:
        raise BadData(f"{path}: is not an image that can be read; replace the file") from None
    except Image.DecompressionBombError:  # beyond Pillow's own limit
        most = min(MAX_PIXELS, 2 * Image.MAX_IMAGE_PIXELS) // 10**6
        raise BadData(
            f"{path}: has more than {most} million pixels; scale the image down"
        ) from None
    except FileNotFoundError:
        raise BadData(f"{path}: image is missing; add the file or remove the row") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadData(
            f"{path}: image is damaged or truncated ({reason}); replace the file"
        ) from error
