"""AugMix: each image mixed with chains of random operations on it."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsight.data.augment.base import Augmentation, augmentations, uniform
from fedsight.data.augment.randaugment import OPERATIONS

# None that resembles the corruptions by which robustness is measured: that would be training on the
# test (Hendrycks et al. 2020, section 3).
USED = (
    "auto-contrast", "equalise", "posterise", "rotate", "solarise", "shear x", "shear y",
    "translate x", "translate y",
)  # fmt: skip
LONGEST = 3  # operations of a chain
TOP = 10  # the highest strength


@augmentations.add("augmix", paper="Hendrycks et al. 2020")
class AugMix(Augmentation):
    """Mix each image with chains of random operations: for models that stand corrupted images.

    A chain has one to three operations. The label stays. The paper's further loss, by which a model
    is to answer both alike, is left out.
    """

    moves: ClassVar[bool] = True
    coloured: ClassVar[bool] = True
    chains: int = Field(3, ge=1, le=10)  # that are mixed
    strength: float = Field(3, gt=0, le=TOP)  # the largest of an operation, of 10

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """Algorithm 1 of the paper, image after image, with alpha = 1."""
        return torch.stack([self._mixed(one, generator) for one in x]) if len(x) else x

    def _mixed(self, image: Tensor, generator: Generator) -> Tensor:
        # With alpha = 1, weights of a Dirichlet law are exponential draws over their sum, and the
        # share of the mixture, which has a beta law, is uniform.
        weights = -torch.log1p(-torch.rand(self.chains, generator=generator))
        (share,) = uniform(1, 0, 1, generator)
        mixture = torch.zeros_like(image)
        for weight in (weights / weights.sum()).tolist():
            mixture += weight * self._chain(image, generator)
        return ((1 - share) * image + share * mixture).clamp(0, 1)

    def _chain(self, image: Tensor, generator: Generator) -> Tensor:
        length = 1 + int(torch.randint(LONGEST, (1,), generator=generator))
        chosen = torch.randint(len(USED), (length,), generator=generator).tolist()
        signs = torch.randint(2, (length,), generator=generator).tolist()
        strengths = uniform(length, 0.1, max(0.1, self.strength), generator)
        for number, negative, strength in zip(chosen, signs, strengths, strict=True):
            image = OPERATIONS[USED[number]](image, strength / TOP, bool(negative))
        return image.clamp(0, 1)
