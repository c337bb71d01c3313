"""What flows through a round: the order to a site, the site's reply, and sums that add up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Payload = Mapping[str, Tensor]  # named vectors, one per part, each encoded as its PartSpec says
Memory = Mapping[str, Tensor]  # what a site keeps between rounds


class Codec(Protocol):
    """How a float32 vector is written down for the way from a site to the coordinator."""

    def bytes(self, values: int) -> int:
        """Length of the encoding of `values` values."""
        ...

    def encode(self, values: Tensor) -> Tensor:
        """float32 [n] -> uint8 [bytes(n)]. Raises ValueError for values that cannot be encoded."""
        ...

    def decode(self, data: Tensor, values: int) -> Tensor:
        """uint8 [bytes(n)] -> float32 [n]."""
        ...


@dataclass(frozen=True)
class PartSpec:
    """What one part of a payload is: its shape and type, and the codec that it travels in.

    Every size (of a sum, a message, a reply on the books) is computed from it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    codec: Codec | None = None  # None: the values themselves

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes on the way to the coordinator."""
        if self.codec is not None:
            return self.codec.bytes(self.values)
        return self.values * self.dtype.itemsize

    @property
    def encoded(self) -> tuple[int, torch.dtype]:
        """Length and type of the vector that is sent."""
        if self.codec is not None:
            return self.bytes, torch.uint8
        return self.values, self.dtype

    def encode(self, values: Tensor) -> Tensor:
        """What is sent for `values`."""
        return values if self.codec is None else self.codec.encode(values)

    def decode(self, sent: Tensor) -> Tensor:
        """The values of what was sent."""
        return sent if self.codec is None else self.codec.decode(sent, self.values)


PartSpecs = Mapping[str, PartSpec]


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


class RoundSum(Protocol):
    """A round's sum as a privacy mechanism sees it, however it was added up."""

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
