"""Gradients of single images: each is computed as if its image were the only one in the batch.

DP-SGD bounds what one image can change by clipping its gradient, and that bounds nothing if the
image also changes the gradients of others: through a loss that is divided by something counted in
the whole batch, through batch statistics, mixed images, or a shared stream of random numbers. So
no batch of several images is ever shown to a loss or a network here. Whatever they do with a
batch, they do with one image.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsight.client.optimizers import Optimizer
from fedsight.core.devices import seed
from fedsight.core.types import Batch
from fedsight.privacy.clip import COARSE
from fedsight.tasks.base import Task
from fedsight.tasks.loss_module import LossModule

log = logging.getLogger(__name__)
HELD = 1 << 25  # values of single gradients that are held at once


@dataclass(frozen=True)
class Single:
    """One image as a batch [1, ...], and the seed of all random numbers that are drawn for it."""

    batch: Batch
    seed: int


class PerImage:
    """The gradients of images, one by one, for the parameters of `optimizer`.

    Every image meets the buffers that the network has now; what it changes in them is dropped.
    """

    def __init__(
        self, task: Task, model: nn.Module, optimizer: Optimizer, hides: bool = False
    ) -> None:
        """`hides`: an image whose gradient cannot be computed adds nothing, instead of raising, and
        no gradient is computed together with others, not even vectorised.

        The last digits of a vectorised gradient depend on how many images are in the group. With
        weights under which large numbers cancel, these digits are all that is left of a logit, and
        then one image more turns the gradients of the whole group around.
        """
        self._hides, self._told = hides, False
        self._loss = LossModule(task, model)
        self._optimizer = optimizer
        parameters = optimizer.parameters
        self._device = parameters[0].device
        names = {id(value): name for name, value in self._loss.named_parameters()}
        self._names = [names[id(parameter)] for parameter in parameters]
        self._together = max(1, HELD // sum(value.numel() for value in parameters))
        self._vectorised = not hides  # until the loss shows that it cannot be

    def clipped_sum(self, images: Iterable[Single], clip: float) -> list[Tensor]:
        """The sum of the images' gradients, each scaled to a joint norm of at most `clip`.

        One tensor of float64 for each parameter; zero without images. A gradient that is not finite
        adds nothing: an error would tell that there is such an image.
        """
        # Not float32: an image more would round the many that are added after it another way.
        values = [value.detach() for value in self._optimizer.parameters]
        total = [torch.zeros_like(value, dtype=torch.float64) for value in values]
        left = iter(images)
        while some := list(islice(left, self._together)):
            for gradients in self._gradients(some):
                _add_clipped(total, gradients, clip)
        return total

    def failed(self, error: Exception) -> None:
        """Raise the error of one image, unless failures are hidden: then the image adds nothing.

        If such an error ended the step, that one image would take the gradients of all others away,
        and a network can be made to fail at an image of the coordinator's choice. The first reason
        is kept in this machine's log.
        """
        if not self._hides:
            raise error
        if not self._told:
            self._told = True
            log.warning("an image adds nothing to a round's steps", exc_info=error)

    def _gradients(self, images: Sequence[Single]) -> Iterable[list[Tensor]]:
        """Gradients [k, ...] of all parameters, in one or more groups of k images."""
        if self._vectorised:
            try:
                return [self._at_once(images)]
            except Exception:
                # Loss or network draw random numbers or depend on values in a way that cannot be
                # vectorised. An error of one image comes up again, and is then that image's alone.
                self._vectorised = False
        return (self._alone(image) for image in images)

    def _at_once(self, images: Sequence[Single]) -> list[Tensor]:
        """Vectorised over images; an image still has a batch of its own, of size 1."""

        def loss(learning: dict[str, Tensor], *batch: Tensor) -> Any:
            return functional_call(self._loss, {**learning, **buffers}, batch)

        buffers = self._loss.copied_buffers()
        values = [parameter.detach() for parameter in self._optimizer.parameters]
        learning = dict(zip(self._names, values, strict=True))
        batches = [_tensors(image.batch) for image in images]
        stacked = [torch.stack(each) for each in zip(*batches, strict=True)]
        dims = (None, *(0 for _ in stacked))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            # No randomness: all images of a group would draw from one stream.
            found = vmap(grad(loss), in_dims=dims, randomness="error")(learning, *stacked)
        return [found[name] for name in self._names]

    def _alone(self, image: Single) -> list[Tensor]:
        try:
            seed(self._device, image.seed)
            buffers = self._loss.copied_buffers()
            loss = functional_call(self._loss, buffers, _tensors(image.batch))
            return [gradient[None] for gradient in self._optimizer.gradients(loss)]
        except Exception as error:
            self.failed(error)
        return [torch.zeros_like(value)[None] for value in self._optimizer.parameters]


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    """What the loss is a function of."""
    hidden = () if batch.unlabelled is None else (batch.unlabelled,)
    return (batch.x, batch.y, *hidden)


def _add_clipped(total: list[Tensor], gradients: list[Tensor], clip: float) -> None:
    """Add gradients [k, ...], each clipped over all parameters jointly, to `total`, in place."""
    # A parameter may be a single number, without a dimension: its gradients are [k].
    each = [one[:, None].flatten(1).double().square().sum(1) for one in gradients]
    squares = torch.stack(each).sum(0)
    finite = squares.isfinite()
    if not bool(finite.all()):
        gradients = [one.clone() for one in gradients]
        for one in gradients:
            one[~finite] = 0.0
    factors = (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)
    factors = torch.where(finite, factors, 0.0)
    # A coordinator can choose weights that make gradients huge, and a clip that is tiny.
    exact = torch.float64 if min(clip, float(factors.min())) < COARSE else torch.float32
    factors = factors.to(exact)
    for whole, one in zip(total, gradients, strict=True):
        whole += torch.einsum("b,b...->...", factors, one.to(exact))
