"""SCAFFOLD: control variates correct the drift of local training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms
from fedsight.core.errors import Problem
from fedsight.core.types import Memory, Payload

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("scaffold", paper="Karimireddy et al. 2020, Algorithm 1, option II")
class Scaffold(Algorithm):
    """Local SGD corrected by control variates, which each site keeps as its memory."""

    parts: ClassVar[tuple[str, ...]] = ("delta", "control")
    server_lr: float = Field(1.0, gt=0)

    def init(self, vector: Tensor) -> State:
        """The server's control variate c, zero."""
        return {"control": torch.zeros_like(vector)}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """c, sent with the order."""
        return state

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """grad - c_i + c (equation 3)."""
        grad = grad + local.shared["control"]
        return grad - local.memory["control"] if local.memory else grad

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """c_i+ = c_i - c + (x - y) / (K lr) (equation 4, option II); c_i+ - c_i is sent."""
        delta = vector - local.start
        change = -local.shared["control"] - delta / (local.steps * local.lr)
        control = change + local.memory["control"] if local.memory else change
        return {"delta": delta, "control": change}, {"control": control}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """x + server_lr mean(delta); c + share mean(c_i+ - c_i) (equation 5).

        The paper's share is |S|/N. Where sites count by their images it is the cohort's share of
        those: only then does c stay the mean of all c_i, weighted like the updates.
        """
        new = vector.double() + self.server_lr * mean.parts["delta"]
        control = state["control"].double() + mean.share * mean.parts["control"]
        return new.float(), {"control": control.float()}

    def check(self, program: Program) -> list[Problem]:
        """Option II derives the mean gradient from the distance moved: true of plain SGD only."""
        return [
            Problem(
                key,
                "SCAFFOLD's correction (option II) is derived for plain local SGD",
                f"remove {key} or choose another algorithm",
            )
            for key in program.train.unlike_sgd("optimiser", "momentum", "groups", "clip")
        ]
