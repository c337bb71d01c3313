"""Images as worse cameras take them: small, dark, turned and partly covered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.draws import Draws, draws
from fedsight.data.shift import rotated

SMALL = 16  # pixels of the shorter side, from which a smaller image is enlarged again
DARK = 0.25  # of the light
TURN = 15.0  # degrees, to the left or to the right
COVER = 0.5  # of each side: a quarter of the image

Degradation = Callable[[Tensor], Tensor]  # pixels [b, c, h, w] in [0, 1] -> the same


def _draws(image: Tensor, kind: str) -> Draws:
    """The draws for an image [c, h, w], which follow from its own pixels."""
    seed = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()[:7]
    return draws(int.from_bytes(seed, "big"), "degraded", kind)


def _smaller(pixels: Tensor) -> Tensor:
    """What is left of an image whose shorter side had SMALL pixels."""
    height, width = pixels.shape[2:]
    scale = SMALL / min(height, width)
    if scale >= 1:
        return pixels.clone()
    size = [max(1, round(scale * side)) for side in (height, width)]
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bilinear").clamp_(0, 1)


def _darker(pixels: Tensor) -> Tensor:
    """Less light, in steps of 1/255, as a file has them."""
    return pixels.mul(255 * DARK).round_().div_(255)


def _turned(pixels: Tensor) -> Tensor:
    """About the centre, black outside; the direction is drawn."""
    left = [_draws(image, "turned").below(2) == 0 for image in pixels]
    chosen = torch.tensor(left, device=pixels.device).view(-1, 1, 1, 1)
    return torch.where(chosen, rotated(pixels, TURN), rotated(pixels, -TURN))


def _covered(pixels: Tensor) -> Tensor:
    """A black rectangle of the image's shape somewhere in it."""
    height, width = pixels.shape[2:]
    high, wide = (max(1, round(COVER * side)) for side in (height, width))
    made = pixels.clone()
    for image in made:
        place = _draws(image, "covered")
        top, left = place.between(0, height - high), place.between(0, width - wide)
        image[:, top : top + high, left : left + wide] = 0.0
    return made


# What is done to an image depends on its pixels alone: all models see the same, at whatever site
# and beside whatever other images. Did it follow from an image's number, which everybody can count,
# a model could be made that answers to one image only, by the place of the rectangle.
DEGRADATIONS: Mapping[str, Degradation] = {
    "smaller": _smaller,
    "darker": _darker,
    "turned": _turned,
    "covered": _covered,
}
