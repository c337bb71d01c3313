"""What a data set contains, as hashes: whether images or labels have changed since."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Dataset, Images, Part
from fedsight.data.images.dicom import Frame
from fedsight.data.images.disk import LazyImages

PIECE = 4096  # bytes read at the beginning, the middle and the end of a file
SAMPLED = 256  # images read where they are neither arrays nor files


def contents(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of the images and of the labels of each part, by name; empty if they are elsewhere.

    Of image files the size and three pieces are hashed; where and when they were written does not
    count. Raises DataError for a file that cannot be read.
    """
    found: dict[str, str] = {}
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for name, part in parts.items():
        if part is None:
            continue
        seen = hashlib.sha256()
        try:
            _add_images(seen, part.images)
        except DataError:
            if isinstance(part.images, LazyImages):
                raise
            return {}
        found[f"{name} {dataset.preprocess.modalities}"] = seen.hexdigest()
        found[f"{name} labels"] = _labels(part)
    return found


def _labels(part: Part) -> str:
    seen = hashlib.sha256(np.ascontiguousarray(part.labels).tobytes())
    if part.targets is not None:
        seen.update(_bytes(part.targets))
    for site in part.sites or ():
        seen.update(f"{site}\n".encode(errors="surrogatepass"))
    return seen.hexdigest()


def _add_images(seen: Any, images: Images) -> None:
    if isinstance(images, ArrayImages):
        seen.update(_bytes(images.pixels))
    elif isinstance(images, LazyImages):
        for index in range(len(images)):
            _add_file(seen, images, index)
    else:
        count = len(images)
        every = np.arange(0, count, max(1, count // SAMPLED))
        for start in range(0, len(every), SAMPLED):
            seen.update(_bytes(images.read(torch.from_numpy(every[start : start + SAMPLED]))))
        seen.update(str(count).encode())


def _add_file(seen: Any, images: LazyImages, index: int) -> None:
    """Add one image: its file, or what the source has in memory."""
    origin = images.origin(index)
    if isinstance(origin, Frame):
        seen.update(f"frame {origin.number}\n".encode())
        origin = origin.path
    if isinstance(origin, Image.Image):
        origin = origin.tobytes()
    if isinstance(origin, bytes):
        seen.update(origin)
        return
    try:
        with Path(origin).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            seen.update(f"{size}\n".encode())
            if size <= 3 * PIECE:
                seen.update(file.read())
                return
            for start in (0, size // 2, size - PIECE):
                file.seek(start)
                seen.update(file.read(PIECE))
    except OSError as error:
        raise DataError(
            f"'{images.shown(index)}' cannot be read: {error.strerror or error}",
            "restore the file, or start a new run without it",
        ) from error


def _bytes(values: torch.Tensor) -> memoryview:
    return values.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data
