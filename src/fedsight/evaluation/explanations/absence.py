"""What an image is without its detail: what stands in place of pixels that are taken away."""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 8.0  # an image's side is so many deviations of the blur


def absent(x: Tensor) -> Tensor:
    """Images [n, c, h, w] blurred so much that hardly any detail is left.

    Black or grey in place of a region would be something that no training image shows, and the
    model might answer to that (Fong and Vedaldi 2017, section 4.1).
    """
    height, width = x.shape[2:]
    down, across = _weights(height, x), _weights(width, x)
    return torch.einsum("ij,ncjk,lk->ncil", down, x, across)


def _weights(side: int, x: Tensor) -> Tensor:
    """The weight [side, side] of each pixel in each other one; those beyond the edge are none."""
    at = torch.arange(side, dtype=x.dtype, device=x.device)
    weight = torch.exp(-0.5 * ((at[:, None] - at) * SPREAD / side) ** 2)
    return weight / weight.sum(1, keepdim=True)
