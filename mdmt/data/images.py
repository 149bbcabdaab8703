"""Image files of every kind that is read: JPEG, PNG, TIFF, BMP (8 to 16 bits) and DICOM, to grey or
to colour."""

from __future__ import annotations

import sys
import warnings

import numpy as np

from ..errors import BadData
from . import dicom
from .levels import Levels, of_integers

MAX_PIXELS = 200_000_000
NEW_SUBFILE_TYPE = 254  # TIFF 6.0, page 36: bit 0 marks a smaller copy of another page
BITS_PER_SAMPLE, PLANAR = 258, 284  # pages 29 and 38: bits of each channel; 2: channels in planes
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # pages 37 and 80: 0 is white at 0; 1 unsigned, 2 signed
WIDE = ("RGB;16", "RGBX;16", "RGBA;16")  # how Pillow calls channels of 16 bits in a file
OTHER_END = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def read_grey(path, voi: bool = True) -> np.ndarray:
    """Decode an image file to grey float32 (H, W) in its own units (0..255 or 0..65535).

    voi: apply the VOI window or lookup table of a DICOM file. Raises BadData.
    """
    return read_levels(path, voi).grey


def read_levels(path, voi: bool = True, alone: bool = False, colour: bool = False) -> Levels:
    """`read_grey` as codes and a table.

    alone: this process may be ended by a decoder (a worker's may), so that no helper process is
    needed for compressed DICOM files. colour: a picture in colour is kept as RGB (H, W, 3) of 8 or
    16 bits; palettes and CMYK are converted without a colour profile, what is transparent lies over
    black. A grey one is grey then, too.
    """
    if dicom.is_dicom(path):
        return dicom.read_levels(path, voi, alone=alone, colour=colour)
    values = _read_picture(path, colour)
    if values.shape[2:] not in ((), (3,)) or values.size == 0:
        raise BadData(f"{path}: is not a two-dimensional image; replace the file")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadData(f"{path}: holds values that are not finite; replace the file")
    return of_integers(values)


def _pages(image) -> int:
    """Pictures in an open file; a JPEG's previews and a TIFF's reduced copies do not count. A TIFF
    is left at the first picture that is no such copy."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format in ("JPEG", "MPO"):
        return 1
    if image.format != "TIFF":
        return count
    full = []
    for page in range(count):
        image.seek(page)
        if not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:
            full.append(page)
    image.seek(full[0] if full else 0)
    return max(len(full), 1)


def _opened(path):
    """The file as a picture that is not decoded yet."""
    from PIL import Image

    with warnings.catch_warnings():  # what is too large is decided here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    if image.format == "TIFF":
        # Pillow maps what is not compressed into memory where it knows the file's name, a picture
        # on its side with width and height exchanged: its rows would be torn.
        image.filename = ""
    return image


def _check_planes(path, image) -> None:
    """Pillow takes channels in planes of their own for 8 bits each, whatever they have."""
    if image.format != "TIFF" or image.tag_v2.get(PLANAR) != 2:
        return
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    if len(bits) > 1 and max(bits) > 8:
        raise BadData(
            f"{path}: keeps its channels in separate planes of {max(bits)} bits, which are not "
            "read; save it with interleaved channels"
        )


def _is_grey(mode: str) -> bool:
    """Whether a picture of this mode of Pillow's has no colour."""
    return mode in ("1", "L", "LA", "La", "F", "I") or mode.startswith("I;16")


def _over_black(image):
    """A picture with what is transparent lying over black: RGBA."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def _rgb(path, image):
    """A picture in colour as RGB of 8 bits."""
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return _over_black(image).convert("RGB")
    if image.mode not in ("RGB", "RGBX", "P", "CMYK", "YCbCr"):
        raise BadData(f"{path}: has colours of the kind {image.mode}; save it as RGB")
    return image.convert("RGB")


def _low_bytes(path, image):
    """The low bytes of channels of 16 bits, of which Pillow gives the high ones, as a picture of
    8 bits; None where there are none. Read with the bytes of each number the other way round."""
    wanted = []
    for tile in image.tile:
        first, *rest = (tile[3],) if isinstance(tile[3], str) else tuple(tile[3] or ("",))
        if not isinstance(first, str) or first[:-1] not in WIDE or first[-1] not in OTHER_END:
            return None
        wanted.append((first[:-1] + OTHER_END[first[-1]], *rest))
    if not wanted:
        return None
    with _opened(path) as low:
        low.seek(image.tell())
        low.tile = [
            tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)
            for tile, args in zip(low.tile, wanted, strict=True)
        ]
        low.load()
        return low


def _wide(high, low) -> np.ndarray:
    """RGB (H, W, 3) uint16 of its high and its low bytes; what is transparent lies over black."""
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    if "transparency" in high.info:  # one colour
        values[(values == np.asarray(high.info["transparency"])).all(-1)] = 0
    if high.mode != "RGBA":
        return values[..., :3]
    opaque = values[..., 3:].astype(np.uint32)
    return ((values[..., :3] * opaque + 32767) // 65535).astype(np.uint16)


def _luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma (H, W) uint16 of RGB (H, W, 3) uint16."""
    return ((rgb @ np.array([299, 587, 114], np.uint32) + 500) // 1000).astype(np.uint16)


def _check_alpha(path, image) -> None:
    """Pillow keeps the high bytes alone of grey values of 16 bits that have a transparency each."""
    if any(tile[3] == "LA;16B" for tile in image.tile):
        raise BadData(
            f"{path}: has grey values of 16 bits with transparency, which are not read; save it "
            "without transparency"
        )


def _grey_values(image, tags) -> np.ndarray:
    """The values (H, W) of a loaded picture of mode L, F, I or I;16, whose TIFF tags are `tags`."""
    values = np.asarray(image)
    kind = tags.get(SAMPLE_FORMAT, (1,))[0]
    if values.dtype == np.uint8 and kind == 2:  # of signed numbers Pillow gives the bytes
        values = values.view(np.int8)
    if values.dtype.kind == "i" and kind == 1 and tags.get(BITS_PER_SAMPLE) == (32,):
        values = values.view(values.dtype.str.replace("i", "u"))
    if "transparency" in image.info and image.mode.startswith("I;16"):
        values = np.where(values == image.info["transparency"], 0, values).astype(values.dtype)
    if tags.get(PHOTOMETRIC) == 0:  # of 8 bits it has been inverted
        if values.dtype == np.uint16:
            values = 65535 - values
        elif values.dtype.kind == "f":
            values = values.min() + values.max() - values
    return values


def _read_picture(path, colour: bool = False) -> np.ndarray:
    """Values of a file that Pillow reads: grey (H, W); with `colour`, (H, W, 3) of a colour one."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _opened(path) as image:
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
            _check_planes(path, image)
            _check_alpha(path, image)
            tags = dict(image.tag_v2) if image.format == "TIFF" else {}
            low = _low_bytes(path, image)
            image.load()
            image = ImageOps.exif_transpose(image)
            if low is not None:
                wide = _wide(image, ImageOps.exif_transpose(low))
                return wide if colour else _luma(wide)
            if colour and not _is_grey(image.mode):
                return np.asarray(_rgb(path, image))
            plain = image.mode in ("F", "I") or image.mode.startswith("I;16")
            if image.mode in ("RGBA", "LA", "PA") or ("transparency" in image.info and not plain):
                image = _over_black(image).convert("L")
            elif image.mode != "L" and not plain:
                image = image.convert("L")  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
            return _grey_values(image, tags)
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
