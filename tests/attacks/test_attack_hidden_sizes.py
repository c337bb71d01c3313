"""A small file whose sizes are seen by its decoder, and not by who looks at it before.

Scans of a JPEG were counted, and tiles of a TIFF measured, by a reader that skips what the decoder
does not skip, or does not know a number that it knows. And what a JPEG 2000 file is divided into,
or how long an outline is, was looked at by nobody: both take memory that pixels do not need.

Every case is first shown to be one: by what Pillow or pycocotools do with it.
"""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000
from test_attack_image_bombs import compressed

from fedsight.core.errors import DataError
from fedsight.data.detection.objects import Object
from fedsight.data.images import dicom, jpeg2000, pixels, tiff
from fedsight.data.images.windowing import Reading
from fedsight.data.segmentation import outlined


def grown(work: str, folder: Path) -> int:
    """By how many bytes a process grows at most while it does `work`, in Python, in a folder."""
    code = (
        "import contextlib, pathlib, re\n"
        "from PIL import Image\n"
        "from pycocotools import mask\n"
        "told = pathlib.Path('/proc/self/status').read_text\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', told())[1])\n"
        f"before = peak()\n{work}\nprint(peak() - before)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return int(told.stdout)


def picture(kind: str, mode: str = "L", side: int = 64, **settings: Any) -> bytes:
    """A noisy picture in a file."""
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **settings)
    return file.getvalue()


# JPEG ---------------------------------------------------------------------------------------------

OLD = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")  # what was taken for a segment
TEM = b"\xff\x01"  # no segment follows it
END = b"\xff\xd9"


def scans() -> list[bytes]:
    """The head of a progressive JPEG, and its scans with the tables before each."""
    data = picture("JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    tables = [found.start() for found in re.finditer(b"\xff\xc4", data)]
    begins = [
        min(at for at in [*tables, start] if before < at <= start)
        for before, start in zip([0, *starts], starts, strict=False)
    ]
    ends = [*begins[1:], len(data) - len(END)]
    return [data[: begins[0]], *(data[a:b] for a, b in zip(begins, ends, strict=True))]


def hidden(times: int) -> bytes:
    """A JPEG whose last scan comes so many times more, each behind what is no segment."""
    whole = b"".join(scans())
    return whole + times * (TEM + whole[whole.rindex(b"\xff\xda") :]) + END


def test_a_decoder_sees_the_scan_behind_a_marker_without_a_segment() -> None:
    *others, last = scans()

    def shown(data: bytes) -> list[Any]:
        return list(np.asarray(Image.open(io.BytesIO(data))).tolist())

    whole, without = b"".join([*others, last]), b"".join(others)
    assert shown(without + TEM + last + END) == shown(whole + END) != shown(without + END)


def test_scans_behind_it_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pixels.read_pixels(hidden(50), "a.jpg").shape == (64, 64, 1)
    with pytest.raises(DataError, match="more than 100 scans"):
        pixels.read_pixels(hidden(2000), "a.jpg")
    monkeypatch.setattr(pixels, "_MARKER", OLD)  # the weakened build
    assert pixels.read_pixels(hidden(2000), "a.jpg").shape == (64, 64, 1)


def test_they_are_in_a_dicom_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = compressed(tmp_path, hidden(2000))
    with pytest.raises(DataError, match="more than 100 scans"):
        dicom.read_dicom(data, "scan.dcm", Reading())
    monkeypatch.setattr(pixels, "_MARKER", OLD)
    assert dicom.read_dicom(data, "scan.dcm", Reading()).shape == (64, 64, 1)


# TIFF ---------------------------------------------------------------------------------------------

COMPRESSION, WIDTH, HEIGHT = 259, 322, 323
SHORT, LONG, SIGNED = 3, 4, 17  # types of numbers; the last has eight bytes, and a sign
SIDE = 2048


def tiled(*sides: tuple[int, int, int]) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile of SIDE x SIDE, whose `sides` are stated so: tag, type
    and value. The side in eight bytes is at byte 8 of the file."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(SIDE)) for _ in range(SIDE)) + packer.flush()
    facts = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 324: 16, 325: len(data)}
    entries = [*sides, *((tag, LONG, value) for tag, value in facts.items())]
    table = [struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in sorted(entries, key=first)]
    head = b"II*\0" + struct.pack("<IQ", 16 + len(data), SIDE) + data
    return head + struct.pack("<H", len(table)) + b"".join(table) + bytes(4)


