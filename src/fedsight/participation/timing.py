"""How long a site takes in a simulation, `[timing]`: its speed, its line, delays and drop-outs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import Problem
from fedsight.core.settings import Settings


class SiteTiming(Settings):
    """Sites that differ from `[timing]` in what is written here: `[[timing.groups]]`."""

    sites: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # names or patterns
    images_per_second: float | None = Field(None, gt=0)  # in place of timing.images_per_second
    bytes_per_second: float | None = Field(None, gt=0)  # in place of timing.bytes_per_second
    delay_seconds: float | None = Field(None, ge=0)  # in place of timing.delay_seconds
    dropout: float | None = Field(None, ge=0, lt=1)  # in place of timing.dropout


class Timing(Settings):
    """Virtual time: how long a site of a simulation takes to answer: `[timing]`.

    It takes (images it trains on) / images_per_second + (bytes of the model that it is sent and of
    its reply) / bytes_per_second + a delay. Nothing waits for it in real time. In a deployed
    federation sites take the time that they take.
    """

    # training images that a site gets through, each as often as it is seen; None: in no time
    images_per_second: float | None = Field(None, gt=0)
    bytes_per_second: float | None = Field(None, gt=0)  # of a site's line; None: in no time
    # how much sites differ in both for good: each has a factor exp(spread * a normal draw)
    spread: float = Field(0.0, ge=0, le=5)
    # what is added in each round: a constant, or drawn; the lognormal one has a long tail
    delay: Literal["constant", "exponential", "lognormal"] = "constant"
    delay_seconds: float = Field(0.0, ge=0)  # the constant, the mean (exponential), or the median
    delay_sigma: float = Field(1.0, ge=0, le=5)  # of the lognormal delay's logarithm
    dropout: float = Field(0.0, ge=0, lt=1)  # probability that a site's answer never comes
    # a site that would be late trains as many whole epochs, or steps, as it can before
    # rounds.deadline
    partial: bool = False
    # tables with `sites` (names or patterns) and those of images_per_second, bytes_per_second,
    # delay_seconds and dropout in which they differ; the last one that names a site counts
    groups: Annotated[tuple[SiteTiming, ...], Field(strict=False)] = ()

    @property
    def passes(self) -> bool:
        """Whether any time passes, or an answer may be lost."""
        own = (self.images_per_second, self.bytes_per_second, self.delay_seconds, self.dropout)
        return any(own) or any(
            (group.images_per_second, group.bytes_per_second, group.delay_seconds, group.dropout)
            != (None, None, None, None)
            for group in self.groups
        )

    @property
    def moves(self) -> bool:
        """Whether answers take any time: a drop-out alone moves the clock only when it happens."""
        places: tuple[Timing | SiteTiming, ...] = (self, *self.groups)
        return any(
            one.images_per_second or one.bytes_per_second or one.delay_seconds for one in places
        )

    def of(self, site: str, seed: int) -> SitePace:
        """What holds for one site."""
        values = {name: getattr(self, name) for name in _OWN}
        for group in self.groups:
            if any(fnmatchcase(site, pattern) for pattern in group.sites):
                values |= {n: v for n in _OWN if (v := getattr(group, n)) is not None}
        factor = 1.0
        if self.spread:
            factor = math.exp(self.spread * draws(seed, "site", site, "pace").normal())
        images, line = values["images_per_second"], values["bytes_per_second"]
        return SitePace(
            image=factor / images if images else 0.0,
            byte=factor / line if line else 0.0,
            delay_seconds=values["delay_seconds"] or 0.0,
            dropout=values["dropout"] or 0.0,
        )

    def delayed(self, median: float, drawn: Draws) -> float:
        """A delay in seconds; `median` is `delay_seconds` of the site."""
        if not median or self.delay == "constant":
            return median
        if self.delay == "exponential":
            return median * drawn.exponential()
        return median * math.exp(self.delay_sigma * drawn.normal())

    def check(self) -> list[Problem]:
        """Settings without effect."""
        if self.partial and not (
            self.images_per_second or any(group.images_per_second for group in self.groups)
        ):
            cause = "sites train in no time, so none is late because of its training"
            cure = "set timing.images_per_second, or leave it out"
            return [Problem("timing.partial", cause, cure)]
        return []

    def check_sites(self, sites: Iterable[str]) -> list[Problem]:
        """Groups without any site."""
        known: Sequence[str] = list(sites) if self.groups else []
        return [
            Problem(
                "timing.groups",
                f"no site is called '{pattern}'",
                'write a site\'s name, or a pattern such as "site-0*"',
            )
            for group in self.groups
            for pattern in group.sites
            if not any(fnmatchcase(site, pattern) for site in known)
        ]


_OWN = ("images_per_second", "bytes_per_second", "delay_seconds", "dropout")


@dataclass(frozen=True)
class SitePace:
    """How long one site takes for an image and for a byte, in seconds, and what else may happen."""

    image: float
    byte: float
    delay_seconds: float
    dropout: float
