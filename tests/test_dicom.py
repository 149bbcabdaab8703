"""DICOM: pydicom's own test files against other decoders, and written files with known truth."""

import base64
import importlib.util
import sys
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mdmt import config
from mdmt.data import dicom, images, isolated
from mdmt.errors import BadData
from mdmt.preprocess import picture
from tests import dicomfiles
from tests.dicomfiles import write_dicom

pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LUMA = np.array([0.299, 0.587, 0.114])
FILES = Path(pydicom.__file__).parent / "data" / "test_files"

# What is no picture, damaged, or outside what is promised: part of the sentence that refuses it.
REFUSED = {
    "ExplVR_BigEndNoMeta.dcm": "not a DICOM image",
    "ExplVR_LitEndNoMeta.dcm": "not a DICOM image",
    "JPEG2000-embedded-sequence-delimiter.dcm": "but declares",
    "MR_truncated.dcm": "damaged or truncated",
    "SC_rgb_rle_16bit_2frame.dcm": "2 frames",
    "SC_rgb_rle_2frame.dcm": "2 frames",
    "SC_rgb_rle_32bit.dcm": "32 bits",
    "SC_rgb_rle_32bit_2frame.dcm": "32 bits",
    "UN_sequence.dcm": "no Rows",
    "badVR.dcm": "damaged",
    "empty_charset_LEI.dcm": "no Rows",
    "examples_ybr_color.dcm": "30 frames",
    "liver_1frame.dcm": "1 bits",
    "liver_expb_1frame.dcm": "1 bits",
    "meta_missing_tsyntax.dcm": "transfer syntax",
    "nested_priv_SQ.dcm": "no Rows",
    "no_meta.dcm": "not a DICOM image",
    "no_meta_group_length.dcm": "no Rows",
    "priv_SQ.dcm": "no Rows",
    "reportsi.dcm": "no Rows",
    "reportsi_with_empty_number_tags.dcm": "no Rows",
    "rtdose.dcm": "32 bits",
    "rtdose_1frame.dcm": "32 bits",
    "rtdose_expb.dcm": "32 bits",
    "rtdose_expb_1frame.dcm": "32 bits",
    "rtdose_rle.dcm": "32 bits",
    "rtdose_rle_1frame.dcm": "32 bits",
    "rtplan.dcm": "no Rows",
    "rtplan_truncated.dcm": "no Rows",
    "rtstruct.dcm": "not a DICOM image",
    "test-SR.dcm": "no Rows",
    "waveform_ecg.dcm": "no Rows",
}
# The same for the files of the package pydicom-data, which pydicom's tests use as well.
IN_PYDICOM_DATA = {
    "SC_rgb_16bit_2frame.dcm": "2 frames",
    "SC_rgb_2frame.dcm": "2 frames",
    "SC_rgb_32bit.dcm": "32 bits",
    "SC_rgb_32bit_2frame.dcm": "32 bits",
    "SC_rgb_expb_16bit_2frame.dcm": "2 frames",
    "SC_rgb_expb_2frame.dcm": "2 frames",
    "SC_rgb_expb_32bit.dcm": "32 bits",
    "SC_rgb_expb_32bit_2frame.dcm": "32 bits",
    "OBXXXX1A_2frame.dcm": "2 frames",
    "OBXXXX1A_expb_2frame.dcm": "2 frames",
    "OBXXXX1A_rle_2frame.dcm": "2 frames",
    "color-pl.dcm": "4:3",
    "color-px.dcm": "4:3",
    "color3d_jpeg_baseline.dcm": "120 frames",
    "eCT_Supplemental.dcm": "by frame",
    "emri_small.dcm": "10 frames",
    "emri_small_RLE.dcm": "10 frames",
    "emri_small_big_endian.dcm": "10 frames",
    "emri_small_jpeg_2k_lossless.dcm": "10 frames",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "10 frames",
    "emri_small_jpeg_ls_lossless.dcm": "10 frames",
    "liver.dcm": "1 bits",
    "liver_expb.dcm": "1 bits",
    "mlut_18.dcm": "holds values from -2048 to 4095",
}
REFUSED |= IN_PYDICOM_DATA
SEGMENTED = "gdcm-US-ALOKA-16"  # palettes in segments, see test_a_palette_in_segments


