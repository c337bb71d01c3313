"""Label skew: each class is spread over the sites by proportions from a Dirichlet distribution."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import DataError
from fedsight.data.base import Indices, Part
from fedsight.data.partition import Groups, Partition, Split, splits

_TRIES = 100


@splits.add("dirichlet", source="Yurochkin et al. 2019, arXiv:1905.12022; cf. Hsu et al. 2019")
class Dirichlet(Split):
    """Each class spread by Dirichlet(alpha) proportions: small alpha, few classes per site.

    For every class k, p_k ~ Dir(alpha, ..., alpha) over the sites, and site j gets the share
    p_kj of the class (Yurochkin et al. 2019; Li et al. 2022, arXiv:2102.02079). Hsu et al. 2019
    (arXiv:1909.06335) draw the class proportions of each site instead, which cannot use every
    sample exactly once. A draw that leaves a site below `min_samples` is repeated, up to 100 times.
    """

    sites: int = Field(10, ge=1)
    alpha: float = Field(0.5, gt=0, le=1e6)

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        best = 0
        for attempt in range(_TRIES):
            site_of = self._draw(part.labels, draws(seed, "split", "dirichlet", attempt))
            sizes = np.bincount(site_of, minlength=self.sites)
            if sizes.min() >= self.min_samples:
                order = np.argsort(site_of, kind="stable")
                return Groups(np.split(order, np.cumsum(sizes)[:-1]))
            best = max(best, int(sizes.min()))
        raise DataError(
            f"no Dirichlet split with alpha = {self.alpha:g} over {self.sites} sites gave each at "
            f"least {self.min_samples} sample(s) in {_TRIES} tries (best: {best})",
            "raise split.alpha, or lower split.sites or split.min_samples",
        )

    def _draw(self, labels: Indices, rng: Draws) -> Indices:
        """The site of each sample [n]."""
        site_of = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(self.alpha, self.sites)
            ends = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            site_of[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
        return site_of
