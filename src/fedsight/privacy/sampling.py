"""Samplers: they draw the cohort of a round and state how the draw is accounted.

Only a sampler may claim amplification, so what is accounted is what was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from fedsight.core.draws import Indices, draws
from fedsight.core.errors import FedSightError
from fedsight.privacy import event
from fedsight.privacy.event import Event


class Sampler(Protocol):
    """Draws cohorts and states how they are accounted."""

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """Sorted indices of the clients of `round`; amplification requires a secret `seed`."""
        ...

    def expected(self, population: int) -> float:
        """Expected size of a cohort: the fixed denominator of its sum."""
        ...

    def event(self, population: int, noise: float) -> Event:
        """One round with Gaussian noise of `noise` times the clipping norm on the sum."""
        ...


@dataclass(frozen=True)
class Everyone:
    """All clients in every round, without amplification: the default, suited to few sites."""

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """All clients."""
        return list(range(population))

    def expected(self, population: int) -> float:
        """The whole population."""
        return float(population)

    def event(self, population: int, noise: float) -> Event:
        """Gaussian noise without sampling; neighbours add or remove one client."""
        return event.gaussian(noise)


@dataclass(frozen=True)
class Poisson:
    """Each client is drawn independently: cohorts vary in size and may be empty."""

    rate: float  # probability
    known: bool = False  # to those against whom epsilon is to hold: then nothing is amplified

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise FedSightError(
                f"the sampling rate {self.rate:g} is not in (0, 1]",
                "choose a cohort of at least 1 and at most all clients",
            )

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """The clients that were drawn."""
        drawn = draws(seed, "round", round, "cohort").uniforms(population)
        return [int(client) for client in np.flatnonzero(drawn < self.rate)]

    def expected(self, population: int) -> float:
        """`rate` times `population`."""
        return self.rate * population

    def event(self, population: int, noise: float) -> Event:
        """Amplified by Poisson sampling in secret; neighbours add or remove one client."""
        return event.gaussian(noise) if self.known else event.poisson(noise, self.rate)


@dataclass(frozen=True)
class FixedSize:
    """A cohort of fixed size, drawn without replacement.

    Neighbours replace one client by another, so the noise counts half.
    """

    size: int
    known: bool = False  # as in `Poisson`

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FedSightError(f"a cohort of {self.size} clients is empty", "choose 1 or more")

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """A uniform choice; FedSightError if the population is smaller than the cohort."""
        if self.size > population:
            raise FedSightError(
                f"a cohort of {self.size} cannot be drawn from {population} clients",
                "lower the cohort",
            )
        if self.size == population:
            return list(range(population))
        chosen = draws(seed, "round", round, "cohort").sample(population, self.size)
        return [int(client) for client in chosen]

    def expected(self, population: int) -> float:
        """The fixed size."""
        return float(self.size)

    def event(self, population: int, noise: float) -> Event:
        """Amplified by sampling a secret cohort; neighbours replace one client by another."""
        if self.known:
            return event.gaussian(noise, "replace_one")
        return event.fixed_size(noise, population, self.size)


@lru_cache(maxsize=1)
def _shuffled(seed: int, population: int) -> Indices:
    """The clients in the order of their groups, the same in every round."""
    return draws(seed, "cohort groups").permutation(population)


@dataclass(frozen=True)
class Cyclic:
    """Fixed groups that take turns, as correlated noise requires: clients rest between rounds.

    After the initial shuffle nothing is random, so nothing is amplified. The cost depends on the
    noise of all rounds, and the matrix mechanism accounts for it.
    """

    cohort: int  # approximate number of clients in a group

    def groups(self, population: int) -> int:
        """Number of groups: a client takes part once in so many rounds."""
        return max(1, population // self.cohort)

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """The group whose turn it is in `round`."""
        order = _shuffled(seed, population)
        groups = self.groups(population)
        return sorted(int(client) for client in order[(round - 1) % groups :: groups])

    def expected(self, population: int) -> float:
        """Mean size of a group."""
        return population / self.groups(population)

    def event(self, population: int, noise: float) -> Event:
        """One participation with independent noise, without amplification."""
        return event.gaussian(noise)

    def participations(self, population: int, rounds: int) -> int:
        """The most often that a client takes part in `rounds` rounds."""
        return math.ceil(rounds / self.groups(population))
