"""A population of any size for studies of scale: sites draw their samples on demand."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from fedsight.core.draws import draws
from fedsight.core.errors import DataError
from fedsight.data.base import Indices, Part
from fedsight.data.partition import Partition, Split, site_name, splits


@dataclass(frozen=True)
class Population:
    """`sites` clients that each draw `samples` of `total` images, without replacement, lazily."""

    sites: int
    samples: int
    total: int
    seed: int

    def __len__(self) -> int:
        return self.sites

    def name(self, site: int) -> str:
        """`site-0000042` of a million or more."""
        return site_name(site, self.sites)

    def indices(self, site: int) -> Indices:
        """The site's samples: the same at every call, and independent of all other sites."""
        return draws(self.seed, "client", site).sample(self.total, self.samples)

    def size(self, site: int) -> int:
        """How many samples the site draws: all draw alike."""
        return self.samples


@splits.add("virtual", note="not a partition: sites share samples")
class Virtual(Split):
    """Any number of sites that draw samples at random: for studies of scale, not a partition.

    The population takes the same memory whatever its size. Sites overlap, and some samples belong
    to no site, so accuracy under this split says nothing about federation.
    """

    sites: int = Field(1000, ge=1)
    samples: int = Field(60, ge=1)  # per site

    def _divide(self, part: Part, classes: int, seed: int) -> Partition:
        if not self.min_samples <= self.samples <= len(part):
            raise DataError(
                f"split.samples = {self.samples} is not between split.min_samples = "
                f"{self.min_samples} and the {len(part)} training samples there are",
                "change split.samples",
            )
        return Population(self.sites, self.samples, len(part), seed)

    @property
    def shares(self) -> bool:
        """Sites are drawn independently of each other."""
        return True
