"""What a data set contains, as hashes: whether images or labels have changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.core.progress import progress
from fedsight.data.base import ArrayImages, Dataset, Images, Part
from fedsight.data.images.dicom import Frame
from fedsight.data.images.disk import LazyImages, NamedArray
from fedsight.data.public import ChosenImages
from fedsight.data.reading import reading

Hashed = Literal["pieces", "whole"]
PIECE = 4096  # bytes read at the beginning, the middle and the end of a file
SAMPLED = 256  # images read where they are neither arrays nor files


@dataclass(frozen=True)
class Contents:
    """Hashes by what they are of, such as `training images`, and what was hashed of each file."""

    hashes: Mapping[str, str]
    hashed: Hashed


def contents(dataset: Dataset, hashed: Hashed = "pieces") -> Contents:
    """SHA-256 of the images and of the labels of each part; none if they are elsewhere.

    Of image files the size and three pieces are hashed, or every byte; where and when they were
    written does not count. Of images in memory the pixels are hashed, unless every byte of their
    files is. Raises DataError for a file that cannot be read.
    """
    return Contents(_hashes(dataset, hashed == "whole"), hashed)


def stamp(dataset: Dataset) -> str:
    """Changes whenever an image file that is read again and again is replaced or written to: a
    SHA-256 of the files' numbers, sizes and times. The content may be the same all the same. Empty
    where all images are in memory.

    Each file is asked for once, also if many images (frames) are in it: a few microseconds on a
    disk of this machine, and up to the time of a request where a file server has to be asked.
    """
    seen = hashlib.sha256()
    count, last = 0, None
    for part in (dataset.train, dataset.validation, dataset.test, dataset.public):
        images = part.images if part is not None else None
        images = images.images if isinstance(images, ChosenImages) else images
        for index in range(len(images) if isinstance(images, LazyImages) else 0):
            assert isinstance(images, LazyImages)
            origin = images.origin(index)
            origin = origin.path if isinstance(origin, Frame) else origin
            if isinstance(origin, str | os.PathLike) and origin != last:
                seen.update(_times(origin).encode())
                count, last = count + 1, origin
    return seen.hexdigest() if count else ""


def _times(path: str | os.PathLike[str]) -> str:
    """What changes with a file; a file that is gone has changed."""
    try:
        found = Path(path).stat()
    except OSError:
        return "gone\n"
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n"


def _hashes(dataset: Dataset, whole: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    parts = {**parts, "public": dataset.public}
    for name, part in parts.items():
        if part is None:
            continue
        seen = hashlib.sha256()
        try:
            _add_images(seen, part.images, whole)
        except DataError:
            if isinstance(part.images, LazyImages):
                raise
            return {}  # they are on another machine
        found[f"{name} {dataset.preprocess.modalities}"] = seen.hexdigest()
        if name != "public":  # they have none
            found[f"{name} labels"] = _labels(part)
    return found


def _labels(part: Part) -> str:
    seen = hashlib.sha256(np.ascontiguousarray(part.labels).tobytes())
    if part.targets is not None:
        seen.update(_bytes(part.targets))
    for site in part.sites or ():
        seen.update(f"{site}\n".encode(errors="surrogatepass"))
    return seen.hexdigest()


def _add_images(seen: Any, images: Images, whole: bool) -> None:
    if isinstance(images, ChosenImages):
        seen.update(images.places.tobytes())
        images = images.images
    if whole and isinstance(images, NamedArray):
        images = images.files
    if isinstance(images, ArrayImages):
        seen.update(_bytes(images.pixels))
    elif isinstance(images, LazyImages):
        for index in range(len(images)):
            _add_file(seen, images, index, whole)
            progress("files hashed", index + 1, len(images))
    else:
        count = len(images)
        every = np.arange(0, count, max(1, count // SAMPLED))
        for start in range(0, len(every), SAMPLED):
            seen.update(_bytes(images.read(torch.from_numpy(every[start : start + SAMPLED]))))
        seen.update(str(count).encode())


def _add_file(seen: Any, images: LazyImages, index: int, whole: bool) -> None:
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
    lost = "restore the file, or start a new run without it"
    with reading(images.shown(index), lost), Path(origin).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        seen.update(f"{size}\n".encode())
        if whole:
            seen.update(hashlib.file_digest(file, "sha256").digest())
        elif size <= 3 * PIECE:
            seen.update(file.read())
        else:
            for start in (0, size // 2, size - PIECE):
                file.seek(start)
                seen.update(file.read(PIECE))


def _bytes(values: torch.Tensor) -> memoryview:
    return values.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data
