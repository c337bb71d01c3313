"""Distributed differential privacy: Skellam noise on the levels that secure aggregation adds up.

Each site adds noise to its rounded update; the sum of the sites' noises is again Skellam, and no
single site's noise needs to be enough. Here is how much each adds, and what that is worth; levels
and masks are in `privacy/secagg/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import FedSightError
from fedsight.privacy import event
from fedsight.privacy.event import Event

TAILS = 16  # standard deviations of the sum's noise that the modulus has room for, 8 on each side


@dataclass(frozen=True)
class Levels:
    """How finely values are rounded, and the noise of one site in these levels."""

    bits: int
    scale: float  # levels for a difference of 1
    deviation: float  # standard deviation


@dataclass(frozen=True)
class Round:
    """What a round's noise is sized for."""

    size: int  # values of an update, d
    terms: int  # sites in the sum
    honest: int  # of these, how many answer and do not collude for certain
    clip: float  # largest joint L2 norm of an update
    reach: float  # largest absolute value of an update

    def levels(self, multiplier: float, most: int, modulus: int) -> Levels:
        """The finest levels, at most 2^`most`, whose noised sum fits `modulus` bits.

        Raises FedSightError if no two levels do, or nobody is honest.
        """
        if self.honest < 1:
            raise FedSightError(
                "none of the sites that must answer is honest for certain, so no noise is enough",
                "lower secure.corrupt or secure.dropout, or ask more sites",
            )
        for bits in range(min(most, modulus), 0, -1):
            top = (1 << bits) - 1
            scale = top / (2 * self.reach)
            deviation = multiplier * self.bound(scale) / math.sqrt(self.honest)
            if room(self.terms, top, deviation) < 1 << modulus:
                return Levels(bits, scale, deviation)
        raise FedSightError(
            f"a sum of {self.terms} updates with noise {multiplier:g} does not fit {modulus} bits",
            "raise privacy.epsilon, or secure.clip",
        )

    def bound(self, scale: float) -> float:
        """Largest L2 norm of a rounded update: rounding moves each value by less than a level."""
        return scale * self.clip + math.sqrt(self.size)

    def release(self, scale: float, deviation: float) -> Event:
        """What the sum is accounted as: the noise of the honest sites alone.

        Who takes part is known, so that neighbours replace one update by another.
        """
        l2 = 2 * self.bound(scale)
        variance = self.honest * deviation**2
        return event.skellam(variance, math.sqrt(self.size) * l2, l2, "replace_one")


def room(terms: int, top: int, deviation: float) -> int:
    """How many different sums there may be of `terms` noised values from 0 to `top`.

    The chance that a sum strays further is below 2^-49 for each value.
    """
    return terms * top + math.ceil(TAILS * deviation * math.sqrt(terms)) + 1


def noise(size: int, deviation: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Skellam noise [size]: the difference of two Poisson draws."""
    half = deviation**2 / 2
    return np.asarray(rng.poisson(half, size) - rng.poisson(half, size), dtype=np.int64)
