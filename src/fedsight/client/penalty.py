"""A task's loss with what an algorithm adds to it, as a function of the images' features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsight.algorithms.base import Algorithm, Local
from fedsight.core.layout import Kind, Layout
from fedsight.core.types import Batch
from fedsight.models.base import Network
from fedsight.models.features import linear_head
from fedsight.tasks.base import Task


@dataclass(frozen=True)
class Penalised:
    """The loss of `task`, and the penalty of `algorithm` at the weights that train."""

    task: Task
    algorithm: Algorithm
    network: Network
    layout: Layout
    local: Local

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Their sum: scalar."""
        with self._seen() as seen:
            loss = self.task.loss(model, batch)
        self.local.labels = batch.y
        return loss + self.algorithm.penalty(seen[0], self._features(model, batch.x), self.local)

    def _features(self, model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The features [b, f] of `x` under other weights [d], without gradients, in evaluation
        mode."""

        def under(vector: Tensor) -> Tensor:
            entries = [e for e in self.layout.entries if e.kind == Kind.SHARED]
            weights = {entry.name: entry.view(vector) for entry in entries}
            with self._seen() as seen, torch.no_grad(), _evaluating(model):
                functional_call(model, weights, (x,))
            return seen[0]

        return under

    @contextlib.contextmanager
    def _seen(self) -> Iterator[list[Tensor]]:
        """What the head is given within, float32."""
        seen: list[Tensor] = []
        head = linear_head(self.network)
        handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].float()))
        try:
            yield seen
        finally:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in evaluation mode; after it, each layer is in the mode it was in."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
