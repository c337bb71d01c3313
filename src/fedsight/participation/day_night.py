"""A pattern of day and night: every site is there for some hours of each day."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from fedsight.core.draws import draws
from fedsight.participation.base import Participation, participations

DAY = 24.0  # hours


@participations.add("day-night", paper="Eichner et al. 2019 (semi-cyclic SGD)")
class DayNight(Participation):
    """Each site is there for the same number of hours a day, from an hour of its own on.

    A round takes `rounds.cohort` of those that are there, or all of them; virtual time waits until
    there are enough.
    """

    follows_time: ClassVar[bool] = True
    hours: float = Field(8.0, gt=0, le=24)  # of a day that a site is there
    # over how many hours the sites' days begin, as over time zones; 0: all at the same hour
    spread: float = Field(24.0, ge=0, le=24)

    def is_there(self, site: str, hour: float, seed: int) -> bool:
        """Whether its day has begun less than `hours` ago."""
        return (hour - self._begins(site, seed)) % DAY < self.hours

    def comings(self, sites: Sequence[str], seed: int) -> list[float]:
        """When the sites' days begin."""
        return sorted({self._begins(site, seed) for site in sites})

    def _begins(self, site: str, seed: int) -> float:
        return self.spread * _begins(site, seed)


@lru_cache(maxsize=1 << 16)
def _begins(site: str, seed: int) -> float:
    """When a site's day begins, as a share of the spread."""
    return draws(seed, "site", site, "day").uniform()
