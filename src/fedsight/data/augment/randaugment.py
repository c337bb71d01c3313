"""RandAugment: a few random operations of one strength on each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fedsight.data.augment.base import Augmentation, augmentations

Operation = Callable[[Tensor, float, bool], Tensor]  # image [c, h, w], strength 0 to 1, sign


def _moved(image: Tensor, move: list[float], shear: list[float]) -> Tensor:
    # The corner stays when an image is sheared, as in the paper's code.
    centre = [0, 0] if any(shear) else None
    made: Tensor = F.affine(image, 0.0, move, 1.0, shear, InterpolationMode.NEAREST, None, centre)
    return made


def _signed(value: float, negative: bool) -> float:
    return -value if negative else value


def _shear(strength: float, negative: bool) -> float:
    """In degrees, of an angle whose tangent is up to 0.3."""
    return float(torch.rad2deg(torch.atan(torch.tensor(_signed(0.3 * strength, negative)))))


def _shift(side: int, strength: float, negative: bool) -> float:
    """In pixels, up to 150/331 of the side."""
    return float(int(_signed(150 / 331 * side * strength, negative)))


def _factor(strength: float, negative: bool) -> float:
    """Up to 90 % more or less."""
    return 1 + _signed(0.9 * strength, negative)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear x": lambda image, strength, sign: _moved(image, [0, 0], [_shear(strength, sign), 0]),
    "shear y": lambda image, strength, sign: _moved(image, [0, 0], [0, _shear(strength, sign)]),
    "translate x": lambda image, strength, sign: _moved(
        image, [_shift(image.shape[2], strength, sign), 0], [0, 0]
    ),
    "translate y": lambda image, strength, sign: _moved(
        image, [0, _shift(image.shape[1], strength, sign)], [0, 0]
    ),
    "rotate": lambda image, strength, sign: F.rotate(image, _signed(30 * strength, sign)),
    "brightness": lambda image, strength, sign: F.adjust_brightness(image, _factor(strength, sign)),
    "colour": lambda image, strength, sign: F.adjust_saturation(image, _factor(strength, sign)),
    "contrast": lambda image, strength, sign: F.adjust_contrast(image, _factor(strength, sign)),
    "sharpness": lambda image, strength, sign: F.adjust_sharpness(image, _factor(strength, sign)),
    "posterise": lambda image, strength, sign: F.posterize(image, 8 - round(4 * strength)),
    "solarise": lambda image, strength, sign: F.solarize(image, 1 - strength),
    "auto-contrast": lambda image, strength, sign: F.autocontrast(image),
    "equalise": lambda image, strength, sign: F.equalize(image),
}


@augmentations.add("randaugment", paper="Cubuk et al. 2020")
class RandAugment(Augmentation):
    """Apply a few of 14 random operations (turn, shear, sharpen, solarise, ...) to each image."""

    moves: ClassVar[bool] = True
    coloured: ClassVar[bool] = True
    operations: int = Field(2, ge=1)  # on each image
    strength: int = Field(9, ge=0, le=30)  # of 30

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """One image after the other, with torchvision's operations and ranges (31 bins)."""
        return torch.stack([self._changed(one, generator) for one in x]) if len(x) else x

    def _changed(self, image: Tensor, generator: Generator) -> Tensor:
        known = list(OPERATIONS.values())
        chosen = torch.randint(len(known), (self.operations,), generator=generator).tolist()
        signs = torch.randint(2, (self.operations,), generator=generator).tolist()
        for number, negative in zip(chosen, signs, strict=True):
            image = known[number](image, self.strength / 30, bool(negative))
        return image.clamp(0, 1)
