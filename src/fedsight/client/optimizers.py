"""Local optimizers without the bookkeeping of PyTorch's optimizer objects.

For small networks that bookkeeping costs a tenth of a step. The arithmetic is still PyTorch's own
fused kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fedsight.models.base import Network
from fedsight.models.patterns import matches
from fedsight.program.train import Train


@dataclass(frozen=True)
class RateGroup:
    """Parameters, by position, that share a learning rate."""

    positions: tuple[int, ...]
    lr: float


def rate_groups(
    names: Sequence[str], train: Train, lr: float, network: Network
) -> tuple[RateGroup, ...]:
    """The groups of `train.groups`, then one with all other parameters; `lr` is this round's rate.

    A parameter belongs to the first group that names it. A schedule scales all rates alike.
    """
    left = dict(enumerate(names))
    found = []
    for group in train.groups:
        mine = [
            position
            for position, name in left.items()
            if any(matches(name, pattern, network) for pattern in group.params)
        ]
        for position in mine:
            del left[position]
        if mine:
            found.append(RateGroup(tuple(mine), group.lr * lr / train.lr))
    return (*found, RateGroup(tuple(left), lr)) if left else tuple(found)


class Optimizer(ABC):
    """Updates `parameters` along given gradients; each object starts with fresh state."""

    def __init__(self, parameters: Sequence[nn.Parameter], groups: Sequence[RateGroup]) -> None:
        self.parameters = list(parameters)
        self._tensors = [parameter.detach() for parameter in self.parameters]
        self._flat = [_is_reordered(tensor) for tensor in self._tensors]
        self._values = self._ordered(self._tensors)
        self._groups = groups
        self.factor = 1.0  # of all learning rates, in the next step

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of `loss`, each with its parameter's strides; zero if it is not used."""
        found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        return [_like(grad, tensor) for grad, tensor in zip(found, self._tensors, strict=True)]

    def _ordered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor for each parameter, as vectors in the order of memory where that is not the
        order of their dimensions: the fused kernels would copy these in each step."""
        return [
            _like(tensor, own).as_strided((tensor.numel(),), (1,)) if flat else tensor
            for tensor, own, flat in zip(tensors, self._tensors, self._flat, strict=True)
        ]

    def step(self, gradients: list[Tensor]) -> None:
        """One step along `gradients`, one for each parameter."""
        gradients = self._ordered(gradients)
        if len(self._groups) == 1:
            self._step(self._groups[0], self._values, gradients)
            return
        for group in self._groups:
            values = [self._values[at] for at in group.positions]
            self._step(group, values, [gradients[at] for at in group.positions])

    @abstractmethod
    def _step(self, group: RateGroup, values: list[Tensor], gradients: list[Tensor]) -> None: ...


def _is_reordered(tensor: Tensor) -> bool:
    """Whether `tensor` fills its memory without gaps, but in another order than its dimensions'."""
    return not tensor.is_contiguous() and torch.empty_like(tensor).stride() == tensor.stride()


def _like(gradient: Tensor, tensor: Tensor) -> Tensor:
    """`gradient` with the strides of `tensor`: the fused kernels read memory in order."""
    if gradient.stride() == tensor.stride():
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


class LocalSGD(Optimizer):
    """SGD with momentum and weight decay: v = momentum v + g + weight_decay w; w = w - lr v."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], groups: Sequence[RateGroup], train: Train
    ) -> None:
        super().__init__(parameters, groups)
        self._momentum, self._weight_decay = train.momentum, train.weight_decay
        # With zero velocity the first step follows the plain gradient, as it should.
        self._velocity = [torch.zeros_like(value) for value in self._values if self._momentum]

    def _step(self, group: RateGroup, values: list[Tensor], gradients: list[Tensor]) -> None:
        velocity = self._velocity
        if len(values) < len(velocity):
            velocity = [velocity[at] for at in group.positions]
        # The kernel of `torch.optim.sgd`, without its sorting by device and type at each step.
        torch._fused_sgd_(
            values,
            gradients,
            velocity,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=group.lr * self.factor,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


class LocalAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, Algorithm 2), with epsilon 1e-8."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], groups: Sequence[RateGroup], train: Train
    ) -> None:
        super().__init__(parameters, groups)
        self._train = train
        self._mean = [torch.zeros_like(value) for value in self._values]
        self._square = [torch.zeros_like(value) for value in self._values]
        self._steps = [torch.zeros((), device=value.device) for value in self._values]

    def _step(self, group: RateGroup, values: list[Tensor], gradients: list[Tensor]) -> None:
        at = group.positions
        adamw(
            values,
            gradients,
            [self._mean[i] for i in at],
            [self._square[i] for i in at],
            [],
            [self._steps[i] for i in at],
            fused=True,
            amsgrad=False,
            beta1=self._train.beta1,
            beta2=self._train.beta2,
            lr=group.lr * self.factor,
            weight_decay=self._train.weight_decay,
            eps=1e-8,
            maximize=False,
        )


OPTIMIZERS = {"sgd": LocalSGD, "adamw": LocalAdamW}


def make_optimizer(
    learning: Mapping[str, nn.Parameter], train: Train, lr: float, network: Network
) -> Optimizer:
    """The optimizer that `train` names, for the parameters in `learning`."""
    groups = rate_groups(list(learning), train, lr, network)
    return OPTIMIZERS[train.optimiser](list(learning.values()), groups, train)


def clip_gradients(gradients: list[Tensor], norm: float) -> None:
    """Scale all gradients together, in place, so that their joint norm is at most `norm`."""
    scale = norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)
    for gradient in gradients:
        gradient.mul_(scale.clamp(max=1.0))
