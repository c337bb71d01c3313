"""A metric from outside the package: how sure the model is of its answers."""

from __future__ import annotations

import numpy as np
from torch import Tensor

import fedsight as fs
from fedsight.core.types import Sum
from fedsight.tasks.metrics.base import Metric


@fs.register("confidence")
class Confidence(Metric):
    """The mean probability of the answer that is given."""

    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """The sum over a batch."""
        return Sum(np.asarray(probabilities.max(1).values.double().sum()), len(targets))

    def value(self, total: Sum, mix: object = None) -> float:
        """The mean."""
        return total.mean
