"""A plug-in for tests of what a site reveals: images for every task, in variants.

The variant is the name of the owner's folder, so it is the owner's alone: the program does not say
it and the fingerprint does not change. All variants have the same counts.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsight.data.base import ArrayImages, Dataset, Location, Part, Source, sources
from fedsight.data.detection import boxes

Kind = Literal["classify", "ordinal", "multilabel", "segment", "detect", "faces"]
SIDE = 16
CLASSES = ("a", "b", "c", "d")
TRAIN, TEST = 6, 4


@sources.add("hidden")
class Hidden(Source):
    """Six training and four test images [1, 16, 16] of four classes."""

    path: Location
    kind: Kind = "classify"

    def open(self) -> Dataset:
        """The images of the variant that the folder is named for."""
        train, truth = self._part("train", TRAIN)
        test, tested_truth = self._part("test", TEST)
        labels, tested = np.arange(TRAIN) % 2, np.arange(TEST) % 2
        if self.kind == "faces":
            tested = tested + 2
        return Dataset(
            Part(ArrayImages(train, "hidden"), labels, None, truth),
            Part(ArrayImages(test, "hidden"), tested, None, tested_truth),
            CLASSES,
            self.preprocess(1, SIDE, SIDE),
        )

    def _part(self, name: str, count: int) -> tuple[Tensor, Tensor | None]:
        """Images and targets of a part; what differs are all of them, or those of the third."""
        variant, other = self.path.name, f"other {name}"
        pixels, truth = _pixels(name, count), _targets(self.kind, name, count)
        if variant == "all":
            return _pixels(other, count), _targets(self.kind, other, count)
        if variant == "one":
            pixels[2] = _pixels(other, count)[2]
        if variant == "bright":
            pixels[2, :, 5, 5] = 1e4
        if variant == "broken":
            pixels[2] = float("nan")
        if variant == "crowded" and self.kind == "detect" and truth is not None:
            truth[2] = torch.tensor([[1.0, 0.3, 0.3, 0.7, 0.7]] * truth.shape[1])
        return pixels, truth


def _pixels(name: str, count: int) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(rng.random((count, 1, SIDE, SIDE), dtype=np.float32))


def _targets(kind: Kind, name: str, count: int) -> Tensor | None:
    rng = np.random.default_rng(zlib.crc32(f"{kind} {name}".encode()))
    if kind == "multilabel":
        return torch.from_numpy(rng.integers(0, 2, (count, len(CLASSES))).astype(np.float32))
    if kind == "segment":
        masks = rng.integers(0, len(CLASSES), (count, SIDE, SIDE))
        return torch.from_numpy(masks.astype(np.uint8))
    if kind == "detect":
        some = rng.integers(1, 4, count)
        rows = [[(float(rng.integers(4)), 0.2, 0.2, 0.8, 0.8)] * int(n) for n in some]
        rows[0] = rows[0] * 3  # the fullest image, so that all variants have as many rows
        return boxes.pack([found[:3] for found in rows], [[]] * count)
    return None
