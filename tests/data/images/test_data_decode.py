"""Decoding: formats, bit depths, modes, orientation, fit rules, and broken files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Preprocess
from fedsight.data.images import pixels as pixels_module
from fedsight.data.images.decode import decode, raster, upright

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 5), dtype=np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (6, 5, 3), dtype=np.uint16)


def prep(channels: int = 1, height: int = 6, width: int = 5, fit: str = "stretch") -> Preprocess:
    return Preprocess(channels, height, width, fit)  # type: ignore[arg-type]


def png(values: np.ndarray) -> bytes:
    """A 16-bit PNG [h, w, c], which Pillow cannot write in colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def tiff(values: np.ndarray, order: str, compressed: bool) -> bytes:
    """A 16-bit RGB TIFF [h, w, 3] in byte order `order` (< or >), in one strip."""
    height, width, _ = values.shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8)),
        *((259, 3, 1, 8 if compressed else 1), (262, 3, 1, 2), (273, 4, 1, 14)),
        *((277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(strip)), (284, 3, 1, 1)),
    ]
    start = 14 + len(strip)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    body = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        small = kind == 3 and count == 1
        packed = struct.pack(
            f"{order}HH" if small else f"{order}I", *([value, 0] if small else [value])
        )
        body += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return head + bits + strip + body + struct.pack(f"{order}I", 0)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp", "pgm"])
def test_grey_survives_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = decode(path, prep())
    assert found.dtype == torch.float32
    assert np.array_equal(found[0].numpy(), GREY.astype(np.float32) * np.float32(1 / 255))


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp", "ppm"])
def test_colour_survives_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(raster(path, prep(3)), RGB.transpose(2, 0, 1))


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    found = raster(tmp_path / "a.jpg", prep(3, 32, 32))
    assert np.abs(found.astype(int) - smooth.transpose(2, 0, 1)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_keeps_every_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5\n5 6\n65535\n" + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(path)
    assert np.array_equal(raster(path, prep())[0], DEEP)
    assert decode(path, prep()).max() <= 1


def test_sixteen_bit_colour_keeps_every_bit(tmp_path: Path) -> None:
    files = {
        "a.png": png(DEEP_RGB),
        "little.tiff": tiff(DEEP_RGB, "<", compressed=False),
        "big.tiff": tiff(DEEP_RGB, ">", compressed=False),
        "packed.tiff": tiff(DEEP_RGB, "<", compressed=True),
        "packed_big.tiff": tiff(DEEP_RGB, ">", compressed=True),
        "a.ppm": b"P6\n5 6\n65535\n" + DEEP_RGB.astype(">u2").tobytes(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        found = raster(tmp_path / name, prep(3))
        assert np.array_equal(found, DEEP_RGB.transpose(2, 0, 1)), name


def test_sixteen_bit_ppm_with_another_maximum_is_scaled() -> None:
    values = np.minimum(DEEP_RGB, 4095)
    data = b"P6\n5 6\n4095\n" + values.astype(">u2").tobytes()
    expected = np.rint(values.astype(np.float64) * 65535 / 4095)
    assert np.array_equal(raster(data, prep(3)), expected.transpose(2, 0, 1))


def test_sixteen_bit_transparency_goes_onto_black() -> None:
    values = np.dstack([DEEP_RGB, np.full((6, 5), 32768, np.uint16)])
    expected = np.rint(DEEP_RGB.astype(np.float64) * 32768 / 65535)
    assert np.array_equal(raster(png(values), prep(3)), expected.transpose(2, 0, 1))


def test_transparency_goes_onto_black(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    expected = np.rint(RGBA[..., :3].astype(np.float64) * RGBA[..., 3:] / 255)
    assert np.array_equal(raster(tmp_path / "a.png", prep(3)), expected.transpose(2, 0, 1))


def test_palette_one_bit_and_grey_with_alpha(tmp_path: Path) -> None:
    palette = Image.new("P", (5, 6), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "p.png")
    assert raster(tmp_path / "p.png", prep(3))[:, 0, 0].tolist() == [10, 20, 30]
    palette.save(tmp_path / "t.png", transparency=1)
    assert raster(tmp_path / "t.png", prep(3)).max() == 0
    Image.fromarray(GREY > 127).save(tmp_path / "1.png")
    assert np.array_equal(raster(tmp_path / "1.png", prep())[0], (GREY > 127) * 255)
    Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (5, 6), 0)]).save(tmp_path / "la.png")
    assert raster(tmp_path / "la.png", prep()).max() == 0
    Image.new("CMYK", (5, 6), (0, 0, 0, 255)).save(tmp_path / "c.tiff")
    assert raster(tmp_path / "c.tiff", prep(3)).max() == 0


def test_grey_to_colour_and_back() -> None:
    assert np.array_equal(raster(Image.fromarray(GREY), prep(3)), np.stack([GREY] * 3))
    luma = raster(Image.fromarray(RGB), prep(1))[0]
    expected = np.asarray(Image.fromarray(RGB).convert("L"))
    assert np.abs(luma.astype(int) - expected).max() <= 1


def test_floating_point_tiff() -> None:
    values = RNG.random((6, 5), dtype=np.float32)
    found = decode(Image.fromarray(values), prep())[0].numpy()
    assert np.abs(found - values).max() < 1e-5
    with pytest.raises(DataError, match="not all between 0 and 1"):
        decode(Image.fromarray(values * 300), prep())


def test_integers_without_a_scale_are_refused() -> None:
    with pytest.raises(DataError, match="no known scale"):
        decode(Image.fromarray(np.full((6, 5), 100_000, np.int32)), prep())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    blocks = np.kron(
        np.array([[255, 0, 90], [40, 180, 220]], np.uint8), np.ones((16, 16), np.uint8)
    )
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.transpose(a), 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(undo[orientation](blocks))).save(path, exif=exif)
    found = raster(path, prep(1, *blocks.shape))[0]
    assert np.abs(found.astype(int) - blocks).max() < 12
    assert upright(path) == blocks.shape[::-1]


