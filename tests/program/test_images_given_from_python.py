"""Pillow's images in a data set from Python are read as predictions read them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedsight as fs
from fedsight.core.errors import DataError
from fedsight.data.base import Dataset
from fedsight.data.images.decode import raster

SIDE = 8
Made = Callable[[np.random.Generator], Image.Image]


def grey(rng: np.random.Generator, most: int = 256, channels: int = 0) -> Any:
    return rng.integers(0, most, (SIDE, SIDE, channels) if channels else (SIDE, SIDE))


def turned(rng: np.random.Generator) -> Image.Image:
    """A photograph that was taken with the camera on its side."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    Image.fromarray(grey(rng).astype(np.uint8)).save(file, "PNG", exif=exif)
    return Image.open(file)


MODES: dict[str, Made] = {
    "L": lambda rng: Image.fromarray(grey(rng).astype(np.uint8)),
    "1": lambda rng: Image.fromarray(grey(rng, 2).astype(bool)),
    "I;16": lambda rng: Image.fromarray(grey(rng, 65536).astype(np.uint16)),
    "I;16B": lambda rng: Image.frombytes(
        "I;16B", (SIDE, SIDE), grey(rng, 65536).astype(">u2").tobytes()
    ),
    "I": lambda rng: Image.fromarray(grey(rng, 65536).astype(np.int32)),
    "F": lambda rng: Image.fromarray(rng.random((SIDE, SIDE)).astype(np.float32)),
    "RGB": lambda rng: Image.fromarray(grey(rng, channels=3).astype(np.uint8)),
    "RGBA": lambda rng: Image.fromarray(grey(rng, channels=4).astype(np.uint8)),
    "LA": lambda rng: Image.merge(
        "LA", [Image.fromarray(grey(rng).astype(np.uint8)) for _ in range(2)]
    ),
    "turned": turned,
}


def given(images: list[Any]) -> Dataset:
    """The data set of two sites, each with these images, and tested on them."""
    items = [(image, number % 2) for number, image in enumerate(images)]
    found = fs.sites({"a": items, "b": items}, test=items)
    opened: Dataset = found.object.value
    return opened


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_trained_on_as_it_is_predicted(mode: str) -> None:
    rng = np.random.default_rng(0)
    images = [MODES[mode](rng) for _ in range(4)]
    opened = given(images)
    pixels = opened.test.images.pixels
    for image, seen in zip(images, pixels, strict=True):
        assert np.array_equal(raster(image, opened.preprocess), seen.numpy())
    assert len(pixels.unique()) > 1, "not all black"


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.fromarray(np.full((SIDE, SIDE), 300.0, np.float32)), "not all between 0 and 1"),
        (Image.fromarray(np.full((SIDE, SIDE), 1 << 20, np.int32)), "no known scale"),
        (Image.new("L", (0, SIDE)), "item 0"),
        (torch.empty(1, SIDE, SIDE, device="meta"), "does not hold its pixels"),
        (torch.rand(1, SIDE, SIDE).to_sparse(), "does not hold its pixels"),
    ],
)
def test_values_without_a_known_scale_are_refused(image: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        given([image, image])


def test_test_images_that_were_trained_on_are_counted_and_said() -> None:
    images = [MODES["RGB"](np.random.default_rng(number)) for number in range(6)]
    items = [(image, number % 2) for number, image in enumerate(images)]
    leaking = fs.sites({"a": items[:2], "b": items[2:4]}, test=items[1:]).object.value
    assert leaking.duplicates.exact.across_parts == 3
    assert "held out but equal to one of an earlier part: 3" in leaking.notes[0]
    sound = fs.sites({"a": items[:2], "b": items[2:4]}, test=items[4:]).object.value
    assert not sound.duplicates.exact.copies
    assert not sound.notes


def huge_picture() -> Image.Image:
    """A picture that says that it is huge, and holds one pixel."""
    image = Image.new("L", (1, 1))
    image._size = (30_000, 30_000)  # type: ignore[attr-defined]
    return image


@pytest.mark.parametrize(
    "huge",
    [torch.zeros(1, dtype=kind).expand(3, 30_000, 30_000) for kind in (torch.uint8, torch.float32)]
    + [huge_picture()],
    ids=["uint8", "float32", "Pillow"],
)
def test_an_image_that_no_file_may_be_is_refused_before_it_is_copied(huge: Any) -> None:
    """One of 900 million pixels ended as a memory error without the item's name."""
    with pytest.raises(DataError, match="site 'a', item 1") as told:
        given([grey_tensor(), huge])
    assert told.value.cure == "cut or shrink it to at most 89,478,485 pixels"


def grey_tensor() -> torch.Tensor:
    return torch.zeros(1, SIDE, SIDE)
