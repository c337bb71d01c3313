"""Distributed differential privacy: integers with Skellam noise, made for secure aggregation.

Each site scales, rounds and noises its clipped update; the sum of the sites' noises is again
Skellam, and no single site's noise needs to be enough. Pure functions on integers: quantiser and
masks are elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import FedSightError, SiteError
from fedsight.privacy import event
from fedsight.privacy.event import Event

Integers = npt.NDArray[np.int64]
TRIES = 1000  # of rounding within the bound; each succeeds with probability 1 - exp(-1/2) or more


def bound(clip: float, scale: float, size: int) -> float:
    """Largest L2 norm of a rounded update of `size` entries with norm at most `clip`.

    Stochastic rounding lengthens a vector; this bound is kept with probability at least
    1 - exp(-1/2), and `quantise` rounds again until it is (Kairouz et al. 2021, Proposition 22;
    beta = exp(-1/2)).
    """
    far = scale * clip + math.sqrt(size)
    spread = scale * clip + math.sqrt(size) / 2
    likely = (scale * clip) ** 2 + size / 4 + spread  # sqrt(2 log(1 / beta)) = 1
    return min(far, math.sqrt(likely))


def quantise(
    values: npt.NDArray[np.float64], clip: float, scale: float, rng: np.random.Generator
) -> Integers:
    """values [d], of L2 norm at most `clip`, times `scale`, rounded by chance to integers [d].

    The mean of the rounding is the value, and the norm stays within `bound`. Raises SiteError for
    what is not finite or longer than `clip`.
    """
    length = float(np.linalg.norm(values))
    if not length <= clip * (1 + 1e-6):  # NaN fails this too
        raise SiteError(
            f"an update of norm {length:.6g} is not within the clip {clip:g}", "clip it first"
        )
    most = bound(clip, scale, len(values))
    scaled = values * scale
    low = np.floor(scaled)
    for _ in range(TRIES):
        rounded = (low + (rng.random(len(values)) < scaled - low)).astype(np.int64)
        if np.dot(rounded.astype(np.float64), rounded.astype(np.float64)) <= most**2:
            return rounded
    raise SiteError(  # the chance is below exp(-900)
        f"an update could not be rounded within {most:.6g}", "this is a defect of FedSight"
    )


def noise(size: int, variance: float, rng: np.random.Generator) -> Integers:
    """Skellam noise of `variance`, [size] int64: the difference of two Poisson draws."""
    half = rng.poisson(variance / 2, size), rng.poisson(variance / 2, size)
    return np.asarray(half[0] - half[1], dtype=np.int64)


def share(multiplier: float, clip: float, scale: float, size: int, honest: int) -> float:
    """Variance of each site's noise, so that `honest` survivors alone reach `multiplier`.

    Those who drop out or collude are not counted on: their noise comes on top. Raises
    FedSightError when nobody is honest.
    """
    if honest < 1:
        raise FedSightError(
            f"noise cannot be sized for {honest} honest survivors",
            "lower the rates of drop-outs and of colluding sites, or ask more sites",
        )
    return (multiplier * bound(clip, scale, size)) ** 2 / honest


def release(variance: float, clip: float, scale: float, size: int, honest: int) -> Event:
    """What the sum of a round is accounted as: noise of `honest` sites of `variance` each.

    The L1 sensitivity of integers is at most the smaller of sqrt(d) times the L2 one and its
    square (Agarwal et al. 2021, section 4).
    """
    l2 = bound(clip, scale, size)
    return event.skellam(honest * variance, min(math.sqrt(size) * l2, l2 * l2), l2)


def restore(total: Integers, scale: float) -> npt.NDArray[np.float64]:
    """The sum of the updates from the sum of the integers."""
    return total / scale


def fits(clip: float, scale: float, sites: int, variance: float, modulus: int) -> bool:
    """Whether a sum over `sites` stays inside (-modulus/2, modulus/2), but for 1 in 2^40 or so.

    An entry is at most the clip in size (and one for its rounding) for each site, and the noise
    strays by 8 standard deviations at most.
    """
    return sites * (scale * clip + 1) + 8 * math.sqrt(sites * variance) < modulus / 2
