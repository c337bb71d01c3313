"""Images as arrays with class numbers: IDX, MedMNIST, and the built-in samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Indices, Part


@dataclass(frozen=True)
class ArrayPart(Part):
    """A part whose images are in memory."""

    images: ArrayImages


def array_part(images: npt.NDArray[Any], labels: npt.NDArray[Any], origin: str) -> ArrayPart:
    """A part from uint8 or uint16 images [n, h, w] or [n, h, w, c] and integer labels [n].

    Raises DataError naming `origin` when the arrays do not fit together.
    """
    if len(images) != len(labels):
        raise DataError(
            f"{origin} has {len(images)} images but {len(labels)} labels",
            "the two files do not belong together, or one is truncated; fetch them again",
        )
    if not len(images):
        raise DataError(f"{origin} has no images", "check that the file is the one you meant")
    pixels = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return ArrayPart(ArrayImages(tensor, origin), np.ascontiguousarray(labels, dtype=np.int64))


def class_names(
    train: Indices, test: Indices, classes: Sequence[str] | None, origin: str
) -> tuple[str, ...]:
    """The vocabulary of numbered labels: `classes`, or the numbers 0 to the highest as words.

    Raises DataError for a number outside the vocabulary and for a class without training images.
    """
    for name, labels in (("training", train), ("test", test)):
        outside = labels[(labels < 0) | (labels >= (len(classes) if classes else 2**31))]
        if len(outside):
            raise DataError(
                f"{origin}: {name} label {outside[0]} is outside the vocabulary "
                f"(0 to {len(classes) - 1 if classes else 'highest'})",
                "name every class in data.classes, in order of number, or correct the labels",
            )
    highest = int(max(train.max(), test.max()))
    if highest >= 100_000:
        raise DataError(f"{origin}: label {highest} is not a class number", "correct the labels")
    names = tuple(classes) if classes else tuple(str(number) for number in range(highest + 1))
    counts = np.bincount(train, minlength=len(names))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise DataError(
            f"{origin}: class {empty} ('{names[empty]}') has no training images",
            "add images of this class, or number the labels without gaps",
        )
    return names
