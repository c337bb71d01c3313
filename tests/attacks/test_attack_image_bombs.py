"""A small file in a site's folder that takes its memory, or hours, when it is opened.

The number of pixels was looked at, but not what else a format lets a file say: how many frames, how
many colours six bytes of a palette stand for, how large a tile is of which one corner is shown, how
often all pixels are gone over. The columns of a CSV were compared each with all others.

Every case is first shown to be one: by what pydicom, Pillow or the old lines do with it.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import dicom_files
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit

from fedsight.core.errors import DataError
from fedsight.data.csv_file import _check_header, csv_rows
from fedsight.data.images import dicom, pixels, tiff
from fedsight.data.images.palette import MAX_COLOURS
from fedsight.data.images.windowing import Reading

# DICOM --------------------------------------------------------------------------------------------


def with_palette(folder: Path, words: list[int], bits: int = 16) -> bytes:
    """A DICOM file of 8 x 8 pixels whose three palettes are these segments."""
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    data = struct.pack(f"<{len(words)}{'H' if bits == 16 else 'B'}", *words)
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"Segmented{name}PaletteColorLookupTableData"] = data
    path = dicom_files.write(folder / "a.dcm", np.zeros((8, 8), np.uint8), **elements)
    return bytes(path.read_bytes())


LINEAR = [1, 65535, 7]  # 65,535 colours
BOMBS = [
    [0, 1, 7, *LINEAR * 2],
    [0, 1, 7, *LINEAR, 2, 1, 3, 0],  # copies the one at the third word
    [0, 1, 7, 2, 9, 0, 0],  # copies itself
    [0, 1, 7, *[1, 0, 7] * 70_000],
]


@pytest.mark.parametrize("words", BOMBS)
def test_a_palette_of_more_colours_than_there_are_numbers_is_not_expanded(
    tmp_path: Path, words: list[int]
) -> None:
    with pytest.raises(DataError, match="more than 65,536 colours"):
        dicom.read_dicom(with_palette(tmp_path, words), "scan.dcm", Reading())


def test_six_bytes_of_a_palette_become_half_a_megabyte() -> None:
    from pydicom.pixels.processing import _expand_segmented_lut

    assert len(_expand_segmented_lut((0, 1, 7, *LINEAR * 3), "<9H")) == 1 + 3 * 65_535


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ([0, 2, 9, 500, 1, 254, 7], 16),
        ([0, 2, 9, 500, 1, 100, 7, 2, 1, 4, 0, 0, 54, *range(54)], 16),
        ([0, 2, 9, 50, 1, 100, 7, 2, 1, 4, 0, 0, 0, 0, 54, *range(54)], 8),
    ],
)
def test_honest_segments_are_counted_as_pydicom_expands_them(
    tmp_path: Path, words: list[int], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_palette(tmp_path, words, bits)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (8, 8, 3)
    monkeypatch.setattr("fedsight.data.images.palette.MAX_COLOURS", 256)
    dicom.read_dicom(data, "scan.dcm", Reading())
    monkeypatch.setattr("fedsight.data.images.palette.MAX_COLOURS", 255)
    with pytest.raises(DataError, match="has a palette"):
        dicom.read_dicom(data, "scan.dcm", Reading())
    assert MAX_COLOURS == 65_536


@pytest.mark.parametrize("count", [3, 2_000_000_000, -1])
def test_a_file_has_no_more_frames_than_its_data_hold(tmp_path: Path, count: int) -> None:
    """With `frames = "each"`, every frame is an entry in a list."""
    frames = np.zeros((2, 8, 8), np.uint8)
    path = dicom_files.write(tmp_path / "two.dcm", frames, NumberOfFrames=2)
    assert dicom.inspect(path, "two.dcm")[0] == 2
    dicom_files.write(path, frames, NumberOfFrames=count)
    with pytest.raises(DataError, match="data hold at most 2"):
        dicom.inspect(path, "two.dcm")


# TIFF and JPEG ------------------------------------------------------------------------------------


def tiled(side: int) -> bytes:
    """A TIFF of 16 x 16 pixels, in one tile of side x side."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(side)) for _ in range(side)) + packer.flush()
    facts = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    facts |= {324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(facts)) + entries + bytes(4)


def test_a_tile_larger_than_an_image_may_be_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiled(2048)
    assert pixels.read_pixels(data, "a.tif").shape == (16, 16, 1)  # all of 4 MiB is unpacked
    monkeypatch.setattr(pixels, "MAX_PIXELS", 2_000 * 2_000)
    with pytest.raises(DataError, match="2048 x 2048 pixels"):
        pixels.read_pixels(data, "a.tif")


