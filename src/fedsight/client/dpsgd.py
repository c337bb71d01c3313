"""DP-SGD at a site: the gradients of single images, clipped, summed and noised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsight.client.per_image import PerImage, Single
from fedsight.client.training import Lesson, Progress
from fedsight.core.rng import derive
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example, steps
from fedsight.privacy.noise import MakeNoise


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
        gradients = PerImage(lesson.task, lesson.model, optimizer)
        for step in range(lesson.done, lesson.done + count):
            # Sampling depends on all current weights: another model never gets the same draws.
            sampling = lesson.noise("examples", step, values=[w.cpu() for w in whole])
            drawn = np.flatnonzero(sampling.uniform(samples) < expected / samples).tolist()
            images = read(lesson, step, [] if lesson.blank else drawn)
            total = gradients.clipped_sum(images, self._clip)
            noise = partial(lesson.noise, "gradient", step)
            mean = noised_mean(total, deviation, expected, noise)
            optimizer.step(lesson.correct(split_like(mean, values)))
        return Progress(count, torch.zeros((), dtype=torch.float64), 0)


def read(lesson: Lesson, step: int, positions: Sequence[int]) -> Iterator[Single]:
    """The images at `positions`, one by one.

    The random numbers for an image (augmentation, dropout) depend on its position and the step
    alone. From a stream that all images share, one image more would give all others different ones,
    and change their gradients.
    """
    for position in positions:
        its = derive(lesson.draws.initial_seed(), "step", step, "image", position)
        draws = torch.Generator().manual_seed(its)
        yield Single(lesson.read(torch.tensor([position]), draws), derive(its, "loss"))


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
