"""Federated averaging and its proximal variant."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms


@algorithms.add("fedavg", paper="McMahan et al. 2017, Algorithm 1")
class FedAvg(Algorithm):
    """Local SGD, weighted mean of the updates."""

    by_value: ClassVar[bool] = True

    server_lr: float = Field(1.0, gt=0)  # scales the mean update; 1 is the paper's rule

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """x + server_lr * mean(delta)."""
        return mean.parts["delta"].mul_(self.server_lr).add_(vector).float(), state


@algorithms.add("fedprox", paper="Li et al. 2020, equation 2")
class FedProx(FedAvg):
    """FedAvg with a proximal term mu/2 ||w - w_global||^2 in the local loss."""

    mu: float = Field(0.01, ge=0)

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """grad + mu (w - w_global)."""
        return grad + self.mu * (vector - local.start)
