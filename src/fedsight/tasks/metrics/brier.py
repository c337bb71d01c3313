"""The Brier score: how far probabilities are from the truth, squared."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from fedsight.core.types import Sum
from fedsight.tasks.metrics.base import Metric, Mix, by_class, image_mean, metrics


@metrics.add("brier", source="Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2")
class Brier(Metric):
    """Squared distance of the probabilities from the truth (0 to 2, lower is better)."""

    largest: ClassVar[float | None] = 2.0
    falls: ClassVar[bool] = True

    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """By true class [classes, 2]: sums over images of |p - onehot(y)|^2; images."""
        scores = (probabilities - F.one_hot(targets, classes)).square().sum(1)
        return by_class(scores, targets, classes)

    def value(self, sum: Sum, mix: Mix | None) -> float:
        """The mean over images, or over classes weighted by `mix`."""
        return image_mean(sum, mix)
