"""Mirroring images left to right."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from fedsight.data.augment.base import Augmentation, augmentations


@augmentations.add("flip")
class Flip(Augmentation):
    """Mirror each image left to right with probability one half."""

    moves: ClassVar[bool] = True

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One draw for each image."""
        chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        return torch.where(chosen.view(-1, 1, 1, 1), x.flip(3), x)
