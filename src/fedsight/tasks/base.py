"""The task: loss, measures that add over batches and sites, predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Batch, Metrics, Sum


class Task(Settings, ABC):
    """What is learnt: `[task]` in the config. A new one costs one file in `tasks/`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss, scalar, mean over the batch."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """Sums from which `summary` makes figures; they add over batches and sites."""

    @abstractmethod
    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """Figures such as accuracy and loss.

        `mix` [classes], summing to 1: figures as they would be under these label proportions.
        """

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Probabilities [b, classes] for normalised images [b, c, h, w]."""


tasks: Registry[Task] = Registry("task", "fedsight.tasks")
