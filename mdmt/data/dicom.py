"""DICOM: one frame of a file to grey or RGB, or one sentence why not. The only user of pydicom.

Order of the transforms: stored values -> modality (rescale or lookup table) -> VOI (lookup table
or first window; can be switched off) -> inversion of MONOCHROME1 and of PresentationLUTShape
INVERSE -> padding set to black. Lookup tables and windows are those of PS3.3 C.11.1 and C.11.2;
they are computed here in wide integers, because an index wraps around in a narrow one.

Every syntax is decoded by exactly one decoder, so that a picture does not depend on what else is
installed; the compiled decoders run in helper processes (see `isolated`). What is not understood
is refused: a picture is never guessed.
"""

from __future__ import annotations

import functools
import re
import warnings
import zlib
from pathlib import Path

import numpy as np

from ..errors import BadData
from .levels import Levels, count, of_integers

SUFFIXES = (".dcm", ".dicom", ".dic")
MAX_BYTES = 512 * 2**20  # of a file
MAX_SAMPLES = 40 * 10**6  # rows * columns * samples * frames
MAX_INFLATED = 2 * MAX_SAMPLES + 2**24  # bytes of a deflated file

_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED)
_RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_PILLOW = ("pillow", "PIL", "Pillow")
_GDCM = ("gdcm", "gdcm", "python-gdcm")
_JPEGLS = ("pyjpegls", "jpeg_ls", "pyjpegls")
_OPENJPEG = ("pylibjpeg", "openjpeg", "pylibjpeg-openjpeg")
# syntax -> (pydicom's name of the decoder, module, package)
_DECODERS = {
    _RLE: ("pydicom", "pydicom", "pydicom"),
    _JPEG + "50": _PILLOW,
    _JPEG + "51": _PILLOW,  # 8 bits; 12 bits are decoded by GDCM, see _decode
    _JPEG + "57": _GDCM,
    _JPEG + "70": _GDCM,
    _JPEG + "80": _JPEGLS,
    _JPEG + "81": _JPEGLS,
    _JPEG + "90": _OPENJPEG,
    _JPEG + "91": _OPENJPEG,
    _JPEG + "201": _OPENJPEG,
    _JPEG + "202": _OPENJPEG,
    _JPEG + "203": _OPENJPEG,
}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_KEYWORDS = tuple(
    """SOPClassUID SamplesPerPixel PhotometricInterpretation PlanarConfiguration
NumberOfFrames Rows Columns PixelAspectRatio BitsAllocated BitsStored HighBit PixelRepresentation
PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope ModalityLUTSequence
WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape
RedPaletteColorLookupTableDescriptor SharedFunctionalGroupsSequence
PerFrameFunctionalGroupsSequence ExtendedOffsetTable ExtendedOffsetTableLengths
FloatPixelData DoubleFloatPixelData""".split()  # noqa: SIM905
)


class Refused(Exception):
    """Why a file is refused, without its name."""


class _Compressed(Exception):
    """The picture needs a compiled decoder, and this process must not run one."""


@functools.cache
def _pydicom():
    """Import pydicom; its warnings would tell of damage that is refused or repaired here."""
    import pydicom

    warnings.filterwarnings("ignore", module=r"pydicom\..*")
    return pydicom


