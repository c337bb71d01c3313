"""DICOM files for tests, written by pydicom: real in form, with pixels that the test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def sample(name: str) -> Path:
    """One of the files that pydicom ships for tests of readers."""
    return Path(str(get_testdata_file(name, download=False)))


def write(path: Path, pixels: np.ndarray | None, **elements: Any) -> Path:
    """A file with `pixels` [h, w], [frames, h, w] or [h, w, 3]; `elements` by keyword.

    An element that is None is left out; a Dataset stands for a sequence of one item.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID = SecondaryCaptureImageStorage
    found.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    found.Modality = "OT"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[2] == 3
        found.SamplesPerPixel = 3 if colour else 1
        found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            found.PlanarConfiguration = 0
        elif pixels.ndim == 3:
            found.NumberOfFrames = len(pixels)
        found.Rows, found.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        bits = pixels.dtype.itemsize * 8
        found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
        found.PixelRepresentation = int(pixels.dtype.kind == "i")
        data = pixels.tobytes()
        found.PixelData = data + b"\0" * (len(data) % 2)
        found["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(found, keyword)
        else:
            setattr(found, keyword, [value] if isinstance(value, Dataset) else value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def item(**elements: Any) -> Dataset:
    """An item of a sequence."""
    found = Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, [value] if isinstance(value, Dataset) else value)
    return found
