"""FedSAM: sharpness-aware local steps, so that sites agree in flat minima."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Local, algorithms
from fedsight.algorithms.fedavg import FedAvg


@algorithms.add("fedsam", paper="Qu et al. 2022, Algorithm 1")
class FedSAM(FedAvg):
    """FedAvg whose local steps follow the gradient at the worst point nearby.

    It is computed from the same batch, so a step costs two gradients.
    """

    looks: ClassVar[bool] = True

    rho: float = Field(0.05, ge=0)  # how far that point is; 0 is FedAvg

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """The gradient at w + rho grad / ||grad||."""
        length = grad.norm()
        return local.at(vector + self.rho * grad / length) if length > 0 else grad
