"""Adaptive federated optimisation: a server optimiser uses the mean update as its gradient."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Mean, State, algorithms


@algorithms.add("fedavgm", paper="Hsu et al. 2019, section 4.3")
class FedAvgM(Algorithm):
    """FedAvg with momentum on the server."""

    by_value: ClassVar[bool] = True

    server_lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)

    def init(self, vector: Tensor) -> State:
        """The velocity, zero."""
        return {"velocity": torch.zeros_like(vector)}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """v = momentum v + mean(delta); x = x + server_lr v."""
        velocity = self.momentum * state["velocity"].double() + mean.parts["delta"]
        return (vector.double() + self.server_lr * velocity).float(), {"velocity": velocity.float()}


_RATES = {"sgd": 1.0, "adagrad": 0.03, "adam": 0.01, "yogi": 0.01}


@algorithms.add("fedopt", paper="Reddi et al. 2021, Algorithm 2")
class FedOpt(Algorithm):
    """The FedOpt family; `server` names the server optimiser."""

    by_value: ClassVar[bool] = True

    server: Literal["sgd", "adagrad", "adam", "yogi"] = "sgd"
    # none: 1 for sgd, 0.03 for adagrad, 0.01 for adam and yogi, whose steps have that length
    server_lr: float | None = Field(None, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)  # degree of adaptivity

    def init(self, vector: Tensor) -> State:
        """m = 0 and v = tau^2, the smallest value that the paper allows."""
        if self.server == "sgd":
            return {}
        return {"m": torch.zeros_like(vector), "v": torch.full_like(vector, self.tau**2)}

    @property
    def rate(self) -> float:
        """The server's learning rate."""
        return _RATES[self.server] if self.server_lr is None else self.server_lr

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """x + server_lr m / (sqrt(v) + tau); `sgd` is FedAvg with a server learning rate."""
        delta = mean.parts["delta"]
        if self.server == "sgd":
            return (vector.double() + self.rate * delta).float(), state
        m = self.beta1 * state["m"].double() + (1 - self.beta1) * delta
        v = self._second_moment(state["v"].double(), delta.square())
        new = vector.double() + self.rate * m / (v.sqrt() + self.tau)
        return new.float(), {"m": m.float(), "v": v.float()}

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        if self.server == "adagrad":
            return v + square
        if self.server == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)


@algorithms.add("fedadagrad", paper="Reddi et al. 2021, Algorithm 2")
class FedAdagrad(FedOpt):
    """FedOpt with Adagrad on the server."""

    server: Literal["adagrad"] = "adagrad"
    beta1: float = Field(0.0, ge=0, lt=1)


@algorithms.add("fedadam", paper="Reddi et al. 2021, Algorithm 2")
class FedAdam(FedOpt):
    """FedOpt with Adam on the server."""

    server: Literal["adam"] = "adam"


@algorithms.add("fedyogi", paper="Reddi et al. 2021, Algorithm 2")
class FedYogi(FedOpt):
    """FedOpt with Yogi on the server."""

    server: Literal["yogi"] = "yogi"