def shipped():
    """The DICOM files inside the pydicom package: [path]."""
    found = sorted(FILES.glob("*.dcm")) + sorted((FILES / "dicomdirtests").rglob("*"))
    return [p for p in found if p.is_file() and not p.name.startswith("README")]


def further():
    """Those of the package pydicom-data, where it is installed: [path]."""
    spec = importlib.util.find_spec("data_store")
    return sorted(Path(spec.origin).parent.glob("data/*.dcm")) if spec else []


def verdict(path):
    """Expected refusal of one of pydicom's files, or None."""
    if path.name.startswith("DICOMDIR"):
        return "DICOM directory"
    if "TINY_ALPHA" in path.parts:
        return "no Rows"
    return REFUSED.get(path.name)


def by_gdcm(path):
    """Stored values of GDCM's own file reader: (values, is colour)."""
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    form = image.GetPixelFormat()
    kind = ("i" if form.GetPixelRepresentation() else "u") + str(form.GetBitsAllocated() // 8)
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kind)
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    if form.GetSamplesPerPixel() == 1:
        return values.reshape(rows, columns), ""
    if image.GetPlanarConfiguration():
        return values.reshape(3, rows, columns).transpose(1, 2, 0), "planes"
    return values.reshape(rows, columns, 3), str(image.GetPhotometricInterpretation()).strip()


def by_hand(dataset, path):
    """Stored values of an uncompressed file, cut from its bytes."""
    raw = np.frombuffer(dataset.PixelData, np.uint8)
    little = dataset.original_encoding[1]
    size = dataset.BitsAllocated // 8
    if size == 1 and not little and dataset["PixelData"].VR == "OW":
        raw = raw.reshape(-1, 2)[:, ::-1].reshape(-1)
    kind = f"{'<' if little else '>'}{'i' if dataset.PixelRepresentation else 'u'}{size}"
    samples = dataset.SamplesPerPixel
    if dataset.PhotometricInterpretation == "YBR_FULL":  # luma is stored
        return raw.reshape(dataset.Rows, dataset.Columns, 3)[..., 0].astype(float)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":  # Y Y Cb Cr: luma is stored
        return raw.reshape(-1, 4)[:, :2].reshape(dataset.Rows, dataset.Columns).astype(float)
    count = dataset.Rows * dataset.Columns * samples
    values = raw[: count * size].view(kind)
    if samples == 1:
        return values.reshape(dataset.Rows, dataset.Columns)
    if dataset.PlanarConfiguration:
        values = values.reshape(3, dataset.Rows, dataset.Columns).transpose(1, 2, 0)
    return values.reshape(dataset.Rows, dataset.Columns, 3) @ LUMA


def by_runs(dataset):
    """Stored values of a run-length coded frame, decoded here (PS3.5 annex G)."""
    code = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    header = np.frombuffer(code[:64], "<u4").tolist()
    ends = [*header[2 : 1 + header[0]], len(code)]
    planes = []
    for start, end in zip(header[1 : 1 + header[0]], ends):
        out, at = bytearray(), start
        while at < end - 1 and len(out) < dataset.Rows * dataset.Columns:
            n = code[at]
            if n < 128:
                out += code[at + 1 : at + 2 + n]
                at += n + 2
            else:
                out += code[at + 1 : at + 2] * (257 - n if n > 128 else 0)
                at += 2 if n > 128 else 1
        planes.append(np.frombuffer(bytes(out), np.uint8).astype(np.int64))
    size = dataset.BitsAllocated // 8
    values = [
        sum(plane << 8 * (size - 1 - i) for i, plane in enumerate(planes[k : k + size]))
        for k in range(0, len(planes), size)
    ]
    values = np.stack(values, -1).reshape(dataset.Rows, dataset.Columns, -1)
    if dataset.PixelRepresentation:
        half = 1 << (8 * size - 1)
        values = (values + half) % (2 * half) - half
    return values[..., 0] if dataset.SamplesPerPixel == 1 else values @ LUMA


def by_palette(dataset):
    """Luma of the palette's colours, table and index cut from the file's bytes."""
    order = "<" if dataset.original_encoding[1] else ">"
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        index = by_runs(dataset)
    else:
        index = by_hand(dataset, None).astype(int)
    grey = np.zeros(index.shape)
    for weight, colour in zip(LUMA, ("Red", "Green", "Blue")):
        count, first, bits = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
        raw = dataset[f"{colour}PaletteColorLookupTableData"].value
        table = np.frombuffer(raw, f"{order}u2" if bits == 16 else "u1")[: count or 65536]
        grey += weight * table[np.clip(index - first, 0, len(table) - 1)]
    return grey