def is_dicom(path) -> bool:
    """True for a file name that ends like a DICOM file's or for a file with a DICOM preamble."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES or path.name.upper() == "DICOMDIR":
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path, voi: bool = True, frame: int | None = None) -> np.ndarray:
    """Read a picture as grey float32 (rows, columns), bright = dense, black = padding.

    voi: apply the file's VOI lookup table or first window. frame: number of the frame, needed
    when there are several. Colour becomes ITU-R 601 luma. Units: the modality's, or with a VOI
    transform its output range. Raises BadData with one sentence.
    """
    return read_levels(path, voi, frame).grey


def read_levels(
    path, voi: bool = True, frame: int | None = None, alone: bool = False, colour: bool = False
) -> Levels:
    """`read_dicom` as codes and a table.

    alone: this process may be ended by a decoder, so that compressed files are decoded in it.
    colour: RGB, YBR and palettes are kept as RGB (rows, columns, 3) instead.
    """
    from . import isolated

    path = Path(path)
    try:
        return read_here(path, voi, frame, alone, colour)
    except _Compressed:
        try:
            return isolated.read(path, voi, frame, colour)
        except isolated.Failed as reason:
            raise BadData(f"{path}: {reason}") from None
    except Refused as reason:
        raise BadData(f"{path}: {reason}") from None


def read_here(
    path, voi: bool, frame: int | None, alone: bool = True, colour: bool = False
) -> Levels:
    """`read_levels` in this process; Refused without the file's name.

    alone: this process may be ended by a decoder; otherwise _Compressed is raised before it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            return _read(path, stream, voi, frame, alone, colour)
    except Refused as reason:
        raise Refused(_printable(reason)) from None
    except _Compressed:
        raise
    except FileNotFoundError:
        raise Refused("image is missing; add the file or remove the row") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Refused(f"image cannot be read ({reason}); correct the file") from error
    except Exception as error:  # pydicom and the decoders raise nearly every type
        raise Refused(
            f"DICOM file is damaged or truncated ({_first(error)}); replace the file"
        ) from error


