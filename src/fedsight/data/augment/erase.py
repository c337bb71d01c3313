"""Blacking out a part of images."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsight.data.augment.base import Augmentation, augmentations, uniform

_TRIES = 10  # of a rectangle that fits into the image, as in torchvision


@augmentations.add("erase", paper="Zhong et al. 2020, Algorithm 1")
class Erase(Augmentation):
    """Black out a random rectangle of each image (random erasing), with some probability."""

    probability: float = Field(0.5, ge=0, le=1)  # that an image loses a part
    smallest: float = Field(0.02, gt=0, le=1)  # part of the image's area
    largest: float = Field(0.33, gt=0, le=1)  # likewise
    elongation: float = Field(3.3, ge=1)  # largest ratio of the sides

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One image after the other."""
        _, _, height, width = x.shape
        made = x.clone()
        for image in made:
            if (hole := self._hole(height, width, generator)) is not None:
                top, left, high, wide = hole
                image[:, top : top + high, left : left + wide] = 0.0
        return made

    def _hole(
        self, height: int, width: int, generator: Generator
    ) -> tuple[int, int, int, int] | None:
        """Top, left, height and width; None: this image stays whole.

        The number of draws is the same for every image.
        """
        (coin,) = uniform(1, 0, 1, generator)
        areas = uniform(_TRIES, self.smallest, max(self.smallest, self.largest), generator)
        ratios = uniform(_TRIES, -math.log(self.elongation), math.log(self.elongation), generator)
        down, across = torch.rand(2, generator=generator).tolist()
        if coin >= self.probability:
            return None
        for share, ratio in zip(areas, ratios, strict=True):
            area, square = share * height * width, math.exp(ratio / 2)
            high, wide = round(math.sqrt(area) * square), round(math.sqrt(area) / square)
            if 0 < high < height and 0 < wide < width:
                top, left = int(down * (height - high + 1)), int(across * (width - wide + 1))
                return top, left, high, wide
        return None
