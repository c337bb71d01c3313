"""How much of the truth an answer loses at each level, in sums of whole numbers over units.

A unit is what a guarantee is for: an image, or the images of a group, which lose the mean of what
each does. An image has items that the answer should keep (the
pixels of an object, the labels of an image), each with a place from 0 to STEPS - 1: at level k the
items of place k or more are kept. So a higher level never keeps an item that a lower one loses, as
conformal risk control requires (Angelopoulos et al. 2022, arXiv:2208.02814). The loss of an image
is the share of its items that are lost. It is counted in UNIT-ths, rounded up, so that sums are
exact and never too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 4096  # levels
UNIT = 1 << 20  # of a loss
NEVER = -1  # the place of an item that no level keeps
_BEND, _LEAST = 4.0, 1e-12
_END = math.log((1 - _LEAST) / _LEAST)
_END = _END / (_BEND + _END)


def place(probabilities: Tensor) -> Tensor:
    """The places [...] of items that are kept for a probability of at least some limit.

    They are equally wide in x / (4 + |x|) of the logit x, so that 0.001 and 0.002 are far apart.
    What is not a number is never kept, so no image makes the sums over many fail.
    """
    p = probabilities.double().clamp(_LEAST, 1 - _LEAST)
    logits = p.log() - (-p).log1p()
    bent = logits / (_BEND + logits.abs()) / _END  # -1 to 1
    found = ((bent + 1) * (STEPS / 2)).floor().clamp(0, STEPS - 1)
    return found.nan_to_num(nan=NEVER).to(torch.int64)


def limit(level: int) -> float:
    """The lowest probability that level `level` keeps; 0 at level 0."""
    if level <= 0:
        return 0.0
    bent = (2 * level / STEPS - 1) * _END
    return 1 / (1 + math.exp(-_BEND * bent / (1 - abs(bent))))


def shared_limit(levels: Tensor) -> dict[str, float]:
    """The `threshold` of classes that all have the same level [classes]; nothing if they do not."""
    first = int(levels[0])
    return {"threshold": limit(first)} if bool((levels == first).all()) else {}


@dataclass(eq=False)
class Tally:
    """Of each group of units: how many there are int64 [groups], and the sums of their losses at
    each level int64 [groups, levels], in UNIT-ths. Group 0 is of all units; the others, if any, are
    one for each class. `sizes` [levels] are sums of how large the answers of `sized` units are."""

    units: Tensor
    losses: Tensor
    sizes: Tensor
    sized: int = 0

    @classmethod
    def nothing(cls, groups: int, levels: int = STEPS) -> Tally:
        """That of no unit."""
        return cls(
            torch.zeros(groups, dtype=torch.int64),
            torch.zeros(groups, levels, dtype=torch.int64),
            torch.zeros(levels, dtype=torch.int64),
        )

    @classmethod
    def unknown(cls, groups: int, levels: int = STEPS) -> Tally:
        """That of one unit of which nothing is known: every level of each group loses all of it."""
        found = cls.nothing(groups, levels)
        found.units[:], found.losses[:] = 1, UNIT
        return found

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.units + other.units, self.losses + other.losses,
            self.sizes + other.sizes, self.sized + other.sized,
        )  # fmt: skip

    def first(self, groups: int) -> Tally:
        """That of the first so many groups."""
        return Tally(self.units[:groups], self.losses[:groups], self.sizes, self.sized)

    def as_one(self) -> Tally:
        """That of one unit in each group that has any, whose loss is the mean of theirs, rounded
        up; and whose size is the mean."""
        many = self.units.clamp(min=1)[:, None]
        return Tally(
            self.units.clamp(max=1), -(-self.losses // many),
            self.sizes // max(1, self.sized), min(1, self.sized),
        )  # fmt: skip

    def add(self, group: int, places: Tensor) -> None:
        """Count one more unit of `group`, whose items have these places [m]; without items none."""
        if len(places):
            self.units[group] += 1
            self.losses[group] += lost(places, self.losses.shape[1])

    def add_size(self, places: Tensor, whole: int = 1, lost: bool = False) -> None:
        """Count the answer to one more unit, as large as the number of items [m] that are kept, or
        `lost`, in parts of a `whole`."""
        below = _below(places, len(self.sizes))
        self.sizes += UNIT * (below if lost else len(places) - below) // max(1, whole)
        self.sized += 1


def summed(tallies: Iterable[Tally], groups: int, levels: int = STEPS) -> Tally:
    """The sum of tallies with so many groups."""
    return sum(tallies, Tally.nothing(groups, levels))


def lost(places: Tensor, levels: int = STEPS) -> Tensor:
    """The loss in UNIT-ths of one unit, whose items have the places [m], at each level [levels]."""
    return -(-UNIT * _below(places, levels) // len(places))


def _below(places: Tensor, levels: int) -> Tensor:
    """How many of the items [m] each level loses [levels]."""
    found = torch.bincount(places.flatten() + 1, minlength=levels + 1)
    return found.cumsum(0)[:levels]