def independent(path):
    """Grey without VOI by a decoder that mdmt does not use for this file, and its tolerance."""
    dataset = pydicom.dcmread(path, force=True)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return by_palette(dataset), (0.01, 0.01)
    syntax = dataset.file_meta.TransferSyntaxUID
    name = syntax.name
    tolerance = (0.01, 0.01)  # largest, mean
    if not syntax.is_encapsulated:
        grey = by_hand(dataset, path)
        if dataset.PhotometricInterpretation.startswith("YBR"):
            tolerance = (2, 0.2)  # RGB is rounded and clipped on the way
    elif path.name in ("JPEG-lossy.dcm", "JPGExtended.dcm"):
        return None, None  # 12-bit JPEG: see test_twelve_bit_jpeg
    elif "RLE" in name:
        grey = by_runs(dataset)
    elif path.name == "SC_rgb_jpeg_gdcm.dcm":  # lossless JPEG: the same picture, run-length coded
        grey = by_runs(pydicom.dcmread(FILES / "SC_rgb_rle.dcm"))
    elif dataset.SamplesPerPixel == 1 and "JPEG 2000" in name and "mismatch" in path.name:
        grey = pydicom.pixels.pixel_array(dataset, decoding_plugin="pillow")
    elif "JPEG 2000" in name and dataset.SamplesPerPixel == 3:
        # Pillow refuses TextGBR ("broken data stream"); OpenJPEG and GDCM agree on it.
        plugin = "gdcm" if "TextGBR" in path.name else "pillow"
        grey = pydicom.pixels.pixel_array(dataset, decoding_plugin=plugin) @ LUMA
    else:
        grey, colour = by_gdcm(path)
        if colour.startswith("YBR"):
            grey = grey[..., 0].astype(float)
            tolerance = (9, 0.4)  # saturated colours are clipped on the way to RGB
        elif colour:
            grey = grey @ LUMA
            tolerance = (12, 0.3) if "Baseline" in name else tolerance
    if dataset.SamplesPerPixel == 1:
        padding = dataset.get("PixelPaddingValue")
        inside = grey != padding if padding is not None else np.ones(grey.shape, bool)
        slope = float(dataset.get("RescaleSlope", 1))
        grey = grey * slope + float(dataset.get("RescaleIntercept", 0))
        low, high = grey[inside].min(), grey[inside].max()
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            grey = low + high - grey
        grey = np.where(inside, grey, low)
    return grey, tolerance


@pytest.mark.oracle
@pytest.mark.parametrize("path", further(), ids=lambda p: p.name)
def test_files_of_pydicom_data(path):
    check_against_another_decoder(path)


@pytest.mark.parametrize("path", shipped(), ids=lambda p: p.name)
def test_pydicoms_own_files(path):
    check_against_another_decoder(path)


def check_against_another_decoder(path):
    """One sentence that refuses the file, or the pixels of a decoder that mdmt does not use."""
    start = time.process_time()
    expected = verdict(path)
    if expected is not None:
        with pytest.raises(BadData) as error:
            dicom.read_dicom(path)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(str(path))
    elif not path.name.startswith(SEGMENTED):
        grey = dicom.read_dicom(path, voi=False)
        assert grey.dtype == np.float32
        wanted, tolerance = independent(path)
        if wanted is not None:
            difference = np.abs(wanted - grey)
            assert difference.max() <= tolerance[0]
            assert difference.mean() <= tolerance[1]
    assert time.process_time() - start < 20


def test_every_shipped_file_has_a_verdict():
    names = {p.name for p in shipped() + further()}
    known = set(REFUSED) if further() else set(REFUSED) - set(IN_PYDICOM_DATA)
    assert known <= names
    assert sum(verdict(p) is None for p in shipped()) > 70


def test_twelve_bit_jpeg():
    # imagecodecs (libjpeg-turbo) gives these values for the file.
    grey = dicom.read_dicom(FILES / "JPGExtended.dcm", voi=False)
    assert (grey[420, 140], grey[230, 120], grey.min(), grey.max()) == (244, 95, 0, 264)
    assert grey[420, 100:110].tolist() == [42, 43, 42, 41, 46, 51, 56, 57, 56, 56]


