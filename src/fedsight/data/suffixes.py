"""The file name suffixes of images and of texts."""

from __future__ import annotations

from fedsight.data.base import Modality
from fedsight.data.images import dicom, formats
from fedsight.data.text import rows

BY_MODALITY: dict[Modality, frozenset[str]] = {
    "image": formats.SUFFIXES | formats.HEIF_SUFFIXES | dicom.SUFFIXES,
    "text": rows.SUFFIXES | {".txt"},
}
