"""Power of choice: of some candidates, those with the largest losses take part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedsight.core.draws import Draws
from fedsight.core.errors import Problem
from fedsight.participation.base import Known, Participation, participations

if TYPE_CHECKING:
    from fedsight.program.rounds import Rounds


@participations.add("power-of-choice", paper="Cho et al. 2020, section 4 (rpow-d)")
class PowerOfChoice(Participation):
    """Candidates are drawn by their numbers of images, and those with the largest losses asked.

    The losses are the mean training losses that sites last replied with, so nothing more is sent
    or computed (the paper's rpow-d); a site that has not replied so far counts as the largest.
    Converges faster than a uniform choice, with a bias towards sites that the model fits worst.
    """

    asks_loss: ClassVar[bool] = True
    singly: ClassVar[bool] = False
    # the paper's d: more than rounds.cohort; None: twice as many
    candidates: int | None = Field(None, ge=2)

    def draw(
        self, there: Sequence[int], cohort: int | None, known: Known, draws: Draws
    ) -> list[int]:
        """The `cohort` largest losses of `candidates` clients drawn without replacement.

        An exponential time with a rate for each client, and the first ones are drawn in proportion
        to the rates (Efraimidis and Spirakis 2006). Equal losses count in that order.
        """
        count = min(cohort or len(there), len(there))
        size = self.candidates or 2 * count
        times = [draws.exponential() / max(known.images(client), 1) for client in there]
        order = sorted(range(len(there)), key=lambda place: times[place])[:size]
        worst = sorted(order, key=lambda place: -known.loss(there[place]))[:count]
        return sorted(there[place] for place in worst)

    def check(self, rounds: Rounds) -> list[Problem]:
        """There must be a choice."""
        if rounds.cohort is None:
            cause = "sites are chosen, and all take part in every round"
            return [Problem("rounds.cohort", cause, "set it to fewer than all sites")]
        if self.candidates is None or self.candidates > rounds.cohort:
            return []
        cause = f"{self.candidates} candidates leave no choice for a cohort of {rounds.cohort}"
        cure = "raise it above rounds.cohort, or leave it out for twice as many"
        return [Problem("participation.candidates", cause, cure)]
