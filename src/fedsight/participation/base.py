"""The ways to choose who takes part in a round, `[participation]`: their interface and registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from fedsight.core.draws import Draws
from fedsight.core.errors import Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings

if TYPE_CHECKING:
    from fedsight.program.rounds import Rounds


@dataclass(frozen=True)
class Known:
    """What the coordinator knows of the clients when it chooses."""

    images: Callable[[int], int]  # training images of a client
    loss: Callable[[int], float]  # its last training loss; infinite if it has none yet


class Participation(Settings):
    """Base: who is there at which hour, and which of those are asked."""

    # whether the sampler of the privacy mechanism draws, as the accountant assumes
    accounted: ClassVar[bool] = False
    follows_time: ClassVar[bool] = False  # whether who is there depends on the hour
    asks_loss: ClassVar[bool] = False  # whether the choice depends on the sites' training losses
    singly: ClassVar[bool] = True  # whether one site can be drawn, whenever another has answered

    def is_there(self, site: str, hour: float, seed: int) -> bool:
        """Whether `site` can be asked at the virtual `hour`, from 0."""
        return True

    def comings(self, sites: Sequence[str], seed: int) -> list[float]:
        """The hours at which a site comes, sorted, within one `period`; none if all always stay."""
        return []

    @property
    def period(self) -> float:
        """Hours after which it all repeats."""
        return 24.0

    def draw(
        self, there: Sequence[int], cohort: int | None, known: Known, draws: Draws
    ) -> list[int]:
        """Those of the clients `there` that are asked, sorted: `cohort` of them, or all."""
        if cohort is None or cohort >= len(there):
            return list(there)
        return [there[place] for place in draws.sample(len(there), cohort)]

    def most(self, planned: int, sites: int) -> int:
        """The most replies that a round can have, of so many `planned` ones and so many sites."""
        return planned

    def settled(self) -> Self:
        """The same with the content of its files in place of their names, where it has any."""
        return self

    def check(self, rounds: Rounds) -> list[Problem]:
        """Settings that do not go with one another or with `[rounds]`."""
        return []

    def check_sites(self, sites: Sequence[str], rounds: Rounds, seed: int) -> list[Problem]:
        """What is wrong with them for the sites of these names: too few of them, above all."""
        if not self.follows_time:
            return []
        hours = self.comings(sites, seed)
        there = [[self.is_there(site, hour, seed) for site in sites] for hour in hours]
        counts = np.array(there, dtype=bool).reshape(len(hours), len(sites))
        if rounds.buffered:
            key = "buffer"
            most, needed = int(counts.any(0).sum()), rounds.replies(len(sites))
            cause = f"only {most} of {len(sites)} sites are ever there, and a buffer takes {needed}"
        else:
            most, needed = int(counts.sum(1).max(initial=0)), rounds.present
            cause = (
                f"at most {most} of {len(sites)} sites are there at the same time, and a round "
                f"needs {needed}"
            )
            key = "cohort" if rounds.quorum is None else "quorum"
        if most >= needed:
            return []
        lower = f"lower rounds.{key} to {most}, or " if most else ""
        cure = f"{lower}let more sites be there at the same time"
        return [Problem("participation", cause, cure)]


participations: Registry[Participation] = Registry("participation", "fedsight.participation")