def expanded(words):
    """The entries of a palette in segments of 16-bit words (PS3.3 C.7.9.2)."""
    out, at, words = [], 0, [int(w) for w in words]
    while at < len(words):
        kind, count = words[at : at + 2]
        if kind == 0:  # as they stand
            out += words[at + 2 : at + 2 + count]
            at += 2 + count
        elif kind == 1:  # a line from the last entry to the given one
            start, end = out[-1], words[at + 2]
            out += [start + (end - start) * (k + 1) / count for k in range(count)]
            at += 3
        else:  # earlier segments again
            start = (words[at + 2] + (words[at + 3] << 16)) // 2
            again = words[start:]
            for _ in range(count):
                size = again[1] + 2 if again[0] == 0 else 3
                part, again = again[:size], again[size:]
                out = expanded_onto(out, part)
            at += 4
    return out


def expanded_onto(out, part):
    if part[0] == 0:
        return out + part[2:]
    start, end = out[-1], part[2]
    return out + [start + (end - start) * (k + 1) / part[1] for k in range(part[1])]


@pytest.mark.oracle
@pytest.mark.skipif(not further(), reason="needs the package pydicom-data")
@pytest.mark.parametrize("name", ["gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"])
def test_a_palette_in_segments(name):
    path = next(p for p in further() if p.name == name)
    dataset = pydicom.dcmread(path)
    order = "<" if dataset.original_encoding[1] else ">"
    index = np.frombuffer(dataset.PixelData, f"{order}u2")
    index = index.reshape(dataset.Rows, dataset.Columns).astype(int)
    wanted = 0
    for weight, colour in zip(LUMA, ("Red", "Green", "Blue")):
        raw = dataset[f"Segmented{colour}PaletteColorLookupTableData"].value
        table = np.array(expanded(np.frombuffer(raw, f"{order}u2")))
        first = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value[1]
        wanted = wanted + weight * table[np.clip(index - first, 0, len(table) - 1)]
    assert np.abs(dicom.read_dicom(path) - wanted).max() <= 1  # a line's entries are rounded


def test_one_frame_of_several():
    path = FILES / "SC_rgb_rle_2frame.dcm"
    both = pydicom.dcmread(path).pixel_array
    for frame in (0, 1):
        assert np.allclose(dicom.read_dicom(path, frame=frame), both[frame] @ LUMA, atol=1e-3)
    with pytest.raises(BadData, match="no frame 2"):
        dicom.read_dicom(path, frame=2)


