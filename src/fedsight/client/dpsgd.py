"""DP-SGD at a site: the gradients of single images, clipped, summed and noised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsight.client.per_image import PerImage, Single
from fedsight.client.training import GradientSteps, Lesson, LocalTraining, Progress
from fedsight.core.rng import derive
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example, steps_of_pass
from fedsight.privacy.noise import MakeNoise, added
from fedsight.program.federation import Federation


class PrivateSteps:
    """Noisy steps along clipped gradients (Abadi et al. 2016, Algorithm 1)."""

    def __init__(self, mechanism: Example, plan: Plan, hides: bool = False) -> None:
        """`hides`: an image that cannot be read or fails adds nothing, instead of raising."""
        self._mechanism = mechanism
        self._hides = hides
        self._clip = mechanism.clip
        self._plan = plan

    def train(self, lesson: Lesson) -> Progress:
        """Train for `lesson.epochs` passes, or `lesson.steps` steps.

        Their number depends on nothing but the number of images, and no loss is reported.
        """
        samples, optimizer, plan = lesson.samples, lesson.optimizer, self._plan
        expected = float(min(plan.batch, samples))
        deviation = self._mechanism.at(plan, samples) * self._clip
        count = lesson.epochs * steps_of_pass(plan, samples)
        count = count if lesson.steps is None else lesson.steps
        values = [parameter.detach() for parameter in optimizer.parameters]
        whole = [parameter.detach() for parameter in lesson.model.parameters()]
        gradients = PerImage(lesson.task, lesson.model, optimizer, self._hides)
        for step in range(lesson.done, lesson.done + count):
            # Sampling depends on all current weights: another model never gets the same draws.
            sampling = lesson.noise("examples", step, values=[w.cpu() for w in whole])
            drawn = np.flatnonzero(sampling.uniform(samples) < expected / samples)
            seeds = (sampling.uniform(samples) * 2.0**53).astype(np.int64)
            chosen = [] if lesson.blank else zip(drawn.tolist(), seeds[drawn].tolist(), strict=True)
            images = read(lesson, chosen, gradients.failed)
            total = gradients.clipped_sum(images, self._clip)
            noise = partial(lesson.noise, "gradient", step)
            mean = noised_mean(total, deviation, expected, noise)
            if lesson.pace is not None:
                optimizer.factor = lesson.pace(step)
            optimizer.step(lesson.correct(split_like(mean, values)))
        return Progress(count, torch.zeros((), dtype=torch.float64), 0)

    def steps(self, samples: int, batch: int) -> int:
        """Those that are accounted."""
        return steps_of_pass(self._plan, samples)


def local_training(
    federation: Federation, precision: Callable[[], AbstractContextManager[object]], hides: bool
) -> LocalTraining:
    """How the federation's sites train: by DP-SGD, if images are protected and there are steps.

    `hides` is as in `PrivateSteps`, `precision` as in `GradientSteps`.
    """
    mechanism, plan = federation.program.privacy, federation.plan
    if isinstance(mechanism, Example) and not plan.units:  # else the sums are noised
        return PrivateSteps(mechanism, plan, hides)
    return GradientSteps(precision)


def read(
    lesson: Lesson,
    chosen: Iterable[tuple[int, int]],
    failed: Callable[[Exception], None] | None = None,
) -> Iterator[Single]:
    """The images at (position, seed), one by one; those that cannot be read go to `failed`.

    The random numbers for an image (augmentation, dropout) follow from its seed, which is drawn for
    it like its coin. If they came from a stream that all images share, or from the image's position
    and a public seed, one image more would give those after it different ones, and so change their
    gradients: the positions of all later images move.
    """
    for position, its in chosen:
        draws = torch.Generator().manual_seed(derive(its, "augmentation"))
        try:
            batch = lesson.read(torch.tensor([position]), draws)
        except Exception as error:
            if failed is None:
                raise
            failed(error)
            continue
        yield Single(batch, derive(its, "loss"))


def noised_mean(total: list[Tensor], deviation: float, expected: float, noise: MakeNoise) -> Tensor:
    """(sum + noise) / expected batch size as one vector [d], on the CPU."""
    flat = torch.cat([part.flatten() for part in total]).cpu()
    normal = noise(values=[flat]).normal(len(flat), deviation)
    return added(flat, normal, deviation) / expected


def split_like(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Split a vector [d] into tensors with the shapes, strides and devices of `like`."""
    pieces = flat.split([value.numel() for value in like])
    return [
        torch.empty_like(value).copy_(piece.view(value.shape))
        for piece, value in zip(pieces, like, strict=True)
    ]
