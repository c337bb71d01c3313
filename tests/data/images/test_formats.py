"""Image formats beyond the usual ones are read upright; other content is called what it is."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Preprocess
from fedsight.data.images.decode import decode, upright
from fedsight.data.images.formats import EXTRA, is_picture
from fedsight.data.images.pixels import read_pixels

SIDES = Image.new("RGB", (64, 32), (220, 20, 20))
SIDES.paste((20, 20, 220), (32, 0, 64, 32))  # red left, blue right


def encoded(kind: str, turn: int = 1) -> bytes:
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    SIDES.save(stream, kind, quality=95, **({} if turn == 1 else {"exif": exif.tobytes()}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JPEG2000"])
@pytest.mark.parametrize("name", ["a.png", "a.bin"])
def test_the_content_says_the_format(kind: str, name: str) -> None:
    pixels = read_pixels(encoded(kind), name)
    assert pixels.shape == (32, 64, 3)
    assert np.abs(pixels[16, 10].astype(int) - (220, 20, 20)).max() < 12
    assert np.abs(pixels[16, 54].astype(int) - (20, 20, 220)).max() < 12


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_turned_photos_are_upright_and_their_size_is_that(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{'heic' if kind == 'HEIF' else 'avif'}"
    path.write_bytes(encoded(kind, turn=6))  # to be turned clockwise
    image = decode(path, Preprocess(3, 64, 32))
    assert upright(path) == (32, 64)
    assert image[0, 10, 16] > 0.7 > 0.3 > image[2, 10, 16]  # red is above
    assert image[2, 54, 16] > 0.7


def test_without_the_extra_a_heic_photo_names_it_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert not is_picture("a.HEIC")
    for name in ("a.heic", "phone.jpg"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="is a HEIC photo") as caught:
            decode(tmp_path / name, Preprocess(3, 8, 8))
        assert name in caught.value.cause
        assert EXTRA in caught.value.cure


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>not found", "web page"),
        (b"\xff\x0a rest", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"PK\3\4zip", "ZIP"),
        (b"junk" * 20, "no image format that is read"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 60, "corrupt"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 60, "corrupt"),
    ],
)
def test_other_content_is_called_what_it_is(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"'photo.jpg'.*{said}") as caught:
        read_pixels(data, "photo.jpg")
    assert "skip" in caught.value.cure