# 20 x 24 values, written by OpenJPH (through imagecodecs), which is in none of our decoders.
HIGH_THROUGHPUT = {
    "u1": (
        lambda x, y: (x * 7 + y * 13) % 256,
        "|4;u>04YEK0000O0000K00000000000000O0000K0000000000009R90sl|{2mk^A00092QUDA90ssL31q1{"
        "@0smY86Cg-XP*6}%P*6}%P*6}vNJ#%=02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001QUC$}lfWhL0LO"
        "Fyz!Ja`z!Lz#0Ect{m;ncL0Hyu{2Xp|y6F?Kd5`ZH901I>g2YmhjVl)8G0Ect{z!k6sTme+gApc>BPyiO-3w"
        "*Z#MFxBZrvLzfyjB2n8UXnC5Wu`u0KgW+0d7DRz=sDEA!K!u;G4^Q3IXrHEw*<#9xNbQ00T4v08&f_Nkj?&s"
        "Z$Li9h}13XO|2Bb1VZ}07DEI2|^O?4-?p1j*WtVHq5}m@nZ(c0KhKF0d|lJqU1B?pYQv=4};-9p5Nc^=lK}("
        "`FQ?*KhMuY{_~^)oR$g;y$CX5h0^e}g8K^_LUsWkUjK0G@%8<1Zyq1LJw6=MM|sbZ4-5|s3=9lJ#QjPKC%<a"
        "waJ$?lIB%DQ1bcQAK(+zD|7V}S-~V^_`}gzzfB$>^O2{Z*=pd<K1qedv2q;2w0sq+",
    ),
    "u2": (
        lambda x, y: (x * 1999 + y * 3001) % 65536,
        "|4;u>04YEK0000O0000K00000000000000O0000K0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{"
        "@0smY86Cj9?kdTm&kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*000025&!}JlfVEa<^u"
        "<G0KfnfKmZd!026>R+ysYo0Nkqu2Xp|9p8f_0bO68r6%YUgOaK8eqZO`|1q*ZlkujhZ{sCe%0RMgihjakI02"
        "agm0cgMg7LY2SNE$!*2L%ec*(N7Lh|CEExds4#m;fq(2Nlu*{irpR>;QBDzm@=20Ix=lAGVMlvKPPrgn+-60"
        "KfnjUjP7Id;kG;VE-S8$S4y2fj{so{D%Kaf9@yqx3tY5QuYV<q5o&U&@T`ffVG^Q9uJF1WFy=F|3AjB{D*(~"
        "75pOqIe%!sjem}RcfSB%mT%*S(|3?>>`Q=J^~fL?4~s}NBi#W1e}n$_|3Lphe}(^P|2F?A|3~{5_#gZ~_+Ri"
        "p|6lN%XD=oXi%>LU+W^1-FHnF0UaJ5AyC9tBy#Gh@5eE1Ff1m$v|9Ag?|9SregL6LoKmQ;9KmQ;9U;iKfPyY"
        "|+<9z=g|4;u<|8M_K|7ZUf=Q;DJl<5sYX$DO&yVV8p!EiGIbOHV!{vZE;|6%`E|408X{~!Jz{vZDz{=fbo|6"
        "l$;`9Iu+yZ;Z3X#O9KX#XE@7yl2q3)}_n0(Wo+cX0RpOaOC%@7+-V;9Ob3H9&vRN4FdmK)3<^fBye{|9}5{|"
        "8xIO|8M_K|3CkK`u}_Xd;e$ufBye`{Y+pI38isiUZf&)q!nPX0sq+",
    ),
}


@pytest.mark.parametrize("kind", HIGH_THROUGHPUT)
@pytest.mark.parametrize("number", ["201", "203"])
def test_high_throughput_jpeg2000(tmp_path, kind, number):
    formula, text = HIGH_THROUGHPUT[kind]
    y, x = np.mgrid[:20, :24]
    values = formula(x, y).astype(kind)
    path = write_dicom(tmp_path / "a.dcm", values, bits=8 * values.itemsize)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([base64.b85decode(text)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{number}"
    dataset.save_as(path)
    assert np.array_equal(dicom.read_dicom(path), values)


# ---- written files


def stored(bits, signed, size=(40, 36)):
    rng = np.random.default_rng(bits * 2 + signed)
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    values = rng.integers(low, high, size)
    values[0, :2] = low, high - 1
    return values.astype(("i" if signed else "u") + ("1" if bits == 8 else "2"))


@pytest.mark.parametrize("syntax", dicomfiles.SYNTAXES)
@pytest.mark.parametrize(
    "bits, signed", [(8, False), (10, False), (12, False), (16, False), (12, True), (16, True)]
)
def test_lossless_syntaxes_bits_and_signs(tmp_path, syntax, bits, signed):
    values = stored(bits, signed)
    path = write_dicom(tmp_path / "a.dcm", values, syntax=syntax, bits=bits)
    assert np.array_equal(dicom.read_dicom(path), values.astype(np.float32))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
def test_inversion_happens_once(tmp_path, photometric, shape):
    values = stored(12, False)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, photometric=photometric, PresentationLUTShape=shape
    )
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    wanted = 4095 - values.astype(int) if inverted else values
    assert np.array_equal(dicom.read_dicom(path), wanted)


@pytest.mark.parametrize("slope, intercept", [(2, -1024), (0.25, 7), (-1, 0), (1, None)])
def test_rescale(tmp_path, slope, intercept):
    values = stored(12, False)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, RescaleSlope=slope, RescaleIntercept=intercept
    )
    wanted = values * float(slope) + (intercept or 0)
    assert np.allclose(dicom.read_dicom(path), wanted, atol=1e-3)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_window(tmp_path, function, signed):
    """The first of several windows, as pydicom's own apply_windowing computes it."""
    values = stored(12, signed)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, RescaleSlope=2, RescaleIntercept=-100,
        WindowCenter=[900, 10], WindowWidth=[2500, 5], VOILUTFunction=function,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    y = pydicom.pixels.apply_windowing(values * 2.0 - 100, dataset)
    low = (-2048 if signed else 0) * 2 - 100  # pydicom's output range is the rescaled one
    assert np.allclose(dicom.read_dicom(path), (y - low) / 2, atol=0.01)
    assert np.array_equal(dicom.read_dicom(path, voi=False), values * 2.0 - 100)


