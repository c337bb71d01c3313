"""Intervals of shares, and of the difference between two shares of the same samples."""

from __future__ import annotations

import math

Z = 1.959964  # of the normal distribution: 95 % lie within so many standard deviations


def wilson(share: float, samples: float) -> tuple[float, float]:
    """The 95 % interval of a share measured on `samples` samples (Wilson 1927), within [0, 1].

    Its middle is not the share: near 0 and 1 it is closer to one half. NaN without samples.
    """
    if samples <= 0 or not 0 <= share <= 1:
        return math.nan, math.nan
    square = Z * Z / samples
    middle = share + square / 2
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    # At 0 and at 1 the bound is the share itself, apart from rounding.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def paired(first: float, second: float, samples: float) -> tuple[float, float]:
    """The 95 % interval of the difference between two shares of the same samples.

    `first` is the share of samples that only the first has right, `second` that of those that only
    the second has; the others say nothing (McNemar 1947). One sample is added to each of the two
    (Bonett and Price 2012), so that the interval also holds for few samples. NaN without samples.
    """
    if samples <= 0:
        return math.nan, math.nan
    one = (first * samples + 1) / (samples + 2)
    other = (second * samples + 1) / (samples + 2)
    difference = one - other
    half = Z * math.sqrt((one + other - difference**2) / (samples + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)
