"""Local SGD, one step at a time, without the bookkeeping of an optimiser object.

For small networks that bookkeeping costs a tenth of a step; the arithmetic is PyTorch's own fused
kernel all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class LocalSGD:
    """SGD with momentum and weight decay over `parameters`, beginning with no velocity."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self._values = [parameter.detach() for parameter in self.parameters]
        # A velocity of zero makes the first step the plain gradient's, as it should be.
        self._velocity: list[Tensor | None] = [
            torch.zeros_like(value) if momentum else None for value in self._values
        ]
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of `loss`, each in memory as its parameter is; zero where it has no part."""
        found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        return [
            # The fused kernel goes through memory in order, whatever the strides say.
            grad if grad.stride() == value.stride() else torch.empty_like(value).copy_(grad)
            for grad, value in zip(found, self._values, strict=True)
        ]

    def step(self, gradients: list[Tensor]) -> None:
        """v = momentum v + g + weight_decay w; w = w - lr v."""
        sgd(
            self._values,
            gradients,
            self._velocity,
            fused=True,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def clip(gradients: list[Tensor], norm: float) -> None:
    """Scale all gradients together, in place, so that their joint norm is at most `norm`."""
    scale = norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)
    for gradient in gradients:
        gradient.mul_(scale.clamp(max=1.0))
