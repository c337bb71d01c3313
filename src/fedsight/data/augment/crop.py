"""Cutting out a random part of images and enlarging it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from fedsight.data.augment.base import Augmentation, augmentations, uniform

_TRIES = 10  # of a part that fits into the image, as in torchvision


@augmentations.add("crop", paper="Szegedy et al. 2015, section 6")
class Crop(Augmentation):
    """Cut out a random part of each image and enlarge it to the whole (random resized crop)."""

    moves: ClassVar[bool] = True
    smallest: float = Field(0.08, gt=0, le=1)  # part of the image's area; 1: only its shape changes
    elongation: float = Field(1.333, ge=1)  # largest ratio of the sides

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One image after the other, bilinear with antialiasing."""
        height, width = x.shape[2:]
        parts = [self._part(height, width, generator) for _ in x]
        size = [height, width]
        cut = [F.resized_crop(one, *part, size) for one, part in zip(x, parts, strict=True)]
        return torch.stack(cut).clamp_(0, 1) if cut else x

    def _part(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width. The number of draws is the same for every image."""
        areas = uniform(_TRIES, self.smallest, 1, generator)
        ratios = uniform(_TRIES, -math.log(self.elongation), math.log(self.elongation), generator)
        down, across = torch.rand(2, generator=generator).tolist()
        for share, ratio in zip(areas, ratios, strict=True):
            area, square = share * height * width, math.exp(ratio / 2)
            high, wide = round(math.sqrt(area) / square), round(math.sqrt(area) * square)
            if 0 < high <= height and 0 < wide <= width:
                top, left = int(down * (height - high + 1)), int(across * (width - wide + 1))
                return top, left, high, wide
        return 0, 0, height, width
