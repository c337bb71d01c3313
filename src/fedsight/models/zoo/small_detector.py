"""A small object detector that two cores can train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError
from fedsight.models.base import models
from fedsight.models.detector import HeatmapModel, Pyramid, layer

PAPER = "Liu et al., Training-Time-Friendly Network for Real-Time Object Detection, AAAI 2020"


@models.add("small_detector", task="detect", source=PAPER)
class SmallDetector(HeatmapModel):
    """Objects by heat maps (TTFNet) on a small pyramid of convolutions; some 200,000 parameters.

    The image is halved four times; the maps from 1/`stride` on are joined into one, from which two
    layers predict heat maps and boxes. Objects should be several cells of `stride` pixels wide.
    """

    least: ClassVar[int] = 16
    width: int = Field(16, ge=4, multiple_of=4)  # channels of the first map
    stride: Literal[4, 8] = 4  # pixels of a cell of the grid

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of at least 16 pixels a side."""
        if min(height, width) < self.least:
            raise ModelError(
                f"the network 'small_detector' cannot take images of {height} x {width} pixels",
                f"set data.size = {self.least} or more",
            )
        w = self.width
        stages = [
            nn.Sequential(*layer(channels, w, 2)),
            nn.Sequential(*layer(w, 2 * w, 2), *layer(2 * w, 2 * w)),
            nn.Sequential(*layer(2 * w, 4 * w, 2), *layer(4 * w, 4 * w)),
            nn.Sequential(*layer(4 * w, 4 * w, 2), *layer(4 * w, 4 * w)),
        ]
        sides = (2 * w, 4 * w, 4 * w) if self.stride == 4 else (4 * w, 4 * w)
        body = Pyramid(stages, sides, 2 * w, classes)
        return self.detector(body, classes, self.stride, (height, width)), ["body.heat", "body.box"]
