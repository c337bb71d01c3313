"""AFL: the largest of the sites' losses is minimised, not their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, State, algorithms
from fedsight.core.types import Memory, Payload

UNIT = 2.0**-16  # of weights, which are whole numbers of it
FAR = math.log(2.0**8)  # how far a weight's logarithm goes from that of 1


@algorithms.add("afl", paper="Mohri et al. 2019 (agnostic federated learning), arXiv:1902.00146")
class AFL(Algorithm):
    """min over w of max over mixtures l of the sites of sum l_k F_k(w), F_k the loss of a site.

    A round descends in w with the sites weighted by l, and ascends in l. The paper projects
    l + rate F onto the simplex; here the ascent is multiplicative (exponentiated gradient, Kivinen
    and Warmuth 1997), l_k ~ p_k exp(rate sum_t F_k(w_t)), which has the same saddle point and needs
    no site's loss but its own: a site remembers the logarithm of its factor, and the server divides
    by the sum of the factors. Losses are counted from the last round's mean, which changes no
    mixture of sites that take part alike, and gives one that is drawn later the mean's weight.
    """

    scalars: ClassVar[tuple[str, ...]] = ("factor", "loss")
    asks_loss: ClassVar[bool] = True

    rate: float = Field(0.1, ge=0)  # of the ascent; 0 is FedAvg

    def init(self, vector: Tensor) -> State:
        """The mean loss of the last round, and whether there was one."""
        return {"level": torch.zeros(2)}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """Sent with the order."""
        return state

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """factor (w_k - w), the factor and F_k(w); the factor of the next round is remembered."""
        log = float(local.memory["log"]) if "log" in local.memory else 0.0
        mean, known = local.shared["level"].tolist()
        factor, delta = _whole(log), vector - local.start
        gap = local.loss - mean if known else 0.0
        after = min(FAR, max(-FAR, log + self.rate * gap))
        payload = {"factor": delta.new_tensor([factor]), "loss": delta.new_tensor([local.loss])}
        return {"delta": factor * delta, **payload}, {"log": delta.new_tensor([after])}

    def least(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """A smaller or negative factor would stretch the federation's step, or turn it round."""
        idle = "delta" in payload and not bool(payload["delta"].any())
        return {"factor": 0.0 if idle else _whole(-FAR)}

    def most(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """A larger factor would leave the others next to no share in the step."""
        return {"factor": _whole(FAR)}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """w + sum p_k factor_k (w_k - w) / sum p_k factor_k."""
        factor, delta = float(mean.parts["factor"]), mean.parts["delta"]
        if not factor:  # no site replied: a mean loss of 0 would raise the weight of all drawn next
            return vector, state
        new = delta.div_(factor).add_(vector).float()
        return new, {"level": torch.tensor([float(mean.parts["loss"]), 1.0])}


def _whole(log: float) -> float:
    """The factor with this logarithm, as a whole number of units, so that sums of it are exact."""
    return max(1, round(math.exp(log) / UNIT)) * UNIT
