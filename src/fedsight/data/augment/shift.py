"""Moving images by a few pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fedsight.data.augment.base import Augmentation, augmentations


@augmentations.add("shift")
class Shift(Augmentation):
    """Move each image by up to an eighth of its size; the edges are filled with black."""

    moves: ClassVar[bool] = True

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """Two draws for each image: down and across."""
        _, _, height, width = x.shape
        reach = max(1, height // 8), max(1, width // 8)
        padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
        top = torch.randint(2 * reach[0] + 1, (len(x), 1), generator=generator).to(x.device)
        left = torch.randint(2 * reach[1] + 1, (len(x), 1), generator=generator).to(x.device)
        images, channels, down, across = (torch.arange(side, device=x.device) for side in x.shape)
        rows, columns = (top + down).view(-1, 1, height, 1), (left + across).view(-1, 1, 1, width)
        images, channels = images.view(-1, 1, 1, 1), channels.view(1, -1, 1, 1)
        return padded[images, channels, rows, columns]
