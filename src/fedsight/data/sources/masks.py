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

from fedsight.core.errors import DataError
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.csv_file import CsvSource
from fedsight.data.images.decode import upright
from fedsight.data.images.pixels import read_pixels

IGNORED = 255


@sources.add("masks", reads="CSV with columns path and mask, optionally site and split")
class Masks(CsvSource):
    """A CSV of images and masks; a mask is a grey image whose values are class numbers.

    0 is the background, 255 a pixel without a label. Masks are resized by taking the nearest
    pixel. Splits and counts use the most frequent class of an image other than the background.
    """

    path: Location  # the CSV; paths in it are relative to its folder
    classes: Words = Field(min_length=2)  # in the order of the numbers, the background first
    fit: Literal["stretch"] = "stretch"  # a mask is only stretched
    corrupt: Literal["error"] = "error"  # an image or a mask that cannot be read
    mask_column: str = "mask"  # the column of the masks' paths

    def locations(self) -> dict[str, Path]:
        """The CSV."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the CSV, the masks and the images; DataError names file and line."""
        records = self.listed(self.path, self.mask_column)
        masks = [self._mask(record) for record in records]
        known = [
            replace(record, label=self.classes[_shown(mask, len(self.classes))])
            for record, mask in zip(records, masks, strict=True)
        ]
        labels = Labels.single(known, self.classes)
        targets = torch.stack(masks) if masks else None
        # A mask may be all background; the files do not write the labels.
        labels = replace(labels, targets=targets, missing=True, written=None)
        return dataset(known, labels, self, str(self.path))

    def _mask(self, record: Record) -> Tensor:
        """[h, w] uint8 at the size of the network's input."""
        path = self.path.parent / record.label
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"{record.where}: there is no mask '{path}' ({why or error})",
                "correct the path (relative to the CSV's folder) or remove the line",
            ) from error
        pixels = read_pixels(data, str(path))
        if pixels.dtype != np.uint8 or pixels.shape[2] != 1:
            raise DataError(
                f"{record.where}: mask '{path}' has colours or 16 bits",
                "save it as an 8-bit grey image whose values are class numbers",
            )
        values = pixels[..., 0]
        seen = upright(record.path)
        if values.shape != (seen[1], seen[0]):
            raise DataError(
                f"{record.where}: mask '{path}' has {values.shape[1]} x {values.shape[0]} pixels, "
                f"but its image has {seen[0]} x {seen[1]}",
                "draw it on the upright image, turned as its EXIF orientation says",
            )
        wrong = values[(values >= len(self.classes)) & (values != IGNORED)]
        if wrong.size:
            raise DataError(
                f"{record.where}: mask '{path}' has the value {wrong[0]}, which is not in "
                f"data.classes (0 to {len(self.classes) - 1}, or {IGNORED})",
                "correct the mask, or name every class in data.classes",
            )
        height, width = self.shape
        small = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small))


def _shown(mask: Tensor, classes: int) -> int:
    counts: Sequence[int] = torch.bincount(
        mask[mask < classes].flatten(), minlength=classes
    ).tolist()
    return max(range(1, classes), key=lambda number: counts[number]) if sum(counts[1:]) else 0
