"""DICOM files as grey or colour pixels: decoded, windowed and upright; names are never read."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.core.files import opened
from fedsight.data.images import jpeg2000
from fedsight.data.images.dicom_elements import elements, library
from fedsight.data.images.pixels import MAX_PIXELS, Pixels, refuse_parts
from fedsight.data.images.windowing import Reading, UnclearError, colour, grey

SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})

# Only these are parsed. Elements that identify the patient are never read.
_HEADER = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
)
_FRAGMENT = 8  # bytes that a frame of a compressed file takes at least
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TAGS = (
    *_HEADER,
    *_PIXELS,
    *("Modality", "LossyImageCompression", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ImageOrientationPatient", "PatientOrientation", "AnatomicalOrientationType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(
        f"{kind}{colour}PaletteColorLookupTable{what}"
        for kind, what in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue")
    ),
)
_GROUPS = {  # where newer ("enhanced") files store the values of a frame
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")
_AXES = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
_UPRIGHT = {  # of axial, coronal and sagittal planes: where rows and columns lead
    (0, 1): ((0, 1), (1, 1)),  # to the left, to the back
    (0, 2): ((0, 1), (2, -1)),  # to the left, to the feet
    (1, 2): ((1, 1), (2, -1)),  # to the back, to the feet
}
# how files without a preamble begin: with file meta information, or with the identifying group
_FIRST_GROUPS = (0x0002, 0x0008)
_SHORT = tuple(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = tuple(b"OB OW OF SQ UT UN UC UR".split())
_LONGEST_FIRST = 1024  # bytes of an element there
_quieting = threading.Lock()  # Python's warning filters belong to all threads


@dataclass(frozen=True)
class Frame:
    """One frame of a DICOM file."""

    path: str
    number: int


class NoPlugin(DataError):  # noqa: N818 - named after what is wrong, like its sister
    """An intact DICOM file whose compression no installed package can decode."""


class NoPixels(DataError):  # noqa: N818 - named after what is wrong, like its sister
    """A DICOM file without an image, such as a report, a plan or a directory."""


def is_dicom(data: bytes) -> bool:
    """Whether the first 132 bytes (or more) of a file are those of a DICOM file.

    Files of Part 10 say so at byte 128; others begin with the elements themselves.
    """
    return data[128:132] == b"DICM" or _is_bare(data)


def is_dicom_file(path: str) -> bool:
    """By its suffix, or by its first bytes; the directory file of a medium does not count."""
    file = Path(path)
    if file.name.upper() == "DICOMDIR":
        return False
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with opened(file) as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def _is_bare(data: bytes) -> bool:
    """Whether data begin with two elements of a DICOM file that has no preamble (PS3.5, 7.1)."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        at, last = 0, (0, 0)
        for _ in range(2):
            group, element = data[at : at + 2], data[at + 2 : at + 4]
            tag = (int.from_bytes(group, order), int.from_bytes(element, order))
            if tag <= last or tag[0] not in _FIRST_GROUPS:
                break
            length = _length(data[at + 4 : at + 12], order)
            if length is None:
                break
            at, last = at + length, tag
            if at + 8 > len(data):
                return length < len(data)
        else:
            return True
    return False


def _length(head: bytes, order: Literal["little", "big"]) -> int | None:
    """The bytes of an element, of which `head` follows the tag; None if it is no element's."""
    if head[:2] in _SHORT:
        return 8 + int.from_bytes(head[2:4], order)
    if head[:2] in _LONG and head[2:4] == b"\0\0":
        return 12 + int.from_bytes(head[4:8], order)
    size = int.from_bytes(head[:4], order)
    return 8 + size if order == "little" and size < _LONGEST_FIRST and size % 2 == 0 else None


def inspect(path: Path, name: str) -> tuple[int, str]:
    """The number of frames in a file and the patient's ID (empty if it is not given).

    The ID serves to hold out whole patients; it stays in memory and must never be written. Raises
    NoPixels, and DataError for a file that is not DICOM or that no installed plugin can decode.
    """
    library()
    try:
        with opened(path) as stream:
            if not is_dicom(stream.read(132)):
                raise DataError(
                    f"'{name}' is not a DICOM file: it begins neither with a preamble and 'DICM' "
                    "nor with elements",
                    "rewrite it with a file header (dcmconv does this), or remove it",
                )
            stream.seek(0)
            with _quiet():
                found = elements(stream, name, (*_TAGS, "PatientID"), with_pixels=False)
                _know_syntax(found)
                _check(found, name)
                return _frames(found, path, name), str(found.get("PatientID") or "")
    except OSError as error:
        raise DataError(
            f"'{name}' cannot be read: {error.strerror or error}",
            "correct the path, or restore the file and its permissions",
        ) from error
    except UnclearError as error:
        raise DataError(f"'{name}' {error.args[0]}", error.args[1]) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # pydicom raises nearly every kind on broken files
        raise _broken(name, error) from error


