"""FedNova: updates are normalised, so that sites with more local steps do not count for more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms
from fedsight.core.errors import Problem
from fedsight.core.types import Memory, Payload

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("fednova", paper="Wang et al. 2020, section 4")
class FedNova(Algorithm):
    """Local SGD; the mean of the sites' mean gradients, times the mean length of their paths.

    Without it the federation minimises a mean of the losses in which a site's weight is multiplied
    by its number of steps. What is left of the drift vanishes with train.lr.
    """

    scalars: ClassVar[tuple[str, ...]] = ("length",)
    server_lr: float = Field(1.0, gt=0)

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """The length of the path, tau_i lr (steps times their mean rate), and (w - x) / length.

        The latter is the paper's -d_i, the mean of the tau_i local gradients.
        """
        length = local.steps * local.lr
        delta = vector - local.start
        if length:
            delta = delta / length
        return {"delta": delta, "length": vector.new_tensor([length])}, {}

    def due(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """The length of the path follows from the number of images."""
        return {"length": steps * rate}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """x - server_lr (sum p_i tau_i lr) (sum p_i d_i): tau_eff of the paper for plain SGD."""
        length = self.server_lr * mean.parts["length"]
        return (vector.double() + length * mean.parts["delta"]).float(), state

    def check(self, program: Program) -> list[Problem]:
        """The length of a path is known for plain SGD only."""
        return [
            Problem(
                key,
                "FedNova's normalisation by the number of local steps is derived for plain SGD",
                f"remove {key} or choose another algorithm",
            )
            for key in program.train.unlike_sgd("optimiser", "momentum")
        ]
