"""Reads the elements of a DICOM file by pydicom, with bounds on what they take beside the pixels.

pydicom inflates what is deflated, makes an object of each element and of each item of a sequence,
and a number of each value: eight bytes of a file become some hundred, or a bit of a deflated one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

from fedsight.core.errors import DataError
from fedsight.data.images.pixels import MAX_PIXELS

EXTRA = "pip install 'fedsight[medical]'"
# Bytes that a file whose whole content is deflated may inflate to: the largest 16-bit colour image.
MAX_INFLATED = 6 * MAX_PIXELS
# Steps of reading: an element takes one or two, an item three, a compressed image two. Ten thousand
# frames that are described one by one take a fifth of these.
MAX_STEPS = 1 << 22
MAX_OTHERS = 1 << 25  # bytes that are read beside the pixels
MAX_ITEMS = 1 << 19  # of sequences that are read when they are looked at
_CHUNK = 1 << 20  # bytes
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # how an item begins, in either order of bytes
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


class _Counted:
    """A file of which it is counted what is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.steps = self.bytes = 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Raises EOFError after too many steps, which pydicom takes for the end of the file."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise EOFError
        found = self._file.read(size)
        self.bytes += len(found)
        return found


def library() -> Any:
    """pydicom; DataError if it is not installed."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise DataError("DICOM files need pydicom, which is not installed", EXTRA) from error
    return pydicom


def elements(stream: BinaryIO, name: str, tags: Sequence[str], defer: int | None = None) -> Any:
    """The data set of a file with the elements `tags`, by keyword; longer values than `defer` bytes
    are not read.

    Raises DataError naming `name` for one that takes too much, and whatever pydicom raises.
    """
    pydicom, counted, found = library(), _Counted(stream), None
    try:
        content = _inflated(counted, name)
        if content is None:
            found = pydicom.dcmread(counted, defer_size=defer, force=True, specific_tags=[*tags])
        else:
            counted = _Counted(io.BytesIO(content))
            found = _inflated_elements(stream, counted, tags, defer)
    finally:
        _refuse(counted, found, name)
    return found


def _inflated_elements(
    stream: BinaryIO, counted: _Counted, tags: Sequence[str], defer: int | None
) -> Any:
    """The data set of a deflated file, as pydicom makes it."""
    pydicom = library()
    reader = pydicom.filereader
    preamble, meta = reader.read_preamble(stream, True), reader._read_file_meta_info(stream)
    found = reader.read_dataset(
        counted,
        is_implicit_VR=False,
        is_little_endian=True,
        defer_size=defer,
        specific_tags=[pydicom.tag.Tag(tag) for tag in tags],
    )
    whole = pydicom.FileDataset(io.BytesIO(), found, preamble, meta, False, True)
    whole.set_original_encoding(False, True, found._character_set)
    return whole


def _refuse(counted: _Counted, found: Any, name: str) -> None:
    """Raise DataError if reading took too much, or looking at what was `found` would."""
    pixels = items = 0
    for element in [] if found is None else found.elements():
        value = element.value if hasattr(element, "value_tell") else None  # else it was read
        if isinstance(value, bytes):
            pixels += len(value) * (element.tag in _PIXELS)
            items += max(map(value.count, _ITEMS)) * (element.tag not in _PIXELS)
    others = 0 if found is None else counted.bytes - pixels
    if counted.steps > MAX_STEPS or items > MAX_ITEMS or others > MAX_OTHERS:
        raise DataError(
            f"'{name}' is too large to be opened safely: it has too many elements beside its "
            "pixels",
            "export it again, or cut it into single images",
        )


def _inflated(stream: _Counted, name: str) -> bytes | None:
    """The content of a file whose content is deflated; None of any other. DataError if it is more
    than an image needs. `stream` is at its beginning, before and after."""
    reader = library().filereader
    reader.read_preamble(stream, True)
    syntax = reader._read_file_meta_info(stream).get("TransferSyntaxUID")
    if syntax is None or not syntax.is_deflated:
        stream.seek(0)
        return None
    reader._read_command_set_elements(stream)  # which pydicom passes over, too
    inflator, found = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    left = stream.read(_CHUNK)
    while left and not inflator.eof:
        found += inflator.decompress(left, _CHUNK)
        if len(found) > MAX_INFLATED:
            raise DataError(
                f"'{name}' is too large to be opened safely: it inflates to more than "
                f"{MAX_INFLATED:,} bytes",
                "decompress it first (dcmconv +te does), or cut it into single images",
            )
        left = inflator.unconsumed_tail or stream.read(_CHUNK)
    if not inflator.eof:
        raise EOFError("what is deflated ends too early")
    stream.seek(0)
    return bytes(found)
