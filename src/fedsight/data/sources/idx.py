"""IDX files, the format of MNIST and its family (Fashion-MNIST, EMNIST, KMNIST), plain or gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.images.arrays import ArraySource
from fedsight.data.numbered import ArrayPart, array_part, class_names

_FETCH = "fetch the file again and compare its size with the publisher's"
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in an IDX file, in native byte order.

    Raises DataError for a missing or broken file, naming what is wrong with it.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist", "correct the path or fetch the file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read: {error}", _FETCH) from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise DataError(
            f"'{path}' is not an IDX file (magic {data[:4].hex() or 'missing'})", _FETCH
        )
    dtype, rank = np.dtype(_TYPES[data[2]]), data[3]
    start = 4 + 4 * rank
    if not 1 <= rank <= 4 or len(data) < start:
        raise DataError(f"'{path}' has a broken IDX header ({rank} dimensions)", _FETCH)
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", rank, 4))
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        state = "truncated" if len(data) < wanted else "longer than its header says"
        raise DataError(
            f"'{path}' is {state}: {len(data)} bytes, where shape {shape} needs {wanted}", _FETCH
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


@sources.add("idx", reads="IDX files of the MNIST family, plain or .gz")
class Idx(ArraySource):
    """IDX files (MNIST family) in one folder; a missing name is also tried with `.gz`."""

    path: Location  # the folder
    train_images: str = "train-images-idx3-ubyte"
    train_labels: str = "train-labels-idx1-ubyte"
    test_images: str = "t10k-images-idx3-ubyte"
    test_labels: str = "t10k-labels-idx1-ubyte"
    classes: Words | None = None  # names in the order of the numbers; None: the numbers
    first_label: int = 0  # the number of the first class (1 in EMNIST's letters)
    transpose: bool = False  # rows and columns swapped, as in EMNIST

    def locations(self) -> dict[str, Path]:
        """The folder."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the four files; DataError names the one that is missing or broken."""
        train = self._part(self.train_images, self.train_labels)
        test = self._part(self.test_images, self.test_labels)
        shape, other = train.images.pixels.shape, test.images.pixels.shape
        if shape[1:] != other[1:]:
            raise DataError(
                f"'{self.path}': training images are {tuple(shape[2:])}, test images "
                f"{tuple(other[2:])}",
                "name files of one set in data.train_images and data.test_images",
            )
        names = class_names(train.labels, test.labels, self.classes, str(self.path))
        facts = {"title": self.path.name}
        preprocess = self.preprocess(1, shape[2], shape[3])
        return self.resized(Dataset(train, test, names, preprocess, facts=facts))

    def _part(self, images: str, labels: str) -> ArrayPart:
        pixels, numbers = self._read(images), self._read(labels)
        if pixels.ndim != 3 or pixels.dtype != np.uint8 or not pixels[:1].size:
            raise DataError(
                f"'{self.path / images}' holds {pixels.dtype} of shape {pixels.shape}, not images "
                "(uint8 [n, h, w])",
                "name the file of the images here, and that of the labels in the other setting",
            )
        if numbers.ndim != 1 or numbers.dtype.kind not in "ui":
            raise DataError(
                f"'{self.path / labels}' holds {numbers.dtype} of shape {numbers.shape}, not "
                "labels (integers [n])",
                "name the file of the labels here, and that of the images in the other setting",
            )
        if self.transpose:
            pixels = pixels.transpose(0, 2, 1)
        shifted = numbers.astype(np.int64) - self.first_label
        return array_part(pixels, shifted, str(self.path / images))

    def _read(self, name: str) -> npt.NDArray[Any]:
        path = self.path / name
        packed = path.with_name(path.name + ".gz")
        return read_idx(packed if packed.exists() and not path.exists() else path)
