"""DP-SGD at a site: per-image gradients from Opacus, clipped, summed and noised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsight.client.training import Lesson, Progress
from fedsight.core.errors import ModelError
from fedsight.core.types import Batch
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example, steps
from fedsight.privacy.noise import MakeNoise

_INPLACE = "inplace"  # attribute of activations that overwrite their input


class PrivateSteps:
    """Noisy steps along clipped gradients (Abadi et al. 2016, Algorithm 1)."""

    def __init__(self, mechanism: Example, plan: Plan) -> None:
        self._mechanism = mechanism
        self._clip = mechanism.clip
        self._plan = plan

    def train(self, lesson: Lesson) -> Progress:
        """Train for `lesson.epochs` passes.

        The number of steps depends only on the number of images, and no loss is reported.
        """
        samples, optimizer, plan = lesson.samples, lesson.optimizer, self._plan
        expected = float(min(plan.batch, samples))
        deviation = self._mechanism.at(plan, samples) * self._clip
        count = steps(plan, samples) // plan.passes * lesson.epochs
        values = [parameter.detach() for parameter in optimizer.parameters]
        whole = [parameter.detach() for parameter in lesson.model.parameters()]
        with single_gradients(lesson.model):
            for step in range(lesson.done, lesson.done + count):
                # Sampling depends on all current weights: another model never gets the same draws.
                sampling = lesson.noise("examples", step, values=[w.cpu() for w in whole])
                drawn = np.flatnonzero(sampling.uniform(samples) < expected / samples)
                empty = lesson.blank or not len(drawn)
                batch = None if empty else lesson.read(torch.from_numpy(drawn))
                total = clipped_sum(lesson, batch, self._clip)
                noise = partial(lesson.noise, "gradient", step)
                mean = noised_mean(total, deviation, expected, noise)
                optimizer.step(lesson.correct(split_like(mean, values)))
        return Progress(count, torch.zeros((), dtype=torch.float64), 0)


def clipped_sum(lesson: Lesson, batch: Batch | None, clip: float) -> list[Tensor]:
    """The sum of the images' gradients, each scaled to a joint norm of at most `clip`.

    `batch` is None if no image was sampled; the sum is then zero. Call it within
    `single_gradients`. An image whose gradient is not finite contributes zero: whether there is one
    is a fact about that image, and its neighbours in the batch must not show it.
    """
    model, parameters = lesson.model, lesson.optimizer.parameters
    if batch is None:
        return [torch.zeros_like(parameter) for parameter in parameters]
    with warnings.catch_warnings():
        # Opacus hooks the first layer too, although its input needs no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        try:
            lesson.task.loss(model, batch).backward()
        except (RuntimeError, NotImplementedError) as error:
            raise _unsupported(error) from error
    single = [_pop_gradients(parameter, len(batch.y)) for parameter in parameters]
    squares = torch.stack([g.flatten(1).double().square().sum(1) for g in single]).sum(0)
    broken = ~torch.isfinite(squares)
    for gradient in [*single, squares]:
        gradient[broken] = 0.0
    factors = (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0).float()
    return [torch.einsum("b,b...->...", factors, gradient) for gradient in single]


def noised_mean(total: list[Tensor], deviation: float, expected: float, noise: MakeNoise) -> Tensor:
    """(sum + noise) / expected batch size as one vector [d], on the CPU."""
    flat = torch.cat([part.flatten() for part in total]).cpu()
    normal = noise(values=[flat]).normal(len(flat), deviation)
    return ((flat.double() + normal) / expected).float()


def split_like(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Split a vector [d] into tensors with the shapes, strides and devices of `like`."""
    pieces = flat.split([value.numel() for value in like])
    return [
        torch.empty_like(value).copy_(piece.view(value.shape))
        for piece, value in zip(pieces, like, strict=True)
    ]


def _channels_first(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in inputs)


def _unsupported(error: Exception) -> ModelError:
    first = str(error).split(". ")[0]
    return ModelError(
        f"Opacus cannot compute per-image gradients for this network ({first})",
        "choose another model (small_cnn, fedavg_cnn and mlp work; networks with in-place "
        "additions do not), or protect whole clients with [privacy] name = 'local' or 'central'",
    )


def _pop_gradients(parameter: nn.Parameter, images: int) -> Tensor:
    """Remove and return a parameter's per-image gradients [b, ...]; zeros if it was not used."""
    found = getattr(parameter, "grad_sample", None)
    parameter.grad_sample, parameter.grad = None, None  # type: ignore[attr-defined]
    if found is None:
        return torch.zeros(images, *parameter.shape, device=parameter.device)
    assert isinstance(found, Tensor)
    return found.detach()


@contextmanager
def single_gradients(model: nn.Module) -> Iterator[None]:
    """Within this context, a backward pass stores per-image gradients at the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Opacus imports
        from opacus.grad_sample.grad_sample_module import GradSampleHooks

    inplace = [part for part in model.modules() if getattr(part, _INPLACE, False) is True]
    for part in inplace:  # tensors saved by a hook must not be overwritten
        setattr(part, _INPLACE, False)
    # Opacus 1.6 ignores the strides of a convolution's input and assumes channels first.
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    input_hooks = [part.register_forward_pre_hook(_channels_first) for part in convolutions]
    hooks = None
    try:
        hooks = GradSampleHooks(model, loss_reduction="mean")
        yield
    except NotImplementedError as error:
        raise _unsupported(error) from error
    finally:
        for first in input_hooks:
            first.remove()
        for part in inplace:
            setattr(part, _INPLACE, True)
        if hooks is not None:
            hooks.remove_hooks()
        for parameter in model.parameters():
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
