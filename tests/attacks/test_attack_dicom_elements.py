"""A small DICOM file whose elements take all memory, or that inflates beyond what was looked at.

pydicom makes an object of each item of a sequence, also of one that nobody asked for: eight bytes
become some hundred, and a deflated file has a thousand times more of them. And how far a file
inflates was looked at behind its meta information, while pydicom passes over elements of group 0
first: to one reader these are a short deflated text, and to the other what follows is a long one.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import BinaryIO

import dicom_files
import numpy as np
import pytest
from test_attack_files import deflated

from fedsight.core.errors import DataError
from fedsight.data.images import dicom, dicom_elements
from fedsight.data.images.windowing import Reading

OTHERS = "too many elements beside its pixels"
ITEM, END = b"\xfe\xff\x00\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)


def start_of(data: bytes) -> int:
    """Where the elements begin, behind the meta information."""
    (length,) = struct.unpack_from("<I", data, 140)
    return int(144 + length)


def with_elements(folder: Path, added: bytes) -> bytes:
    """A file of 8 x 8 pixels that has more elements before its own."""
    folder.mkdir(exist_ok=True)
    data = bytes(dicom_files.write(folder / "a.dcm", np.zeros((8, 8), np.uint8)).read_bytes())
    start = start_of(data)
    return data[:start] + added + data[start:]


def sequence(group: int, element: int, items: bytes, ends: bool) -> bytes:
    """A sequence of these items, of stated length or not."""
    length = 0xFFFFFFFF if ends else len(items)
    head = struct.pack("<HH2sHI", group, element, b"SQ", 0, length)
    return head + items + (END if ends else b"")


def peak_of_reading(data: bytes) -> int:
    """The most memory that Python takes for it, in bytes."""
    tracemalloc.start()
    try:
        dicom.read_dicom(data, "scan.dcm", Reading())
    except DataError as error:
        assert "too large" in error.cause or "corrupt" in error.cause  # noqa: PT017
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


COUNT = 20_000
PRIVATE = sequence(0x0009, 0x1010, COUNT * ITEM, ends=True)  # nobody asks for it
PER_FRAME = sequence(0x5200, 0x9230, COUNT * ITEM, ends=False)  # read when it is looked at


@pytest.mark.parametrize(
    ("added", "bound", "most"),
    [(PRIVATE, "MAX_STEPS", 3 * COUNT), (PER_FRAME, "MAX_ITEMS", COUNT - 1)],
    ids=["a private sequence", "frames that are not there"],
)
def test_a_file_of_nothing_but_items_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: bytes, bound: str, most: int
) -> None:
    data = with_elements(tmp_path, added)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (8, 8, 1)
    assert peak_of_reading(data) > 50 * len(data)  # the attack, as it was
    monkeypatch.setattr(dicom_elements, bound, most)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())


def test_nor_is_it_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.dcm"
    path.write_bytes(with_elements(tmp_path, PRIVATE))
    assert dicom.inspect(path, "b.dcm")[0] == 1
    monkeypatch.setattr(dicom_elements, "MAX_STEPS", 3 * COUNT)
    with pytest.raises(DataError, match=OTHERS):
        dicom.inspect(path, "b.dcm")


def test_elements_of_the_meta_information_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_elements(tmp_path, sequence(0x0002, 0x9999, COUNT * ITEM, ends=True))
    monkeypatch.setattr(dicom_elements, "MAX_STEPS", 3 * COUNT)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())


def test_what_is_read_beside_the_pixels_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = struct.pack("<HH2sHI", 0x0028, 0x1201, b"OW", 0, 100_000) + bytes(100_000)
    data = with_elements(tmp_path, table)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (8, 8, 1)
    monkeypatch.setattr(dicom_elements, "MAX_OTHERS", 50_000)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())


def test_large_pixels_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom_files.write(tmp_path / "c.dcm", np.zeros((400, 400), np.uint16))
    monkeypatch.setattr(dicom_elements, "MAX_OTHERS", 50_000)
    assert dicom.read_dicom(path.read_bytes(), "c.dcm", Reading()).shape == (400, 400, 1)


# What is deflated ---------------------------------------------------------------------------------


def hidden(zeros: int) -> bytes:
    """A deflated file with an element of group 0 that is a deflated text of no bytes, too."""
    data = deflated(zeros)
    start = start_of(data)
    stored = b"\xff\xff" + b"\x01\0\0\xff\xff"  # the end of an empty block, and the last one
    element = struct.pack("<HHI", 0x0000, 0xFF00, 255) + stored.ljust(255, b"\0")
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(element) == b""
    return data[:start] + element + data[start:]


def as_it_was(stream: BinaryIO, name: str) -> None:
    """Looks at what follows the meta information, and has pydicom inflate."""
    reader = dicom_elements.library().filereader
    reader.read_preamble(stream, True)
    reader._read_file_meta_info(stream)
    inflator = zlib.decompressobj(-zlib.MAX_WBITS)
    assert len(inflator.decompress(stream.read(), 1 << 30)) < dicom_elements.MAX_INFLATED
    stream.seek(0)


def test_what_is_inflated_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dicom.read_dicom(hidden(0), "scan.dcm", Reading()).shape == (8, 8, 1)
    bomb = hidden(16 << 20)
    monkeypatch.setattr(dicom_elements, "MAX_INFLATED", 2 << 20)
    with pytest.raises(DataError, match="inflates to more than"):
        dicom.read_dicom(bomb, "scan.dcm", Reading())
    assert peak_of_reading(bomb) < 8 << 20
    monkeypatch.setattr(dicom_elements, "_inflated", as_it_was)
    assert peak_of_reading(bomb) > 16 << 20
