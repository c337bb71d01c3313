"""Several clients trained at once, their weights stacked: for networks that leave a GPU idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedsight.client.optimizers import make_optimizer
from fedsight.client.training import batches, unending
from fedsight.core.layout import Entry, Kind
from fedsight.core.types import Batch
from fedsight.models.base import Network
from fedsight.program.program import Program
from fedsight.tasks.base import Task


def suits(program: Program, kinds: set[Kind]) -> bool:
    """Whether clients of `program`, whose tensors are of these kinds, can be stacked.

    Their steps must be plain gradient steps that nothing looks at one by one, on images as they
    are, and nothing of a client may differ from the others but its images.
    """
    train, algorithm = program.train, program.algorithm
    plain = train.plain and train.optimiser == "sgd" and train.clip is None
    uniform = not (algorithm.corrects or algorithm.counts or algorithm.owns)
    uniform = uniform and not program.codec.up.feedback
    uniform = (
        uniform
        and not (algorithm.beyond or algorithm.asks_loss)
        and not (program.task.prepares or program.task.counts_labels)
    )
    phases = algorithm.phases(train.length)
    return (
        plain
        and uniform
        and program.task.stacks
        and len(phases) == 1
        and Kind.SHARED in phases[0].trains
        and kinds <= {Kind.SHARED, Kind.MOVED, Kind.FROZEN}
        and program.privacy.unit != "example"
    )


class _Bound(nn.Module):
    """The network with other weights, as a task's loss takes it."""

    def __init__(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["module"], self.weights = module, weights

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of images."""
        found: Tensor = functional_call(self.__dict__["module"], self.weights, (x,))
        return found


@dataclass(frozen=True)
class Stacked:
    """What clients that are trained side by side have in common."""

    network: Network
    entries: Sequence[Entry]  # of the shared slice
    program: Program
    precision: Callable[[], AbstractContextManager[object]]

    def train(
        self,
        start: Tensor,
        images: Sequence[Batch],
        orders: Sequence[tuple[Callable[[Generator], Tensor], Generator]],
        rate: tuple[float, Callable[[int], float]],
    ) -> tuple[Tensor, Tensor, int]:
        """Train k clients of n images each from `start` [d].

        `images` and `orders` (how to draw an epoch's order, and from what) are those of each
        client; `rate` is the learning rate and its factor by step. Returns the vectors [k, d], the
        summed losses [k] float64, and the number of images that each has seen.
        """
        train, clients = self.program.train, len(images)
        x = torch.stack([one.x for one in images])
        y = torch.stack([one.y for one in images])
        values = {entry.name: _repeated(entry.view(start), clients) for entry in self.entries}
        learning = {n: nn.Parameter(v, requires_grad=False) for n, v in values.items()}
        optimizer = make_optimizer(learning, train, rate[0], self.network)
        gradients_of = vmap(
            grad_and_value(partial(_loss, self.program.task, self.network.module)),
            randomness="different",
        )
        made, samples = unending if train.steps else batches, images[0].y.shape[0]
        drawn = [
            list(made(train.length, samples, train.batch, draws, order)) for order, draws in orders
        ]
        number = torch.arange(clients, device=x.device)[:, None]
        masks = [one.unlabelled for one in images if one.unlabelled is not None]
        hidden = [torch.stack(masks)] if masks else []
        losses = torch.zeros(clients, dtype=torch.float64)
        seen = 0
        for step, together in enumerate(zip(*drawn, strict=True)):
            at = torch.stack(together).to(x.device)
            with self.precision():
                gradients, loss = gradients_of(
                    values, x[number, at], y[number, at], *(mask[number, at] for mask in hidden)
                )
            optimizer.factor = rate[1](step)
            optimizer.step([_like(gradients[name], value) for name, value in values.items()])
            losses += loss.detach().double().cpu() * at.shape[1]
            seen += at.shape[1]
        vectors = start.repeat(clients, 1)
        for entry in self.entries:
            vmap(entry.view)(vectors).copy_(values[entry.name])
        return vectors, losses, seen


def _loss(
    task: Task,
    module: nn.Module,
    weights: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    hidden: Tensor | None = None,
) -> Tensor:
    return task.loss(_Bound(module, weights), Batch(x, y, hidden))


def _repeated(value: Tensor, times: int) -> Tensor:
    """[times, *shape], each with the strides of `value`."""
    strides = (value.numel(), *value.stride())
    made = torch.empty_strided(
        (times, *value.shape), strides, dtype=value.dtype, device=value.device
    )
    return made.copy_(value.expand_as(made))


def _like(gradient: Tensor, value: Tensor) -> Tensor:
    """The gradient with the strides of its value: the fused kernel reads memory in order."""
    if gradient.stride() == value.stride():
        return gradient
    return torch.empty_like(value).copy_(gradient)
