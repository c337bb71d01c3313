"""Makes noised counts plausible: no negative numbers, and a histogram's finer bins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def projected(values: Floats, total: float) -> Floats:
    """The nearest array without negative numbers whose sum is `total`, which is at least 0.

    Of counts with Gaussian noise it is the most likely one. It leaves the sum as it was estimated,
    which cutting off negative numbers would raise (Duchi et al. 2008, figure 1).
    """
    if total <= 0:
        return np.zeros_like(values)
    falling = np.sort(values, axis=None)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0.0))


def coarse(counts: Floats, bins: int) -> Floats:
    """A histogram [..., n] in `bins` bins of n / bins old ones."""
    return np.asarray(counts.reshape(*counts.shape[:-1], bins, -1).sum(-1))


def fine(counts: Floats, bins: int) -> Floats:
    """A histogram [..., n] in `bins` bins, each old one spread evenly."""
    each = bins // counts.shape[-1]
    return np.repeat(counts / each, each, axis=-1)
