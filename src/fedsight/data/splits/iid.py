"""The even split: every site draws from the same distribution."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsight.core.draws import draws
from fedsight.data.base import Part
from fedsight.data.partition import Groups, Partition, Split, splits


@splits.add("iid", source="McMahan et al. 2017, arXiv:1602.05629, section 3")
class Iid(Split):
    """Samples shuffled and dealt evenly: sites differ by at most one sample."""

    sites: int = Field(10, ge=1)

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        order = draws(seed, "split", "iid").permutation(len(part))
        return Groups(np.array_split(order, self.sites))
