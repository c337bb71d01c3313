"""Levels of answers from losses with noise.

Where noise protects what sites send, each adds Gaussian noise to two sums over all its test images:
how many units there are, and by how much their losses rise from each of COARSE levels to the next.
A unit's rises add up to its loss at most, which is at most 1, and so does their norm. What is lost
at a level is then known up to the noise of the rises up to it. Here losses are taken as large as
they can be, and units as few: with probability 1 - FAILED none is worse. A level made of these
numbers loses no more than the exact one, and FAILED is taken off the loss that is allowed. So a new
unit is expected to lose no more than was asked, noise included; the price is larger answers, or
none where the noise hides all.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch

from fedsight.core.types import Sum
from fedsight.evaluation.trust.noised import COARSE, FAILED
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.tasks.covering.levels import STEPS, UNIT, Tally

LOSSES, UNITS = "losses", "units"
# One image, or a group of them, adds at most this much to either.
BOUNDS = {LOSSES: 1.0, UNITS: 1.0}
SHAPES: dict[str, tuple[int, ...]] = {LOSSES: (COARSE,), UNITS: (1,)}
WIDTH = STEPS // COARSE  # levels from one that is told apart to the next


def counted(tally: Tally, images: int) -> dict[str, Sum]:
    """The sums of one site's images, without noise."""
    losses = tally.losses[0, ::WIDTH].double() / UNIT
    rises = torch.diff(losses, prepend=losses.new_zeros(1)).numpy()
    return _sums(rises, float(tally.units[0]), images)


def nothing(images: int) -> dict[str, Sum]:
    """The same of a site whose measuring fails: all images are lost at every level.

    Zeros would say that nothing is ever lost, and levels would be too high.
    """
    rises = np.zeros(COARSE)
    rises[0] = images
    return _sums(rises, float(images), images)


def bounded(noised: NoisedSums, groups: int) -> Tally:
    """Units and losses by which no level is too high, as those of the first of so many groups.

    `noised` are sums of several sites together, with the standard deviation of all their noise.
    """
    sure = NormalDist().inv_cdf(1 - FAILED / (COARSE + 1))
    images = noised[LOSSES].count
    less = float(noised[UNITS].total[0]) - sure * noised.deviation[UNITS]
    units = max(0, min(images, math.floor(less + 1e-6)))
    widths = sure * noised.deviation[LOSSES] * np.sqrt(np.arange(1, COARSE + 1))
    most = np.cumsum(np.asarray(noised[LOSSES].total, np.float64)) + widths
    most = np.minimum.accumulate(most[::-1])[::-1]  # losses do not fall as levels rise
    most = np.clip(most + (units + 1) * FAILED, 0, units)
    found = Tally.nothing(groups)
    found.units[0] = units
    each = torch.from_numpy(np.ceil(most * UNIT)).to(torch.int64).clamp(max=units * UNIT)
    last = torch.full((STEPS - (COARSE - 1) * WIDTH - 1,), units * UNIT)
    # A level between two that are told apart loses no more than the higher one.
    found.losses[0] = torch.cat([each[:1], each[1:].repeat_interleave(WIDTH), last])
    return found


def added(sums: list[NoisedSums]) -> NoisedSums:
    """Those of several sites together."""
    total = {
        name: Sum(np.sum([one[name].total for one in sums], axis=0),
                  sum(one[name].count for one in sums))
        for name in BOUNDS
    }  # fmt: skip
    noise = {name: math.hypot(*(one.deviation[name] for one in sums)) for name in BOUNDS}
    return NoisedSums(total, noise)


def _sums(rises: np.ndarray[tuple[int, ...], np.dtype[np.float64]], units: float,
          images: int) -> dict[str, Sum]:  # fmt: skip
    return {LOSSES: Sum(rises, images), UNITS: Sum(np.array([units]), images)}
