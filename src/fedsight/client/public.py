"""How a network learns public images, at a site or at the coordinator: towards given scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from torch import Generator, Tensor, nn

from fedsight.algorithms.base import Algorithm
from fedsight.client.bound_model import BoundModel
from fedsight.client.optimizers import clip_gradients, make_optimizer
from fedsight.client.training import Gradients, GradientSteps, Lesson
from fedsight.core.types import Batch
from fedsight.privacy.noise import Noise


@dataclass(frozen=True)
class Distance:
    """The algorithm's loss of a batch of public images, whose targets are scores."""

    algorithm: Algorithm

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar."""
        return self.algorithm.distance(model(batch.x).float(), batch.y)


def learn(
    bound: BoundModel,
    learning: dict[str, nn.Parameter],
    targets: Tensor,
    lr: float,
    draws: Generator,
    precision: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Let the bound network learn `targets` [public images, classes], in training mode.

    Only the parameters in `learning` change. No image of a site is read, so these are plain steps
    under DP-SGD, too: what is done to a model that protects the images costs nothing. `lr` is the
    local learning rate of the round; the algorithm may have one of its own.
    """
    federation = bound.federation
    program, data = federation.program, federation.public
    lessons, train, clip = program.algorithm.lessons, program.train, program.train.clip
    pace = None
    if lessons.lr is not None:
        given = {"optimiser": "adamw", "momentum": 0.0, "weight_decay": 0.0, "groups": ()}
        train, lr = train.model_copy(update={**given, "lr": lessons.lr}), lessons.lr
        steps = lessons.passes * GradientSteps(precision).steps(len(data), train.batch)
        pace = partial(_cosine, steps)
        clip = None

    def read(positions: Tensor, _: Generator) -> Batch:
        x = bound.batch(data, positions).x
        return Batch(x, targets[positions.to(targets.device)].to(x.device))

    def clipped(gradients: list[Tensor], again: Gradients | None = None) -> list[Tensor]:
        if clip is not None:
            clip_gradients(gradients, clip)
        return gradients

    GradientSteps(precision).train(
        Lesson(
            model=bound.model,
            task=program.task,
            loss=Distance(program.algorithm),
            read=read,
            samples=len(data),
            epochs=lessons.passes,
            batch=train.batch,
            optimizer=make_optimizer(learning, train, lr, bound.network),
            correct=clipped,
            done=0,
            draws=draws,
            noise=partial(Noise, program.seed, program.fingerprint),  # not asked for
            pace=pace,
        )
    )


def _cosine(steps: int, step: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2