def test_fit_rules() -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200
    image = Image.fromarray(wide)
    cropped = raster(image, prep(1, 4, 4, "crop"))[0]
    assert (cropped == 200).all()
    padded = raster(image, prep(1, 8, 8, "pad"))[0]
    assert padded[:2].max() == 0
    assert padded[6:].max() == 0
    assert np.array_equal(padded[2:6], wide)
    assert raster(image, prep(1, 4, 4, "stretch"))[0].shape == (4, 4)
    assert raster(image, prep(1, 1, 64, "pad")).shape == (1, 1, 64)


def test_shrinking_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = raster(Image.fromarray(board.astype(np.uint8)), prep(1, 8, 8))
    assert np.abs(small.astype(int) - 127).max() <= 2
    deep = raster(Image.fromarray((board * 257).astype(np.uint16)), prep(1, 8, 8))
    assert np.abs(deep / 65535 - 0.5).max() < 0.01


def broken(tmp_path: Path) -> dict[str, Path]:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    paths = {}
    for suffix in ("png", "jpg", "tiff", "bmp", "webp", "ppm"):
        path = tmp_path / f"cut.{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        paths[suffix] = path
    paths["empty"] = tmp_path / "empty.png"
    paths["empty"].touch()
    paths["text"] = tmp_path / "text.jpg"
    paths["text"].write_text("no image at all")
    return paths


def test_broken_files_are_named(tmp_path: Path) -> None:
    for path in broken(tmp_path).values():
        with pytest.raises(DataError) as caught:
            decode(path, prep(3, 64, 64))
        assert str(path) in caught.value.cause
        assert "skip" in caught.value.cure


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as caught:
            decode(path, prep())
        assert str(path) in caught.value.cause


def test_a_flipped_bit_in_a_png_is_found_on_opening() -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG", compress_level=0)
    data = bytearray(stream.getvalue())
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(DataError, match=r"a\.png"):
        raster(bytes(data), prep(3), "a.png", thorough=True)


def test_programs_are_not_started_and_layouts_not_guessed() -> None:
    with pytest.raises(DataError, match="format that is not supported"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n", prep())
    with pytest.raises(DataError, match="unsupported layout"):
        decode(png(np.dstack([DEEP, DEEP])), prep())


def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (20_000, 10_000):  # Pillow's limit once more and once not: an error, a warning
        data = b"P5\n%d 10000\n255\n" % width
        with pytest.raises(DataError, match="too large"):
            decode(data, prep())
        (tmp_path / "a.pgm").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.pgm' is too large"):
            upright(tmp_path / "a.pgm")
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 10)
    with pytest.raises(DataError, match="too large"):
        decode(Image.fromarray(GREY), prep())


def test_orientation_metadata_that_is_broken_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise SyntaxError("broken")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert np.array_equal(raster(Image.fromarray(GREY), prep())[0], GREY)


UPRIGHT = {  # by EXIF's orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_turned_photo_equals_its_upright_copy_bit_for_bit(
    tmp_path: Path, orientation: int, mode: str, fit: str
) -> None:
    noise = np.random.default_rng(orientation).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).convert(mode).save(tmp_path / "turned.jpg", exif=exif, quality=90)
    stored = np.asarray(Image.open(tmp_path / "turned.jpg"))
    Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](stored))).save(
        tmp_path / "upright.png"
    )
    for channels, height, width in ((3, 17, 23), (1, 60, 90), (1, 90, 60)):
        goal = prep(channels, height, width, fit)
        turned = decode(tmp_path / "turned.jpg", goal)
        assert torch.equal(turned, decode(tmp_path / "upright.png", goal))
