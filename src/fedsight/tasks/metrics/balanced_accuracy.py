"""Balanced accuracy: the mean over classes of the share of their images answered correctly."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsight.core.types import Sum
from fedsight.tasks.metrics.base import Metric, Mix, by_class, class_means, metrics


@metrics.add("balanced_accuracy", source="Brodersen et al. 2010, doi:10.1109/ICPR.2010.764")
class BalancedAccuracy(Metric):
    """The mean recall of the classes, each counting the same however many images it has."""

    largest: ClassVar[float | None] = 1.0

    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """By true class [classes, 2]: images whose most probable class is the true one; images."""
        return by_class(probabilities.argmax(1) == targets, targets, classes)

    def value(self, sum: Sum, mix: Mix | None) -> float:
        """Over the classes that test images have and, with `mix`, that occur in it."""
        recalls = class_means(sum)
        seen = ~np.isnan(recalls) if mix is None else ~np.isnan(recalls) & (mix > 0)
        return float(recalls[seen].mean()) if seen.any() else float("nan")
