"""A HEIC file of a few kilobytes that takes days to be decoded, or gigabytes.

The size of the image that is shown was looked at. But such a file says how this is made of others:
it may name one a thousand times, and what it names may do so, too; lay it on a canvas whose size is
said elsewhere; or cut most of it away. And what belongs to an image, such as its Exif, may belong
to a thousand images: there is one copy in the file, and a thousand once it is open.

Every case is first shown to be one: by what pillow-heif does with it.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import pillow_heif
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.images import heif, pixels

SIDE = 64  # of a tile
TILE, GRID, XMP = b"hvc1", b"grid", b"mime"


def box(kind: bytes, *content: bytes) -> bytes:
    whole = b"".join(content)
    return struct.pack(">I4s", 8 + len(whole), kind) + whole


def full(kind: bytes, *content: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *content)


def ispe(side: int) -> bytes:
    return full(b"ispe", struct.pack(">II", side, side))


@dataclass(frozen=True)
class Item:
    """An item of a file: its kind and data, and which of the file's properties it has."""

    kind: bytes
    data: bytes
    properties: tuple[int, ...] = ()


Reference = tuple[bytes, int, Sequence[int]]  # its kind, from which item, to which


@cache
def tile(side: int = SIDE) -> tuple[bytes, bytes]:
    """The configuration and the data of an image of one colour."""
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (side, side), (90, 80, 70))).save(stream)
    whole = stream.getvalue()
    at = whole.index(b"hvcC") - 4
    (length,) = struct.unpack_from(">I", whole, at)
    begin = whole.index(b"mdat") + 4
    return whole[at : at + length], whole[begin:]


def written(
    items: Iterable[Item], references: Iterable[Reference], *properties: bytes, twice: bool = False
) -> bytes:
    """A HEIC file whose last image is shown; items and properties are numbered from 1. Equal data
    are there once. `twice`: where they are is said twice, and then that each has one byte."""
    numbered = dict(enumerate(items, 1))
    shown = max(number for number, item in numbered.items() if item.kind != XMP)
    data = list(dict.fromkeys(item.data for item in numbered.values()))
    named = b"".join(
        full(b"infe", struct.pack(">HH4s", number, 0, item.kind), b"\0", _content(item), version=2)
        for number, item in numbered.items()
    )
    pointed = b"".join(
        box(kind, struct.pack(">HH", source, len(to)), struct.pack(f">{len(to)}H", *to))
        for kind, source, to in references
    )
    with_some = {number: item.properties for number, item in numbered.items() if item.properties}
    belongs = b"".join(
        struct.pack(">HB", number, len(its)) + bytes(its) for number, its in with_some.items()
    )

    def meta(begin: int) -> bytes:
        starts = {one: begin + sum(map(len, data[:place])) for place, one in enumerate(data)}
        rows = b"".join(
            struct.pack(">HHHII", number, 0, 1, starts[item.data], 1 if again else len(item.data))
            for again in range(1 + twice)
            for number, item in numbered.items()
        )
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", shown)),
            full(b"iinf", struct.pack(">H", len(numbered)), named),
            full(b"iref", pointed),
            box(
                b"iprp",
                box(b"ipco", *properties),
                full(b"ipma", struct.pack(">I", len(with_some)), belongs),
            ),
            full(b"iloc", b"\x44\0", struct.pack(">H", len(numbered) * (1 + twice)), rows),
        )

    head = box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic")
    begin = len(head) + len(meta(0)) + 8
    return head + meta(begin) + box(b"mdat", *data)


def _content(item: Item) -> bytes:
    return b"application/rdf+xml\0" if item.kind == XMP else b""


def grid(rows: int, columns: int, side: int) -> bytes:
    return struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, side, side)


