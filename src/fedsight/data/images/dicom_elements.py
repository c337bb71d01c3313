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
MAX_ITEMS = 1 << 19  # of sequences, each of which takes some 700 bytes
MAX_OTHERS = 1 << 25  # bytes of tables beside the pixels
LONGEST = 1 << 16  # bytes of a value that is cut into texts or numbers, each of them an object
MAX_CHARACTER_SETS = 1 << 10  # bytes of their names, which are cut while a file is read
_CHUNK = 1 << 20  # bytes
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # how an item begins, in either order of bytes
_CHARACTER_SETS = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")  # how they begin
_META = b"\x02\x00"  # how each element of the meta information begins
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_TABLES = (
    *(0x7FE00001, 0x7FE00002),  # where the frames begin, and how long they are
    *(0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223),  # palettes
    0x00283006,  # of a look-up table
)
_BYTES = (None, "OB", "OW", "OD", "OF", "OL", "OV", "UN")  # types of values that stay as they are
# Read in the items of sequences, beside the tags that are read of the file: how a table is stored,
# and what the frames of newer files have
_IN_ITEMS = (0x00283002, 0x00283006, 0x00289145, 0x00289132, 0x00209116)


class _Counted:
    """A file that counts the steps in which it is read, and the items of sequences that it had.

    It ends, to pydicom, where there are too many, or where a value that pydicom takes apart while
    it reads is too long.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._head, self._since = b"", 0
        self.steps = self.items = 0
        self.full = False  # whether it had too much
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Raises EOFError after too much, which pydicom takes for the end of the file."""
        self.steps += 1
        found = b"" if self.full else self._file.read(size)
        if size == 8:  # what every element and item begins with, and what little else has
            self._head, self._since = found, 0
            self.items += found.startswith(_ITEMS)
        else:
            self._since += len(found)
        self.full |= self.steps > MAX_STEPS or self.items > MAX_ITEMS or self._is_long()
        if self.full:
            raise EOFError
        return found

    def _is_long(self) -> bool:
        if self._since <= MAX_CHARACTER_SETS:
            return False
        is_meta = self._since > LONGEST and self._head.startswith(_META)
        return is_meta or self._head.startswith(_CHARACTER_SETS)


def library() -> Any:
    """pydicom; DataError if it is not installed."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise DataError("DICOM files need pydicom, which is not installed", EXTRA) from error
    return pydicom


def elements(stream: BinaryIO, name: str, tags: Sequence[str], with_pixels: bool = True) -> Any:
    """The data set of a file with the elements `tags`, by keyword; pixels only `with_pixels`.

    Raises DataError naming `name` for one that takes too much, and whatever pydicom raises. One
    without pixels is given back unjudged: nothing else in it must be looked at.
    """
    pydicom, counted = library(), _Counted(stream)
    defer = None if with_pixels else LONGEST
    try:
        content = _inflated(counted, name)
        if content is None:
            found = pydicom.dcmread(counted, defer_size=defer, force=True, specific_tags=[*tags])
        else:
            counted = _Counted(io.BytesIO(content))
            found = _inflated_elements(stream, counted, tags)
        if not counted.full and any(tag in found for tag in _PIXELS):
            _judge(counted, found, tags, name)
    finally:
        if counted.full:
            raise _too_many(name)
    return found


def _inflated_elements(stream: BinaryIO, counted: _Counted, tags: Sequence[str]) -> Any:
    """The data set of a deflated file, as pydicom makes it, with the pixels."""
    pydicom = library()
    reader = pydicom.filereader
    preamble, meta = reader.read_preamble(stream, True), reader._read_file_meta_info(stream)
    found = reader.read_dataset(
        counted,
        is_implicit_VR=False,
        is_little_endian=True,
        specific_tags=[pydicom.tag.Tag(tag) for tag in tags],
    )
    whole = pydicom.FileDataset(io.BytesIO(), found, preamble, meta, False, True)
    whole.set_original_encoding(False, True, found._character_set)
    return whole


def _too_many(name: str) -> DataError:
    return DataError(
        f"'{name}' is too large to be opened safely: it has too many elements beside its pixels",
        "export it again, or cut it into single images",
    )


def _judge(counted: _Counted, found: Any, tags: Sequence[str], name: str) -> None:
    """Raise DataError for an element that would become too many objects when it is looked at."""
    of_items = {*_IN_ITEMS, *map(library().tag.Tag, tags)}
    tables, left = 0, [found]
    while left:
        dataset = left.pop()
        for element in list(dataset.values()):
            if not _is_raw(element):
                left += element.value if element.VR == "SQ" else ()
                continue
            length = element.length if element.value is None else len(element.value)
            if length <= LONGEST or (dataset is not found and element.tag not in of_items):
                continue
            if _is_sequence(element):
                left += _items(counted, dataset, element)
            elif element.VR in _BYTES and element.tag in (*_PIXELS, *_TABLES):
                tables += length * (element.tag not in _PIXELS)
            else:
                raise DataError(
                    f"'{name}' is too large to be opened safely: its element {element.tag} has "
                    f"{length:,} bytes",
                    f"write the element anew, with at most {LONGEST:,} bytes, or remove the file",
                )
    if tables > MAX_OTHERS:
        raise _too_many(name)


def _items(counted: _Counted, dataset: Any, element: Any) -> list[Any]:
    """The items of a long sequence, read now: pydicom would read them later, and uncounted."""
    pydicom = library()
    unknown = element.VR == "UN"  # what these hold is implicit (PS3.5, 6.2.2)
    counted.seek(element.value_tell)
    items = pydicom.filereader.read_sequence(
        counted,
        element.is_implicit_VR or unknown,
        element.is_little_endian or unknown,
        element.length,
        dataset.original_character_set,
    )
    dataset[element.tag] = pydicom.DataElement(element.tag, "SQ", items, element.value_tell)
    return list(items)


def _is_raw(element: Any) -> bool:
    return hasattr(element, "value_tell")


def _is_sequence(element: Any) -> bool:
    """Whether a raw element is a sequence, by its type or, where that is not told, by its tag."""
    if element.VR not in (None, "UN"):
        return bool(element.VR == "SQ")
    datadict = library().datadict
    return bool(datadict.dictionary_has_tag(element.tag)) and (
        datadict.dictionary_VR(element.tag) == "SQ"
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