def read_dicom(data: bytes, name: str, reading: Reading, frame: int | None = None) -> Pixels:
    """One frame of a DICOM file's bytes: uint8 or uint16 [h, w, 1] (grey) or [h, w, 3] (colour).

    Grey is 0 (black) to full (white) after rescaling and windowing, by pydicom's own functions
    (DICOM PS3.3, C.11.1 and C.11.2); padding is black. With the orientation `patient`, rows lead to
    the patient's left (sagittal: to the back) and columns to the feet (axial: to the back), as far
    as the file gives its orientation; mammograms stay as stored. Raises NoPixels, and DataError
    naming `name` for a file that is broken, too large, unclear, or compressed in an unknown way.
    """
    pydicom = library()
    others = ""
    try:
        with _quiet(), io.BytesIO(data) as stream:
            found = elements(stream, name, _TAGS)
            _know_syntax(found)
            _check(found, name)
            number = _number(found, reading, frame)
            _refuse_parts(found, number, name)
            _gather(found, number)
            others = _plugins(found)
            raw = pydicom.pixels.pixel_array(found, index=number)
            others = ""
            is_grey = found.PhotometricInterpretation in _GREY
            pixels = grey(raw, found, reading) if is_grey else colour(raw, found)
            lying = _lying(found) if reading.orientation == "patient" else None
    except UnclearError as error:
        raise DataError(f"'{name}' {error.args[0]}", error.args[1]) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise _broken(name, error, others) from error
    return np.ascontiguousarray(pixels if lying is None else _turned(pixels, *lying))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom, which warns about every oddity; serious ones raise anyway."""
    with _quieting, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def _know_syntax(found: Any) -> None:
    """Write how a file without file meta information is encoded, as reading it has shown."""
    if found.file_meta.get("TransferSyntaxUID") is not None:
        return
    if "PixelData" in found and found["PixelData"].is_undefined_length:
        raise UnclearError(
            "is compressed, and has no file meta information that says how",
            "write it with a file header (dcmconv does this), or export it again",
        )
    implicit, little = found.original_encoding
    words = "ImplicitVRLittleEndian" if implicit else "ExplicitVRLittleEndian"
    found.file_meta.TransferSyntaxUID = getattr(
        library().uid, words if little else "ExplicitVRBigEndian"
    )


def _plugins(found: Any) -> str:
    """The packages that could decode this file and are not installed."""
    syntax = found.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        return ""
    return "; ".join(library().pixels.get_decoder(syntax).missing_dependencies)


def _broken(name: str, error: Exception, others: str = "") -> DataError:
    text = str(error).partition("Traceback")[0]  # which pydicom may put into its messages
    words = " ".join(line.strip() for line in text.splitlines())
    words += f" (other plugins that are not installed: {others})" if others else ""
    return DataError(
        f"'{name}' is corrupt, truncated, or in a format that is not supported: {words}",
        "replace or remove it, or set data.corrupt = 'skip' to leave such images out",
    )


def _check(found: Any, name: str) -> None:
    """Refuse what cannot be decoded safely, before decoding."""
    if "FloatPixelData" in found or "DoubleFloatPixelData" in found:
        raise DataError(f"'{name}' has floating-point pixels", "only integer pixels are read")
    if "PixelData" not in found or not found.get("Rows") or not found.get("Columns"):
        raise NoPixels(
            f"'{name}' is a DICOM file without pixels",
            "remove it, or set data.pixelless = 'skip' to leave such files out",
        )
    if found.Rows * found.Columns > MAX_PIXELS:
        raise DataError(
            f"'{name}' is too large to be opened safely: {found.Columns} x {found.Rows} pixels",
            f"cut or shrink it to at most {MAX_PIXELS:,} pixels",
        )
    kind = found.get("PhotometricInterpretation")
    if kind not in (*_GREY, *_COLOUR):
        raise DataError(
            f"'{name}' has the photometric interpretation '{kind}', which is not read",
            f"convert it to one of {', '.join((*_GREY, *_COLOUR))}",
        )
    syntax = found.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        return
    try:
        decoder = library().pixels.get_decoder(syntax)
    except NotImplementedError:
        raise NoPlugin(
            f"'{name}' is compressed as '{syntax.name}', which pydicom cannot decode",
            "decompress it first with dcmdjpeg, dcmdjpls or gdcmconv",
        ) from None
    if not decoder.is_available:
        raise NoPlugin(
            f"'{name}' is compressed as '{syntax.name}', and no plugin that decodes it is "
            f"installed ({'; '.join(decoder.missing_dependencies)})",
            "install one of these packages (gdcm is python-gdcm; mind that pylibjpeg-libjpeg is "
            "under the GPL), or decompress the file first (dcmdjpeg, dcmdjpls or gdcmconv do)",
        )


def _refuse_parts(found: Any, number: int, name: str) -> None:
    """Refuse a frame that is a JPEG whose pixels are gone over again and again, or a JPEG 2000 of
    too many parts, as `read_upright` refuses such a file."""
    if not found.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    places = [found.get(f"ExtendedOffsetTable{what}") for what in ("", "Lengths")]
    frame = library().encaps.get_frame(
        found.PixelData,
        number,
        extended_offsets=None if None in places else tuple(places),
        number_of_frames=int(found.get("NumberOfFrames") or 1),
    )
    try:
        refuse_parts(frame)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"'{name}' is too large to be opened safely: {error}",
            "decompress it first with dcmdjpeg or gdcmconv, or remove it",
        ) from None
    except jpeg2000.UnknownSegmentError as error:
        raise UnclearError(*error.args) from None


def _frames(found: Any, path: Path, name: str) -> int:
    """How many frames a file says that it has; DataError if its data cannot hold so many."""
    count = int(found.get("NumberOfFrames") or 1)
    pixels = found.get_item("PixelData")
    syntax = found.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        held = path.stat().st_size // _FRAGMENT
    else:
        length = pixels.length if hasattr(pixels, "length") else len(pixels.value)
        held = max(1, 8 * length // (found.Rows * found.Columns * found.BitsAllocated))
    if not 1 <= count <= held:
        raise DataError(
            f"'{name}' says that it has {count:,} frames, and its data hold at most {held:,}",
            "replace or remove it, or set data.corrupt = 'skip' to leave such images out",
        )
    return count


def _number(found: Any, reading: Reading, frame: int | None) -> int:
    count = int(found.get("NumberOfFrames") or 1)
    if frame is None and count > 1 and reading.frame == "refuse":
        raise UnclearError(
            f"has {count} frames, not one",
            "set data.frames to 'first', 'middle' or 'each', or give one file per image",
        )
    if frame is None:
        return count // 2 if reading.frame == "middle" else 0
    return frame


def _gather(found: Any, number: int) -> None:
    """Copy what newer files store per frame to where older files have it."""
    per_frame = found.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(found.get("SharedFunctionalGroupsSequence") or [])[:1]]
    for group in [*groups, *per_frame[number : number + 1]]:
        for sequence, keywords in _GROUPS.items():
            for item in (group.get(sequence) or [])[:1]:
                for keyword in keywords:
                    if keyword in item:
                        setattr(found, keyword, item[keyword].value)


def _lying(found: Any) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Where rows and columns lead: (axis, sign) each, axes to the left, the back, the head (LPS).

    None where the file does not say, for animals, and for mammograms (shown by breast).
    """
    if found.get("AnatomicalOrientationType") == "QUADRUPED" or found.get("Modality") == "MG":
        return None
    cosines = found.get("ImageOrientationPatient")
    letters = found.get("PatientOrientation")
    if cosines is not None and len(cosines) == 6:
        row, column = np.asarray(cosines, np.float64).reshape(2, 3)
        axes = [int(np.abs(way).argmax()) for way in (row, column)]
        ways = [
            (axis, 1 if way[axis] > 0 else -1)
            for axis, way in zip(axes, (row, column), strict=True)
        ]
    elif letters is not None and not isinstance(letters, str) and len(letters) == 2:
        if any(str(word)[:1] not in _AXES for word in letters):
            return None
        ways = [_AXES[str(word)[0]] for word in letters]
    else:
        return None
    return (ways[0], ways[1]) if ways[0][0] != ways[1][0] else None


def _turned(a: Pixels, row: tuple[int, int], column: tuple[int, int]) -> Pixels:
    """[h, w, c] whose rows and columns lead as given -> as `_UPRIGHT` has it."""
    upright = _UPRIGHT[min(row[0], column[0]), max(row[0], column[0])]
    if row[0] != upright[0][0]:
        a, row, column = a.transpose(1, 0, 2), column, row
    if row[1] != upright[0][1]:
        a = a[:, ::-1]
    return a if column[1] == upright[1][1] else a[::-1]