def grids(times: int, side: int = SIDE, across: int = 4) -> bytes:
    """A file whose image is a grid of grids of grids, so many times, of tiles. Some decoders refuse
    one that is named twice in a grid: so there are as many of each as a grid has places."""
    coded, data = tile()
    many = across**2 if times else 1
    items, references = [Item(TILE, data, (1, 2))] * many, []
    for _ in range(times):
        below = range(len(items) - many + 1, len(items) + 1)
        items += [Item(GRID, grid(across, across, side), (3,))] * many
        references += [(b"dimg", one + many, below) for one in below]
    return written(items, references, coded, ispe(SIDE), ispe(side))


def canvas(side: int, stated: int = SIDE) -> bytes:
    """A file whose image is a tile on a canvas of a side that only the item's data tell."""
    coded, data = tile()
    size = struct.pack(">BBHHHHIIii", 0, 1, 0, 0, 0, 65535, side, side, 0, 0)
    items = Item(TILE, data, (1, 2)), Item(b"iovl", size, (3,))
    return written(items, [(b"dimg", 2, [1])], coded, ispe(SIDE), ispe(stated))


def with_texts(images: int, texts: int, size: int, twice: bool = False) -> bytes:
    """A file of so many images, to each of which belong so many texts, which are the same one."""
    coded, data = tile()
    items = [Item(TILE, data, (1, 2))] * images + [Item(XMP, b"<" + b"a" * (size - 1))] * texts
    everyone = range(1, images + 1)
    references = [(b"cdsc", images + 1 + number, everyone) for number in range(texts)]
    return written(items, references, coded, ispe(SIDE), twice=twice)


def naive(data: bytes, pixels: int) -> None:
    """The weakened build: nobody looks at boxes."""