def first(entry: tuple[int, int, int]) -> int:
    return entry[0]


UNKNOWN = ((WIDTH, SIGNED, 8), (HEIGHT, SIGNED, 8))  # to Pillow, which leaves them out
TWICE = ((WIDTH, SIGNED, 8), (WIDTH, LONG, 16), (HEIGHT, SIGNED, 8), (HEIGHT, LONG, 16))


@pytest.mark.parametrize("sides", [UNKNOWN, TWICE], ids=["unknown", "twice"])
def test_a_tile_is_as_large_as_its_decoder_takes_it_for(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[tuple[int, int, int], ...]
) -> None:
    monkeypatch.setattr(pixels, "MAX_PIXELS", 2_000 * 2_000)
    with pytest.raises(DataError, match="its tag 322 can be read in two ways"):
        pixels.read_pixels(tiled(*sides), "a.tif")
    monkeypatch.setattr(tiff, "tile", lambda data, at: (0, 0))
    assert pixels.read_pixels(tiled(*sides), "a.tif").shape == (16, 16, 1)  # 4 MiB are unpacked


def test_nor_is_its_compression_another_one() -> None:
    """Pillow knows which it reads; one that it leaves out may be any that libtiff has."""
    jbig = (COMPRESSION, SIGNED, 8)
    data = tiled(jbig, (WIDTH, LONG, SIDE), (HEIGHT, LONG, SIDE))
    with pytest.raises(DataError, match="its tag 259 can be read in two ways"):
        pixels.read_pixels(data, "a.tif")


@pytest.mark.parametrize("kind", [SHORT, LONG])
def test_honest_tiles_are_measured(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    data = tiled((WIDTH, kind, SIDE), (HEIGHT, kind, SIDE))
    assert pixels.read_pixels(data, "a.tif").shape == (16, 16, 1)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 2_000 * 2_000)
    with pytest.raises(DataError, match="2048 x 2048 pixels"):
        pixels.read_pixels(data, "a.tif")


@pytest.mark.parametrize("settings", [{}, {"big_tiff": True}, {"compression": "tiff_deflate"}])
def test_files_without_tiles_are_read(settings: dict[str, Any]) -> None:
    assert pixels.read_pixels(picture("TIFF", **settings), "a.tif").shape == (64, 64, 1)


# JPEG 2000 ----------------------------------------------------------------------------------------


def divided(side: int, precinct: int) -> bytearray:
    """A black JPEG 2000 codestream of one resolution, whose precincts have this log2 of sides."""
    made = io.BytesIO()
    Image.new("L", (side, side)).save(made, "JPEG2000", no_jp2=True, num_resolutions=1)
    data = made.getvalue()
    at = data.index(b"\xff\x52")
    end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
    segment = bytearray(data[at:end] + bytes([precinct | precinct << 4]))
    segment[4] |= 1  # precincts are stated
    struct.pack_into(">H", segment, 2, len(segment) - 2)
    return bytearray(data[:at] + segment + data[end:])


def enlarged(data: bytes, side: int) -> bytes:
    """The same with another size of the image, and of its one tile."""
    made, at = bytearray(data), data.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">II", made, at, side, side)
    struct.pack_into(">II", made, at + 16, side, side)
    return bytes(made)


def test_a_precinct_for_each_pixel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, data = 1000, bytes(divided(1000, 0))
    (tmp_path / "a.j2k").write_bytes(data)
    work = "with contextlib.suppress(OSError):\n  Image.open('a.j2k').load()"
    assert grown(work, tmp_path) > 100 * side**2
    with pytest.raises(DataError, match=r"a JPEG 2000 image of .* precincts and code-blocks"):
        pixels.read_pixels(enlarged(data, 9000), "a.j2k")  # would take 30 GB
    monkeypatch.setattr(jpeg2000, "MAX_BLOCKS", side**2)
    with pytest.raises(DataError, match="precincts and code-blocks"):
        pixels.read_pixels(data, "a.j2k")


