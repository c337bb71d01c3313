"""What the pixels of a mask stand for: as numbers, values, palettes and colours."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import sources
from fedsight.data.images.mask_settings import coding, problems
from fedsight.data.images.mask_values import Coding, Numbers

CLASSES = ("ground", "car", "road sign")
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
SHAPES = np.array([[0, 0, 1], [2, 2, 1]], np.uint8)


def encoded(image: Image.Image | Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def palette(numbers: Any, colours: list[tuple[int, int, int]]) -> Image.Image:
    values = np.asarray(numbers, np.uint8)
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([level for colour in colours for level in colour])
    return image


def png(row: bytes, bits: int, width: int, colours: list[tuple[int, int, int]] | None) -> bytes:
    """A PNG of one row that Pillow would not write: grey, or with a palette of any length."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, 1, bits, 3 if colours else 0, 0, 0, 0)
    table = bytes(level for colour in colours or () for level in colour)
    chunks = [chunk(b"IHDR", head), chunk(b"PLTE", table) if colours else b""]
    chunks += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def code(**settings: Any) -> Coding:
    """As the source makes it, with the table in `settings` read as from a config."""
    source: Any = sources.get("masks")(path="x", classes=CLASSES, **settings)
    assert source.check() == [] or all(one.where == "data.path" for one in source.check())
    again: Any = sources.get("masks").model_validate({"path": "x", **_plain(source.table())})
    assert again.values == source.values
    assert again.colours == source.colours
    assert again.ignored == source.ignored
    return coding(source.classes, source.values, source.colours, source.ignored)


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    return {key: table[key] for key in ("classes", "values", "colours", "ignored")}


def read(image: Any, coded: Coding | None = None, kind: str = "PNG") -> Numbers:
    data = image if isinstance(image, bytes) else encoded(image, kind)
    return (coded or code()).numbers(data, "m.png", "list.csv, line 2")


