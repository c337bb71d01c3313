"""Changing the colours of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from fedsight.data.augment.base import Augmentation, augmentations, uniform

_CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    F.adjust_brightness,
    F.adjust_contrast,
    F.adjust_saturation,
    F.adjust_hue,
)


@augmentations.add("colour")
class Colour(Augmentation):
    """Change each image's brightness, contrast, saturation and hue, in random order (jitter)."""

    coloured: ClassVar[bool] = True
    brightness: float = Field(0.4, ge=0, le=1)  # 0.4: a factor between 0.6 and 1.4
    contrast: float = Field(0.4, ge=0, le=1)  # likewise
    saturation: float = Field(0.4, ge=0, le=1)  # without effect on greyscale images, like hue
    hue: float = Field(0.1, ge=0, le=0.5)  # largest turn of the colour circle, of which 1 is all

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One image after the other."""
        return torch.stack([self._changed(one, generator) for one in x]) if len(x) else x

    def _changed(self, image: Tensor, generator: Generator) -> Tensor:
        reaches = (self.brightness, self.contrast, self.saturation, self.hue)
        factors = [uniform(1, 1 - reach, 1 + reach, generator)[0] for reach in reaches]
        factors[3] -= 1
        for change in torch.randperm(len(_CHANGES), generator=generator).tolist():
            coloured = len(image) == 3
            if reaches[change] and (coloured or change < 2):
                image = _CHANGES[change](image, factors[change])
        return image.clamp(0, 1)
