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
        path = folder / f"{one.path.stem}.png"
        number = 1
        while path in written:
            number += 1
            path = folder / f"{one.path.stem}-{number}.png"
        if any(path.resolve() == other.path.resolve() for other in found):
            raise StoreError(f"'{path}' is one of the images", "choose another folder with --draw")
        file = io.BytesIO()
        marked(_opened(one.path, preprocess), one.answer.marks).save(file, "PNG")
        write_atomically(path, file.getvalue())
        written.append(path)
    return written


def unshown(found: Sequence[Prediction]) -> str:
    """What to say about labels that no font here can draw; "" if all can be drawn."""
    labels = (mark.label for one in found if one.answer for mark in one.answer.marks)
    odd = next((label for label in labels if not plain(label)), None)
    if odd is None or cjk_font() is not None:
        return ""
    return f"labels such as '{odd}' are drawn as boxes, because no font for them is found: {CURE}"


def _opened(path: Path, preprocess: Preprocess) -> Image.Image:
    """The image, upright, with 8 bits per channel."""
    pixels = whole(path, preprocess)
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
