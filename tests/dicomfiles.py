"""Writes DICOM files of every kind that the tests need."""

import tempfile
from pathlib import Path

import numpy as np

SYNTAXES = ("implicit", "explicit", "big", "deflated", "rle", "jpeg-lossless", "jpeg-ls",
            "jpeg2000")  # fmt: skip
COMPRESSED = ("jpeg-lossless", "jpeg-ls", "jpeg2000")


def write_dicom(path, values, *, syntax="explicit", bits=12, photometric="MONOCHROME2", planar=0,
                preamble=True, **elements):  # fmt: skip
    """Write `values` (rows, columns) or RGB (rows, columns, 3) as they are stored.

    syntax: one of SYNTAXES. elements: further elements, applied last; None leaves one out;
    ModalityLUTSequence and VOILUTSequence as (table, first value, bits[, declared entries]).
    """
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    kinds = {"implicit": uid.ImplicitVRLittleEndian, "big": uid.ExplicitVRBigEndian,
             "deflated": uid.DeflatedExplicitVRLittleEndian}  # fmt: skip
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = kinds.get(syntax, uid.ExplicitVRLittleEndian)
    ds = Dataset()
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.Modality = "CR"
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = 1 if values.ndim == 2 else 3
    ds.PhotometricInterpretation = photometric
    if values.ndim == 3:
        ds.PlanarConfiguration = planar
        values = values.transpose(2, 0, 1) if planar else values
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    order = ">" if syntax == "big" else "<"
    raw = np.ascontiguousarray(values.astype(values.dtype.newbyteorder(order))).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    encode(ds, syntax)
    for name, value in elements.items():
        _set(ds, name, value)
    path = Path(path)
    if preamble:
        ds.save_as(path, enforce_file_format=True)
    else:
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, implicit_vr=True, little_endian=True)
    return path


def _set(ds, name, value):
    from pydicom.dataset import Dataset

    if value is None:
        return
    if name.endswith("LUTSequence"):
        table, first, bits, *declared = value
        item = Dataset()
        item.LUTDescriptor = [declared[0] + len(table) if declared else len(table), first, bits]
        item.add_new("LUTData", "OW", np.asarray(table, "<u2").tobytes())
        value = [item]
    if name.startswith("PixelPadding"):
        signed = ds.PixelRepresentation and value < 32768
        ds.add_new(name, "SS" if signed else "US", value)
        return
    setattr(ds, name, value)


def encode(ds, syntax):
    """Compress the pixels of a dataset in place."""
    from pydicom import uid
    from pydicom.pixels import compress

    if syntax == "rle":
        compress(ds, uid.RLELossless)
    elif syntax == "jpeg-ls":
        compress(ds, uid.JPEGLSLossless)
    elif syntax == "jpeg2000":
        compress(ds, uid.JPEG2000Lossless)
    elif syntax == "jpeg-lossless":
        _by_gdcm(ds, "JPEGLosslessProcess14_1")


def _by_gdcm(ds, name):
    """Lossless JPEG is written by GDCM; the picture is taken over from its file."""
    import gdcm
    import pydicom

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/a.dcm", f"{folder}/b.dcm"
        ds.save_as(source, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(source)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        coded = pydicom.dcmread(target)
        ds.PixelData = coded.PixelData
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