def test_window_of_width_one_is_a_step(tmp_path):
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    path = write_dicom(tmp_path / "a.dcm", values, bits=12, WindowCenter=8, WindowWidth=1)
    assert np.array_equal(dicom.read_dicom(path), np.where(values > 7.5, 4095, 0))


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("first", [0, 300])
def test_lookup_tables(tmp_path, depth, first):
    """More than 256 entries with 8-bit values, a first value above 0, values beyond the table."""
    values = stored(12, False)
    table = np.minimum(np.arange(2000)[::-1] // 3, (1 << depth) - 1)
    index = np.clip(values.astype(int) - first, 0, 1999)
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        path = write_dicom(
            tmp_path / f"{name}.dcm", values, bits=12, **{name: (table, first, depth)}
        )
        assert np.array_equal(dicom.read_dicom(path), table[index])
    assert np.array_equal(dicom.read_dicom(path, voi=False), values)


def test_the_first_value_of_a_table_for_signed_numbers(tmp_path):
    """Some write it as an unsigned number."""
    values, table = stored(12, True), np.arange(4096)[::-1]
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        path = write_dicom(tmp_path / "a.dcm", values, bits=12, **{name: (table, 0, 12)})
        ds = pydicom.dcmread(path)
        ds[name][0].add_new("LUTDescriptor", "US", [4096, 65536 - 2048, 12])
        ds.save_as(path)
        assert np.array_equal(dicom.read_dicom(path), table[values.astype(int) + 2048])


def test_modality_comes_before_voi_before_inversion(tmp_path):
    values = np.array([[0, 100, 200, 300]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, photometric="MONOCHROME1", RescaleSlope=2,
        RescaleIntercept=0, WindowCenter=300, WindowWidth=400, VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    # 0, 200, 400, 600 -> window 100..500 -> 0, .25, .75, 1 -> inverted
    assert np.allclose(dicom.read_dicom(path), 4095 * np.array([[1, 0.75, 0.25, 0]]))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path, photometric):
    values = stored(12, True).clip(-500, 1000)
    values[:3] = -2000
    for written in (-2000, -2000 + 65536):  # also as an unsigned value
        path = write_dicom(
            tmp_path / "a.dcm", values, bits=12, photometric=photometric, PixelPaddingValue=written
        )
        grey = dicom.read_dicom(path)
        inside = values[3:].astype(int)
        low, high = inside.min(), inside.max()
        assert (grey[:3] == low).all()
        assert np.array_equal(
            grey[3:], low + high - inside if photometric == "MONOCHROME1" else inside
        )


def test_padding_range(tmp_path):
    values = np.arange(20, dtype=np.uint16).reshape(4, 5)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, PixelPaddingValue=16, PixelPaddingRangeLimit=19
    )
    assert np.array_equal(dicom.read_dicom(path), np.where(values >= 16, 0, values))


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_luma(tmp_path, planar):
    rgb = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", rgb, bits=8, photometric="RGB", planar=planar)
    assert np.allclose(dicom.read_dicom(path), rgb @ LUMA, atol=1e-3)


def test_no_preamble(tmp_path):
    values = stored(12, False)
    path = write_dicom(tmp_path / "a.dcm", values, syntax="implicit", bits=12, preamble=False)
    assert np.array_equal(dicom.read_dicom(path), values)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadData):
        dicom.read_dicom(path)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels, more than"),
        ({"NumberOfFrames": 1000000}, "1000000 frames"),
        ({"BitsStored": 8, "HighBit": 7}, "declares 8 bits, but holds values"),
        ({"HighBit": 15}, "up to bit 15"),
        ({"PhotometricInterpretation": "HSV"}, "'HSV'"),
        ({"SamplesPerPixel": 4}, "4 samples"),
        ({"Rows": 0}, "0 pixels"),
        ({"Columns": 37}, "less than expected"),
        ({"PixelAspectRatio": [2, 1]}, "2:1"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "slope 0"),
        ({"WindowCenter": 9e6, "WindowWidth": 10}, "shows nothing"),
        ({"WindowCenter": 90, "WindowWidth": 0}, "width 0"),
        ({"WindowCenter": 90, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "CUBIC"),
    ],
)
def test_refusals(tmp_path, changes, sentence):
    path = write_dicom(tmp_path / "a.dcm", stored(12, False), bits=12, **changes)
    start = time.process_time()
    with pytest.raises(BadData, match=sentence):
        dicom.read_dicom(path)
    assert time.process_time() - start < 1


