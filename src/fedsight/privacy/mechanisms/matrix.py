"""Central client-level privacy with correlated noise: matrix factorisation.

Instead of z, the noise C^-1 z is added to the sums of the rounds, where C is a banded Toeplitz
matrix. Noise added in one round is mostly subtracted in the following ones, so the model, which is
the sum over rounds, contains less of it. The price is the sensitivity of C, which is small for
clients that rest between two rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.types import Payload, RoundSum
from fedsight.privacy import event
from fedsight.privacy.accounting import Events
from fedsight.privacy.base import PREFIX, Plan, Protected, Released, State, mechanisms
from fedsight.privacy.clip import check_clipped, clip, cut, flat
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.sampling import Cyclic

PAST = f"{PREFIX}noise"  # [bands - 1, d] float64: noise of the last rounds, newest first


@mechanisms.add("matrix", paper="Choquette-Choo et al. 2023; bands: Kalinin and Lampert 2024")
class Matrix(Protected):
    """DP-FedAvg with banded correlated noise, for clients that take turns in fixed groups.

    Nothing is amplified by sampling. It suits populations whose turns can be fixed, and runs that
    should not depend on a secret cohort. Neighbours remove one client from all rounds; the groups
    of the others do not change.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "client"
    trusts: ClassVar[str] = "the coordinator, which sees each clipped update before the noise"
    covers: ClassVar[str] = (
        "everything that one client's {modalities} ever change in the published models"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "coordinator"
    with_cohort: ClassVar[str] = "Groups of that size take turns; nothing is amplified."
    with_masks: ClassVar[str] = "Noise is sized for the rounding too; single updates stay hidden."
    without_masks: ClassVar[str] = "The coordinator sees each clipped update."
    clip: float = Field(1.0, gt=0)  # largest joint L2 norm of an update
    bands: int = Field(8, ge=1, le=256)  # rounds over which noise is correlated; 1: independent

    def sampler(self, plan: Plan) -> Cyclic:
        """Groups of about `plan.cohort` clients that take turns."""
        return Cyclic(plan.population if plan.cohort is None else plan.cohort)

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """The whole stream as one Gaussian release with the sensitivity of its first columns."""
        if not rounds:
            return []
        apart = self.sampler(plan).groups(plan.population)
        return [(event.matrix(noise, sensitivity(coefficients(self.bands), rounds, apart)), 1)]

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The update, clipped; the coordinator adds the noise."""
        return clip(payload, self.clip, site)

    def check_reply(self, payload: Payload, shared: Mapping[str, Tensor], site: str) -> None:
        """Refuse what is longer than the clip."""
        check_clipped(payload, self.clip, site)

    def mean(self, total: RoundSum, plan: Plan, state: State, noise: MakeNoise) -> Released:
        """(sum + this round's row of C^-1 z) / size of a group."""
        found = total.plain()
        vector = flat(found)
        stream = noise("sum", values=total.tensors.values())
        past = state.get(PAST, torch.empty(0, len(vector), dtype=torch.float64))
        most = plan.reached(self.clip, len(vector))
        fresh = stream.normal(len(vector), self.noise(plan) * most)
        for weight, earlier in zip(coefficients(self.bands)[1:], past, strict=False):
            fresh = fresh - float(weight) * earlier
        expected = self.sampler(plan).expected(plan.population)
        if self.bands > 1:
            state = {PAST: torch.cat([fresh[None], past])[: self.bands - 1].contiguous()}
        return Released(cut((vector + fresh) / expected, found), round(expected), state)


def coefficients(bands: int) -> npt.NDArray[np.float64]:
    """First column of C: the square root of the prefix-sum matrix, truncated to `bands`.

    c_0 = 1, c_k = c_(k-1) (2 k - 1) / (2 k) (Kalinin and Lampert 2024, equation 4).
    """
    column = np.ones(bands)
    for k in range(1, bands):
        column[k] = column[k - 1] * (2 * k - 1) / (2 * k)
    return column


def sensitivity(column: npt.NDArray[np.float64], rounds: int, apart: int) -> float:
    """Largest L2 norm of C x, where x [rounds, d] has rows of norm at most 1 every `apart` rounds.

    C [rounds, rounds] is lower triangular Toeplitz with this first column. No entry is negative,
    so the maximum is reached when all contributions point in the same direction (Choquette-Choo et
    al. 2023, Corollary 2.1).
    """
    most = 0.0
    for first in range(min(apart, rounds)):
        turns = np.zeros(rounds)
        turns[first::apart] = 1.0
        most = max(most, float(np.sum(np.convolve(turns, column)[:rounds] ** 2)))
    return math.sqrt(most)
