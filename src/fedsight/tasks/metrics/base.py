"""What a metric is: a sum over test images that adds over sites, and a figure made from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Sum
from fedsight.tasks.plausible import are_between

Mix = npt.NDArray[np.float64]  # label proportions [classes] that sum to 1


class Metric(Settings, ABC):
    """A further figure for tasks with one class per image: `metrics = ["brier"]` in `[task]`.

    A new one takes one file, in this package or elsewhere, with a class that is registered by
    `metrics.add(name)`. It is created without arguments, so every setting needs a default.
    """

    # The largest value of one image, for a sum of `by_class`, whose values are not negative; None:
    # the figures of a task with this metric cannot be noised.
    largest: ClassVar[float | None] = None
    falls: ClassVar[bool] = False  # whether a lower figure is better

    @abstractmethod
    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """The sum over a batch, from probabilities [b, classes] and class numbers [b] int64.

        Both are on the CPU. Sums add over batches and sites. Only the sum leaves a site, so it
        must not reveal the answer to a single image.
        """

    @abstractmethod
    def value(self, sum: Sum, mix: Mix | None) -> float:
        """The figure; NaN where nothing was measured. `mix`: as in `Evaluation.summary`."""

    def interval(self, sum: Sum) -> tuple[float, float] | None:
        """The 95 % interval of the figure over other test images; None if it is not known."""
        return None

    def is_possible(self, sum: Sum, images: npt.NDArray[np.float64]) -> bool:
        """Whether a model can have this sum over test images of which so many [classes] show each
        class. It may come from a machine that makes it up."""
        if self.largest is None:
            return True
        values, counts = sum.total.T
        return np.array_equal(counts, images) and are_between(values, self.largest * images)


metrics: Registry[Metric] = Registry("metric", "fedsight.tasks.metrics")


def by_class(values: Tensor, targets: Tensor, classes: int) -> Sum:
    """Values [b] added by true class: [classes, 2] of (sum of the values, number of images)."""
    values, targets = values.cpu().double(), targets.cpu()  # not every device has float64
    pairs = torch.stack([values, torch.ones_like(values)], dim=1)
    total = torch.zeros(classes, 2, dtype=torch.float64)
    return Sum(total.index_add_(0, targets, pairs).numpy(), len(targets))


def class_means(sum: Sum) -> npt.NDArray[np.float64]:
    """The mean value of each class [classes] in a sum of `by_class`; NaN without images."""
    values, counts = sum.total.T
    return np.where(counts > 0, values / np.maximum(counts, 1), np.nan)


def image_mean(sum: Sum, mix: Mix | None) -> float:
    """The mean over images in a sum of `by_class`, or over classes weighted by `mix`.

    Classes in `mix` without test images are left out and the others scaled to sum to 1.
    """
    weights = sum.total[:, 1] if mix is None else mix
    means = class_means(sum)
    weights = np.where(np.isnan(means) & (sum.total[:, 1] == 0), 0.0, weights)
    if not weights.sum():
        return float("nan")
    return float((weights * np.where(weights > 0, means, 0.0)).sum() / weights.sum())
