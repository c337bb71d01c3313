"""What flows through a round: the order to a site, the site's reply, and sums that add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Payload = Mapping[str, Tensor]  # named float32 vectors, one per part, all of the same length
Memory = Mapping[str, Tensor]  # what a site keeps between rounds


@dataclass(frozen=True)
class Sum:
    """A quantity that adds over batches and sites: `total` over `count` samples.

    `total` is a float or an array (a confusion matrix, say); sums of one name share a shape.
    """

    total: npt.NDArray[np.float64]
    count: int

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """Total of all entries over the count; NaN when nothing was counted."""
        return float(np.sum(self.total)) / self.count if self.count else float("nan")


Metrics = Mapping[str, Sum]


def add_metrics(parts: list[Metrics]) -> dict[str, Sum]:
    """Sum metrics by name, in the order given."""
    sums: dict[str, Sum] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


@dataclass(frozen=True)
class Batch:
    """Normalised images `x` [b, c, h, w] float32 and targets `y` [b, ...]: class numbers [b] int64,
    or whatever the task learns from."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Order:
    """Coordinator to site: train from `vector` [travelling] in `round`; `shared` are the
    algorithm's other vectors (SCAFFOLD's control variate, say)."""

    round: int
    vector: Tensor
    shared: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """Site to coordinator: what the site learnt, what it weighs, and how training went.

    `memory` stays at the site; it is committed there once the coordinator accepted the reply.
    """

    site: str
    payload: Payload
    weight: int
    metrics: Metrics
    memory: Memory = field(default_factory=dict)


class Total(Protocol):
    """A round's sum, however it was added up."""

    @property
    def count(self) -> int:
        """Replies added."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What it has added so far, as it keeps it."""
        ...

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each part, float64."""
        ...

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each part, float64."""
        ...
