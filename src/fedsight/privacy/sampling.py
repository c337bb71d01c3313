"""Who takes part in a round, and what that choice is worth: the sampler emits the event.

No other code says how releases are amplified, so that what is accounted is what was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsight.core.errors import FedSightError
from fedsight.core.rng import numpy_generator
from fedsight.privacy import event
from fedsight.privacy.event import Event


class Sampler(Protocol):
    """Draws cohorts and knows what they are worth."""

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """Numbers of the clients of `round`, sorted; amplification wants `seed` to be secret."""
        ...

    def expected(self, population: int) -> float:
        """Size of a cohort in the mean: the fixed denominator of its sum."""
        ...

    def event(self, population: int, noise: float) -> Event:
        """One round with Gaussian noise of `noise` times the clipping norm on the sum."""
        ...


@dataclass(frozen=True)
class Everyone:
    """All clients, always: no amplification. The default, and right for a handful of sites."""

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """All of them."""
        return list(range(population))

    def expected(self, population: int) -> float:
        """All of them."""
        return float(population)

    def event(self, population: int, noise: float) -> Event:
        """Plain Gaussian, one client more or less."""
        return event.gaussian(noise)


@dataclass(frozen=True)
class Poisson:
    """Each client by its own coin: cohorts differ in size, and may be empty."""

    rate: float  # probability

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise FedSightError(
                f"a sampling rate of {self.rate:g} is no probability above 0",
                "choose a cohort of at least 1 and at most all clients",
            )

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """Whose coin says so."""
        rng = numpy_generator(seed, "round", round, "cohort")
        return [int(client) for client in np.flatnonzero(rng.random(population) < self.rate)]

    def expected(self, population: int) -> float:
        """rate times population."""
        return self.rate * population

    def event(self, population: int, noise: float) -> Event:
        """Amplified by the coin; one client more or less."""
        return event.poisson(noise, self.rate)


@dataclass(frozen=True)
class FixedSize:
    """A cohort of a fixed size, without replacement: neighbours replace one, at half the noise."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FedSightError(f"a cohort of {self.size} has nobody in it", "choose 1 or more")

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """A uniform choice; FedSightError if there are not so many."""
        if self.size > population:
            raise FedSightError(
                f"a cohort of {self.size} cannot be drawn from {population}", "lower the cohort"
            )
        if self.size == population:
            return list(range(population))
        rng = numpy_generator(seed, "round", round, "cohort")
        chosen = rng.choice(population, self.size, replace=False, shuffle=False)
        return sorted(int(client) for client in chosen)

    def expected(self, population: int) -> float:
        """The size."""
        return float(self.size)

    def event(self, population: int, noise: float) -> Event:
        """Amplified by the choice; one client in the place of another."""
        return event.fixed_size(noise, population, self.size)


@dataclass(frozen=True)
class Cyclic:
    """Fixed groups that take turns, as correlated noise wants: who took part rests a while.

    Nothing is left to chance after the first shuffle, so nothing is amplified; what it is worth
    depends on the noise of all rounds, and the matrix mechanism says so.
    """

    cohort: int  # about so many clients in a group

    def groups(self, population: int) -> int:
        """How many groups there are: a client rests for all rounds but one of so many."""
        return max(1, population // self.cohort)

    def draw(self, population: int, seed: int, round: int) -> list[int]:
        """The group whose turn it is."""
        order = numpy_generator(seed, "cohort groups").permutation(population)
        groups = self.groups(population)
        return sorted(int(client) for client in order[(round - 1) % groups :: groups])

    def expected(self, population: int) -> float:
        """Size of a group in the mean."""
        return population / self.groups(population)

    def event(self, population: int, noise: float) -> Event:
        """One turn of a client, with noise of its own: nothing is amplified."""
        return event.gaussian(noise)

    def participations(self, population: int, rounds: int) -> int:
        """How often a client takes part in so many rounds, at most."""
        return math.ceil(rounds / self.groups(population))
