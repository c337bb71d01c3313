"""Intervals of shares, of the difference between two shares of the same samples, and of means; and
tests of whether a mean is zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

Z = 1.959964  # of the normal distribution: 95 % lie within so many standard deviations


def wilson(share: float, samples: float, z: float = Z) -> tuple[float, float]:
    """The 95 % interval of a share measured on `samples` samples (Wilson 1927), within [0, 1].

    Another `z`, in standard deviations of the normal distribution, makes it of another level. Its
    middle is not the share: near 0 and 1 it is closer to one half. NaN without samples.
    """
    if samples <= 0 or not 0 <= share <= 1:
        return math.nan, math.nan
    square = z * z / samples
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


def apart(
    first: tuple[float, tuple[float, float]], second: tuple[float, tuple[float, float]]
) -> tuple[float, float]:
    """The 95 % interval of the difference of two independent shares, each given with its own
    interval (Newcombe 1998, method 10)."""
    (one, (low, high)), (other, (least, most)) = first, second
    difference = one - other
    return (
        difference - math.hypot(one - low, most - other),
        difference + math.hypot(high - one, other - least),
    )


def widened(value: float, bounds: tuple[float, float], error: float) -> tuple[float, float]:
    """The 95 % interval `bounds` of `value`, if an independent error with the standard deviation
    `error` is added."""
    low, high = bounds
    half = Z * error
    return value - math.hypot(value - low, half), value + math.hypot(high - value, half)


def of_mean(values: Sequence[float], shared: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of a mean, from `values` that are about normal (Student 1908).

    They are independent, or come of dividing the same samples again and again: then `shared` is
    how many are tested for each that is trained on, by which the variance of the mean grows
    (the corrected resampled t test of Nadeau and Bengio 2003). NaN for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    half = student(count - 1) * deviation(values) * math.sqrt(1 / count + shared)
    return mean - half, mean + half


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of the law that `values` are drawn from (n - 1); NaN for one value."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1))


def p_value(values: Sequence[float]) -> float:
    """The p value of a mean of zero, two-sided, from independent `values` that are about normal
    (Student 1908): of differences within pairs, the paired t test. NaN for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return math.nan
    mean, spread = math.fsum(values) / count, deviation(values)
    if not spread:  # all values are the same
        return 0.0 if mean else 1.0
    return max(0.0, 1 - _within(abs(mean) / spread * math.sqrt(count), count - 1))


def holm(chances: Sequence[float]) -> list[float]:
    """The p values `chances` of several tests, adjusted for there being several (Holm 1979).

    Whoever calls those at most 0.05 real is wrong about any of them in at most 5 % of cases,
    whichever they look at. NaN, of a test that could not be made, stays NaN and counts for nothing.
    """
    known = sorted((one, at) for at, one in enumerate(chances) if not math.isnan(one))
    found, least = [math.nan] * len(chances), 0.0
    for rank, (one, at) in enumerate(known):
        least = max(least, min(1.0, one * (len(known) - rank)))
        found[at] = least
    return found


@cache
def student(freedom: int) -> float:
    """Student's t with `freedom` >= 1 degrees of freedom: 95 % lie between -t and t."""
    low, high = 0.0, 16.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability of -t to t (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * step / (step + 1)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
