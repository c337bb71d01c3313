"""The federated algorithm: pure functions on vectors, with every state explicit.

A subclass overrides only what its paper changes. Vectors here are the shared slice of the
layout ([d] float32): personal weights and running statistics are the engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Memory, Payload
from fedsight.models.base import Network

State = dict[str, Tensor]


@dataclass
class Local:
    """What a client knows while it trains in one round."""

    start: Tensor  # [d] the global vector it began from
    shared: Mapping[str, Tensor]  # the algorithm's vectors from the order
    memory: Memory  # the site's own vectors from the last round that it took part in
    lr: float  # local learning rate of this round
    steps: int = 0  # local steps taken so far


@dataclass(frozen=True)
class Mean:
    """What came out of a round's sum: the weighted mean of each payload part, float64 [d].

    The server's step may change the parts in place, but not keep them: they are the largest
    vectors there are, and their memory is that of the next round's sum.
    """

    parts: Mapping[str, Tensor]
    replies: int
    population: int


@dataclass(frozen=True)
class Phase:
    """A stretch of local training in which only some slices learn."""

    epochs: int
    trains: frozenset[Kind]


EVERYTHING = frozenset(Kind) - {Kind.FROZEN}


class Algorithm(Settings):
    """Base: plain local SGD; the server adds the mean update (FedAvg without options)."""

    parts: ClassVar[tuple[str, ...]] = ("delta",)  # what a reply's payload holds

    @property
    def corrects(self) -> bool:
        """Whether local gradients are changed (then they are gathered into one vector first)."""
        return type(self).correct is not Algorithm.correct

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """Which slices stay at the site; by default none do."""
        return kind

    def phases(self, epochs: int) -> list[Phase]:
        """The stretches of one round's local training."""
        return [Phase(epochs, EVERYTHING)]

    def init(self, vector: Tensor) -> State:
        """The server's state before the first round."""
        return {}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """The part of the state that each site of the cohort needs."""
        return {}

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """The local gradient [d] as changed by the algorithm at `vector` [d]."""
        return grad

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """After local training: what is sent, and what the site keeps."""
        return {"delta": vector - local.start}, {}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The server's step: new vector and new state."""
        return mean.parts["delta"].add_(vector).float(), state

    def check(self, train: Any) -> list[Problem]:
        """Combinations with the local optimiser (`[train]`) that the paper does not cover."""
        return []


algorithms: Registry[Algorithm] = Registry("algorithm", "fedsight.algorithms")
