"""FedExP: the server extrapolates as far as the sites' updates disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms
from fedsight.core.errors import Problem
from fedsight.core.threads import one_thread
from fedsight.core.types import Memory, Payload

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("fedexp", paper="Jhunjhunwala et al. 2023, Algorithm 1")
class FedExP(Algorithm):
    """FedAvg whose server rate adapts in each round: at least 1, larger where updates cancel."""

    scalars: ClassVar[tuple[str, ...]] = ("square",)
    epsilon: float = Field(1e-3, ge=0)  # added to the mean update's squared norm

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """The update and its squared norm ||w - x||^2."""
        delta = vector - local.start
        square = delta.double().square().sum().to(delta.dtype).reshape(1)
        return {"delta": delta, "square": square}, {}

    def due(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """The squared norm is that of the update."""
        if "delta" not in payload:
            return {}
        return {"square": float(payload["delta"].double().square().sum())}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """x + rate mean(delta), with the rate of equation 5 for updates weighted by p_i:

        max(1, sum p_i ||delta_i||^2 / (2 (||mean(delta)||^2 + epsilon))); the paper's p_i are
        equal.
        """
        delta = mean.parts["delta"]
        with one_thread():  # or the last bit would depend on how many there are
            length = float(delta.square().sum())
        divisor = 2 * (length + self.epsilon)
        rate = max(1.0, float(mean.parts["square"]) / divisor) if divisor else 1.0
        return (vector.double() + rate * delta).float(), state

    def check(self, program: Program) -> list[Problem]:
        """Noise in the updates, which looks like disagreement and would drive the server's rate."""
        problems = super().check(program)
        if program.privacy.noise_at in ("site", "steps"):
            cause = (
                "independent noise in the sites' updates looks like disagreement, so the server "
                "would take steps that are many times too long"
            )
            problems.append(Problem("algorithm.name", cause, "choose fedavg or another algorithm"))
        return problems