def decodings(data: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many pixels the check counts."""
    with monkeypatch.context() as patched:
        patched.setattr(heif, "MOST", 0)
        with pytest.raises(DataError, match="made of images of") as caught:
            pixels.read_pixels(data, "a.heic")
    return int(re.findall(r"of ([\d,]+) pixels", str(caught.value))[0].replace(",", ""))


def test_a_tile_is_decoded_for_each_place_in_each_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what comes out: a grid shows the whole of its tile only where it leaves room for it."""
    whole = pixels.read_pixels(grids(1, 2 * SIDE, 2), "a.heic")
    assert whole.shape == (2 * SIDE, 2 * SIDE, 3)
    assert whole[-1, -1].tolist() == whole[0, 0].tolist() != [0, 0, 0]
    counted = [decodings(grids(times), monkeypatch) for times in range(4)]
    assert counted == [heif.LEAST * sum(16**k for k in range(times + 1)) for times in range(4)]


def test_a_file_of_kilobytes_does_not_take_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of a hundred tiles of 4096 x 4096, in 4.6 kB, took 12 seconds; a grid of these, 20
    minutes; and of those, more than a day."""
    assert pixels.read_pixels(grids(2), "a.heic").shape == (SIDE, SIDE, 3)  # 256 tiles
    data = grids(9)
    assert len(data) < 20_000
    with pytest.raises(DataError, match="is too large to be opened safely: made of images of"):
        pixels.read_pixels(data, "a.heic")
    monkeypatch.setattr(heif, "check", naive)
    assert pixels.read_pixels(grids(3), "a.heic").shape == (SIDE, SIDE, 3)  # 4,096 of them


def test_images_that_are_made_of_one_another_are_refused() -> None:
    coded, data = tile()
    items = [Item(TILE, data, (1, 2)), *[Item(GRID, grid(1, 1, SIDE), (2,))] * 2]
    circle = written(items, [(b"dimg", 2, [3]), (b"dimg", 3, [2])], coded, ispe(SIDE))
    with pytest.raises(DataError, match="made of one another"):
        pixels.read_pixels(circle, "a.heic")


def test_what_is_cut_away_is_decoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 32,768 x 32,768 of which 32 x 32 are shown took two gigabytes."""
    coded, data = tile(8 * SIDE)
    cut = box(b"clap", struct.pack(">8I", 32, 1, 32, 1, 0, 1, 0, 1))
    made = written([Item(TILE, data, (1, 2, 3))], [], coded, ispe(8 * SIDE), cut)
    assert pixels.read_pixels(made, "a.heic").shape == (32, 32, 3)
    monkeypatch.setattr(pixels, "MAX_PIXELS", (8 * SIDE) ** 2 - 1)
    with pytest.raises(DataError, match="262,144 pixels, before it is cut"):
        pixels.read_pixels(made, "a.heic")
    monkeypatch.setattr(heif, "check", naive)
    assert pixels.read_pixels(made, "a.heic").shape == (32, 32, 3)


def test_a_canvas_has_another_size_than_its_image_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """458 bytes took three gigabytes, for a canvas of 32,768 x 32,768, before they were refused."""
    for side, stated in ((SIDE, SIDE), (8 * SIDE, 8 * SIDE), (8 * SIDE, SIDE)):
        with pytest.raises(DataError, match="made of images over one another"):
            pixels.read_pixels(canvas(side, stated), "a.heic")
    monkeypatch.setattr(heif, "check", naive)
    assert pixels.read_pixels(canvas(8 * SIDE, 8 * SIDE), "a.heic").shape == (512, 512, 3)
    with pytest.raises(DataError, match="not have the size signaled"):  # once it is made
        pixels.read_pixels(canvas(8 * SIDE), "a.heic")


def copied(data: bytes) -> int:
    """The bytes of texts that pillow-heif holds once a file is open."""
    held = 0
    for image in pillow_heif.open_heif(io.BytesIO(data)):
        held += len(image.info.get("xmp", b""))
        held += sum(len(one["data"]) for one in image.info["metadata"])
    return held


def test_a_text_is_copied_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a megabyte took a gigabyte when it was opened, of ten megabytes ten."""
    data = with_texts(50, 1, 10_000)
    assert copied(data) == 50 * 10_000 > 30 * len(data)
    assert upright_of(data) == (SIDE, SIDE)
    monkeypatch.setattr(heif, "MAX_COPIED", 50 * 10_000 - 1)
    for read in (upright_of, lambda found: pixels.read_pixels(found, "a.heic")):
        with pytest.raises(DataError, match="500,000 bytes of metadata and profiles"):
            read(data)
    monkeypatch.setattr(heif, "check", naive)
    assert upright_of(data) == (SIDE, SIDE)


def test_where_a_text_is_cannot_be_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder takes the first, with all bytes; the check took the last, with one."""
    data = with_texts(50, 1, 10_000, twice=True)
    assert copied(data) == 50 * 10_000
    with pytest.raises(DataError, match="says twice where an item is"):
        upright_of(data)
    monkeypatch.setattr(heif, "check", naive)
    assert upright_of(data) == (SIDE, SIDE)


def test_transparency_that_does_not_state_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was decoded whole, whatever its size, and counted as an image of 65,536 pixels: 32 kB with
    sixteen of 142 million pixels took 1.3 GB and ten seconds."""
    coded, data = tile()
    name = full(b"auxC", b"urn:mpeg:hevc:2015:auxid:1\0")
    for properties, decoded in (((1, 2, 3), True), ((1, 3), False)):
        items = Item(TILE, data, properties), Item(TILE, data, (1, 2))
        made = written(items, [(b"auxl", 1, [2])], coded, ispe(SIDE), name)
        if decoded:
            assert pixels.read_pixels(made, "a.heic").shape == (SIDE, SIDE, 3)
            continue
        with pytest.raises(DataError, match="does not state its size"):
            pixels.read_pixels(made, "a.heic")
        monkeypatch.setattr(heif, "check", naive)
        assert pillow_heif.open_heif(io.BytesIO(made)).mode == "RGBA"  # it is a part of the image
        assert pixels.read_pixels(made, "a.heic").shape == (SIDE, SIDE, 3)


def upright_of(data: bytes) -> tuple[int, int]:
    return pixels.seen_size(io.BytesIO(data), "a.heic")


def test_so_is_the_profile_of_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    coded, data = tile()
    profile = box(b"colr", b"prof", bytes(10_000))
    made = written([Item(TILE, data, (1, 2, 3))] * 50, [], coded, ispe(SIDE), profile)
    images = pillow_heif.open_heif(io.BytesIO(made))
    assert sum(len(image.info["icc_profile"]) for image in images) == 50 * 10_000
    monkeypatch.setattr(heif, "MAX_COPIED", 50 * 10_000)
    with pytest.raises(DataError, match="500,200 bytes"):
        upright_of(made)


def test_profiles_of_tiles_that_are_hidden_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tiles of telephones are: a photo of hundreds may have a large profile on each."""
    coded, data = tile()
    profile = box(b"colr", b"prof", bytes(10_000))
    items = [*[Item(TILE, data, (1, 2, 4))] * 16, Item(GRID, grid(4, 4, 4 * SIDE), (3, 4))]
    references = [(b"dimg", 17, range(1, 17))]
    shown = written(items, references, coded, ispe(SIDE), ispe(4 * SIDE), profile)
    hidden = shown.replace(b"infe" + bytes([2, 0, 0, 0]), b"infe" + bytes([2, 0, 0, 1]), 16)
    monkeypatch.setattr(heif, "MAX_COPIED", 20_000)
    assert pixels.read_pixels(hidden, "a.heic").shape == (4 * SIDE, 4 * SIDE, 3)
    images = list(pillow_heif.open_heif(io.BytesIO(hidden)))
    assert [len(image.info["icc_profile"]) for image in images] == [10_000]
    with pytest.raises(DataError, match="170,068 bytes of metadata"):
        pixels.read_pixels(shown, "a.heic")


def test_a_file_that_does_not_tell_of_what_it_is_made_is_refused() -> None:
    """The box `mini` says it all in one, and is no film either."""
    made = box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic") + box(b"mini", bytes(40))
    with pytest.raises(DataError, match="do not tell of what it is made"):
        pixels.read_pixels(made, "a.heic")


def test_boxes_that_say_nothing_without_end_are_not_read_without_end() -> None:
    """A million extents of no bytes are told in eight."""
    coded, data = tile()
    made = written([Item(TILE, data, (1, 2))], [], coded, ispe(SIDE))
    at = made.index(b"iloc") + 8
    endless = made[:at] + b"\0\0" + made[at + 2 : at + 8] + b"\xff\xff" + made[at + 10 :]
    endless = endless.replace(made[at + 2 : at + 4], b"\xff\xff", 1)
    for broken in (endless, made[:at], made[: at + 5], made[:40]):
        with pytest.raises(DataError):
            pixels.read_pixels(broken, "a.heic")


def test_honest_files_are_read_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """With transparency, Exif, XMP, several images and thumbnails, as pillow-heif writes them."""
    first = Image.new("RGBA", (300, 200), (200, 30, 40, 128))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = pillow_heif.from_pillow(first)
    made.add_from_pillow(Image.new("RGB", (64, 64)))
    stream = io.BytesIO()
    made.save(stream, exif=exif.tobytes(), xmp=b"<x/>", quality=90)
    data = stream.getvalue()
    found = pixels.read_pixels(data, "a.heic")
    assert decodings(data, monkeypatch) < 400_000
    for appended in (b"\0", b"what no box begins with", bytes(100)):
        assert (found == pixels.read_pixels(data + appended, "a.heic")).all()
        with pytest.raises(DataError, match="made of images of"):
            pixels.read_pixels(grids(9) + appended, "a.heic")
    monkeypatch.setattr(heif, "check", naive)
    assert (found == pixels.read_pixels(data, "a.heic")).all()
