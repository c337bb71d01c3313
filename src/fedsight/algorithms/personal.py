"""Personalised algorithms, in which part of the model stays at the site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fedsight.algorithms import lengths
from fedsight.algorithms.base import Algorithm, Phase, algorithms
from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.models.base import Network

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("fedbn", paper="Li et al. 2021, Algorithm 1")
class FedBN(Algorithm):
    """FedAvg in which every normalisation layer stays at the site (for feature shift)."""

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """Normalisation layers, including their statistics, are personal."""
        return Kind.PERSONAL if name in network.norms else kind


@algorithms.add("fedper", paper="Arivazhagan et al. 2019, Algorithms 1 and 2")
class FedPer(Algorithm):
    """A shared body and a personal head, trained together."""

    blocks: int = Field(0, ge=0)  # how many blocks before the head are personal too

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """The head and the last blocks before it, with their statistics, are personal."""
        last = network.blocks[-self.blocks :] if self.blocks else ()
        keeps = name in network.head or any(name in block for block in last)
        return Kind.PERSONAL if keeps else kind


@algorithms.add("fedrep", paper="Collins et al. 2021, Algorithm 1")
class FedRep(Algorithm):
    """A shared body and a personal head: the head is trained first, then the body."""

    # local epochs of the head; train.epochs applies to the body; None: 1
    head_epochs: int | None = Field(None, ge=1, le=100_000)
    # local steps of the head, where train.steps are those of the body
    head_steps: int | None = Field(None, ge=1, le=1_000_000)

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """The head is personal."""
        return Kind.PERSONAL if name in network.head else kind

    def phases(self, length: int) -> list[Phase]:
        """First the head with the body fixed, then the body with the head fixed."""
        body = Kind.SHARED, Kind.BUFFER
        return [
            Phase(self.head_steps or self.head_epochs or 1, frozenset({Kind.PERSONAL})),
            Phase(length, frozenset(body)),
        ]

    def check(self, program: Program) -> list[Problem]:
        """Head and body are counted alike, in epochs or in steps."""
        found = lengths.problems(program, "head", self.head_epochs, self.head_steps)
        if program.train.steps is not None and self.head_steps is None and not found:
            cause = "train.steps are those of the body, and the head needs its own"
            cure = "set it, for example to the value of train.steps"
            found = [Problem("algorithm.head_steps", cause, cure)]
        return found
