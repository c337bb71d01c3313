"""Sums over images with Gaussian noise: each image's share is bounded first, then noise is added.

A share is a set of named arrays without negative values, for example one image's row of a confusion
matrix. Each array is scaled to a norm of at most its bound and rounded down to a grid. With K sums,
all divided by their bounds, adding an image moves them by at most sqrt(K); replacing one moves them
by at most sqrt(2 K), because the shares of two images have no negative products. The noise is
rounded to the same grid, so the result is that of real-valued Gaussian noise, rounded: no
floating-point digits tell the sum (Mironov 2012). (Halves are rounded up: to even numbers, coarse
noise would be even more often than odd.)

Some figures need several images at once (pairs of faces). Those that are measured together are one
unit, with one share. An image that comes into a unit turns its share into another, and so moves the
sums by up to sqrt(2 K) instead of sqrt(K); one that goes from a unit into another moves them by up
to 2 sqrt(2 K). For `shared` units the noise is therefore sqrt(2) times as large.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import numpy as np

from fedsight.core.types import Metrics, Sum
from fedsight.privacy.event import Event, gaussian
from fedsight.privacy.noise import FINEST, TAIL, Noise

GRID = 2.0**-20  # width of the grid, in units of the bound

Bounds = Mapping[str, float]  # the largest norm of one image's share, by the name of the sum


def bounded(share: Metrics, bounds: Bounds) -> dict[str, Sum]:
    """One image's share with a norm of at most its bound, on the grid; not-a-number counts as 0."""
    found = {}
    for name, bound in bounds.items():
        values = np.asarray(share[name].total, np.float64)
        values = np.clip(np.nan_to_num(values, nan=0.0, posinf=bound, neginf=0.0), 0.0, bound)
        norm = float(np.sqrt(np.square(values).sum()))
        unit = GRID * bound
        scaled = values * min(1.0, bound / norm) if norm else values
        found[name] = Sum(np.floor(scaled / unit) * unit, 1)
    return found


class NoisedSums(dict[str, Sum]):
    """Sums with noise, which may be negative, and its standard deviation in each number, by name.

    They are in the form of a task's `condensed`, and its `repaired` makes them usable.
    """

    def __init__(self, sums: Metrics, deviation: Mapping[str, float]) -> None:
        super().__init__(sums)
        self.deviation = dict(deviation)


def deviation(bounds: Bounds, multiplier: float, shared: bool = False) -> dict[str, float]:
    """The standard deviation of the noise in each number of the sums, by name: `multiplier` times
    sqrt(2) times the most by which adding an image moves them."""
    moved = math.sqrt(2 * len(bounds) * (2 if shared else 1))
    return {name: multiplier * moved * bound for name, bound in bounds.items()}


def noised(
    sums: Metrics, bounds: Bounds, multiplier: float, shared: bool = False
) -> dict[str, Sum]:
    """Sums of bounded shares with fresh noise from the operating system's generator, as large as
    `deviation` says."""
    noise = Noise(secrets.randbits(256), "figures")
    found = {}
    for name, wide in deviation(bounds, multiplier, shared).items():
        total, unit = np.asarray(sums[name].total, np.float64), GRID * bounds[name]
        # From 2^53 on a float64 is an even number, and adding one to it would show whether the sum
        # is even: so noise as large as that is added on a wider grid, to which the sum is rounded.
        unit *= 2.0 ** math.ceil(math.log2(max(TAIL * wide / unit / FINEST, 1.0)))
        drawn = np.floor(noise.normal(max(1, total.size), wide / unit).numpy() + 0.5)
        whole = np.floor(total / unit + 0.5) + drawn[: total.size].reshape(total.shape)
        found[name] = Sum(whole * unit, sums[name].count)
    return found


def event(multiplier: float) -> Event:
    """What `noised` costs: adding an image moves the sums by its noise over sqrt(2) `multiplier`.

    As an add-or-remove event it composes with DP-SGD's; for a ledger of replace-one events it then
    counts a little more than it costs.
    """
    return gaussian(multiplier * math.sqrt(2))