def _printable(text) -> str:
    """One line; a file's own words can hold anything."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))[:400]


def _first(error: BaseException) -> str:
    text = re.sub(
        r"^Unable to decode as exceptions were raised by all.*?:", "", _printable(error)
    ).strip()
    return text[:160].rstrip(".") or type(error).__name__


def _read(path: Path, stream, voi: bool, frame: int | None, alone: bool, colour: bool) -> Levels:
    size = stream.seek(0, 2)
    stream.seek(0)
    if size > MAX_BYTES:
        raise Refused(f"has {size >> 20} MiB, more than {MAX_BYTES >> 20}; scale the image down")
    if path.name.upper() == "DICOMDIR":
        raise Refused("is a DICOM directory, not an image; give the image files it lists")
    bare = stream.read(132)[128:] != b"DICM"
    stream.seek(0)
    header = _header(stream, bare)
    samples, frames = _check_layout(header)
    if frame is None:
        if frames > 1:
            raise Refused(f"has {frames} frames, a radiograph has one; export the right one")
        frame = 0
    if not 0 <= frame < frames:
        raise Refused(f"has {frames} frames, there is no frame {frame}")
    stored = _pixels(stream, header, bare, frame, alone)
    if samples == 3:
        return of_integers(stored) if colour else Levels(_luma(stored))
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stream.seek(0)
        whole = _pydicom().dcmread(stream, force=bare, stop_before_pixels=True)
        return _palette(stored, whole, colour)
    return _levels(stored, header, voi)


def _header(stream, bare: bool):
    """Read the elements that describe the pixels; refuse what is no image."""
    pydicom = _pydicom()
    syntax = None
    if not bare:
        pydicom.filereader.read_preamble(stream, False)
        meta = pydicom.filereader._read_file_meta_info(stream)
        if meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
            raise Refused("is a DICOM directory, not an image; give the image files it lists")
        syntax = meta.get("TransferSyntaxUID")
        if not syntax:
            raise Refused("does not name its transfer syntax (0002,0010); export it again")
        if syntax not in _NATIVE and syntax not in _DECODERS:
            name = getattr(syntax, "name", syntax)
            raise Refused(f"has the transfer syntax '{name}', which is not supported; convert it")
        if syntax == _DEFLATED:
            _check_deflated(stream)
        stream.seek(0)
    try:
        header = pydicom.dcmread(
            stream, force=bare, stop_before_pixels=True, specific_tags=list(_KEYWORDS)
        )
    finally:
        stream.seek(0)
    if bare and not ("Rows" in header and "Columns" in header):
        raise Refused("is not a DICOM image; replace the file")
    return header


def _check_deflated(stream) -> None:
    """Inflate once, keeping nothing: a few bytes can stand for gigabytes."""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while (chunk := stream.read(1 << 16)) and not inflater.eof:
        while chunk and not inflater.eof:
            total += len(inflater.decompress(chunk, 1 << 20))
            if total > MAX_INFLATED:
                raise Refused(f"inflates to more than {MAX_INFLATED >> 20} MiB; export it again")
            chunk = inflater.unconsumed_tail


def _integer(header, name: str, default=None) -> int:
    value = header.get(name)
    if value is None or value == "":
        if default is None:
            raise Refused(f"has no {name}; it holds no picture that can be read")
        return default
    return int(value)


def _check_layout(header) -> tuple[int, int]:
    """Return samples per pixel and number of frames, refusing before anything is decoded."""
    for name in ("FloatPixelData", "DoubleFloatPixelData"):
        if name in header:
            raise Refused("holds floating-point pixels, which are not supported; convert it")
    rows, columns = _integer(header, "Rows"), _integer(header, "Columns")
    frames = _integer(header, "NumberOfFrames", 1) or 1
    samples = _integer(header, "SamplesPerPixel", 1)
    if rows < 1 or columns < 1 or frames < 1:
        raise Refused(f"declares {frames} frames of {columns} x {rows} pixels; replace the file")
    if rows * columns * frames * max(samples, 1) > MAX_SAMPLES:
        many = f"{frames} frames of " if frames > 1 else ""
        raise Refused(
            f"has {many}{columns} x {rows} pixels, more than {MAX_SAMPLES // 10**6} million "
            "values; scale the image down"
        )
    kind = str(header.get("PhotometricInterpretation") or "")
    wanted = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, **dict.fromkeys(_COLOURS, 3)}
    if wanted.get(kind) != samples:
        raise Refused(
            f"has PhotometricInterpretation '{kind}' with {samples} samples per pixel, which is "
            "not supported; convert it to MONOCHROME2"
        )
    _check_depth(header)
    aspect = header.get("PixelAspectRatio")
    if aspect is not None and len(aspect) == 2 and abs(aspect[0] - aspect[1]) > 0.02 * aspect[1]:
        raise Refused(f"has pixels of {aspect[0]}:{aspect[1]}, not square ones; resample the image")
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in header.get(groups) or []:
            if "PixelValueTransformationSequence" in item or "FrameVOILUTSequence" in item:
                raise Refused("keeps rescale or window by frame (enhanced object); convert it")
    return samples, frames


def _check_depth(header) -> None:
    allocated, stored = _integer(header, "BitsAllocated"), _integer(header, "BitsStored")
    high = _integer(header, "HighBit", stored - 1)
    if allocated not in (8, 16) or not 8 <= stored <= allocated or high != stored - 1:
        raise Refused(
            f"stores {stored} bits in {allocated} up to bit {high}; supported are 8 to 16 bits in "
            "8 or 16 from bit 0 up; convert it"
        )
    if _integer(header, "PixelRepresentation", 0) not in (0, 1):
        raise Refused("declares pixels that are neither signed nor unsigned; replace the file")


def _pixels(stream, header, bare: bool, frame: int, alone: bool) -> np.ndarray:
    """Decode one frame: stored values (rows, columns) or RGB (rows, columns, 3)."""
    pydicom = _pydicom()
    whole = pydicom.dcmread(stream, force=bare, specific_tags=[*_KEYWORDS, "PixelData"])
    if not whole.get("PixelData"):
        raise Refused("holds no pixels; replace the file")
    rows, columns = int(header.Rows), int(header.Columns)
    samples = _integer(header, "SamplesPerPixel", 1)
    if bare:
        _check_bare(whole, rows * columns * samples * _integer(header, "NumberOfFrames", 1))
    syntax = str(whole.file_meta.TransferSyntaxUID)
    plugin = ""
    if syntax not in _NATIVE:
        plugin = _prepare(whole, syntax, frame, (rows, columns, samples))
        if syntax != _RLE and not alone:
            raise _Compressed
    if plugin == "gdcm-12":
        array = _gdcm_extended(stream, whole, frame)
    else:
        decoder = pydicom.pixels.get_decoder(whole.file_meta.TransferSyntaxUID)
        array, properties = decoder.as_array(
            whole, index=frame, decoding_plugin=plugin, correct_unused_bits=False
        )
        if samples == 3 and properties["photometric_interpretation"] != "RGB":
            raise Refused("was not decoded to RGB; convert it to MONOCHROME2")
    if array.shape != ((rows, columns) if samples == 1 else (rows, columns, 3)):
        raise Refused(f"was decoded to another shape, {array.shape}; replace the file")
    return array


def _check_bare(whole, values: int) -> None:
    """A file without preamble names no syntax; it is read if its pixels have the plain length."""
    pydicom = _pydicom()
    if len(whole.PixelData) != values * int(whole.BitsAllocated) // 8:
        raise Refused("has no DICOM preamble and pixels of another length; export it again")
    uid = pydicom.uid
    implicit, little = whole.original_encoding
    if not hasattr(whole, "file_meta"):
        whole.file_meta = pydicom.dataset.FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian
        if implicit
        else uid.ExplicitVRLittleEndian
        if little
        else uid.ExplicitVRBigEndian
    )


def _prepare(whole, syntax: str, frame: int, shape: tuple) -> str:
    """Check the frame's own header against the file's; return the decoder to use."""
    import importlib.util

    pydicom = _pydicom()
    plugin, module, package = _DECODERS[syntax]
    name = whole.file_meta.TransferSyntaxUID.name
    frames = _integer(whole, "NumberOfFrames", 1) or 1
    code = pydicom.encaps.get_frame(whole.PixelData, frame, number_of_frames=frames)
    bits = int(whole.BitsAllocated)
    if syntax == _RLE:
        if 64 * len(code) < shape[0] * shape[1] * shape[2] * bits // 8:  # 2 bytes are 128 at most
            raise Refused("ends within its compressed picture; replace the file")
    else:
        found = _size_in(code)
        if found is None or found[:3] != shape:
            raise Refused(
                f"holds a compressed picture of {found and found[:3]} rows, columns and samples, "
                f"but declares {shape}; replace the file"
            )
        if not code.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # end of image, then padding
            raise Refused("ends within its compressed picture; replace the file")
        if (found[3] > 8) != (bits > 8):
            raise Refused(
                f"holds a compressed picture of {found[3]} bits, but declares {bits}; convert it"
            )
        if syntax == _JPEG + "51" and found[3] != 8:
            plugin, module, package = "gdcm-12", "gdcm", "python-gdcm"
    missing = importlib.util.find_spec(module) is None
    if plugin == "pylibjpeg" and not missing and importlib.util.find_spec("pylibjpeg") is None:
        missing, package = True, "pylibjpeg"
    if missing:
        raise Refused(
            f"is compressed as '{name}', which needs the package {package}; install it with "
            "pip install 'mdmt[dicom]'"
        )
    return plugin


def _size_in(code: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, components, bits) that a JPEG, JPEG-LS or JPEG 2000 stream declares."""
    if code[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":  # JP2 boxes around the codestream
        start = code.find(b"\xff\x4f\xff\x51")
        code = code[start:] if start >= 0 else b""
    if code[:4] == b"\xff\x4f\xff\x51" and len(code) > 44:
        words = [int.from_bytes(code[i : i + 4], "big") for i in (8, 12, 16, 20)]
        count = int.from_bytes(code[40:42], "big")
        depths = {(code[i] & 0x7F) + 1 for i in range(42, min(42 + 3 * count, len(code)), 3)}
        if len(depths) != 1:
            return None
        return words[1] - words[3], words[0] - words[2], count, depths.pop()
    if code[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 < len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            return (
                int.from_bytes(code[at + 5 : at + 7], "big"),
                int.from_bytes(code[at + 7 : at + 9], "big"),
                code[at + 9],
                code[at + 4],
            )
        at += 2 + int.from_bytes(code[at + 2 : at + 4], "big")
    return None


def _gdcm_extended(stream, whole, frame: int) -> np.ndarray:
    """Decode JPEG Extended of 12 bits with GDCM's own file reader."""
    import gdcm

    if frame or _integer(whole, "NumberOfFrames", 1) != 1:
        raise Refused("holds several frames of 12-bit JPEG, which are not supported; convert it")
    reader = gdcm.ImageReader()
    reader.SetFileName(stream.name if isinstance(stream.name, str) else str(stream.name))
    if not reader.Read():
        raise Refused("holds a 12-bit JPEG that cannot be decoded; replace the file")
    image = reader.GetImage()
    raw = image.GetBuffer().encode("utf-8", "surrogateescape")
    kind = np.int16 if whole.PixelRepresentation else np.uint16
    if len(raw) != 2 * int(whole.Rows) * int(whole.Columns):
        raise Refused("holds a 12-bit JPEG of another size; replace the file")
    return np.frombuffer(raw, kind).reshape(int(whole.Rows), int(whole.Columns))


def _check_bits(stored: np.ndarray, header) -> None:
    """Values beyond BitsStored mean that the depth is declared wrong: refuse, never wrap."""
    bits = int(header.BitsStored)
    signed = bool(_integer(header, "PixelRepresentation", 0))
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if int(stored.min()) < low or int(stored.max()) > high:
        raise Refused(
            f"declares {bits} bits, but holds values from {stored.min()} to {stored.max()}; "
            "export it again"
        )


def _luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of RGB (rows, columns, 3): float32."""
    red, green, blue = (rgb[..., i].astype(np.float32) for i in range(3))
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _coded(stored: np.ndarray) -> tuple[np.ndarray, int]:
    """Stored values as unsigned codes (rows, columns), ordered as they; and the value of code 0."""
    size = stored.dtype.itemsize
    kind = np.dtype(f"u{size}")
    codes = np.ascontiguousarray(stored, stored.dtype.newbyteorder("=")).view(kind)
    if stored.dtype.kind != "i":
        return codes, 0
    half = 1 << (8 * size - 1)  # two's complement to offset binary
    return codes ^ kind.type(half), -half


def _levels(stored: np.ndarray, header, voi: bool) -> Levels:
    """Grey of stored values (rows, columns), computed once for each value that occurs."""
    codes, base = _coded(stored)
    counted = count(codes)
    present = np.flatnonzero(counted)
    values = (present + base).astype(stored.dtype.newbyteorder("="))
    _check_bits(values, header)
    table = np.zeros(present[-1] + 1, np.float32)  # a short table stays in the cache
    table[present] = _grey(values, header, voi)
    return Levels(codes, table, counted)


def _palette(stored: np.ndarray, whole, colour: bool) -> Levels:
    """The colours that stored values (rows, columns) name (PS3.3 C.7.6.3.1.5), or their luma."""
    codes, table = _colours(stored, whole)
    return of_integers(table[codes]) if colour else Levels(codes, _luma(table))


def _colours(stored: np.ndarray, whole) -> tuple[np.ndarray, np.ndarray]:
    """Stored values as codes (rows, columns), and red, green, blue of every code (codes, 3)."""
    codes, base = _coded(stored)
    index = np.arange(1 << (8 * codes.dtype.itemsize), dtype=np.int64) + base
    little = whole.original_encoding[1] is not False
    if "SegmentedRedPaletteColorLookupTableData" in whole:
        if not hasattr(whole, "file_meta"):
            raise Refused("has a palette in segments and no transfer syntax; convert it")
        if stored.dtype.itemsize == 2 and int(whole.RedPaletteColorLookupTableDescriptor[2]) != 16:
            raise Refused("has a palette of 8 bits for pixels of 16, in segments; convert it")
        rgb = _pydicom().pixels.apply_color_lut(index, whole)[..., :3]
        return codes, rgb
    channels = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = whole.get(f"{colour}PaletteColorLookupTableDescriptor")
        element = whole.get_item(f"{colour}PaletteColorLookupTableData")
        if descriptor is None or element is None:
            raise Refused("has a palette without all of its three tables; replace the file")
        entries, first = int(descriptor[0]) or 1 << 16, int(descriptor[1])
        if first > 32767 and base:
            first -= 1 << 16
        table = _table(bytes(element.value), entries, little, words=element.VR != "OB")
        channels.append(table[np.clip(index - first, 0, entries - 1)])
    return codes, np.stack(channels, -1)


def _table(raw: bytes, entries: int, little: bool, words: bool) -> np.ndarray:
    """`entries` of one or two bytes each in raw; words: as 16-bit words of the file's order."""
    width = len(raw) // entries
    if width not in (1, 2) or len(raw) - width * entries > 1:
        raise Refused("has a lookup table of another length than it declares; replace it")
    if width == 2:
        return np.frombuffer(raw, "<u2" if little else ">u2", entries)
    table = np.frombuffer(raw, np.uint8)
    if words and not little and len(raw) % 2 == 0:
        table = table.reshape(-1, 2)[:, ::-1].reshape(-1)
    return table[:entries]


def _grey(stored: np.ndarray, header, voi: bool) -> np.ndarray:
    """Modality, VOI, inversion and padding on the values that occur (n,): float32."""
    padding = _padding(stored, header)
    if padding is not None and padding.all():
        raise Refused("holds nothing but padding; replace the file")
    little = header.original_encoding[1] is not False
    values = _modality(stored, header, little)
    if voi:
        shown = _voi(values, header, little)
        flat = shown.min() == shown.max() and values.min() != values.max()
        if flat:
            raise Refused("has a window that shows nothing of it; set data.voi to false")
        values = shown
    grey = values.astype(np.float32)
    inside = grey if padding is None else grey[~padding]
    low, high = inside.min(), inside.max()
    inverse = str(header.get("PresentationLUTShape") or "").upper() == "INVERSE"
    if header.PhotometricInterpretation == "MONOCHROME1" or inverse:
        grey = low + high - grey
    if padding is not None:
        grey[padding] = low
    if not np.isfinite(grey).all():
        raise Refused("holds values that are not finite after its rescale; replace the file")
    return grey


def _padding(stored: np.ndarray, header) -> np.ndarray | None:
    """Which of the values (n,) lie between PixelPaddingValue and its limit, or None."""
    value = header.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = header.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None or limit == "" else limit)]
    bits = 8 * stored.dtype.itemsize
    if stored.dtype.kind == "i":  # the value may have been written as an unsigned one
        ends = [(e + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) for e in ends]
    mask = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def _modality(stored: np.ndarray, header, little: bool) -> np.ndarray:
    if header.get("ModalityLUTSequence"):
        return _lookup(stored, header.ModalityLUTSequence[0], little)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope in (None, "") and intercept in (None, ""):
        return stored
    slope = 1.0 if slope in (None, "") else float(slope)
    intercept = 0.0 if intercept in (None, "") else float(intercept)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise Refused(f"has the rescale slope {slope} and intercept {intercept}; correct them")
    return stored.astype(np.float32) * slope + intercept


