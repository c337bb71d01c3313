"""Poisson participation: a coin for each site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fedsight.core.draws import Draws
from fedsight.core.errors import Problem
from fedsight.participation.base import Known, Participation, participations

if TYPE_CHECKING:
    from fedsight.program.rounds import Rounds


@participations.add("poisson", paper="Balle et al. 2018")
class PoissonParticipation(Participation):
    """Each site takes part with the same probability, on average `rounds.cohort` of them.

    A round may have more or fewer, or none: then its mean update is zero.
    """

    singly: ClassVar[bool] = False

    def draw(
        self, there: Sequence[int], cohort: int | None, known: Known, draws: Draws
    ) -> list[int]:
        """A coin for each."""
        coins = draws.uniforms(len(there))
        return [
            client
            for client, coin in zip(there, coins, strict=True)
            if coin * len(there) < (cohort or len(there))
        ]

    def most(self, planned: int, sites: int) -> int:
        """All sites, if every coin says so."""
        return sites

    def check(self, rounds: Rounds) -> list[Problem]:
        """Without a mean number of sites every coin shows the same side."""
        if rounds.cohort is not None:
            return []
        cause = "how many sites take part on average is not said"
        cure = "set rounds.cohort, or participation.name = 'uniform' to take all"
        return [Problem("rounds.cohort", cause, cure)]
