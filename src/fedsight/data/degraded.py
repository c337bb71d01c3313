"""Images as worse cameras take them: small, dark, turned and partly covered."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.draws import draws
from fedsight.data.shift import rotated

SMALL = 16  # pixels of the shorter side, from which a smaller image is enlarged again
DARK = 0.25  # of the light
TURN = 15.0  # degrees, to the left or to the right
COVER = 0.5  # of each side: a quarter of the image

# (pixels [b, c, h, w] in [0, 1], numbers of the images [b]) -> pixels in [0, 1]
Degradation = Callable[[Tensor, Tensor], Tensor]


def _smaller(pixels: Tensor, numbers: Tensor) -> Tensor:
    """What is left of an image whose shorter side had SMALL pixels."""
    height, width = pixels.shape[2:]
    scale = SMALL / min(height, width)
    if scale >= 1:
        return pixels.clone()
    size = [max(1, round(scale * side)) for side in (height, width)]
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bilinear").clamp_(0, 1)


def _darker(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Less light, in steps of 1/255, as a file has them."""
    return pixels.mul(255 * DARK).round_().div_(255)


def _turned(pixels: Tensor, numbers: Tensor) -> Tensor:
    """About the centre, black outside; the direction is drawn."""
    left = [draws(number, "degraded", "turned").below(2) == 0 for number in numbers.tolist()]
    chosen = torch.tensor(left, device=pixels.device).view(-1, 1, 1, 1)
    return torch.where(chosen, rotated(pixels, TURN), rotated(pixels, -TURN))


def _covered(pixels: Tensor, numbers: Tensor) -> Tensor:
    """A black rectangle of the image's shape somewhere in it."""
    height, width = pixels.shape[2:]
    high, wide = (max(1, round(COVER * side)) for side in (height, width))
    made = pixels.clone()
    for image, number in zip(made, numbers.tolist(), strict=True):
        place = draws(number, "degraded", "covered")
        top, left = place.between(0, height - high), place.between(0, width - wide)
        image[:, top : top + high, left : left + wide] = 0.0
    return made


# What is done to an image depends on its number alone, so that all models see the same.
DEGRADATIONS: Mapping[str, Degradation] = {
    "smaller": _smaller,
    "darker": _darker,
    "turned": _turned,
    "covered": _covered,
}
