"""Draws a model's answers onto images and writes them as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder, write_atomically
from fedsight.data.base import Preprocess
from fedsight.data.images.decode import whole
from fedsight.data.images.fit import Placement
from fedsight.evaluation.fonts import CJK_CURE as CURE
from fedsight.evaluation.fonts import cjk_font, plain
from fedsight.evaluation.marks import COLOURS, marked
from fedsight.inference.predict import Prediction


def draw_all(found: Sequence[Prediction], folder: Path, preprocess: Preprocess) -> list[Path]:
    """Write each image that has an answer into `folder`; returns the files written.

    Images with the same name from different folders are numbered. Raises StoreError if the folder
    cannot be written, or holds one of the images themselves.
    """
    make_folder(folder)
    shown = [one for one in found if one.answer is not None]
    written = free_paths(folder, [one.path.stem for one in shown])
    require_apart(written, [one.path for one in found], "--draw")
    for one, path in zip(shown, written, strict=True):
        image, answer = opened(one.path, preprocess), one.answer
        if answer is not None and answer.mask is not None:
            image = tinted(image, answer.mask.any(0).numpy(), preprocess)
        write_png(marked(image, answer.marks if answer else ()), path)
    return written


def tinted(image: Image.Image, mask: npt.NDArray[np.bool_], preprocess: Preprocess) -> Image.Image:
    """The image with the pixels of a mask [h, w] in the network's input in a colour."""
    at = Placement.of(image.size, preprocess)
    rows, columns = (
        np.floor((np.arange(size) + 0.5 - at.source[axis]) * at.scale[axis]) + at.target[axis]
        for axis, size in ((1, image.height), (0, image.width))
    )
    height, width = mask.shape
    y, x = (one.clip(0, size - 1).astype(int) for one, size in ((rows, height), (columns, width)))
    chosen = mask[y][:, x] & (y == rows)[:, None] & (x == columns)  # not what was cut off
    pixels = np.array(image.convert("RGB"))
    pixels[chosen] = (pixels[chosen] + np.array(COLOURS["found"])) // 2
    return Image.fromarray(pixels)


def free_paths(folder: Path, stems: Sequence[str]) -> list[Path]:
    """A PNG file in the folder for each of the names; those that come again are numbered."""
    found: dict[Path, None] = {}
    for stem in stems:
        path, number = folder / f"{stem}.png", 1
        while path in found:
            number += 1
            path = folder / f"{stem}-{number}.png"
        found[path] = None
    return list(found)


def require_apart(written: Sequence[Path], read: Sequence[Path], option: str) -> None:
    """StoreError if a file that is to be written is one of those that are read, by whatever name;
    `option` is the one that named its folder."""
    there = {_identity(path) for path in read}
    for path in written:
        if path.exists() and _identity(path) in there:
            raise StoreError(
                f"'{path}' is one of the images", f"choose another folder with {option}"
            )


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def write_png(image: Image.Image, path: Path) -> None:
    """Write it, whole or not at all; StoreError if that fails."""
    file = io.BytesIO()
    image.save(file, "PNG")
    write_atomically(path, file.getvalue())


def unshown(found: Sequence[Prediction]) -> str:
    """What to say about labels that no font here can draw; "" if all can be drawn."""
    labels = (mark.label for one in found if one.answer for mark in one.answer.marks)
    odd = next((label for label in labels if not plain(label)), None)
    if odd is None or cjk_font() is not None:
        return ""
    return f"labels such as '{odd}' are drawn as boxes, because no font for them is found: {CURE}"


def opened(path: Path, preprocess: Preprocess) -> Image.Image:
    """The image, upright, with 8 bits per channel."""
    pixels = whole(path, preprocess)
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
