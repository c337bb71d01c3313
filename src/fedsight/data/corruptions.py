"""Corruptions of images at five severities, by which a model's robustness is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsight.core.draws import draws
from fedsight.core.rng import derive
from fedsight.data.shift import gaussian_blur, pixel_noise

SEVERITIES = 5
Change = Callable[[Tensor, float, Tensor], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A change of pixels [b, c, h, w] in [0, 1] that is stronger at each of five `levels`.

    Pixels depend on the image, its number and the level alone, so that all models of a comparison
    see the same ones.
    """

    levels: tuple[float, float, float, float, float]
    change: Change  # (pixels, level, numbers of the images [b]) -> pixels in [0, 1]

    def apply(self, pixels: Tensor, severity: int, numbers: Tensor) -> Tensor:
        """The pixels at a `severity` from 1 to 5; `numbers` [b] tell the images apart."""
        return self.change(pixels, self.levels[severity - 1], numbers)


def _noise(pixels: Tensor, deviation: float, numbers: Tensor) -> Tensor:
    """Nearly Gaussian noise of this standard deviation on each pixel."""
    noise = pixel_noise(derive(0, "corruption", "noise"), numbers, pixels.shape[1:])
    return noise.mul_(deviation).add_(pixels).clamp_(0, 1)


def _blur(pixels: Tensor, share: float, numbers: Tensor) -> Tensor:
    """A Gaussian blur whose standard deviation is this share of the shorter side."""
    return gaussian_blur(pixels, share * min(pixels.shape[2:]))


def _contrast(pixels: Tensor, kept: float, numbers: Tensor) -> Tensor:
    """What is `kept` of each pixel's distance from the image's mean, by channel."""
    mean = pixels.mean((2, 3), keepdim=True)
    return (mean + kept * (pixels - mean)).clamp(0, 1)


def _brightness(pixels: Tensor, more: float, numbers: Tensor) -> Tensor:
    return (pixels + more).clamp(0, 1)


def _jpeg(pixels: Tensor, quality: float, numbers: Tensor) -> Tensor:
    """JPEG of this quality; channels that are not those of a colour image one by one."""
    if pixels.shape[1] not in (1, 3):
        each = [_jpeg(pixels[:, at : at + 1], quality, numbers) for at in range(pixels.shape[1])]
        return torch.cat(each, dim=1)
    whole = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.empty_like(whole)
    for at, image in enumerate(whole):
        file = BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=int(quality)
        )
        found[at] = np.asarray(Image.open(file)).reshape(image.shape)
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(pixels).div_(255)


def _shift(pixels: Tensor, share: float, numbers: Tensor) -> Tensor:
    """Each image moved by this share of its sides, but at least a pixel, in one of eight drawn
    directions; black comes in."""
    height, width = pixels.shape[2:]
    steps = max(1, round(share * height)), max(1, round(share * width))
    moved = torch.zeros_like(pixels)
    for at, number in enumerate(numbers.tolist()):
        turn = draws(number, "corruption", "shift").below(8) * math.pi / 4
        down, right = round(math.sin(turn)) * steps[0], round(math.cos(turn)) * steps[1]
        rows, columns = height - abs(down), width - abs(right)
        moved[at, :, max(0, down) :, max(0, right) :][:, :rows, :columns] = pixels[
            at, :, max(0, -down) :, max(0, -right) :
        ][:, :rows, :columns]
    return moved


# Noise, contrast, brightness and JPEG have the levels of ImageNet-C (Hendrycks and Dietterich 2019,
# arXiv:1903.12261), which adds brightness in HSV and here it is added to each channel; blur and
# moves are relative to the size of an image.
CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": Corruption((0.08, 0.12, 0.18, 0.26, 0.38), _noise),
    "blur": Corruption((0.0125, 0.019, 0.025, 0.032, 0.04), _blur),
    "contrast": Corruption((0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "jpeg": Corruption((25, 18, 15, 10, 7), _jpeg),
    "shift": Corruption((0.04, 0.08, 0.12, 0.16, 0.2), _shift),
    "brightness": Corruption((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
}
