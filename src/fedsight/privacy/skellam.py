"""Distributed differential privacy: Skellam noise on the levels that secure aggregation adds up.

Each site adds noise to its rounded update; the sum of the sites' noises is again Skellam, and no
single site's noise needs to be enough. Here is how much each adds, and what that is worth; levels
and masks are in `privacy/secagg/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsight.core.errors import FedSightError
from fedsight.privacy import event
from fedsight.privacy.event import Event
from fedsight.privacy.poisson import Integers, Uniform, offsets

STRAYS = 50  # bits: a noised sum leaves its room with probability 2^-50 at most, on either side


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
            deviation = multiplier * self.moves(scale) / 2 / math.sqrt(self.honest)
            if room(self.terms, top, deviation) < 1 << modulus:
                return Levels(bits, scale, deviation)
        raise FedSightError(
            f"a sum of {self.terms} updates with noise {multiplier:g} does not fit {modulus} bits",
            "raise privacy.epsilon, or secure.clip",
        )

    def moves(self, scale: float) -> float:
        """How far the levels of one site move at most (L2) when its images are replaced.

        Two updates are 2 `clip` apart. Whether a value is rounded up is decided by the same draw u
        for both, which is the site's and the round's and not the images', and
        floor(a + u) - floor(b + u) differs from a - b by less than one.
        """
        return 2 * scale * self.clip + math.sqrt(self.size)

    def release(self, scale: float, deviation: float) -> Event:
        """What the sum is accounted as: the noise of the honest sites alone.

        Who takes part is known, so that neighbours replace one update by another. By Cauchy and
        Schwarz an L1 norm is at most sqrt(d) times the L2 norm.
        """
        l2 = self.moves(scale)
        variance = self.honest * deviation**2
        return event.skellam(variance, math.sqrt(self.size) * l2, l2, "replace_one")


def room(terms: int, top: int, deviation: float) -> int:
    """How many different sums there may be of `terms` noised values from 0 to `top`.

    A sum of Skellam noise of variance V strays further than t with probability
    exp(-t^2 / (2 V + 2 t / 3)) at most, to either side (Bernstein; its cumulant generating function
    is V (cosh s - 1), below V s^2 / (2 - 2 s / 3)); t is where that is 2^-STRAYS.
    """
    if not deviation:
        return terms * top + 1
    bits = STRAYS * math.log(2)
    t = bits / 3 + math.sqrt((bits / 3) ** 2 + 2 * bits * terms * deviation**2)
    return terms * top + 2 * math.ceil(t) + 1


def noise(size: int, deviation: float, uniform: Uniform) -> Integers:
    """Skellam noise [size]: the difference of two Poisson draws."""
    half = deviation**2 / 2
    return offsets(half, size, uniform) - offsets(half, size, uniform)
