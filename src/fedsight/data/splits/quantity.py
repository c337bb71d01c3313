"""Quantity skew: sites of very different sizes with the same label distribution."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.data.base import Part
from fedsight.data.partition import Groups, Partition, Split, splits


@splits.add("quantity", source="Li et al. 2022, arXiv:2102.02079, section 4.3")
class Quantity(Split):
    """Site sizes from a Dirichlet or lognormal law, labels alike everywhere.

    Every site first gets `min_samples`; the rest is shared out by the drawn proportions.
    """

    sites: int = Field(10, ge=1)
    law: Literal["dirichlet", "lognormal"] = "dirichlet"
    alpha: float = Field(0.5, gt=0, le=1e6)  # dirichlet: small alpha, very unequal sites
    sigma: float = Field(1.0, ge=0, le=20)  # lognormal: standard deviation of the log size

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        rng = draws(seed, "split", "quantity")
        spare = len(part) - self.sites * self.min_samples
        ends = np.rint(np.cumsum(self._shares_of(rng))[:-1] * spare).astype(np.int64)
        ends += self.min_samples * np.arange(1, self.sites)
        return Groups(np.split(rng.permutation(len(part)), ends))

    def _shares_of(self, rng: Draws) -> npt.NDArray[np.float64]:
        """Proportions [sites] that sum to 1."""
        if self.law == "dirichlet":
            return rng.dirichlet(self.alpha, self.sites)
        weights = np.exp([self.sigma * rng.normal() for _ in range(self.sites)])
        shares: npt.NDArray[np.float64] = weights / weights.sum()
        return shares
