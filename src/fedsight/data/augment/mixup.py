"""Mixing images by averaging them."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsight.data.augment.base import MixingAugmentation, Mixture, augmentations


@augmentations.add("mixup", paper="Zhang et al. 2018, equation 1")
class Mixup(MixingAugmentation):
    """Average each image, and its target, with another one of the batch."""

    alpha: float = Field(0.2, gt=0)  # the weights are of Beta(alpha, alpha); near 0: hardly mixed

    def mix(self, x: Tensor, generator: Generator) -> tuple[Tensor, Mixture]:
        """One weight for the whole batch, as in the paper's code.

        It is the larger of the two, which makes no difference to a pair of which either may come
        first, and leaves images as they are when alpha is near 0.
        """
        drawn = share(self.alpha, generator)
        mixture = Mixture(max(drawn, 1 - drawn))
        return mixture.of(x), mixture


def share(alpha: float, generator: Generator) -> float:
    """A weight of Beta(alpha, alpha), which PyTorch does not draw from a generator."""
    words = torch.randint(1 << 32, (4,), generator=generator).tolist()
    return float(np.random.default_rng(words).beta(alpha, alpha))
