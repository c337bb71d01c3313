"""MOON: features learn to be near those of the global model and far from a site's earlier ones."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Local, algorithms
from fedsight.algorithms.fedavg import FedAvg
from fedsight.core.types import Memory, Payload


@algorithms.add("moon", paper="Li et al. 2021 (MOON), equations 3 and 4")
class Moon(FedAvg):
    """FedAvg with a model-contrastive term in the local loss.

    A site keeps the model that it ended with. The features are what the network's last layer sees;
    the paper's networks have a projection of their own between the two.
    """

    mu: float = Field(1.0, ge=0)  # of the contrastive term: the paper tries 0.1, 1, 5 and 10
    temperature: float = Field(0.5, gt=0)  # that the similarities are divided by

    def penalty(self, z: Tensor, features: Callable[[Tensor], Tensor], local: Local) -> Tensor:
        """mu times the mean of -log(e^(s(z, z_glob) / t) / (e^(s(z, z_glob) / t) +
        e^(s(z, z_prev) / t))), where s is the cosine.

        In a site's first round there is no earlier model. The paper's is then the global one,
        whose term is constant.
        """
        previous = local.memory.get("previous")
        if previous is None:
            return z.new_zeros(())
        near, far = (
            F.cosine_similarity(z, features(vector), dim=1) / self.temperature
            for vector in (local.start, previous)
        )
        return self.mu * F.softplus(far - near).mean()

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """The update is sent; where training ended is kept."""
        return {"delta": vector - local.start}, {"previous": vector.clone()}
