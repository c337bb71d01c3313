"""Top-5 accuracy: the share of images whose class is among the five most probable."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsight.core.intervals import wilson
from fedsight.core.types import Sum
from fedsight.tasks.metrics.base import Metric, Mix, by_class, image_mean, metrics

ANSWERS = 5


@metrics.add("top_5", source="Russakovsky et al. 2015, arXiv:1409.0575")
class TopFive(Metric):
    """The share of images whose true class is among the five most probable."""

    largest: ClassVar[float | None] = 1.0

    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """By true class [classes, 2]: images with fewer than five classes ahead; images.

        Of equal probabilities the class with the lower number is ahead, as in argmax.
        """
        own = probabilities.gather(1, targets[:, None])
        before = torch.arange(classes, device=targets.device) < targets[:, None]
        ahead = (probabilities > own) | ((probabilities == own) & before)
        found = (ahead.sum(1) < ANSWERS) & ~own.squeeze(1).isnan()
        return by_class(found, targets, classes)

    def value(self, sum: Sum, mix: Mix | None) -> float:
        """The mean over images, or over classes weighted by `mix`."""
        return image_mean(sum, mix)

    def interval(self, sum: Sum) -> tuple[float, float] | None:
        """That of a share of all test images (Wilson 1927)."""
        found, images = sum.total.sum(axis=0)
        return wilson(found / images, images) if images else None
