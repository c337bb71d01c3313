"""Images on disk: decoded when read, or once into memory, after corrupt ones were found."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.core.files import opened
from fedsight.core.progress import progress
from fedsight.data.base import ArrayImages, Images, Indices, Preprocess, SizedSource
from fedsight.data.duplicates.prints import Printer, Prints, View
from fedsight.data.images import dicom
from fedsight.data.images.decode import Origin, decode, raster, raster_and_view, unreadable
from fedsight.data.images.pixels import Pixels

MEMORY = 1 << 30  # bytes of pixels that are kept in memory unless the config says otherwise
Loaded = tuple[Pixels, View | None] | DataError
_THREADS = 8
_EACH = 8  # images decoded ahead of being stored, for each thread
T = TypeVar("T")


class LazyImages(ABC):
    """Images that are decoded on every read; subclasses say where each comes from."""

    preprocess: Preprocess
    prints: Prints | None = None  # taken when all were decoded on opening

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def origin(self, index: int) -> Origin:
        """The path, or the file's bytes."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where an image came from, for messages and reports."""

    def shown(self, index: int) -> str:
        """As `name`, but for messages on the site's own screen only."""
        return self.name(index)

    @abstractmethod
    def only(self, indices: Indices) -> LazyImages:
        """The same with some images left out."""

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` [b]: float32 [b, c, h, w], values 0 to 1."""
        shape = (self.preprocess.channels, self.preprocess.height, self.preprocess.width)
        batch = torch.empty((len(indices), *shape))
        for row, index in enumerate(indices.tolist()):
            batch[row] = decode(self.origin(index), self.preprocess, self.name(index))
        return batch


class DiskImages(LazyImages):
    """Image files; the paths are one block of bytes, so that sending them to a worker is cheap."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], preprocess: Preprocess) -> None:
        """Raises DataError for a path that no file can have: lists of images may name any."""
        encoded = [_encoded(path) for path in paths]
        self.preprocess = preprocess
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *(len(path) for path in encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def origin(self, index: int) -> str:
        """The path."""
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])

    def name(self, index: int) -> str:
        """The path, or a number (`named`)."""
        return named(self.origin(index), index)

    def shown(self, index: int) -> str:
        """The path."""
        return self.origin(index)

    def only(self, indices: Indices) -> DiskImages:
        """The same with some files left out."""
        return DiskImages([self.origin(index) for index in indices], self.preprocess)


def _encoded(path: str | os.PathLike[str]) -> bytes:
    """A path as the file system has it."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise unreadable(str(path), error) from error


class NumberedImages(DiskImages):
    """Image files whose names may identify people: paths appear on the site's own screen only."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        preprocess: Preprocess,
        names: Sequence[str],
    ) -> None:
        super().__init__(paths, preprocess)
        self._names = list(names)

    def name(self, index: int) -> str:
        """A number."""
        return self._names[index]

    def only(self, indices: Indices) -> NumberedImages:
        """The same with some files left out."""
        paths = [self.origin(index) for index in indices]
        return NumberedImages(paths, self.preprocess, [self._names[index] for index in indices])


def named(path: str, index: int) -> str:
    """What run files call an image: its path, or for a DICOM file, which is often named after the
    patient, its number."""
    return f"DICOM image {index + 1}" if _is_dicom(path) else path


def _is_dicom(path: str) -> bool:
    if Path(path).suffix.lower() in dicom.SUFFIXES:
        return True
    try:
        with opened(Path(path)) as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return False


def settle(images: LazyImages, source: SizedSource) -> tuple[Images, Indices, list[str]]:
    """Keep images in memory or on disk, and handle corrupt ones, as `source` says.

    Returns the images that can be read, their indices, and the names of the others. Raises the
    DataError of the first corrupt image unless `source.corrupt` is "skip".
    """
    preprocess = images.preprocess
    shape = (preprocess.channels, preprocess.height, preprocess.width)
    keep = source.in_memory
    if keep is None:
        keep = len(images) * int(np.prod(shape)) <= MEMORY
    if not keep and not source.verify:
        return images, np.arange(len(images)), []
    pixels = torch.empty((len(images) if keep else 0, *shape), dtype=torch.uint8)
    prints = not source.duplicates == source.near_duplicates == "keep"
    good: list[int] = []
    skipped: list[str] = []
    printer = Printer()

    def load(index: int) -> Loaded:
        asked = images.origin(index), preprocess, images.shown(index), True
        try:
            return raster_and_view(*asked) if prints else (raster(*asked), None)
        except DataError as error:
            return error

    for index, result in enumerate(ahead(load, len(images))):
        progress("images read", index + 1, len(images))
        if isinstance(result, DataError):
            if source.corrupt == "error":
                raise result
            skipped.append(images.name(index))
            continue
        whole, view = result
        if keep:
            pixels = _store(pixels, len(good), whole)
        if view is not None:
            printer.add(view)
        good.append(index)
    kept = np.asarray(good, dtype=np.int64)
    files = images.only(kept)
    found = NamedArray(pixels[: len(good)], files) if keep else files
    found.prints = printer.prints() if prints else None
    return found, kept, skipped


class NamedArray(ArrayImages):
    """Images in memory that remember where they came from."""

    prints: Prints | None = None  # taken when they were decoded

    def __init__(self, pixels: Tensor, names: LazyImages) -> None:
        super().__init__(pixels, "image")
        self.files = names

    def name(self, index: int) -> str:
        """The path, or source and number."""
        return self.files.name(index)

    def only(self, indices: Indices) -> NamedArray:
        """The same with some images left out."""
        return NamedArray(self.pixels[torch.from_numpy(indices)], self.files.only(indices))


def _store(pixels: Tensor, row: int, values: Pixels) -> Tensor:
    """Put one image in; the first 16-bit image makes room for 16 bits in all (8-bit x 257)."""
    image = torch.from_numpy(values)
    if image.dtype == torch.uint16 and pixels.dtype == torch.uint8:
        pixels = (pixels.to(torch.int32) * 257).to(torch.uint16)
    if pixels.dtype == torch.uint16 and image.dtype == torch.uint8:
        image = (image.to(torch.int32) * 257).to(torch.uint16)
    pixels[row] = image
    return pixels


def ahead(load: Callable[[int], T], count: int) -> Iterator[T]:
    """load(0), load(1), ... in order, in a thread for each core, a few ahead of what is asked for.

    Once one has raised, those that have not begun are left.
    """
    workers = max(1, min(_THREADS, len(os.sched_getaffinity(0))))
    numbers = iter(range(count))
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = deque(pool.submit(load, one) for one in islice(numbers, _EACH * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(load, one) for one in islice(numbers, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
