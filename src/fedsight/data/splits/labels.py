"""Pathological label skew: every site holds exactly k classes."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import DataError
from fedsight.data.base import Indices, Part
from fedsight.data.partition import Groups, Partition, Split, splits


@splits.add("labels", source="McMahan et al. 2017, arXiv:1602.05629; Li et al. 2022, #C = k")
class LabelsPerSite(Split):
    """Exactly `labels` classes per site, each class shared evenly by the sites that hold it.

    In the spirit of McMahan et al. 2017 (two shards per client), but k is exact and no sample is
    left over, as in "#C = k" of Li et al. 2022 (arXiv:2102.02079).
    """

    sites: int = Field(10, ge=1)
    labels: int = Field(2, ge=1)  # classes per site

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        rng = draws(seed, "split", "labels")
        present, counts = np.unique(part.labels, return_counts=True)
        places = self._places(counts, rng)
        holders = self._deal(places, rng)
        groups: list[list[Indices]] = [[] for _ in range(self.sites)]
        for label, sites in zip(present, holders, strict=True):
            members = rng.permutation(np.flatnonzero(part.labels == label))
            shares = np.array_split(members, len(sites))
            for site, share in zip(rng.permutation(sites), shares, strict=True):
                groups[site].append(share)
        return Groups([np.concatenate(group) for group in groups])

    def _places(self, counts: Indices, rng: Draws) -> Indices:
        """How many sites hold each class [classes]: as equal as the classes' sizes allow."""
        total = self.sites * self.labels
        if self.labels > len(counts):
            raise DataError(
                f"a site cannot hold {self.labels} classes: the training part has {len(counts)}",
                "lower split.labels",
            )
        if total < len(counts):
            raise DataError(
                f"{self.sites} sites with {self.labels} class(es) each cannot hold all "
                f"{len(counts)} classes, and every sample must be used",
                "raise split.sites or split.labels",
            )
        room = np.minimum(counts, self.sites)
        if total > room.sum():
            raise DataError(
                f"{self.sites} sites with {self.labels} classes each need more samples than the "
                "classes have",
                "lower split.sites or split.labels",
            )
        places = np.zeros_like(room)
        while (left := total - places.sum()) > 0:
            open_ = np.flatnonzero(places < room)
            if left >= len(open_):
                step = min(left // len(open_), (room - places)[open_].min())
                places[open_] += step
            else:
                places[rng.permutation(open_)[:left]] += 1
        return places

    def _deal(self, places: Indices, rng: Draws) -> list[Indices]:
        """The sites that hold each class: `places[k]` different ones, each site `labels` times.

        Every site takes the classes with most places left, ties at random; by the theorem of Gale
        and Ryser this always comes out even.
        """
        left = places.copy()
        chosen = np.empty((self.sites, self.labels), dtype=np.int64)
        for site in range(self.sites):
            chosen[site] = np.lexsort((rng.uniforms(len(left)), -left))[: self.labels]
            left[chosen[site]] -= 1
        return [np.flatnonzero((chosen == label).any(axis=1)) for label in range(len(places))]
