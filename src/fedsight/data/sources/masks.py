"""Images with a mask each, listed in a CSV: for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import DataError, Problem
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import Dataset, Indices, Location, Words, sources
from fedsight.data.csv_file import CsvSource, listed_file, unlisted
from fedsight.data.images.decode import upright
from fedsight.data.images.mask_settings import ByColour, ByValue, Ignored, coding, problems
from fedsight.data.images.mask_values import Coding, Numbers


@sources.add("masks", reads="CSV with columns path and mask, optionally site and split")
class Masks(CsvSource):
    """A CSV of images and masks; the pixels of a mask say the class.

    Unless `values` or `colours` name those of each class, a grey value or a palette's number is
    the class number: 0 the background, 255 a pixel without a label. Masks are resized by taking
    the nearest pixel. Splits and counts use the most frequent class of an image other than the
    background.
    """

    path: Location  # the CSV; paths in it are relative to its folder
    # in the order of the numbers, the background first
    classes: Words = Field(min_length=2, max_length=254)
    values: ByValue = ()  # of each class: {background = 0, lesion = 255}
    colours: ByColour = ()  # of each class: {road = "#804080", car = [0, 0, 142]}
    ignored: Ignored = None  # values or colours of pixels without a label; None: the value 255
    fit: Literal["stretch"] = "stretch"  # a mask is only stretched
    corrupt: Literal["error"] = "error"  # an image or a mask that cannot be read
    mask_column: str = "mask"  # the column of the masks' paths

    def locations(self) -> dict[str, Path]:
        """The CSV."""
        return {"path": self.path}

    def check(self) -> list[Problem]:
        """Problems of every source, and of the values and colours of the classes."""
        return [*super().check(), *problems(self.classes, self.values, self.colours, self.ignored)]

    def open(self) -> Dataset:
        """Read the CSV, the masks and the images; DataError names file and line."""
        for problem in problems(self.classes, self.values, self.colours, self.ignored):
            raise DataError(f"{problem.where}: {problem.cause}", problem.cure)
        records = self.listed(self.path, self.mask_column)
        code = coding(self.classes, self.values, self.colours, self.ignored)
        masks, seen = [], np.zeros(len(self.classes), np.int64)
        for record in records:
            numbers = self._mask(record, code)
            seen += np.bincount(numbers.ravel(), minlength=256)[: len(self.classes)] > 0
            masks.append(self._small(numbers))
        known = [
            replace(record, label=self.classes[_shown(mask, len(self.classes))])
            for record, mask in zip(records, masks, strict=True)
        ]
        labels = Labels.single(known, self.classes, "keep")
        targets = torch.stack(masks) if masks else None
        # A mask may be all background; the files do not write the labels.
        labels = replace(labels, targets=targets, missing=True, written=None)
        opened = self._checked(dataset(known, labels, self, str(self.path)), seen)
        files = [listed_file(self.path, record.label) for record in records]
        return opened.read_from(unlisted(self.path, records, files))

    def _mask(self, record: Record, code: Coding) -> Numbers:
        """The class numbers [h, w] at the size of the file."""
        path = listed_file(self.path, record.label)
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"{record.where}: there is no mask '{path}' ({why or error})",
                "correct the path (relative to the CSV's folder) or remove the line",
            ) from error
        values = code.numbers(data, str(path), record.where)
        width, height = upright(record.path)
        if values.shape != (height, width):
            cure = "save the mask at the size of its image"
            if values.shape == (width, height):
                cure = "draw it on the upright image, turned as its EXIF orientation says"
            raise DataError(
                f"{record.where}: mask '{path}' has {values.shape[1]} x {values.shape[0]} pixels, "
                f"but its image has {width} x {height}",
                cure,
            )
        return values

    def _small(self, numbers: Numbers) -> Tensor:
        """[h, w] uint8 at the size of the network's input."""
        height, width = self.shape
        small = Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small))

    def _checked(self, opened: Dataset, seen: Indices) -> Dataset:
        """The data set with what is to be said about classes without a pixel.

        `seen` counts the masks that show each class, before resizing. Raises DataError for a
        class that no training image shows, and where the test part shows the background alone,
        unless `missing` allows it.
        """
        count = len(self.classes)
        trained, tested = opened.train.counts(count), opened.test.counts(count)
        size = f"{self.shape[0]} x {self.shape[1]}"
        notes = []
        for number, name in enumerate(self.classes):
            if not trained[number]:
                cause = f"'{self.path}': no training image shows a pixel of class '{name}'"
                cure = f"add masks with it, take '{name}' out of data.classes, or allow it: "
                cure += 'data.missing = "allow"'
                if seen[number]:
                    cause += f" at {size} ({seen[number]} masks show it at full size)"
                    cure = f"raise data.size, or {cure}"
                if number and self.missing == "error":
                    raise DataError(cause, cure)
                notes.append(f"no training image shows a pixel of class '{name}'")
            if not tested[number]:
                notes.append(f"no test image shows a pixel of class '{name}': it is not measured")
            elif (lost := seen[number] - _shows(opened, number, trained, tested)) > 0:
                notes.append(f"masks that lose all pixels of class '{name}' at {size}: {lost}")
        if not tested[1:].any() and self.missing == "error":
            raise DataError(
                f"'{self.path}': no test image shows a class beside '{self.classes[0]}', so "
                "nothing can be measured",
                "add test images that show the other classes",
            )
        return replace(opened, notes=(*self.unread(self.path), *opened.notes, *notes))


def _shows(opened: Dataset, number: int, trained: Indices, tested: Indices) -> int:
    """How many images show a class, in all parts."""
    aside = opened.validation
    further = 0 if aside is None else int(aside.counts(len(opened.classes))[number])
    return int(trained[number]) + int(tested[number]) + further


def _shown(mask: Tensor, classes: int) -> int:
    counts: Sequence[int] = torch.bincount(
        mask[mask < classes].flatten(), minlength=classes
    ).tolist()
    return max(range(1, classes), key=lambda number: counts[number]) if sum(counts[1:]) else 0
