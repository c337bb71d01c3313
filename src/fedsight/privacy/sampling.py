"""Who takes part in a round, and what that choice is worth: the sampler emits the event.

No other code says how releases are amplified, so that what is accounted is what was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsight.core.errors import FedSightError
from fedsight.privacy import event
from fedsight.privacy.event import Event


class Sampler(Protocol):
    """Draws cohorts and knows what they are worth."""

    def draw(self, population: int, rng: np.random.Generator) -> list[int]:
        """Numbers of the clients of one round, sorted."""
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

    def draw(self, population: int, rng: np.random.Generator) -> list[int]:
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

    def draw(self, population: int, rng: np.random.Generator) -> list[int]:
        """Whose coin says so."""
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

    def draw(self, population: int, rng: np.random.Generator) -> list[int]:
        """A uniform choice; FedSightError if there are not so many."""
        if self.size > population:
            raise FedSightError(
                f"a cohort of {self.size} cannot be drawn from {population}", "lower the cohort"
            )
        chosen = rng.choice(population, self.size, replace=False, shuffle=False)
        return sorted(int(client) for client in chosen)

    def expected(self, population: int) -> float:
        """The size."""
        return float(self.size)

    def event(self, population: int, noise: float) -> Event:
        """Amplified by the choice; one client in the place of another."""
        return event.fixed_size(noise, population, self.size)
