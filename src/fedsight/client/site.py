"""A site as the client step sees it: its images, and its training in one round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from fedsight.core.types import Batch
from fedsight.privacy.noise import MakeNoise
from fedsight.program.site_data import SiteData
from fedsight.tasks.base import Task


@dataclass(frozen=True)
class Site:
    """What a client is known by: its images, and the whole of them as one batch if it is small."""

    name: str
    data: SiteData
    labels: Tensor
    whole: Batch | None
    values: int  # of `whole`
    share: list[Tensor] | None = None  # a baseline's batches of a round of no whole passes
    pace: Callable[[int], float] | None = None  # factor of the learning rate by step of the round


@dataclass(frozen=True)
class Round:
    """A site's training in one round, of whichever model."""

    number: int
    site: Site
    draws: Generator  # of the order of images and of augmentation
    noise: MakeNoise  # that protects
    blank: bool  # whether no image is to be read


@torch.no_grad()
def mean_loss(
    task: Task, model: nn.Module, read: Callable[[Tensor], Batch], samples: int, size: int
) -> float:
    """The mean of the task's loss over so many images, `size` at a time, in evaluation mode."""
    model.eval()
    total = 0.0
    for positions in torch.arange(samples).split(size):
        total += float(task.loss(model, read(positions))) * len(positions)
    return total / samples
