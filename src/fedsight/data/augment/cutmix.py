"""Mixing images by pasting a part of one into another."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsight.data.augment.base import MixingAugmentation, Mixture, augmentations
from fedsight.data.augment.mixup import share


@augmentations.add("cutmix", paper="Yun et al. 2019, Algorithm 1")
class CutMix(MixingAugmentation):
    """Paste a rectangle of another image of the batch into each; targets are mixed by area."""

    alpha: float = Field(1.0, gt=0)  # the area that stays is of Beta(alpha, alpha)

    def mix(self, x: Tensor, generator: Generator) -> tuple[Tensor, Mixture]:
        """One rectangle for the whole batch. It may reach over the edge, as in the paper."""
        kept = share(self.alpha, generator)
        height, width = x.shape[2:]
        down = int(torch.randint(height, (1,), generator=generator))
        across = int(torch.randint(width, (1,), generator=generator))
        return paste(x, rectangle(height, width, (down, across), kept))


Rectangle = tuple[int, int, int, int]  # top, bottom, left, right


def rectangle(height: int, width: int, centre: tuple[int, int], kept: float) -> Rectangle:
    """A rectangle with the image's proportions and 1 - `kept` of its area, cut at its edges."""
    half = 0.5 * math.sqrt(1 - kept)
    high, wide = int(half * height), int(half * width)
    down, across = centre
    top, bottom = max(0, down - high), min(height, down + high)
    left, right = max(0, across - wide), min(width, across + wide)
    return top, bottom, left, right


def paste(x: Tensor, part: Rectangle) -> tuple[Tensor, Mixture]:
    """Images [b, c, h, w] with a rectangle of the one before; how much of the area is their own."""
    top, bottom, left, right = part
    made = x.clone()
    made[:, :, top:bottom, left:right] = x.roll(1, 0)[:, :, top:bottom, left:right]
    own = 1 - (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
    return made, Mixture(own)
