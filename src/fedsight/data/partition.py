"""Which sample belongs to which site: partitions, and the splits that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.data.base import Indices, Part
from fedsight.data.duplicates.handled import only


class Partition(Protocol):
    """Sites by number; a site's samples are looked up only when they are needed."""

    def __len__(self) -> int: ...

    def name(self, site: int) -> str:
        """The site's name."""
        ...

    def indices(self, site: int) -> Indices:
        """The site's samples, as indices into the training part."""
        ...

    def size(self, site: int) -> int:
        """How many samples the site has."""
        ...


class Groups:
    """A partition held as one array of sample indices and the offsets of the sites in it."""

    def __init__(self, groups: Sequence[Indices], names: Sequence[str] | None = None) -> None:
        self._order = np.concatenate([np.asarray(g, dtype=np.int64) for g in groups])
        self._offsets = np.cumsum([0, *(len(group) for group in groups)])
        self._names = names

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def name(self, site: int) -> str:
        """The natural id, or `site-N` with N padded so that names sort as numbers."""
        if self._names is not None:
            return self._names[site]
        return site_name(site, len(self))

    def indices(self, site: int) -> Indices:
        """The site's samples, as indices into the training part."""
        return self._order[self._offsets[site] : self._offsets[site + 1]]

    def size(self, site: int) -> int:
        """How many samples the site has."""
        return int(self._offsets[site + 1] - self._offsets[site])

    @property
    def sizes(self) -> Indices:
        """Samples per site [sites]."""
        return np.diff(self._offsets)


def site_name(site: int, sites: int) -> str:
    """`site-07` of 10 to 99 sites."""
    return f"site-{site:0{max(2, len(str(sites - 1)))}d}"


def label_counts(partition: Partition, labels: Indices, classes: int, first: int) -> Indices:
    """How many samples of each class the `first` sites hold: int64 [first, classes]."""
    rows = [
        np.bincount(labels[partition.indices(site)], minlength=classes) for site in range(first)
    ]
    return np.stack(rows).astype(np.int64)


class Split(Settings, ABC):
    """How samples are spread over sites: `[split]` in the config. A new one takes one file.

    A split that lets the user choose the number of sites has a field `sites`.
    """

    min_samples: int = Field(
        1, ge=1
    )  # minimum samples of each site; a split that cannot satisfy it is refused
    # of who has which images, of validation images and of shift noise; None: the program's seed
    seed: int | None = None

    def divide(self, part: Part, classes: int, seed: int) -> Partition:
        """The partition of `part`; the same seed gives the same one.

        Raises DataError when the minimum per site cannot be honoured.
        """
        sites = getattr(self, "sites", 1)
        if not self.shares and sites * self.min_samples > len(part):
            raise DataError(
                f"{sites} sites with at least {self.min_samples} sample(s) each need more than the "
                f"{len(part)} available training samples",
                "lower split.sites or split.min_samples",
            )
        partition = self._whole(part, classes, seed)
        if isinstance(partition, Groups) and partition.sizes.min() < self.min_samples:
            site = int(partition.sizes.argmin())
            raise DataError(
                f"site '{partition.name(site)}' has {partition.sizes[site]} training samples, "
                f"fewer than split.min_samples = {self.min_samples}",
                "lower split.min_samples or split.sites, or leave this site out",
            )
        return partition

    def _whole(self, part: Part, classes: int, seed: int) -> Partition:
        """The partition, in which a simulated site has all training images of a group or none."""
        if not self._simulates or part.groups is None or not any(part.groups):
            return self._divide(part, classes, seed)
        names = [f"image {n}" if g is None else f"group {g}" for n, g in enumerate(part.groups)]
        first, group_of = np.unique(names, return_index=True, return_inverse=True)[1:]
        if len(first) < getattr(self, "sites", 1):
            raise DataError(
                f"{getattr(self, 'sites', 1)} sites cannot share {len(first)} groups: a group "
                "stays at one site",
                "lower split.sites, or leave data.group out",
            )
        # each group stands in for one sample, of the label that its first image has
        some = self.model_copy(update={"min_samples": 1})
        chosen = some._divide(only(part, first), classes, seed)
        members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of)))
        return Groups(
            [
                np.concatenate([members[group] for group in chosen.indices(site)])
                for site in range(len(chosen))
            ]
        )

    @abstractmethod
    def _divide(self, part: Part, classes: int, seed: int) -> Partition: ...

    @property
    def _simulates(self) -> bool:
        """Whether it decides which site has a sample, and gives each to one."""
        return not self.shares

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another partition."""
        return True

    @property
    def shares(self) -> bool:
        """Whether sites may hold the same sample."""
        return False


splits: Registry[Split] = Registry("split", "fedsight.data.splits")

__all__ = ["DataError", "Groups", "Partition", "Split", "label_counts", "site_name", "splits"]
