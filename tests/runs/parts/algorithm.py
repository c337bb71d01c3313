"""An algorithm from outside the package: FedAvg with a trimmed step."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

import fedsight as fs
from fedsight.algorithms.base import Mean, State


@fs.register("shortened", paper="a test")
class Shortened(fs.Algorithm):
    """The mean update, shortened."""

    factor: float = Field(0.5, gt=0)

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """X + factor * mean(delta)."""
        return mean.parts["delta"].mul_(self.factor).add_(vector).float(), state
