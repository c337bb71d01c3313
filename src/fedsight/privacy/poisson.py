"""Poisson samples from a stream of uniform numbers, accurate for means up to 2^54.

NumPy's generator is neither suitable for secrets nor accurate for large means: it computes the
logarithm of a probability as a difference of numbers near mean x log(mean), and above means of
about 2^46 the variance of its samples is off by several per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Uniform = Callable[[int], npt.NDArray[np.float64]]  # numbers in (0, 1), [size]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TABLE = 1000.0  # means below this use a table of the distribution
_BLOCK = 1 << 15  # samples drawn at once


def offsets(mean: float, size: int, uniform: Uniform) -> Integers:
    """Poisson samples of `mean` minus floor(mean), [size]: no precision is lost to the mean."""
    draw = _by_table(mean) if mean < _TABLE else _by_rejection(mean)
    out = np.empty(size, np.int64)
    done = 0
    while done < size:
        found = draw(uniform, min(size - done, _BLOCK))
        out[done : done + len(found)] = found
        done += len(found)
    return out


def _by_table(mean: float) -> Callable[[Uniform, int], Integers]:
    """Inversion of the distribution function."""
    most = math.ceil(mean + 12 * math.sqrt(mean)) + 60  # exceeded with probability below 2^-60
    steps = np.log(mean / np.arange(1, most + 1)) if mean else np.full(most, -math.inf)
    below = np.cumsum(np.exp(np.concatenate([[0.0], np.cumsum(steps)]) - mean))

    def draw(uniform: Uniform, count: int) -> Integers:
        found = np.searchsorted(below, uniform(count), side="right")
        return np.minimum(found, most).astype(np.int64) - math.floor(mean)

    return draw


def _by_rejection(mean: float) -> Callable[[Uniform, int], Integers]:
    """Transformed rejection with squeeze (Hörmann 1993, algorithm PTRS)."""
    whole = math.floor(mean)
    part = mean - whole
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)

    def draw(uniform: Uniform, count: int) -> Integers:
        u, v = uniform(count) - 0.5, uniform(count)
        far = 0.5 - np.abs(u)
        x = np.floor((2 * a / far + b) * u + part + 0.43)
        sure = (far >= 0.07) & (v <= squeeze)
        maybe = ~sure & ((far >= 0.013) | (v <= far)) & (x + whole >= 16) & (x < 2.0**60)
        left = np.flatnonzero(sure | maybe)
        x, far, v = x[left], far[left], v[left]
        height = np.log(v * inverse / (a / (far * far) + b))
        found: Integers = x[sure[left] | (height <= _log_probability(x - part, mean))].astype(
            np.int64
        )
        return found

    return draw


def _log_probability(away: Floats, mean: float) -> Floats:
    """Log probability of mean + `away`, for 16 or more: Loader's saddle point (2000, equation 5).

    mean ((1 + t) log(1 + t) - t) with t = away / mean avoids cancellation.
    """
    t = away / mean
    k = mean + away
    saddle = mean * ((1 + t) * np.log1p(t) - t)
    stirling = (1 / 12 - (1 / 360 - 1 / (1260 * k * k)) / (k * k)) / k
    found: Floats = -saddle - stirling - 0.5 * np.log(2 * math.pi * k)
    return found
