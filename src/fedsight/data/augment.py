"""Random changes to training images, drawn on the CPU from a seeded generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Augmentation = Literal["flip", "shift", "brightness", "erase"]
MOVING = ("flip", "shift")  # augmentations that move the content of an image


def augment(x: Tensor, names: tuple[Augmentation, ...], generator: Generator) -> Tensor:
    """Apply the named augmentations in order to pixels [b, c, h, w] in [0, 1]."""
    for name in names:
        x = _AUGMENTATIONS[name](x, generator)
    return x


def _flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(chosen.view(-1, 1, 1, 1), x.flip(3), x)


def _shift(x: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to an eighth of its size; the edges are filled with black."""
    _, _, height, width = x.shape
    reach = max(1, height // 8), max(1, width // 8)
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
    top = torch.randint(2 * reach[0] + 1, (len(x), 1), generator=generator).to(x.device)
    left = torch.randint(2 * reach[1] + 1, (len(x), 1), generator=generator).to(x.device)
    images, channels, down, across = (torch.arange(side, device=x.device) for side in x.shape)
    rows, columns = (top + down).view(-1, 1, height, 1), (left + across).view(-1, 1, 1, width)
    images, channels = images.view(-1, 1, 1, 1), channels.view(1, -1, 1, 1)
    return padded[images, channels, rows, columns]


def _brightness(x: Tensor, generator: Generator) -> Tensor:
    """Scale each image's brightness by a factor between 0.8 and 1.2."""
    factors = 0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (x * factors.to(x.device)).clamp_(0, 1)


def _erase(x: Tensor, generator: Generator) -> Tensor:
    """Black out a square of a quarter of the side in each image (Zhong et al. 2020)."""
    _, _, height, width = x.shape
    side = max(1, min(height, width) // 4)
    top = torch.randint(height - side + 1, (len(x), 1), generator=generator).to(x.device)
    left = torch.randint(width - side + 1, (len(x), 1), generator=generator).to(x.device)
    rows, columns = (torch.arange(length, device=x.device) for length in (height, width))
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    hole = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
    return x.masked_fill(hole.unsqueeze(1), 0.0)


_AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": _flip,
    "shift": _shift,
    "brightness": _brightness,
    "erase": _erase,
}
