"""Local training: what happens between loading the global model and making a reply.

A strategy trains the network on one site's images. Gradient steps (SGD, AdamW) are one, DP-SGD
(`dpsgd.py`) is another; `LocalTraining` is all that the client step knows of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from fedsight.client.optimizers import Optimizer
from fedsight.core.types import Batch
from fedsight.privacy.noise import MakeNoise
from fedsight.tasks.base import Task

Gradients = Callable[[], list[Tensor]]


class Correct(Protocol):
    """What is stepped along, from gradients."""

    def __call__(self, gradients: list[Tensor], again: Gradients | None = None) -> list[Tensor]:
        """`again` computes the gradients of the same batch with other weights; None: it cannot."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What is to be trained: a network, on one site's images, for some epochs."""

    model: nn.Module
    task: Task
    read: Callable[[Tensor, Generator], Batch]  # positions [b], draws of augmentation -> batch
    samples: int  # images of the site
    epochs: int  # passes over the images
    batch: int  # images in a step
    optimizer: Optimizer  # of the parameters that learn
    correct: Correct  # gradients as the algorithm wants them
    done: int  # steps of this round before these
    draws: Generator  # of the order of images and of augmentation
    noise: MakeNoise  # that protects
    blank: bool = False  # whether no image is to be read: steps that noise alone takes
    steps: int | None = None  # exactly so many, each of exactly `batch` images, in place of epochs
    # batches of positions in place of `epochs` whole passes
    given: Iterable[Tensor] | None = None
    order: Callable[[Generator], Tensor] | None = None  # positions of an epoch; None: shuffled
    pace: Callable[[int], float] | None = None  # factor of the learning rate by step of the round
    # the loss of a batch, where it is not the task's alone
    loss: Callable[[nn.Module, Batch], Tensor] | None = None


@dataclass(frozen=True)
class Progress:
    """How training went: steps taken, and the sum of the loss over the samples seen."""

    steps: int
    loss: Tensor  # scalar float64
    samples: int


class LocalTraining(Protocol):
    """A way to train locally."""

    def train(self, lesson: Lesson) -> Progress:
        """Train the lesson's network. Raises SiteError where it cannot go on."""
        ...

    def steps(self, samples: int, batch: int) -> int:
        """Number of steps in an epoch."""
        ...


class GradientSteps:
    """Steps along the gradients of shuffled batches; `precision` surrounds each forward pass."""

    def __init__(self, precision: Callable[[], AbstractContextManager[object]]) -> None:
        self._precision = precision

    def train(self, lesson: Lesson) -> Progress:
        """Epoch by epoch, batch by batch."""
        model, optimizer = lesson.model, lesson.optimizer
        loss_of = lesson.loss or lesson.task.loss
        losses, sizes = [], []
        given = lesson.given
        if given is None:
            given = _made(lesson)
        for step, positions in enumerate(given, start=lesson.done):
            batch = lesson.read(positions, lesson.draws)

            def loss_now(batch: Batch = batch) -> Tensor:
                with self._precision():
                    return loss_of(model, batch)

            loss = loss_now()
            gradients = optimizer.gradients(loss)
            if lesson.pace is not None:
                optimizer.factor = lesson.pace(step)
            optimizer.step(lesson.correct(gradients, lambda: optimizer.gradients(loss_now())))
            del gradients  # or the next step's would need other memory, cold in the cache
            losses.append(loss.detach())
            sizes.append(len(positions))
        if not sizes:  # a round that has no share of the passes
            return Progress(0, torch.zeros((), dtype=torch.float64), 0)
        weights = torch.tensor(sizes, dtype=torch.float64)
        return Progress(len(sizes), torch.stack(losses).cpu().double() @ weights, sum(sizes))

    def steps(self, samples: int, batch: int) -> int:
        """One for each batch; an image that is left over joins the last one."""
        return len(_starts(samples, batch))


def _made(lesson: Lesson) -> Iterator[Tensor]:
    drawn = lesson.samples, lesson.batch, lesson.draws, lesson.order
    if lesson.steps is not None:
        return unending(lesson.steps, *drawn)
    return batches(lesson.epochs, *drawn)


def batches(
    epochs: int,
    samples: int,
    size: int,
    draws: Generator,
    order: Callable[[Generator], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Shuffled positions, epoch by epoch, or those that `order` draws; a single one left over joins
    the batch before it (BatchNorm cannot learn from one image)."""
    for _ in range(epochs):
        drawn = torch.randperm(samples, generator=draws) if order is None else order(draws)
        yield from _cut(drawn, size)


def unending(
    steps: int,
    samples: int,
    size: int,
    draws: Generator,
    order: Callable[[Generator], Tensor] | None = None,
) -> Iterator[Tensor]:
    """So many batches of exactly `size` positions, cut from one pass after the other.

    A pass is drawn as in `batches`, when the first batch needs it: where `size` divides `samples`,
    those of a whole pass are the batches of an epoch. Where a pass ends within a batch, the next
    one fills it up, and more of them where all images together are fewer than `size`. So a batch
    may hold an image twice.
    """
    if not samples:
        return
    rest = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        parts, due = [rest], size - len(rest)
        while due > 0:
            drawn = torch.randperm(samples, generator=draws) if order is None else order(draws)
            parts.append(drawn)
            due -= samples
        rest = torch.cat(parts)
        yield rest[:size]
        rest = rest[size:]


def _cut(order: Tensor, size: int) -> Iterator[Tensor]:
    for start, stop in itertools.pairwise([*_starts(len(order), size), len(order)]):
        yield order[start:stop]


def _starts(samples: int, size: int) -> range:
    """Where the batches of `samples` images begin."""
    starts = range(0, samples, size)
    alone = size > 1 and len(starts) > 1 and samples - starts[-1] == 1
    return starts[:-1] if alone else starts


def spanned(
    samples: int, span: tuple[int, int], size: int, shuffled: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Batches of the images from `span[0]` up to `span[1]` of an endless sequence of passes.

    `shuffled` gives the order of a pass [samples] by its number. No batch is of two passes. A
    single image is left out where a batch may be larger (BatchNorm cannot learn from one image).
    """
    start, stop = span
    for number in range(start // samples, -(-stop // samples)):
        begun = number * samples
        part = shuffled(number)[max(0, start - begun) : stop - begun]
        if len(part) > 1 or size == 1 or samples == 1:
            yield from _cut(part, size)


def learning(
    parameters: Mapping[str, nn.Parameter], trains: Callable[[str], bool]
) -> dict[str, nn.Parameter]:
    """The parameters that learn; the others are told to need no gradient."""
    found = {}
    for name, parameter in parameters.items():
        parameter.requires_grad_(trains(name))
        if parameter.requires_grad:
            found[name] = parameter
    return found
