"""DP-SGD at a site: single images' gradients from Opacus, clipped, summed, and noised here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsight.client.training import Lesson, Progress
from fedsight.core.errors import ModelError, SiteError
from fedsight.core.types import Batch
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example, steps
from fedsight.privacy.noise import MakeNoise

_HASTY = "inplace"  # of activations: write over the input


class PrivateSteps:
    """Noisy steps along clipped gradients (Abadi et al. 2016, Algorithm 1)."""

    def __init__(self, mechanism: Example, plan: Plan) -> None:
        self._mechanism = mechanism
        self._clip = mechanism.clip
        self._plan = plan

    def train(self, lesson: Lesson) -> Progress:
        """Train for so many passes.

        The number of steps depends on the number of images alone, and no loss is told. Raises
        SiteError when a gradient is not finite.
        """
        samples, optimizer, plan = lesson.samples, lesson.optimizer, self._plan
        expected = float(min(plan.batch, samples))
        deviation = self._mechanism.at(plan, samples) * self._clip
        count = steps(plan, samples) // plan.passes * lesson.epochs
        values = [parameter.detach() for parameter in optimizer.parameters]
        whole = [parameter.detach() for parameter in lesson.model.parameters()]
        with single_gradients(lesson.model):
            for step in range(lesson.done, lesson.done + count):
                # Coins hang on all weights of this moment: another model never meets the same ones.
                coins = lesson.noise("examples", step, values=[w.cpu() for w in whole])
                drawn = np.flatnonzero(coins.uniform(samples) < expected / samples)
                batch = lesson.read(torch.from_numpy(drawn)) if len(drawn) else None
                total = clipped_sum(lesson, batch, self._clip)
                noise = partial(lesson.noise, "gradient", step)
                mean = noised_mean(total, deviation, expected, noise)
                optimizer.step(lesson.correct(cut(mean, values)))
        return Progress(count, torch.zeros((), dtype=torch.float64), 0)


def clipped_sum(lesson: Lesson, batch: Batch | None, clip: float) -> list[Tensor]:
    """The sum of the images' gradients, each scaled to a joint norm of at most `clip`.

    None: a step that meets no image, whose sum is zero. Works within `single_gradients`.
    """
    model, parameters = lesson.model, lesson.optimizer.parameters
    if batch is None:
        return [torch.zeros_like(parameter) for parameter in parameters]
    with warnings.catch_warnings():
        # The first layer's input needs no gradient, and the hook is asked for all the same.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        try:
            lesson.task.loss(model, batch).backward()
        except (RuntimeError, NotImplementedError) as error:
            raise _unfit(error) from error
    single = [_take(parameter, len(batch.y)) for parameter in parameters]
    squares = torch.stack([g.flatten(1).double().square().sum(1) for g in single]).sum(0)
    if not bool(torch.isfinite(squares).all()):
        raise SiteError(
            "the gradient of an image is not finite",
            "its training diverged or its data are broken: lower train.lr, or look at its images",
        )
    factors = (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0).float()
    return [torch.einsum("b,b...->...", factors, gradient) for gradient in single]


def noised_mean(total: list[Tensor], deviation: float, expected: float, noise: MakeNoise) -> Tensor:
    """(sum + noise) / expected batch as one vector [d], on the CPU."""
    flat = torch.cat([part.flatten() for part in total]).cpu()
    normal = noise(values=[flat]).normal(len(flat), deviation)
    return ((flat.double() + normal) / expected).float()


def cut(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A vector [d] cut into tensors, each in memory and on the device as its parameter is."""
    pieces = flat.split([value.numel() for value in like])
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
        return torch.zeros(images, *parameter.shape, device=parameter.device)
    assert isinstance(found, Tensor)
    return found.detach()


@contextmanager
def single_gradients(model: nn.Module) -> Iterator[None]:
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
