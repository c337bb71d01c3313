"""APFL: each site uses a mixture of the shared model and one that it trains for the mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Local, algorithms
from fedsight.algorithms.fedavg import FedAvg
from fedsight.core.errors import Problem
from fedsight.core.types import Memory, Payload

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("apfl", paper="Deng et al. 2020 (APFL), Algorithm 1")
class APFL(FedAvg):
    """FedAvg whose sites use alpha v_k + (1 - alpha) w_k, and train v_k so that this is good.

    w_k is the shared model as the site's steps have left it; v_k stays at the site and never
    travels, and neither does the mixture.
    """

    owns: ClassVar[bool] = True
    looks: ClassVar[bool] = True

    alpha: float = Field(0.5, gt=0, le=1)  # share of v_k in the mixture

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """The gradient at w_k, unchanged; beside it v_k takes its step along the gradient of the
        mixture's loss, of the same batch, by v_k."""
        own = self._own(local)
        mixture = self.alpha * own + (1 - self.alpha) * vector
        local.working["own"] = own - local.lr * self.alpha * local.at(mixture)
        return grad

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """The shared model's update is sent; v_k and the mixture are kept."""
        own = self._own(local)
        mixture = self.alpha * own + (1 - self.alpha) * vector
        return {"delta": vector - local.start}, {"own": own.clone(), "personal": mixture}

    def _own(self, local: Local) -> Tensor:
        """v_k, which begins as the global model of the site's first round."""
        return local.working.get("own", local.memory.get("own", local.start))

    def check(self, program: Program) -> list[Problem]:
        """v_k takes plain steps at the rate of the round."""
        return [
            Problem(
                key,
                "APFL's second model takes steps of plain SGD at the rate of the round",
                f"remove {key}, or choose ditto, which takes any",
            )
            for key in program.train.unlike_sgd(
                "optimiser", "momentum", "weight_decay", "groups", "clip", "schedule_by"
            )
        ]
