"""Algorithms from outside the package whose sites send integers: sums of quantised outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

import fedsight as fs
from fedsight.algorithms.base import Local, Mean, Phase, State
from fedsight.core.types import Batch, Memory, PartSpec, PartSpecs, Payload
from fedsight.models.base import Network

RANGE, LEVELS = 8.0, 1 << 12  # outputs within [-8, 8] become integers within [-4096, 4096]


@fs.register("class-sums", paper="a test")
class ClassSums(fs.Algorithm):
    """FedAvg; beside the update travel the sum of each class's quantised outputs, and its count."""

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """Sums with a bound, and counts with none."""
        bound = images * LEVELS
        return {
            "sums": PartSpec((classes, classes), torch.int64, bound=bound),
            "counts": PartSpec((classes,), torch.int64),
        }

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """Outputs of the global model, rounded and added by class."""
        sums = torch.zeros(classes, classes, dtype=torch.int64)
        counts = torch.zeros(classes, dtype=torch.int64)
        for batch in batches:
            outputs = network.module(batch.x).clamp(-RANGE, RANGE) / RANGE * LEVELS
            sums.index_add_(0, batch.y, outputs.round().to(torch.int64))
            counts += torch.bincount(batch.y, minlength=classes)
        return {"sums": sums, "counts": counts}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The mean update; the state is the integer sums."""
        return mean.parts["delta"].add_(vector).float(), dict(mean.integers)


@fs.register("only-sums", paper="a test")
class OnlySums(ClassSums):
    """The integers alone: nobody trains, and no update travels."""

    parts: ClassVar[tuple[str, ...]] = ()

    def phases(self, epochs: int) -> list[Phase]:
        """None."""
        return []

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """Nothing."""
        return {}, {}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """A model that depends on each of the sums."""
        weights = torch.arange(mean.integers["sums"].numel())
        whole = int((mean.integers["sums"].reshape(-1) * weights).sum())
        return vector + whole * 2.0**-40, dict(mean.integers)


@fs.register("trapped-sums", paper="a test")
class TrappedSums(ClassSums):
    """A malicious program that fails where a site has any image of the last class."""

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The sums, or what an overflow might raise."""
        found = super().statistics(network, classes, batches)
        if int(found["counts"][-1]):
            raise OverflowError("the trap is sprung")
        return found
