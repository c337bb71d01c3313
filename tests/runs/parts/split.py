"""A split from outside the package."""

from __future__ import annotations

import numpy as np

import fedsight as fs
from fedsight.data.base import Part
from fedsight.data.partition import Groups, Partition


@fs.register("odd-even")
class OddEven(fs.Split):
    """Two sites: one holds the odd labels, the other the even ones."""

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        groups = [np.flatnonzero(part.labels % 2 == rest) for rest in (1, 0)]
        return Groups(groups, ["odd", "even"])
