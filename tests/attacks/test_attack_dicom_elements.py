"""A small DICOM file whose elements take all memory, or that inflates beyond what was looked at.

pydicom makes an object of each item of a sequence, also of one that nobody asked for: eight bytes
become some hundred, and a deflated file has a thousand times more of them. And how far a file
inflates was looked at behind its meta information, while pydicom passes over elements of group 0
first: to one reader these are a short deflated text, and to the other what follows is a long one.
A text of numbers is cut into as many objects, and one of them may fill a file.

What hospitals write is not refused for its size: see the end of the page.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import dicom_files
import numpy as np
import pydicom
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


def peak_of(work: Callable[[], Any]) -> int:
    """The most memory that Python takes for it, in bytes."""
    tracemalloc.start()
    try:
        work()
    except DataError as error:
        assert "too large" in error.cause or "corrupt" in error.cause  # noqa: PT017
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def peak_of_reading(data: bytes) -> int:
    return peak_of(lambda: dicom.read_dicom(data, "scan.dcm", Reading()))


COUNT = 10_000  # more bytes than LONGEST
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


# Long values --------------------------------------------------------------------------------------

MANY = 100_000  # bytes, more than LONGEST
NUMBERS = b"1\\" * (MANY // 2)


def implicit(folder: Path, keyword: str, value: bytes, vr: bytes = b"") -> bytes:
    """A file of 8 x 8 pixels with a long element at its end, of type `vr` or implicit."""
    folder.mkdir(exist_ok=True)
    found = pydicom.dcmread(dicom_files.write(folder / "a.dcm", np.zeros((8, 8), np.uint8)))
    if not vr:
        found.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    found.WindowCenter, found.WindowWidth = 8, 8
    written = io.BytesIO()
    pydicom.dcmwrite(written, found)
    return written.getvalue() + long_element(keyword, value, vr)


def long_element(keyword: str, value: bytes, vr: bytes = b"") -> bytes:
    tag = pydicom.tag.Tag(keyword)
    kind = vr + b"\0\0" if vr else b""
    head = struct.pack("<HH", tag.group, tag.element) + kind
    return head + struct.pack("<I", len(value)) + value


def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build."""
    monkeypatch.setattr(dicom_elements, "LONGEST", 1 << 40)
    monkeypatch.setattr(dicom_elements, "MAX_CHARACTER_SETS", 1 << 40)