def test_a_small_picture_holds_no_large_one() -> None:
    """The size in a JP2 file's head is not that of what is decoded."""
    data = enlarged(picture("JPEG2000"), 100_000)
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    with pytest.raises(DataError, match="100000 x 100000 pixels"):
        pixels.read_pixels(data, "a.jp2")


def test_thousands_of_layers_are_refused() -> None:
    data = divided(1000, 4)
    struct.pack_into(">H", data, data.index(b"\xff\x52") + 6, 65_535)
    with pytest.raises(DataError, match="packets"):
        pixels.read_pixels(bytes(data), "a.j2k")


def test_precincts_are_not_hidden_behind_an_unknown_segment() -> None:
    """A decoder looks for the next segment that it knows, whatever length the other one states."""
    data = bytes(divided(64, 4))
    at = data.index(b"\xff\x52")
    length = 4 + struct.unpack_from(">H", data, at + 2)[0]
    data = data[:at] + b"\xff\x7f" + struct.pack(">H", length) + data[at:]
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (64, 64)
    with pytest.raises(DataError, match="unknown segment"):
        pixels.read_pixels(data, "a.j2k")


def with_segment(kind: int, content: bytes) -> bytes:
    """A codestream of noise that has one more segment in its main header."""
    data = picture("JPEG2000", no_jp2=True)
    at = data.index(b"\xff\x52")
    return data[:at] + struct.pack(">HH", kind, 2 + len(content)) + content + data[at:]


def test_a_profile_is_read() -> None:
    """Its end is where both look for it."""
    plain = pixels.read_pixels(picture("JPEG2000", no_jp2=True), "a.j2k")
    assert (pixels.read_pixels(with_segment(0xFF56, b"\x10\x01"), "a.j2k") == plain).all()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (0xFF56, b"\xff\x52"),  # a profile that hides the next segment
        (0xFF70, b"\0\0\1"),  # an offset of the values
        (0xFF71, b"\0\0\0\1"),  # visual masking
        (0xFF76, b"\0\0\7\0"),  # values that are not linear, which decoders leave as they are
        (0xFF79, b"\0\0\0\0"),  # another wavelet
    ],
)
def test_what_decoders_do_not_know_is_not_called_corrupt(
    tmp_path: Path, kind: int, content: bytes
) -> None:
    data = with_segment(kind, content)
    asked = pytest.raises(DataError, match=rf"has an unknown segment, {kind:04X}, .*\n.*re-encode")
    with asked as found:
        pixels.read_pixels(data, "a.j2k")
    assert "corrupt" not in str(found.value)
    wrapped = compressed(tmp_path, data, syntax=JPEG2000)
    with asked as found:
        dicom.read_dicom(wrapped, "scan.dcm", Reading())
    assert "corrupt" not in str(found.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"no_jp2": True},
        {"tile_size": (32, 32), "num_resolutions": 3},
        {"precinct_size": (32, 32), "codeblock_size": (16, 16), "progression": "RPCL"},
        {"quality_mode": "dB", "quality_layers": [20, 30, 40], "irreversible": True},
        {"plt": True, "comment": "a"},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_honest_files_are_read(settings: dict[str, Any], mode: str) -> None:
    data = picture("JPEG2000", mode, **settings)
    assert pixels.read_pixels(data, "a.jp2").shape[:2] == (64, 64)


# Outlines -----------------------------------------------------------------------------------------


def test_an_outline_takes_no_more_than_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few points to and fro across an image of one row."""
    width = 1_000_000
    points = [value for _ in range(4) for value in (0.0, 0.0, float(width), 1.0)]
    work = f"mask.frPyObjects([{points}], 1, {width})"
    assert grown(work, tmp_path) > 200 * width
    canvas = outlined.Canvas(("background", "cat"))
    one = Object("cat", (0, 0, width, 1), "a.json, annotation 1", shape=[points])
    assert canvas.painted([one], (width, 1)).shape == (1, width)
    monkeypatch.setattr(outlined, "MAX_OUTLINE", 7 * width)
    with pytest.raises(DataError, match="its outline is 8,000,000 pixels long"):
        canvas.painted([one], (width, 1))
