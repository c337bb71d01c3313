"""Turning images by a few degrees."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fedsight.data.augment.base import Augmentation, augmentations, uniform


@augmentations.add("turn")
class Turn(Augmentation):
    """Turn each image about its centre by a random angle; the corners are filled with black."""

    moves: ClassVar[bool] = True
    degrees: float = Field(15.0, ge=0, le=180)  # the largest angle, to either side

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One angle for each image, bilinear."""
        angles = uniform(len(x), -self.degrees, self.degrees, generator)
        bilinear = InterpolationMode.BILINEAR
        made = [F.rotate(one, angle, bilinear) for one, angle in zip(x, angles, strict=True)]
        return torch.stack(made).clamp_(0, 1) if made else x