LONG = {
    "RescaleSlope": NUMBERS,
    "WindowCenter": NUMBERS,
    "ImageOrientationPatient": NUMBERS,
    "NumberOfFrames": NUMBERS,
    "Rows": b"\x00\x02" * (MANY // 2),
}


@pytest.mark.parametrize("keyword", LONG)
def test_a_long_text_of_numbers_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    data = implicit(tmp_path, keyword, LONG[keyword])
    with pytest.raises(DataError, match="too large to be opened safely"):
        dicom.read_dicom(data, "scan.dcm", Reading())
    assert peak_of_reading(data) < 3 * len(data)
    unbounded(monkeypatch)
    assert peak_of_reading(data) > 8 * len(data)


@pytest.mark.parametrize("keyword", ["NumberOfFrames", "Rows", "PatientID"])
def test_nor_when_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    path = tmp_path / "b.dcm"
    data = implicit(tmp_path, keyword, LONG.get(keyword, b"12\\" * (MANY // 3)))
    path.write_bytes(data)
    with pytest.raises(DataError, match="too large to be opened safely"):
        dicom.inspect(path, "b.dcm")
    assert peak_of(lambda: dicom.inspect(path, "b.dcm")) < 3 * len(data)
    unbounded(monkeypatch)
    assert peak_of(lambda: dicom.inspect(path, "b.dcm")) > 8 * len(data)


def test_nor_are_names_of_character_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which pydicom says of each that it does not know it, while it reads the file."""
    data = implicit(tmp_path, "SpecificCharacterSet", b"a\\" * 5000)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())
    assert peak_of_reading(data) < 10 * len(data)
    unbounded(monkeypatch)
    assert peak_of_reading(data) > 20 * len(data)


def test_what_reading_refuses_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "b.dcm"
    path.write_bytes(implicit(tmp_path, "RescaleSlope", NUMBERS))
    with pytest.raises(DataError, match=r"its element \(0028,1053\) has 100,000 bytes"):
        dicom.inspect(path, "b.dcm")


def test_nor_is_one_of_the_meta_information(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = implicit(tmp_path, "Modality", b"OT", b"UN")
    start = start_of(data)
    names = b"1\\" * 30_000  # shorter than pydicom leaves a value of unknown type uncut
    data = data[:start] + long_element("TransferSyntaxUID", names, b"UN") + data[start:]
    monkeypatch.setattr(dicom_elements, "LONGEST", 50_000)
    assert peak_of_reading(data) < 4 * len(data)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())
    unbounded(monkeypatch)
    assert peak_of_reading(data) > 20 * len(data)


@pytest.mark.parametrize("keyword", ["PixelData", "RedPaletteColorLookupTableData"])
def test_nor_are_pixels_that_are_said_to_be_text(tmp_path: Path, keyword: str) -> None:
    data = implicit(tmp_path, keyword, NUMBERS, b"UC")
    with pytest.raises(DataError, match="has 100,000 bytes"):
        dicom.read_dicom(data, "scan.dcm", Reading())


def framed(
    items: bytes, keyword: str = "SharedFunctionalGroupsSequence", ends: bool = True
) -> bytes:
    """A sequence of one item that holds these elements, implicit."""
    tag = pydicom.tag.Tag(keyword)
    item = ITEM[:4] + struct.pack("<I", len(items)) + items
    length = 0xFFFFFFFF if ends else len(item)
    return struct.pack("<HHI", tag.group, tag.element, length) + item + (END if ends else b"")


@pytest.mark.parametrize("ends", [True, False], ids=["to its end", "of stated length"])
@pytest.mark.parametrize("outer", ["PixelValueTransformationSequence", "a long sequence"])
def test_nor_are_those_of_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outer: str, ends: bool
) -> None:
    inner = long_element("RescaleSlope", NUMBERS)
    if outer == "a long sequence":  # one of stated length is read when it is looked at
        inner = long_element("PixelValueTransformationSequence", MANY // 8 * ITEM)
    else:
        inner = framed(inner, outer)
    data = implicit(tmp_path, "Modality", b"OT") + framed(inner, ends=ends)
    monkeypatch.setattr(dicom_elements, "MAX_ITEMS", 500)
    with pytest.raises(DataError, match="too large to be opened safely"):
        dicom.read_dicom(data, "scan.dcm", Reading())
    assert peak_of_reading(data) < 6 * len(data)
    unbounded(monkeypatch)
    assert peak_of_reading(data) > 20 * len(data)


def test_nor_is_how_a_table_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = long_element("LUTDescriptor", b"\0\2" * (MANY // 2))
    item = long_element("LUTData", bytes(512)) + stored
    data = implicit(tmp_path, "Modality", b"OT") + framed(item, "ModalityLUTSequence")
    with pytest.raises(DataError, match=r"\(0028,3002\) has 100,000 bytes"):
        dicom.read_dicom(data, "scan.dcm", Reading())
    unbounded(monkeypatch)
    assert peak_of_reading(data) > 8 * len(data)


def test_elements_of_a_long_sequence_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stated length, it is read when it is looked at: the bytes of its items were counted."""
    empty = b"".join(struct.pack("<HHI", 9 + 2 * (n >> 15), n & 32767, 0) for n in range(MANY // 8))
    data = implicit(tmp_path, "Modality", b"OT") + framed(empty, ends=False)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (8, 8, 1)
    assert peak_of_reading(data) > 20 * len(data)
    monkeypatch.setattr(dicom_elements, "MAX_STEPS", MANY // 10)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())


@pytest.mark.parametrize("ends", [True, False], ids=["to its end", "of stated length"])
def test_items_of_both_kinds_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    data = with_elements(tmp_path, sequence(0x5200, 0x9230, COUNT * ITEM, ends))
    monkeypatch.setattr(dicom_elements, "MAX_ITEMS", COUNT)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (8, 8, 1)
    monkeypatch.setattr(dicom_elements, "MAX_ITEMS", COUNT - 1)
    with pytest.raises(DataError, match=OTHERS):
        dicom.read_dicom(data, "scan.dcm", Reading())


# What hospitals write -----------------------------------------------------------------------------

BLOB = bytes(40 << 20)  # more than all tables may have


def listed_and_read(path: Path) -> tuple[int, ...]:
    """The shape of the first frame of a file that is listed, too."""
    dicom.inspect(path, "c.dcm")
    return dicom.read_dicom(path.read_bytes(), "c.dcm", Reading(frame="first")).shape


def private(group: int, value: bytes) -> pydicom.Dataset:
    """Elements of a vendor."""
    found = pydicom.Dataset()
    found.private_block(group, "A VENDOR", create=True).add_new(0x10, "OB", value)
    return found


def saved(path: Path, found: pydicom.Dataset) -> Path:
    pydicom.dcmwrite(path, found)
    return path


@pytest.mark.parametrize("ends", [True, False], ids=["to its end", "of stated length"])
def test_raw_data_of_a_vendor_may_be_long(tmp_path: Path, ends: bool) -> None:
    """As ultrasound devices write them, in a private sequence."""
    found = pydicom.dcmread(dicom_files.write(tmp_path / "c.dcm", np.zeros((8, 8), np.uint8)))
    block = found.private_block(0x7FE1, "A VENDOR", create=True)
    block.add_new(0x01, "SQ", [private(0x7FE1, BLOB)])
    found[0x7FE1, 0x1001].value.is_undefined_length = ends
    found[0x7FE1, 0x1001].is_undefined_length = ends
    assert listed_and_read(saved(tmp_path / "c.dcm", found)) == (8, 8, 1)


@pytest.mark.parametrize("ends", [True, False], ids=["to their end", "of stated length"])
def test_thousands_of_frames_may_be_described(tmp_path: Path, ends: bool) -> None:
    """As magnetic resonance is, with what its vendor adds to each frame."""
    frames = [
        dicom_files.item(
            PixelValueTransformationSequence=dicom_files.item(
                RescaleSlope=1, RescaleIntercept=0, RescaleType="US"
            ),
            PlaneOrientationSequence=dicom_files.item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        )
        for _ in range(3000)
    ]
    for frame in frames:
        frame.update(private(0x2005, bytes(12_000)))
    path = dicom_files.write(tmp_path / "c.dcm", np.zeros((3000, 2, 2), np.uint8))
    found = pydicom.dcmread(path)
    found.PerFrameFunctionalGroupsSequence = frames
    found["PerFrameFunctionalGroupsSequence"].is_undefined_length = ends
    assert listed_and_read(saved(path, found)) == (2, 2, 1)
    assert path.stat().st_size > dicom_elements.MAX_OTHERS


def test_a_slide_may_have_more_than_100_000_frames(tmp_path: Path) -> None:
    path = dicom_files.write(tmp_path / "c.dcm", np.zeros((100_001, 2, 2), np.uint8))
    place = dicom_files.item(ColumnPositionInTotalImagePixelMatrix=1)
    tile = dicom_files.item(PlanePositionSlideSequence=place)
    tile.update(private(0x0009, bytes(280)))
    outer = dicom_files.item(PerFrameFunctionalGroupsSequence=tile)
    written = pydicom.filebase.DicomBytesIO()
    written.is_implicit_VR, written.is_little_endian = False, True
    pydicom.filewriter.write_dataset(written, outer)
    item = written.getvalue()[12:]  # behind the head of the sequence
    path.write_bytes(path.read_bytes() + sequence(0x5200, 0x9230, 100_001 * item, ends=False))
    assert path.stat().st_size > dicom_elements.MAX_OTHERS
    assert listed_and_read(path) == (2, 2, 1)


def test_a_long_report_has_no_pixels(tmp_path: Path) -> None:
    """As a plan with many contours has none: data.pixelless = 'skip' leaves it out."""
    told = dicom_files.item(ValueType="TEXT", TextValue="x" * len(BLOB))
    found = pydicom.dcmread(dicom_files.write(tmp_path / "c.dcm", None, ContentSequence=told))
    found["ContentSequence"].is_undefined_length = True
    path = saved(tmp_path / "c.dcm", found)
    assert path.stat().st_size > dicom_elements.MAX_OTHERS
    for work in (lambda: dicom.inspect(path, "c.dcm"), lambda: listed_and_read(path)):
        with pytest.raises(dicom.NoPixels, match="without pixels"):
            work()
    with pytest.raises(dicom.NoPixels):
        dicom.read_dicom(path.read_bytes(), "c.dcm", Reading())


@pytest.mark.parametrize("ends", [True, False], ids=["to its end", "of stated length"])
def test_frames_may_have_a_long_table(tmp_path: Path, ends: bool) -> None:
    """Which is not used, and lies in a sequence beside a window, which is."""
    table = dicom_files.item(LUTDescriptor=[65535, 0, 16], LUTData=bytes(2 * 65535))
    table["LUTData"].VR = "OW"
    window = dicom_files.item(WindowCenter=100, WindowWidth=50, VOILUTSequence=table)
    frame = dicom_files.item(FrameVOILUTSequence=window)
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = dicom_files.write(tmp_path / "c.dcm", values, SharedFunctionalGroupsSequence=frame)
    found = pydicom.dcmread(path)
    found["SharedFunctionalGroupsSequence"].is_undefined_length = ends
    assert listed_and_read(saved(path, found)) == (8, 8, 1)
    assert not dicom.read_dicom(path.read_bytes(), "c.dcm", Reading()).any()  # 75 is black


def test_large_pixels_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom_files.write(tmp_path / "c.dcm", np.zeros((400, 400), np.uint16))
    monkeypatch.setattr(dicom_elements, "MAX_OTHERS", 50_000)
    assert dicom.read_dicom(path.read_bytes(), "c.dcm", Reading()).shape == (400, 400, 1)


def test_a_deflated_file_of_usual_size_is_listed(tmp_path: Path) -> None:
    path = dicom_files.write(tmp_path / "c.dcm", np.zeros((400, 400), np.uint16))
    found = pydicom.dcmread(path)
    found.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert listed_and_read(saved(path, found)) == (400, 400, 1)


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
