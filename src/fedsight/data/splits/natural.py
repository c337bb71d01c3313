"""The split that the data come with: hospitals, cameras, writers."""

from __future__ import annotations

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.base import Part
from fedsight.data.partition import Groups, Partition, Split, splits


@splits.add("natural")
class Natural(Split):
    """One site per site id of the source (site folders, a manifest's site column)."""

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        if part.sites is None:
            raise DataError(
                "the split 'natural' needs site ids, and this source has none",
                "give the manifest a site column, set data.sites_in_path = true for "
                "site/class/image folders, or choose another split",
            )
        names, site_of = np.unique(np.asarray(part.sites, dtype=np.str_), return_inverse=True)
        order = np.argsort(site_of, kind="stable")
        ends = np.cumsum(np.bincount(site_of))[:-1]
        return Groups(np.split(order, ends), [str(name) for name in names])

    @property
    def _simulates(self) -> bool:
        return False

    @property
    def seeded(self) -> bool:
        """Nothing is drawn."""
        return False
