"""Taking detail away: images as they would be from farther away."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from fedsight.data.augment.base import Augmentation, augmentations, uniform


@augmentations.add("shrink")
class Shrink(Augmentation):
    """Shrink each image by a random factor and enlarge it again, with some probability."""

    probability: float = Field(0.5, ge=0, le=1)  # that an image loses detail
    smallest: float = Field(0.25, gt=0, le=1)  # part of its sides that is left

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One image after the other; a factor is as likely as its double."""
        coins = uniform(len(x), 0, 1, generator)
        factors = uniform(len(x), math.log(self.smallest), 0, generator)
        made = [
            _shrunk(one, math.exp(factor)) if coin < self.probability else one
            for one, coin, factor in zip(x, coins, factors, strict=True)
        ]
        return torch.stack(made).clamp_(0, 1) if made else x


def _shrunk(image: Tensor, factor: float) -> Tensor:
    """Bilinear, with antialiasing where it shrinks."""
    size = list(image.shape[1:])
    made: Tensor = F.resize(F.resize(image, [max(1, round(factor * side)) for side in size]), size)
    return made
