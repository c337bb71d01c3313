"""Local training: what happens between loading the global model and making a reply.

A strategy trains the network on one site's images. Gradient steps (SGD, AdamW) are one, DP-SGD
(`dpsgd.py`) is another; `LocalTraining` is all that the client step knows of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from fedsight.client.optimizers import Optimizer
from fedsight.core.types import Batch
from fedsight.privacy.noise import MakeNoise
from fedsight.tasks.base import Task

Correct = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Lesson:
    """What is to be trained: a network, on one site's images, for some epochs."""

    model: nn.Module
    task: Task
    read: Callable[[Tensor, Generator], Batch]  # positions [b], draws of augmentation -> batch
    samples: int  # images of the site
    epochs: int
    batch: int  # images in a step
    optimizer: Optimizer  # of the parameters that learn
    correct: Correct  # gradients as the algorithm wants them
    done: int  # steps of this round before these
    draws: Generator  # of the order of images and of augmentation
    noise: MakeNoise  # that protects
    blank: bool = False  # whether no image is to be read: steps that noise alone takes


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


class GradientSteps:
    """Steps along the gradients of shuffled batches; `precision` surrounds each forward pass."""

    def __init__(self, precision: Callable[[], AbstractContextManager[object]]) -> None:
        self._precision = precision

    def train(self, lesson: Lesson) -> Progress:
        """Epoch by epoch, batch by batch."""
        model, task, optimizer = lesson.model, lesson.task, lesson.optimizer
        losses, sizes = [], []
        for positions in batches(lesson.samples, lesson.epochs, lesson.batch, lesson.draws):
            batch = lesson.read(positions, lesson.draws)
            with self._precision():
                loss = task.loss(model, batch)
            gradients = optimizer.gradients(loss)
            optimizer.step(lesson.correct(gradients))
            del gradients  # or the next step's would need other memory, cold in the cache
            losses.append(loss.detach())
            sizes.append(len(positions))
        weights = torch.tensor(sizes, dtype=torch.float64)
        return Progress(len(sizes), torch.stack(losses).cpu().double() @ weights, sum(sizes))


def batches(samples: int, epochs: int, size: int, draws: Generator) -> Iterator[Tensor]:
    """Shuffled positions, epoch by epoch; a single one left over joins the batch before it
    (BatchNorm cannot learn from one image)."""
    starts = np.arange(0, samples, size)
    if size > 1 and len(starts) > 1 and samples - starts[-1] == 1:
        starts = starts[:-1]
    edges = [*starts.tolist(), samples]
    for _ in range(epochs):
        order = torch.randperm(samples, generator=draws)
        for start, stop in itertools.pairwise(edges):
            yield order[start:stop]


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
