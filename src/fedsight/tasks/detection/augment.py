"""Random mirroring, turning and zooming of training images together with their boxes."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.data.detection import boxes

SHOWN = 0.5  # of an object that must be left in the image for its box to stay


def moved(x: Tensor, y: Tensor, mirror: bool, turn: bool, zoom: float) -> tuple[Tensor, Tensor]:
    """Images [b, c, h, w] and their boxes [b, most, 5] after random changes of each image.

    `mirror`: left to right or not. `turn`: that, upside down and about the diagonal or not. `zoom`
    above 1: up to so many times larger or smaller, at a random place. The draws are torch's own.
    """
    if mirror or turn:
        x, y = _some(x, y, x.flip(3), boxes.mirrored(y, x.shape[3]))
    if turn:
        x, y = _some(x, y, x.flip(2), boxes.upset(y, x.shape[2]))
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
    """Enlarged images lose their edges; reduced ones are padded with 0, the mean image's grey."""
    count, _, height, width = x.shape
    scale = torch.exp((2 * torch.rand(count, 1) - 1) * log(zoom)).to(x.device)
    # In grid_sample's units an image goes from -1 to 1: a pixel of the new image at o is the old
    # one's at o / scale + middle, and the free room for the middle is what the sizes differ by.
    middle = (2 * torch.rand(count, 2).to(x.device) - 1) * (1 - 1 / scale).abs()
    axes = torch.eye(2, device=x.device).expand(count, 2, 2) / scale[:, :, None]
    grid = F.affine_grid(
        torch.cat([axes, middle[:, :, None]], 2), list(x.shape), align_corners=False
    )
    seen = F.grid_sample(x, grid.to(x.dtype), align_corners=False)
    half = torch.tensor([width, height], device=x.device) / 2
    offset = half * (1 - scale * (1 + middle))  # of the old image's corner, in pixels of the new
    return seen, boxes.placed(y, scale, offset, width, height, SHOWN)
