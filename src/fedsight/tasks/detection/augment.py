"""Random mirroring, turning and zooming of training images together with their boxes."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.data.detection import boxes

MIN_VISIBLE = 0.5  # share of an object that must remain in the image for its box to be kept


def moved(x: Tensor, y: Tensor, mirror: bool, turn: bool, zoom: float) -> tuple[Tensor, Tensor]:
    """Augment images [b, c, h, w] together with their boxes [b, most, 5].

    `mirror` flips left to right at random; `turn` also top to bottom and across the diagonal.
    `zoom` above 1 scales by up to this factor, at a random position. It draws from torch's default
    generator.
    """
    if mirror or turn:
        x, y = _some(x, y, x.flip(3), boxes.mirrored(y, x.shape[3]))
    if turn:
        x, y = _some(x, y, x.flip(2), boxes.flipped(y, x.shape[2]))
        if x.shape[2] == x.shape[3]:
            x, y = _some(x, y, x.transpose(2, 3), boxes.transposed(y))
    if zoom > 1:
        x, y = _zoomed(x, y, zoom)
    return x.contiguous(memory_format=torch.channels_last), y


def _some(x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> tuple[Tensor, Tensor]:
    chosen = (torch.rand(len(x)) < 0.5).to(x.device)
    return (
        torch.where(chosen[:, None, None, None], other_x, x),
        torch.where(chosen[:, None, None], other_y, y),
    )


def _zoomed(x: Tensor, y: Tensor, zoom: float) -> tuple[Tensor, Tensor]:
    """Enlarged images lose their edges; reduced ones are padded with 0, the mean after scaling."""
    count, _, height, width = x.shape
    scale = torch.exp((2 * torch.rand(count, 1) - 1) * log(zoom)).to(x.device)
    # In grid_sample's units an image spans -1 to 1: the new pixel at o comes from the old one at
    # o / scale + middle, and the middle may move by the difference of the sizes.
    middle = (2 * torch.rand(count, 2).to(x.device) - 1) * (1 - 1 / scale).abs()
    axes = torch.eye(2, device=x.device).expand(count, 2, 2) / scale[:, :, None]
    grid = F.affine_grid(
        torch.cat([axes, middle[:, :, None]], 2), list(x.shape), align_corners=False
    )
    seen = F.grid_sample(x, grid.to(x.dtype), align_corners=False)
    half = torch.tensor([width, height], device=x.device) / 2
    offset = half * (1 - scale * (1 + middle))  # of the old image's corner, in new pixels
    return seen, boxes.placed(y, scale, offset, width, height, MIN_VISIBLE)