def refused(image: Any, coded: Coding | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read(image, coded)
    assert caught.value.cure
    assert "m.png" in caught.value.cause
    return caught.value


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_grey_values_and_palette_numbers_are_class_numbers(kind: str) -> None:
    assert np.array_equal(read(SHAPES, kind=kind), SHAPES)
    if kind != "PPM":
        assert np.array_equal(read(palette(SHAPES, VOC), kind=kind), SHAPES)


@given(
    st.lists(st.sampled_from([0, 1, 2, 255]), min_size=4, max_size=4).filter({1, 2}.intersection)
)
def test_255_is_no_label_beside_classes(values: list[int]) -> None:
    mask = np.array(values, np.uint8).reshape(2, 2)
    assert np.array_equal(read(mask), mask)
    assert np.array_equal(read(np.repeat(mask[..., None], 3, 2)), mask)  # grey saved as colour
    beyond = png(bytes(values), 8, 4, VOC)  # the palette has no colour for 255
    assert read(beyond).tolist() == [values]


@pytest.mark.parametrize("values", [[0, 255], [255, 255]])
def test_black_and_white_is_refused_with_the_setting_that_maps_it(values: list[int]) -> None:
    mask = np.array([values], np.uint8)
    error = refused(mask)
    assert "data.values = {ground = 0, car = 255, ...}" in error.cure
    assert "data.ignored = [255]" in error.cure
    mapped = code(values={"ground": 0, "car": 255, "road sign": [7, 9]})
    assert read(mask, mapped).tolist() == [[values[0] // 255, 1]]
    assert read(np.array([[7, 9]], np.uint8), mapped).tolist() == [[2, 2]]
    assert read(mask, code(ignored=[255])).tolist() == [values]
    assert "not name: 3 in 1 pixel" in refused(np.array([[0, 3]], np.uint8), mapped).cause


def test_few_bits_are_read_as_stored() -> None:
    one = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read(one).tolist() == [[0, 1]]
    whitened = code(values={"ground": 0, "car": 255, "road sign": 5})
    assert read(one, whitened).tolist() == [[0, 1]]
    two = encoded(palette([[0, 2, 1]], VOC), bits=2)
    assert read(two).tolist() == [[0, 2, 1]]


def test_grey_values_of_two_and_four_bits_are_not_stretched() -> None:
    assert read(png(bytes([0b00011000]), 2, 3, None)).tolist() == [[0, 1, 2]]
    assert read(png(bytes([0x01, 0x20]), 4, 3, None)).tolist() == [[0, 1, 2]]
    stretched = code(values={"ground": 0, "car": 85, "road sign": 170})
    assert read(png(bytes([0b00011000]), 2, 3, None), stretched).tolist() == [[0, 1, 2]]


def test_a_palette_of_greys_is_grey() -> None:
    """As programs write that make files small: the grey is what was meant, not its number."""
    assert read(palette([[0, 1]], [(0, 0, 0), (2, 2, 2)])).tolist() == [[0, 2]]
    assert read(palette([[1, 0]], [(1, 1, 1), (0, 0, 0)])).tolist() == [[0, 1]]
    assert "data.values" in refused(palette([[0, 1]], [(0, 0, 0), (255, 255, 255)])).cure
    # one colour elsewhere in the palette: the grey of class 2 is only how it is drawn
    drawn = [(0, 0, 0), (128, 0, 0), (128, 128, 128)]
    assert read(palette([[0, 2]], drawn)).tolist() == [[0, 2]]
    assert read(palette([[0, 2]], [(0, 0, 0)] * 3)).tolist() == [[0, 2]]


def test_palettes_that_number_colours_differently_are_refused() -> None:
    coded = code()
    assert read(palette([[0, 1]], VOC), coded).tolist() == [[0, 1]]
    error = refused(palette([[0, 1]], [(0, 0, 0), (0, 128, 0)]), coded)
    assert "number 1 of the palette is #008000, but #800000 in list.csv, line 2" in error.cause
    assert "data.colours" in error.cure
    named = code(colours={"ground": "#000000", "car": "#800000", "road sign": [0, 128, 0]})
    assert read(palette([[0, 1]], [(0, 0, 0), (0, 128, 0)]), named).tolist() == [[0, 2]]


def test_colours_are_read_by_their_table() -> None:
    table = {"ground": "#000000", "car": [[128, 0, 0], "C00000"], "road sign": [0, 128, 0]}
    coded = code(colours=table, ignored=[[224, 224, 192]])
    colours = np.array([[(0, 0, 0), (128, 0, 0), (192, 0, 0), (0, 128, 0), (224, 224, 192)]])
    image = colours.astype(np.uint8)
    assert read(image, coded).tolist() == [[0, 1, 1, 2, 255]]
    opaque = np.concatenate([image, np.full((1, 5, 1), 255, np.uint8)], axis=2)
    assert read(opaque, coded).tolist() == [[0, 1, 1, 2, 255]]
    clear = opaque.copy()
    clear[0, 0, 3] = 7
    assert "transparent" in refused(clear, coded).cause
    image[0, 3] = (0, 0, 255)
    assert "#0000ff in 1 pixel" in refused(image, coded).cause
    without = refused(image)
    assert "#0000ff in 1 pixel" in without.cause
    assert 'data.colours = {ground = "#000000", car = ' in without.cure
    assert '"road sign" = ' in without.cure


def test_blurred_masks_are_refused_with_that_hint() -> None:
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    coloured = np.stack([ramp, ramp // 2, ramp // 3], axis=2)
    named = code(colours={"ground": "#000000", "car": "#800000", "road sign": "#008000"})
    for image, coded in ((ramp, None), (coloured, None), (coloured, named)):
        error = refused(image, coded)
        assert "smoothed" in error.cause
    for kind in ("JPEG", "WEBP"):
        assert "JPEG" in refused(encoded(np.zeros((8, 8, 3), np.uint8), kind)).cause
    assert "JPEG" in refused(encoded(ramp, "TIFF", compression="jpeg")).cause
    assert read(encoded(np.repeat(SHAPES[..., None], 3, 2), "WEBP", lossless=True)).tolist() == (
        SHAPES.tolist()
    )


def test_masks_that_number_objects_are_refused() -> None:
    error = refused(np.array([[0, 1, 2]], np.uint16))
    assert "as if it numbered objects" in error.cause
    assert "data.values" in error.cure
    coded = code(values={"ground": 0, "car": [7001, 7002], "road sign": 24000})
    assert read(np.array([[0, 7002, 24000]], np.uint16), coded).tolist() == [[0, 1, 2]]
    assert "numbers objects" in refused(np.arange(40, dtype=np.uint8)[None]).cause


@pytest.mark.parametrize(
    ("settings", "where", "cause"),
    [
        ({"values": {"ground": 0, "car": 1}}, "data.values", "class 'road sign' has no value"),
        ({"values": dict.fromkeys(CLASSES, 1)}, "data.values", "1 stands for two things"),
        ({"colours": {"cars": "#000000"}}, "data.colours", "'cars' is not in data.classes"),
        ({"ignored": ["#000000"]}, "data.ignored", "is not one of the values"),
    ],
)
def test_settings_that_contradict_are_named(settings: Any, where: str, cause: str) -> None:
    source: Any = sources.get("masks")(path="x", classes=CLASSES, **settings)
    found = problems(source.classes, source.values, source.colours, source.ignored)
    assert any(one.where == where and cause in one.cause and one.cure for one in found)


@pytest.mark.parametrize(
    "settings",
    [
        {"values": {"ground": -1}},
        {"values": {"ground": 0.5}},
        {"colours": {"ground": "red"}},
        {"colours": {"ground": [0, 0, 256]}},
        {"ignored": [[1, 2]]},
    ],
)
def test_values_and_colours_have_a_form(settings: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        sources.get("masks")(path="x", classes=CLASSES, **settings)
