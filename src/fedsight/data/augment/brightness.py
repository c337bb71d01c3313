"""Making images brighter or darker."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fedsight.data.augment.base import Augmentation, augmentations


@augmentations.add("brightness")
class Brightness(Augmentation):
    """Scale each image's brightness by a factor between 0.8 and 1.2."""

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One draw for each image."""
        factors = 0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=generator)
        return (x * factors.to(x.device)).clamp_(0, 1)
