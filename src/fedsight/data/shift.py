"""Feature shift: images are corrupted more strongly from one site to the next."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.rng import derive
from fedsight.core.settings import Settings

# 64-bit multipliers and steps of SplitMix64 (Steele et al. 2014), as signed integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64
_BYTES = 0x00FF00FF00FF00FF
_SPREAD = math.sqrt(8 * (256**2 - 1) / 12)  # standard deviation of the sum of eight bytes


class Shift(Settings):
    """A corruption whose level grows with the site's number: `strength * site / (sites - 1)`.

    Noise is that of NIID-Bench (Li et al. 2022, arXiv:2102.02079, section 4.2). The strength means,
    by kind: `noise` standard deviation of pixels in [0, 1]; `blur` standard deviation of the
    Gaussian in pixels; `contrast` the fraction of contrast taken away; `rotate` degrees, counter-
    clockwise; `invert` how far towards the negative (0.5 is flat grey). An image's pixels
    depend only on the settings, the seed, the site and the image, never on its batch.
    """

    kind: Literal["none", "noise", "blur", "contrast", "rotate", "invert"] = "none"
    strength: float = Field(0.1, ge=0, le=360)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        top = {"blur": 32.0, "rotate": 360.0}.get(self.kind, 1.0)
        if self.kind != "none" and self.strength > top:
            raise ValueError(f"strength of '{self.kind}' goes from 0 to {top:g}")
        return self

    def level(self, site: int, sites: int) -> float:
        """The strength at `site`: 0 at the first, `strength` at the last."""
        return self.strength * site / max(sites - 1, 1)

    def apply(self, pixels: Tensor, site: int, sites: int, seed: int, indices: Tensor) -> Tensor:
        """`pixels` [b, c, h, w] in [0, 1] as `site` of `sites` sees them, in [0, 1].

        `indices` [b] are the images' numbers in their part; noise is drawn by them. A level of
        zero gives back the same tensor.
        """
        level = self.level(site, sites)
        if self.kind == "none" or level == 0:
            return pixels
        if self.kind == "noise":
            noise = pixel_noise(
                derive(seed, "shift", site), indices.to(pixels.device), pixels.shape[1:]
            )
            return pixels.add(noise.mul_(level)).clamp_(0.0, 1.0)
        if self.kind == "blur":
            return gaussian_blur(pixels, level)
        if self.kind == "rotate":
            return rotated(pixels, level)
        if self.kind == "contrast":
            return pixels.mul(1.0 - level).add_(0.5 * level)
        return pixels.mul(1.0 - 2.0 * level).add_(level)


def pixel_noise(seed: int, indices: Tensor, shape: Any) -> Tensor:
    """Nearly normal noise [b, *shape], mean 0 and variance 1, a function of seed, index and pixel.

    Each value is the sum of the eight bytes of a hash: integers, so exact on every machine.
    """
    size = math.prod(shape)
    image = _mix(indices.to(torch.int64) * _GAMMA + seed)
    x = _mix(image[:, None] + torch.arange(1, size + 1, device=indices.device) * _GAMMA)
    pairs = (x & _BYTES) + ((x >> 8) & _BYTES)  # four sums of two bytes, 16 bits apart
    total = (pairs & 0xFFFF) + ((pairs >> 16) & 0xFFFF) + ((pairs >> 32) & 0xFFFF)
    total += (pairs >> 48) & 0xFFFF
    return total.sub_(8 * 255 // 2).to(torch.float32).mul_(1.0 / _SPREAD).view(-1, *shape)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64; `>>` keeps the sign, so the sign's copies are masked."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX2
    return x ^ ((x >> 31) & (2**33 - 1))


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, edges repeated; plain sums, whose rounding no batch size changes."""
    radius = max(1, math.ceil(3 * sigma))
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]
    for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, length = F.pad(pixels, pad, mode="replicate"), pixels.shape[dim]
        pixels = torch.zeros_like(pixels)
        for offset, weight in enumerate(weights):
            pixels.add_(padded.narrow(dim, offset, length).mul(weight))
    return pixels.clamp_(0.0, 1.0)


def rotated(pixels: Tensor, degrees: float) -> Tensor:
    """Pixels [b, c, h, w] in [0, 1] turned about the centre, counter-clockwise for more than 0
    `degrees`; bilinear, black outside."""
    index, weight = _rotation(pixels.shape[2], pixels.shape[3], degrees, pixels.device)
    flat = pixels.flatten(2)
    turned = torch.zeros_like(flat)
    for corner in range(4):
        turned.add_(flat[:, :, index[corner]].mul_(weight[corner]))
    return turned.view_as(pixels).clamp_(0.0, 1.0)


@lru_cache(maxsize=128)
def _rotation(
    height: int, width: int, degrees: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each target pixel [h * w] its four source pixels [4, h * w] and their weights.

    Computed on the CPU, since not every device has float64, and then moved to `device`.
    """
    angle = math.radians(degrees)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    from_x = math.cos(angle) * x - math.sin(angle) * y + (width - 1) / 2
    from_y = math.sin(angle) * x + math.cos(angle) * y + (height - 1) / 2
    left, top = from_x.floor(), from_y.floor()
    index, weight = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            px, py = left + dx, top + dy
            inside = (px >= 0) & (px < width) & (py >= 0) & (py < height)
            share = (1 - (from_x - px).abs()) * (1 - (from_y - py).abs()) * inside
            index.append((py.clamp(0, height - 1) * width + px.clamp(0, width - 1)).long())
            weight.append(share)
    sources, weights = torch.stack(index).view(4, -1), torch.stack(weight).view(4, -1).float()
    return sources.to(device), weights.to(device)
