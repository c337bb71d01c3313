"""Makes noised counts plausible: no negative numbers, and a histogram's finer bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Edges = Sequence[int]  # rising, the first is 0


def projected(values: Floats, total: float) -> Floats:
    """The nearest array without negative numbers whose sum is `total`, which is at least 0.

    Of counts with Gaussian noise it is the most likely one. It leaves the sum as it was estimated,
    which cutting off negative numbers would raise (Duchi et al. 2008, figure 1).
    """
    if total <= 0:
        return np.zeros_like(values)
    # What is added to all numbers changes nothing. Below zero `total` is not lost in rounding,
    # however large the numbers are that a site sends.
    below = values - values.max(initial=-np.inf)
    falling = np.sort(below, axis=None)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(below - excess[last], 0.0))


def coarse(counts: Floats, edges: Edges) -> Floats:
    """A histogram [..., n] in wider bins, which begin at the bins `edges` of the old one."""
    return np.asarray(np.add.reduceat(counts, edges, axis=-1))


def fine(counts: Floats, edges: Edges, bins: int) -> Floats:
    """The histogram in `bins` bins again, each wide one spread evenly over its own."""
    widths = np.diff([*edges, bins])
    return np.repeat(counts / widths, widths, axis=-1)
