"""Making images brighter or darker."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsight.data.augment.base import Augmentation, augmentations


@augmentations.add("brightness")
class Brightness(Augmentation):
    """Scale each image's brightness by a random factor."""

    darkest: float = Field(0.8, ge=0, le=1)  # the smallest factor
    brightest: float = Field(1.2, ge=1)  # and the largest

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One draw for each image."""
        reach = self.brightest - self.darkest
        factors = self.darkest + reach * torch.rand(len(x), 1, 1, 1, generator=generator)
        return (x * factors.to(x.device)).clamp_(0, 1)
