"""The data of a round: the order to a site, the site's reply, and additive metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.errors import FedSightError

Payload = Mapping[str, Tensor]  # named vectors, one per part, each encoded as its PartSpec says
Memory = Mapping[str, Tensor]  # what a site keeps between rounds


class Encoding(Protocol):
    """The encoding of a float32 vector for transfer from a site to the coordinator."""

    @property
    def varies(self) -> bool:
        """Whether the length of an encoding depends on the values."""
        ...

    def bytes(self, values: int) -> int:
        """Length of the encoding of `values` values; the most, if it varies."""
        ...

    def length_at(self, data: memoryview, start: int) -> int:
        """The length that the encoding states that begins at `start`, where it varies."""
        ...

    @property
    def warm(self) -> bool:
        """Whether the sender's last message makes the next one better."""
        ...

    def encode(self, values: Tensor, key: int, last: Tensor | None = None) -> Tensor:
        """float32 [n] -> uint8 [bytes(n)], or fewer; random bits follow from `key`, below 2^63.
        `last` is the message before, if the sender remembers that.

        Raises ValueError for values that cannot be encoded.
        """
        ...

    def decode(self, data: Tensor, values: int) -> Tensor:
        """uint8 -> float32 [n]; ValueError for bytes that are not the encoding of so many."""
        ...


class Derived(Protocol):
    """What the coordinator makes of the vector of a part, of each reply and of their mean."""

    @property
    def values(self) -> int:
        """Number of values that it makes."""
        ...

    def of(self, vector: Tensor) -> Tensor:
        """float32 or float64 [n] -> float64 [values]."""
        ...


@dataclass(frozen=True)
class PartSpec:
    """Describes one part of a payload: its shape, its type, and the codec that encodes it.

    Every size (of a sum, a message, the bytes in the history) is computed from it. A part of int64
    is summed as it is: without weight, clip, rounding or codec. Its `bound` is the largest absolute
    value that a site may send (None: an equal share of 64 bits); a smaller one saves bits when
    values are masked. The last values of a shape may be `derived` of the others: they are summed,
    but the coordinator makes them, and no site sends them. Raises ValueError for other types, and
    for a bound or codec that has no meaning.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    codec: Encoding | None = None  # None: the values themselves
    bound: int | None = None
    derived: Derived | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.int64):
            raise ValueError(f"a part is float32 or int64, not {self.dtype}")
        if self.exact and self.codec is not None:
            raise ValueError("integers are sent as they are, without a codec")
        if self.bound is not None and (
            not self.exact or type(self.bound) is not int or self.bound < 0
        ):
            raise ValueError(f"expected a bound of an int64 part, at least 0, not {self.bound!r}")

    @property
    def exact(self) -> bool:
        """Whether it consists of integers, which are summed as they are."""
        return self.dtype == torch.int64

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def sent(self) -> int:
        """Number of values that a site sends."""
        return self.values - (0 if self.derived is None else self.derived.values)

    @property
    def bytes(self) -> int:
        """Size in bytes when sent to the coordinator; the most, if it varies."""
        if self.codec is not None:
            return self.codec.bytes(self.sent)
        return self.sent * self.dtype.itemsize

    @property
    def varies(self) -> bool:
        """Whether its size depends on the values."""
        return self.codec is not None and self.codec.varies

    @property
    def encoded(self) -> tuple[int, torch.dtype]:
        """Length and type of the vector that is sent; the greatest length, if it varies."""
        if self.codec is not None:
            return self.bytes, torch.uint8
        return self.sent, self.dtype

    def size_at(self, data: memoryview, start: int) -> int:
        """The bytes that it takes of `data`, from `start` on; ValueError if they are not there."""
        size = self.bytes
        if self.codec is not None and self.codec.varies:
            size = self.codec.length_at(data, start)
            if size > self.bytes:
                raise ValueError(f"{size:,} bytes are stated, and {self.bytes:,} are the most")
        if start + size > len(data):
            raise ValueError(f"{len(data):,} bytes, not {start + size:,}")
        return size

    def fits(self, sent: object) -> bool:
        """Whether `sent` has the form of an encoded part."""
        length, dtype = self.encoded
        if not isinstance(sent, Tensor) or sent.dtype != dtype or sent.dim() != 1:
            return False
        return len(sent) <= length if self.varies else len(sent) == length

    def encode(self, values: Tensor, key: int, last: Tensor | None = None) -> Tensor:
        """The encoded form of `values`, as sent; random bits follow from `key`. `last` is what was
        sent before, if that is remembered."""
        return values if self.codec is None else self.codec.encode(values, key, last)

    def received(self, sent: Tensor) -> Tensor:
        """The values of an encoded part that were sent."""
        return sent if self.codec is None else self.codec.decode(sent, self.sent)

    def decode(self, sent: Tensor) -> Tensor:
        """The values of an encoded part, the derived ones with them.

        Raises ValueError if the derived ones were sent too, or others are missing.
        """
        found = self.received(sent)
        if self.derived is None:
            return found
        if len(found) != self.sent:
            raise ValueError(f"{len(found):,} values, not {self.sent:,}")
        return torch.cat([found, self.derived.of(found).to(found.dtype)])


PartSpecs = Mapping[str, PartSpec]


@dataclass(frozen=True)
class Sum:
    """A quantity that adds over batches and sites: `total` over `count` samples.

    `total` is a float or an array (for example a confusion matrix); sums of one name share a shape.
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
    or whatever the task learns from.

    `unlabelled` [b, classes] says which classes nobody looked for in an image, because its site
    does not label them: that it has no such label says nothing. None: all were labelled.

    `degraded` has the same images [b, c, h, w] once more for each degradation, by name, where they
    are measured beside the others (`Evaluation.probes`); a kind may be made when it is read.
    """

    x: Tensor
    y: Tensor
    unlabelled: Tensor | None = None
    degraded: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, positions: Tensor) -> Batch:
        """The images at `positions` [k] of the batch."""
        hidden = None if self.unlabelled is None else self.unlabelled[positions]
        return Batch(self.x[positions], self.y[positions], hidden)


@dataclass(frozen=True)
class Order:
    """Coordinator to site: train from `vector` [travelling] in `round`; `shared` are the
    algorithm's other vectors (for example SCAFFOLD's control variate).

    A site on another machine that has the last order's vector is sent `difference` [uint8] instead,
    which makes this one of it.
    """

    round: int
    vector: Tensor
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    difference: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise FedSightError, naming it, for a vector that is not float32, as they travel."""
        for name, value in {"vector": self.vector, **self.shared}.items():
            if value.dtype != torch.float32:
                raise FedSightError(
                    f"the {name} of the order of round {self.round} is {value.dtype}",
                    f"what sites are sent is {torch.float32}: convert it in the algorithm's "
                    "`shared` or `step`",
                )


@dataclass(frozen=True)
class Reply:
    """Site to coordinator: the site's update, its weight, and its training metrics.

    `memory` stays at the site; it is committed there once the coordinator has accepted the reply.
    """

    site: str
    payload: Payload
    weight: int
    metrics: Metrics
    memory: Memory = field(default_factory=dict)


class RoundSum(Protocol):
    """A round's sum as a privacy mechanism sees it, independent of how it was computed."""

    @property
    def count(self) -> int:
        """Replies added."""
        ...

    @property
    def weight(self) -> int:
        """Their total weight."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors that hold the sum."""
        ...

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each part but the integer ones, float64."""
        ...

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each part but the integer ones, float64."""
        ...

    def integers(self) -> dict[str, Tensor]:
        """Sum of each integer part, int64, in its shape."""
        ...
