"""Distributed differential privacy: Skellam noise on the integers that secure aggregation adds.

Each site adds noise to its rounded update. A sum of Skellam variables is again Skellam, so the
noise of a single site need not suffice. This module computes how much noise each site adds and how
the sum is accounted; rounding and masks are in `privacy/secagg/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsight.core.errors import FedSightError
from fedsight.privacy import event
from fedsight.privacy.event import Event
from fedsight.privacy.poisson import Integers, Uniform, offsets

STRAYS = 50  # bits: a noised sum leaves its range with probability at most 2^-50, on either side


@dataclass(frozen=True)
class Levels:
    """The resolution of the rounding, and the noise of one site in units of a level."""

    bits: int
    scale: float  # levels per unit of value
    deviation: float  # standard deviation, in levels


@dataclass(frozen=True)
class Round:
    """The quantities that determine the noise of a round."""

    size: int  # values of an update, d
    terms: int  # sites in the sum
    honest: int  # how many of these are certain to answer and not to collude
    clip: float  # largest joint L2 norm of an update
    reach: float  # largest absolute value of an update

    def levels(self, multiplier: float, most: int, modulus: int) -> Levels:
        """The finest levels, at most 2^`most`, whose noised sum fits `modulus` bits.

        Raises FedSightError if not even two levels fit, or no site is certain to be honest.
        """
        if self.honest < 1:
            raise FedSightError(
                "none of the sites that must answer is certain to be honest, so no noise suffices",
                "lower secure.corrupt or secure.dropout, or include more sites",
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
        """Largest L2 change of one site's levels when its images are replaced.

        Two clipped updates are at most 2 `clip` apart. The draw u that decides the rounding depends
        on the site and the round, not on the images, so it is the same for both, and
        floor(a + u) - floor(b + u) differs from a - b by less than one.
        """
        return 2 * scale * self.clip + math.sqrt(self.size)

    def release(self, scale: float, deviation: float) -> Event:
        """The event for which the sum is accounted, with the noise of the honest sites alone.

        It is known who takes part, so neighbours replace one update by another. By Cauchy-Schwarz
        the L1 norm is at most sqrt(d) times the L2 norm.
        """
        l2 = self.moves(scale)
        variance = self.honest * deviation**2
        return event.skellam(variance, math.sqrt(self.size) * l2, l2, "replace_one")


def room(terms: int, top: int, deviation: float) -> int:
    """Number of different sums of `terms` noised values from 0 to `top`.

    Skellam noise of variance V exceeds t, on either side, with probability at most
    exp(-t^2 / (2 V + 2 t / 3)) (Bernstein: its cumulant generating function V (cosh s - 1) is below
    V s^2 / (2 - 2 s / 3)). t is chosen so that this is 2^-STRAYS.
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