def in_strips(count: int, kind: str, big: bool = False, tag: int = 273) -> bytes:
    """A TIFF of 8 pixels that states where so many strips are, in numbers of a type; all are where
    the file's header is. Or it has as many numbers in another tag."""
    types = {"B": 1, "H": 3, "I": 4, "II": 5, "Q": 16}
    places = struct.pack("<" + kind * count, *[8] * count * len(kind))
    begin = 16 if big else 8
    facts = {256: (4, 1, 1), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    facts |= {273: (4, 1, begin), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 8)}
    facts[tag] = types[kind], count, begin
    form = "<HHQQ" if big else "<HHII"
    tags = b"".join(struct.pack(form, tag, *one) for tag, one in sorted(facts.items()))
    at = begin + len(places)
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, at) if big else b"II*\0" + struct.pack("<I", at)
    return head + places + struct.pack("<Q" if big else "<H", len(facts)) + tags + bytes(8)


@pytest.mark.parametrize(("kind", "big"), [("B", False), ("H", False), ("I", False), ("I", True)])
def test_a_tiff_has_no_more_strips_than_images_have(
    kind: str, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow makes an object of each when it opens a file: 40 MB took 2.4 GB, and in numbers of a
    byte 20 MB would have taken 5 GB."""
    data = in_strips(5_000, kind, big)
    assert len(Image.open(io.BytesIO(data)).tile) == 5_000
    assert pixels.seen_size(io.BytesIO(data), "a.tif") == (1, 8)
    monkeypatch.setattr(tiff, "MAX_NUMBERS", 4_999)
    for read in (pixels.read_pixels, pixels.read_stored):
        with pytest.raises(DataError, match="a TIFF with 5,000 numbers in its tag 273"):
            read(data, "a.tif")
    with pytest.raises(DataError, match="a TIFF with 5,000 numbers in its tag 273"):
        pixels.seen_size(io.BytesIO(data), "a.tif")
    monkeypatch.setattr(tiff, "check", lambda file: None)  # the weakened build
    assert pixels.seen_size(io.BytesIO(data), "a.tif") == (1, 8)


def test_nor_has_it_more_numbers_in_other_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million fractions as its resolution took 33 times their bytes."""
    data = in_strips(5_000, "II", tag=282)
    with pytest.warns(UserWarning, match="tag 282 had too many entries: 5000"):  # they are made
        assert pixels.seen_size(io.BytesIO(data), "a.tif") == (1, 8)
    monkeypatch.setattr(tiff, "MAX_NUMBERS", 4_999)
    with pytest.raises(DataError, match="a TIFF with 5,000 numbers in its tag 282"):
        pixels.seen_size(io.BytesIO(data), "a.tif")


def scanned(times: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


def test_a_jpeg_is_not_gone_over_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pixels.read_pixels(scanned(0), "a.jpg").shape == (64, 64, 1)
    with pytest.raises(DataError, match="more than 100 scans"):
        pixels.read_pixels(scanned(100), "a.jpg")
    monkeypatch.setattr(pixels, "MAX_SCANS", 1000)
    assert pixels.read_pixels(scanned(100), "a.jpg").shape == (64, 64, 1)  # Pillow never minds


def compressed(folder: Path, *frames: bytes, syntax: UID = JPEGBaseline8Bit) -> bytes:
    """A DICOM file of 64 x 64 pixels whose frames are these JPEGs, or of another syntax."""
    path = folder / "a.dcm"
    dicom_files.write(path, np.zeros((len(frames), 64, 64), np.uint8))
    found = pydicom.dcmread(path)
    found.PixelData = encapsulate(list(frames))
    found["PixelData"].is_undefined_length = True
    found.file_meta.TransferSyntaxUID = syntax
    found.save_as(path)
    return path.read_bytes()


def test_nor_is_one_in_a_dicom_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """65 kB of a million pixels, whose scans come 5,000 times, took three seconds."""
    data = compressed(tmp_path, scanned(0), scanned(100))
    assert dicom.read_dicom(data, "scan.dcm", Reading(), 0).shape == (64, 64, 1)
    with pytest.raises(DataError, match="more than 100 scans"):
        dicom.read_dicom(data, "scan.dcm", Reading(), 1)
    monkeypatch.setattr(pixels, "MAX_SCANS", 1000)  # the weakened build: pydicom never minds
    assert dicom.read_dicom(data, "scan.dcm", Reading(), 1).shape == (64, 64, 1)


def test_what_follows_a_photo_is_not_counted() -> None:
    """Phones append films, and put small pictures into a photo's metadata."""
    photo = scanned(0)
    small = b"\xff\xe1" + struct.pack(">H", 2 + 2 * 200) + b"\xff\xda" * 200
    for data in (photo + b"\xff\xda" * 200, photo[:2] + small + photo[2:]):
        assert pixels.read_pixels(data, "a.jpg").shape == (64, 64, 1)


# CSV ----------------------------------------------------------------------------------------------


def test_many_columns_take_no_longer_than_their_number(tmp_path: Path) -> None:
    """Each name was looked for in all before it: a million of them took hours."""

    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

    header = [Name(f"c{number}") for number in range(500)] + ["path"]
    _check_header(tmp_path, header, ["path"], "", ",")
    assert Name.compared < 5_000
    path = tmp_path / "a.csv"
    path.write_text("path,a,b,a\n")
    with pytest.raises(DataError, match="columns 2 and 4 are both called 'a'"):
        list(csv_rows(path, ["path"], ""))
