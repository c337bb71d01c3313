"""Draws a model's answers onto images and writes them as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder, write_atomically
from fedsight.data.base import Preprocess
from fedsight.data.images.decode import whole
from fedsight.evaluation.fonts import CJK_CURE as CURE
from fedsight.evaluation.fonts import cjk_font, plain
from fedsight.evaluation.marks import marked
from fedsight.inference.predict import Prediction


def draw_all(found: Sequence[Prediction], folder: Path, preprocess: Preprocess) -> list[Path]:
    """Write each image that has an answer into `folder`; returns the files written.

    Images with the same name from different folders are numbered. Raises StoreError if the folder
    cannot be written, or holds one of the images themselves.
    """
    make_folder(folder)
    written: list[Path] = []
    for one in found:
        if one.answer is None:
            continue
        path = free_path(folder, one.path.stem, written)
        if any(path.resolve() == other.path.resolve() for other in found):
            raise StoreError(f"'{path}' is one of the images", "choose another folder with --draw")
        write_png(marked(opened(one.path, preprocess), one.answer.marks), path)
        written.append(path)
    return written


def free_path(folder: Path, stem: str, taken: Sequence[Path]) -> Path:
    """A PNG file of this name in the folder, numbered if that is taken."""
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path


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
