"""DP-SGD at a site: single images' gradients from Opacus, clipped, summed, and noised here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fedsight.client.sgd import LocalSGD
from fedsight.core.errors import ModelError, SiteError
from fedsight.core.types import Batch
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example, steps
from fedsight.privacy.noise import MakeNoise
from fedsight.tasks.base import Task

_HASTY = "inplace"  # of activations: write over the input


class PrivateSteps:
    """The steps of one phase at one site of `samples` images (Abadi et al. 2016, Algorithm 1)."""

    def __init__(self, mechanism: Example, plan: Plan, samples: int, noise: MakeNoise) -> None:
        self._clip = mechanism.clip
        self._expected = float(min(plan.batch, samples))
        self._samples = samples
        self._deviation = mechanism.at(plan, samples) * mechanism.clip
        self._steps = steps(plan, samples) // plan.passes  # of one pass
        self._noise = noise

    def train(
        self,
        model: nn.Module,
        task: Task,
        optimiser: LocalSGD,
        read: Callable[[Tensor], Batch],
        epochs: int,
        correct: Callable[[list[Tensor]], list[Tensor]],
        done: int,
    ) -> int:
        """Train for so many passes; `correct` is the algorithm's word on a noised gradient.

        `done` steps of this round are behind.

        Returns the number of steps, which depends on the number of images alone. Raises SiteError
        when a gradient is not finite.
        """
        values = [parameter.detach() for parameter in optimiser.parameters]
        whole = [parameter.detach() for parameter in model.parameters()]
        count = self._steps * epochs
        with _single_gradients(model):
            for step in range(done, done + count):
                # Coins hang on all weights of this moment: another model never meets the same ones.
                coins = self._noise("examples", step, values=whole)
                drawn = np.flatnonzero(
                    coins.uniform(self._samples) < self._expected / self._samples
                )
                batch = read(torch.from_numpy(drawn)) if len(drawn) else None
                total = self._sum(model, task, optimiser.parameters, batch)
                optimiser.step(correct(self._disturbed(total, values, step)))
        return count

    def _sum(
        self, model: nn.Module, task: Task, parameters: list[nn.Parameter], batch: Batch | None
    ) -> list[Tensor]:
        """The sum of the images' gradients, each scaled to a joint norm of at most the clip."""
        if batch is None:
            return [torch.zeros_like(parameter) for parameter in parameters]
        with warnings.catch_warnings():
            # The first layer's input needs no gradient, and the hook is asked for all the same.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            try:
                task.loss(model, batch).backward()
            except (RuntimeError, NotImplementedError) as error:
                raise _unfit(error) from error
        single = [_take(parameter, len(batch.y)) for parameter in parameters]
        squares = torch.stack([g.flatten(1).double().square().sum(1) for g in single]).sum(0)
        if not bool(torch.isfinite(squares).all()):
            raise SiteError(
                "the gradient of an image is not finite",
                "its training diverged or its data are broken: lower train.lr, or look at its "
                "images",
            )
        factors = (self._clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0).float()
        return [torch.einsum("b,b...->...", factors, gradient) for gradient in single]

    def _disturbed(self, total: list[Tensor], like: list[Tensor], step: int) -> list[Tensor]:
        """(sum + noise) / expected batch, each in memory as its parameter is."""
        flat = torch.cat([part.flatten() for part in total])
        normal = self._noise("gradient", step, values=[flat]).normal(len(flat), self._deviation)
        flat = ((flat.double() + normal) / self._expected).float()
        pieces = flat.split([part.numel() for part in total])
        return [
            torch.empty_like(value).copy_(piece.view(value.shape))
            for piece, value in zip(pieces, like, strict=True)
        ]


def _channels_first(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in inputs)


def _unfit(error: Exception) -> ModelError:
    first = str(error).split(". ")[0]
    return ModelError(
        f"Opacus finds no gradients of single images for this network ({first})",
        "choose another model (small_cnn, fedavg_cnn and mlp work; networks that add in place do "
        "not), or protect clients as a whole with [privacy] name = 'local' or 'central'",
    )


def _take(parameter: nn.Parameter, images: int) -> Tensor:
    """The images' gradients [b, ...] that Opacus left at a parameter; zeros if it had no part."""
    found = getattr(parameter, "grad_sample", None)
    parameter.grad_sample, parameter.grad = None, None  # type: ignore[attr-defined]
    if found is None:
        return torch.zeros(images, *parameter.shape)
    assert isinstance(found, Tensor)
    return found.detach()


@contextmanager
def _single_gradients(model: nn.Module) -> Iterator[None]:
    """While this lasts, a backward pass leaves each image's gradient at the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Opacus imports
        from opacus.grad_sample.grad_sample_module import GradSampleHooks

    hasty = [part for part in model.modules() if getattr(part, _HASTY, False) is True]
    for part in hasty:  # what a hook has seen may not be overwritten
        setattr(part, _HASTY, False)
    # Opacus 1.6 reads a convolution's input as if it lay channels first, whatever its strides say.
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    firsts = [part.register_forward_pre_hook(_channels_first) for part in convolutions]
    hooks = None
    try:
        hooks = GradSampleHooks(model, loss_reduction="mean")
        yield
    except NotImplementedError as error:
        raise _unfit(error) from error
    finally:
        for first in firsts:
            first.remove()
        for part in hasty:
            setattr(part, _HASTY, True)
        if hooks is not None:
            hooks.remove_hooks()
        for parameter in model.parameters():
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
