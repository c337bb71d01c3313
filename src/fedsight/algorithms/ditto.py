"""Ditto: each site trains a model of its own, held near the one that all learn together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms import lengths
from fedsight.algorithms.base import EVERYTHING, Local, Phase, algorithms
from fedsight.algorithms.fedavg import FedAvg
from fedsight.core.errors import Problem

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("ditto", paper="Li et al. 2021 (Ditto), Algorithm 1")
class Ditto(FedAvg):
    """FedAvg, and beside it at each site a model v_k of its own, which never travels.

    v_k minimises F_k(v) + lambda/2 ||v - w||^2, where F_k is the site's loss and w the global model
    of the round. With a lambda of 0 it is the model of the site alone.
    """

    owns: ClassVar[bool] = True

    lam: float = Field(0.1, ge=0)  # lambda: how strongly the own model is drawn to the shared one
    # of the own model, in a round; none: train.epochs
    own_epochs: int | None = Field(None, ge=1, le=100_000)
    # of the own model, in a round that is counted in steps; none: train.steps
    own_steps: int | None = Field(None, ge=1, le=1_000_000)

    def own_phases(self, length: int) -> list[Phase]:
        """The own model follows the shared one, which does not depend on it."""
        return [Phase(self.own_steps or self.own_epochs or length, EVERYTHING)]

    def check(self, program: Program) -> list[Problem]:
        """Both models are counted alike, in epochs or in steps."""
        found = lengths.problems(program, "own", self.own_epochs, self.own_steps)
        return [*super().check(program), *found]

    def correct_own(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """grad + lambda (v - w), line 8 of the algorithm, with w as the round began."""
        return grad + self.lam * (vector - local.start)