def test_what_a_file_says_stays_on_one_line(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", stored(12, False), photometric="MONO\nCHROME\x1b[2J")
    with pytest.raises(BadData) as error:
        dicom.read_dicom(path)
    assert str(error.value).isprintable()


def test_nothing_but_padding(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm", np.full((4, 4), 7, np.uint16), bits=12, PixelPaddingValue=7
    )
    with pytest.raises(BadData, match="nothing but padding"):
        dicom.read_dicom(path)


def test_a_lookup_table_must_fit_its_descriptor(tmp_path):
    values = stored(12, False)
    path = write_dicom(
        tmp_path / "a.dcm", values, bits=12, VOILUTSequence=(np.arange(9), 0, 16, 20)
    )
    with pytest.raises(BadData, match="lookup table"):
        dicom.read_dicom(path)


def test_deflated_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_INFLATED", 1 << 20)
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2000, 2000), np.uint8), bits=8,
                       syntax="deflated")  # fmt: skip
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BadData, match="inflates to more than"):
        dicom.read_dicom(path)


@pytest.mark.parametrize("bomb", ["size", "frames", "coded size", "inflated", "runs"])
def test_bombs_cost_little_time_and_memory(tmp_path, bomb):
    values = np.zeros((64, 64), np.uint8)
    path = tmp_path / "a.dcm"
    if bomb == "size":
        write_dicom(path, values, bits=8, Rows=65535, Columns=65535)
    elif bomb == "frames":
        write_dicom(path, values, bits=8, NumberOfFrames=1000000)
    elif bomb == "coded size":
        write_dicom(path, values, bits=8, syntax="jpeg2000")
        raw = bytearray(path.read_bytes())
        at = raw.index(b"\xff\x4f\xff\x51") + 8
        raw[at : at + 8] = (60000).to_bytes(4, "big") * 2
        path.write_bytes(raw)
    elif bomb == "inflated":
        write_dicom(path, values, bits=8, syntax="deflated")
        raw = path.read_bytes()
        start = raw.index(b"1.2.840.10008.1.2.1.99") + 22
        zeros = zlib.compressobj(9, wbits=-15)
        body = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(300)) + zeros.flush()
        assert len(body) < 310_000  # 1000:1
        path.write_bytes(raw[:start] + body)
    else:
        write_dicom(path, values, bits=8, syntax="rle", Rows=6000, Columns=6000)
    seconds = []
    tracemalloc.start()
    try:
        with pytest.raises(BadData):
            dicom.read_dicom(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for _ in range(3):
        begin = time.process_time()
        with pytest.raises(BadData):
            dicom.read_dicom(path)
        seconds.append(time.process_time() - begin)
    assert peak < 64 << 20
    assert min(seconds) < 0.25 if bomb == "inflated" else min(seconds) < 0.1


def test_file_size_is_bounded(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((200, 200), np.uint8), bits=8)
    monkeypatch.setattr(dicom, "MAX_BYTES", 1000)
    with pytest.raises(BadData, match="more than"):
        dicom.read_dicom(path)


@pytest.mark.parametrize("syntax", [s for s in dicomfiles.SYNTAXES if s in dicomfiles.COMPRESSED])
def test_a_compressed_picture_of_another_size_is_refused(tmp_path, syntax):
    path = write_dicom(tmp_path / "a.dcm", stored(8, False), bits=8, syntax=syntax)
    dataset = pydicom.dcmread(path)
    dataset.Columns = 10
    dataset.save_as(path)
    with pytest.raises(BadData):
        dicom.read_dicom(path)


@pytest.mark.parametrize("syntax", dicomfiles.SYNTAXES)
def test_truncated_at_every_quarter(tmp_path, syntax):
    path = write_dicom(tmp_path / "a.dcm", stored(8, False, (64, 64)), bits=8, syntax=syntax)
    whole = path.read_bytes()
    for share in (0, 0.05, 0.25, 0.5, 0.75, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadData):
            dicom.read_dicom(path)


@pytest.mark.parametrize("syntax", dicomfiles.SYNTAXES)
def test_damaged_bytes_never_crash(tmp_path, syntax):
    """Either a picture of the right size or one sentence; never another exception."""
    path = write_dicom(tmp_path / "a.dcm", stored(12, False), bits=12, syntax=syntax)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    for _ in range(25):
        damaged = bytearray(whole)
        for at in rng.integers(132, len(whole), 4):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert dicom.read_dicom(path).ndim == 2
        except BadData as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "syntax, module, package",
    [
        ("jpeg-lossless", "gdcm", "python-gdcm"),
        ("jpeg-ls", "jpeg_ls", "pyjpegls"),
        ("jpeg2000", "openjpeg", "pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax, module, package):
    import importlib.util

    path = write_dicom(tmp_path / "a.dcm", stored(8, False), bits=8, syntax=syntax)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == module else real(name, *a)
    )
    with pytest.raises(BadData, match=f"needs the package {package}; install it with"):
        dicom.read_dicom(path)


def test_a_decoder_that_dies_or_hangs_costs_one_file(tmp_path, monkeypatch):
    values = stored(12, False)
    path = write_dicom(tmp_path / "a.dcm", values, syntax="jpeg-lossless", bits=12)
    dicom.read_dicom(path)
    helper = isolated._idle[-1]
    for signal_number, sentence in ((9, "crashes its decoder"), (19, "more than 0 s")):
        monkeypatch.setattr(isolated, "SECONDS", 0.3)
        monkeypatch.setattr(helper, "alive", lambda: True)
        helper.process.send_signal(signal_number)  # killed, then only stopped
        time.sleep(0.1)
        with pytest.raises(BadData, match=sentence):
            dicom.read_dicom(path)
        monkeypatch.undo()
        assert helper.process.poll() is not None
        isolated._idle.clear()
        assert np.array_equal(dicom.read_dicom(path), values)
        helper = isolated._idle[-1]


def test_helpers_are_kept_and_shared_by_threads(tmp_path):
    values = stored(12, False)
    path = write_dicom(tmp_path / "a.dcm", values, syntax="jpeg-ls", bits=12)
    with ThreadPoolExecutor(3) as pool:
        for grey in pool.map(dicom.read_dicom, [path] * 24):
            assert np.array_equal(grey, values)
    count = len(isolated._idle)
    assert 1 <= count <= 3 + 1
    dicom.read_dicom(path)
    assert len(isolated._idle) == count
    helpers = list(isolated._idle)
    isolated.close()
    assert all(h.process.poll() is not None for h in helpers)
    assert np.array_equal(dicom.read_dicom(path), values)


def test_found_by_name_or_preamble(tmp_path):
    values = stored(12, False)
    named = write_dicom(tmp_path / "a.dcm", values, bits=12)
    bare = tmp_path / "1637535280864081316"
    bare.write_bytes(named.read_bytes())
    assert np.array_equal(images.read_grey(bare), values)
    assert np.array_equal(images.read_grey(named), values)
    (tmp_path / "b.dcm").write_text("text")
    with pytest.raises(BadData, match="not a DICOM image"):
        images.read_grey(tmp_path / "b.dcm")
    with pytest.raises(BadData, match="image is missing"):
        images.read_grey(tmp_path / "c.dcm")


def test_the_store_is_the_same_from_dicom_and_png(tmp_path):
    from PIL import Image

    values = (np.add.outer(np.arange(40), np.arange(50)) * 2).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    settings = picture.settings_of(config.load("demo", ["image_size=32"]))
    wanted = picture.preprocess(tmp_path / "a.png", settings)
    for syntax in dicomfiles.SYNTAXES:
        for photometric in ("MONOCHROME1", "MONOCHROME2"):
            shown = 255 - values if photometric == "MONOCHROME1" else values
            path = write_dicom(
                tmp_path / "a.dcm", shown, bits=8, syntax=syntax, photometric=photometric
            )
            assert np.array_equal(picture.preprocess(path, settings), wanted)


def test_pydicom_is_imported_lazily():
    import subprocess

    code = "import sys, mdmt.data.dicom; assert 'pydicom' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
