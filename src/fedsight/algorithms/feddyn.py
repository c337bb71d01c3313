"""FedDyn: a dynamic regulariser makes the sites' minima and the federation's the same."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms
from fedsight.core.types import Memory, Payload


@algorithms.add("feddyn", paper="Acar et al. 2021, Algorithm 1")
class FedDyn(Algorithm):
    """Local losses with a linear and a proximal term, the former kept as a site's memory.

    A site minimises L_k(w) - <g_k, w> + alpha/2 ||w - x||^2, where x is the global vector and g_k
    its loss's gradient where it last ended. Where all end at x, the mean of the g_k is zero.
    """

    alpha: float = Field(0.01, gt=0)  # of the proximal term: the paper uses 0.001 to 0.1

    def init(self, vector: Tensor) -> State:
        """The server's h, the weighted mean of all g_k: zero."""
        return {"gradient": torch.zeros_like(vector)}

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """grad - g_k + alpha (w - x), the gradient of the regularised loss (equation 1)."""
        grad = grad + self.alpha * (vector - local.start)
        return grad - local.memory["gradient"] if local.memory else grad

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """w - x is sent; g_k - alpha (w - x) is kept, by the condition for a minimum."""
        delta = vector - local.start
        gradient = -self.alpha * delta
        if local.memory:
            gradient = gradient + local.memory["gradient"]
        return {"delta": delta}, {"gradient": gradient}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """h - alpha share mean(w - x); x + mean(w - x) - h / alpha, with the new h.

        The paper's share is |P|/m. Where sites count by their images it is the cohort's share of
        those: only then does h stay the mean of all g_k, weighted like the updates.
        """
        delta = mean.parts["delta"]
        gradient = state["gradient"].double() - self.alpha * mean.share * delta
        new = vector.double() + delta - gradient / self.alpha
        return new.float(), {"gradient": gradient.float()}