def _lookup(values: np.ndarray, item, little: bool) -> np.ndarray:
    """Apply a lookup table item (PS3.3 C.11.1.1): float32."""
    entries, first, depth = (int(v) for v in item.LUTDescriptor)
    entries = entries or 1 << 16
    if first > 32767 and values.min() < 0:  # a negative number that was written as an unsigned one
        first -= 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        table = _table(data, entries, little, words=False)
    else:
        table = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(table) != entries or not 8 <= depth <= 16 or int(table.max()) >> depth:
        raise Refused("has a lookup table that does not fit its descriptor; replace the file")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return table.astype(np.float32)[index]


def _voi(values: np.ndarray, header, little: bool) -> np.ndarray:
    """Apply the first VOI lookup table, else the first window (PS3.3 C.11.2.1)."""
    if header.get("VOILUTSequence"):
        return _lookup(values, header.VOILUTSequence[0], little)
    center, width = (_first_number(header.get(n)) for n in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return values
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else 0
    if not np.isfinite([center, width]).all() or width < least or (width == 0):
        raise Refused(f"has a window of center {center} and width {width}; set data.voi to false")
    # Scaled in one step, so that a window over the whole range changes no bit.
    x, top = values.astype(np.float32), (1 << int(header.BitsStored)) - 1
    if function == "LINEAR" and width == 1:
        return np.where(x > center - 0.5, top, 0).astype(np.float32)
    if function == "LINEAR":
        shown = (x - (center - 0.5)) * (top / (width - 1)) + top / 2
    elif function == "LINEAR_EXACT":
        shown = (x - center) * (top / width) + top / 2
    elif function == "SIGMOID":
        shown = top / (1 + np.exp(np.clip((x - center) * (-4 / width), -80, 80)))
    else:
        raise Refused(f"has the unknown VOILUTFunction '{function}'; set data.voi to false")
    return np.clip(shown, 0, top)


def _first_number(value) -> float | None:
    if value is None or value == "":
        return None
    if not isinstance(value, (str, int, float)) and hasattr(value, "__len__"):
        return float(value[0]) if len(value) else None
    return float(value)
