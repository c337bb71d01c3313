"""A small U-Net: a class for each pixel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ModelError
from fedsight.models.base import Model, models

GROUPS = 4


@models.add("unet", task="segment", paper="Ronneberger, Fischer and Brox 2015, arXiv:1505.04597")
class UNet(Model):
    """An encoder that halves the size at each level, and a decoder with skip connections.

    Level i has `width` * 2^i channels and two 3x3 convolutions with normalisation. Unlike the
    paper's, convolutions keep the size, and maps are upsampled by nearest neighbour.
    """

    gives: ClassVar[str] = "masks"
    width: int = Field(8, ge=GROUPS, multiple_of=GROUPS)
    levels: int = Field(3, ge=2, le=6)  # the size is halved between two levels

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of at least 2^levels pixels a side."""
        least = 2**self.levels
        if min(height, width) < least:
            raise ModelError(
                f"the network 'unet' with {self.levels} levels cannot take images of {height} x "
                f"{width} pixels",
                f"set data.size = {least} or more",
            )
        return _UNet(channels, self.width, self.levels, classes, self.norm), ["head"]

    def answer(self, height: int, width: int, classes: int) -> tuple[int | None, ...]:
        """A logit for each class and pixel."""
        return (classes, height, width)


class _UNet(nn.Module):
    """x [b, channels, h, w] -> logits [b, classes, h, w]."""

    def __init__(self, channels: int, width: int, levels: int, classes: int, norm: str) -> None:
        super().__init__()
        sides = [width * 2**level for level in range(levels)]
        pairs = zip([channels, *sides], sides, strict=False)
        self.down = nn.ModuleList(_block(one, other, norm) for one, other in pairs)
        back = list(zip(sides[:0:-1], sides[-2::-1], strict=True))
        self.up = nn.ModuleList(_block(deep + side, side, norm) for deep, side in back)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel."""
        seen: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.max_pool2d(x, 2))
            seen.append(x)
        for block, beside in zip(self.up, seen[-2::-1], strict=True):
            x = F.interpolate(x, size=beside.shape[-2:], mode="nearest")
            x = block(torch.cat([x, beside], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for side in (inputs, outputs):
        layers += [
            nn.Conv2d(side, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, outputs) if norm == "group" else nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
