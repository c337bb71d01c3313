"""What local steps are taken along: gradients as the algorithm changes them, then clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedsight.algorithms.base import Algorithm, Local
from fedsight.client.optimizers import clip_gradients
from fedsight.client.training import Gradients
from fedsight.core.layout import Kind, Layout


@dataclass(frozen=True)
class Correction:
    """Changes the gradients of the parameters `names`, whose values are in `vector` [size]."""

    algorithm: Algorithm
    layout: Layout
    vector: Tensor
    model: nn.Module  # that is bound to it
    names: Sequence[str]
    local: Local
    clip: float | None = None  # largest joint norm of what is stepped along
    own: bool = False  # whether it is the site's own model that is trained

    def __call__(self, gradients: list[Tensor], again: Gradients | None = None) -> list[Tensor]:
        """The gradients as the step takes them; it counts the step.

        `again` computes those of the same batch with the weights that `vector` then holds.
        """
        if self.algorithm.looks and again is not None:
            self.local.at = partial(self._at, again)
        if self.own or self.algorithm.corrects:
            gradients = self._corrected(gradients)
        if self.clip is not None:
            clip_gradients(gradients, self.clip)
        self.local.steps += 1
        return gradients

    def _corrected(self, gradients: list[Tensor]) -> list[Tensor]:
        """The shared ones are gathered into one vector, corrected, and cut up again."""
        correct = self.algorithm.correct_own if self.own else self.algorithm.correct
        shared = self.layout.shared
        grad = self._gathered(gradients)
        grad = correct(grad, self.vector[shared], self.local)
        entries = {e.name: e for e in self.layout.entries if e.kind == Kind.SHARED}
        return [
            entries[name].view(grad) if name in entries else gradient
            for name, gradient in zip(self.names, gradients, strict=True)
        ]

    def _at(self, again: Gradients, vector: Tensor) -> Tensor:
        """The gradient [d] at `vector` [d]; weights and running statistics stay as they are."""
        here = self.vector[self.layout.shared]
        kept = here.clone()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        here.copy_(vector)
        try:
            return self._gathered(again())
        finally:
            here.copy_(kept)
            for buffer, value in buffers:
                buffer.copy_(value)

    def _gathered(self, gradients: list[Tensor]) -> Tensor:
        """The gradients of shared parameters as one vector [d]; zero where none is trained."""
        grad = torch.zeros(self.layout.shared.stop, device=self.vector.device)
        entries = {e.name: e for e in self.layout.entries if e.kind == Kind.SHARED}
        for name, gradient in zip(self.names, gradients, strict=True):
            if name in entries:
                entries[name].view(grad).copy_(gradient)
        return grad
