"""q-FedAvg: sites whose loss is high count for more, so that losses become more alike."""

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

LEAST = 1e-10  # is added to losses, so that 0 has powers too


@algorithms.add("qfedavg", paper="Li et al. 2020 (q-FFL), Algorithm 2")
class QFedAvg(Algorithm):
    """The federation minimises sum p_k F_k^(q + 1) / (q + 1), where F_k is the loss of a site.

    What a site sends are vectors and a number, so the sum stays exact and of whole weights.
    """

    scalars: ClassVar[tuple[str, ...]] = ("divisor",)
    asks_loss: ClassVar[bool] = True

    # 0 is FedAvg; the larger, the more a high loss counts, and the shorter the steps
    q: float = Field(0.1, ge=0)

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """F^q (w_k - w) and F^q + q F^(q - 1) ||w_k - w||^2 / lr, with F the loss at w.

        They are the paper's -Delta_k and h_k, both divided by its Lipschitz constant L = 1 / lr.
        """
        delta, loss = vector - local.start, local.loss + LEAST
        square = float(delta.double().square().sum())
        divisor = loss**self.q + self.q * loss ** (self.q - 1) * square / local.lr
        return {"delta": loss**self.q * delta, "divisor": delta.new_tensor([divisor])}, {}

    def least(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """The divisor at the loss F for which it is least: with s = F^(2 q) ||w_k - w||^2, the
        squared norm of what was sent, it is F^q + q s / (lr F^(q + 1)).

        A smaller or negative one would stretch the federation's step, or turn it round. Where a
        codec has changed the update, no more is known than that it is not negative.
        """
        if "delta" not in payload:
            return {"divisor": 0.0}
        square = self.q * float(payload["delta"].double().square().sum()) / rate
        if not square:
            return {"divisor": 0.0 if self.q else 1.0}
        best = (square * (self.q + 1) / self.q) ** (1 / (2 * self.q + 1))
        return {"divisor": best**self.q + square / best ** (self.q + 1)}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """w - sum p_k Delta_k / sum p_k h_k; the paper's p_k are how often sites are drawn."""
        divisor = float(mean.parts["divisor"])
        delta = mean.parts["delta"]
        return (delta.div_(divisor) if divisor else delta).add_(vector).float(), state

    def check(self, program: Program) -> list[Problem]:
        """The step size that the paper derives is that of plain SGD."""
        return [
            Problem(
                key,
                "q-FedAvg's step takes 1 / train.lr for the smoothness of the loss, as is right "
                "for plain SGD",
                f"remove {key} or choose another algorithm",
            )
            for key in program.train.unlike_sgd("optimiser", "momentum")
        ]
