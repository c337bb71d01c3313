"""Distributed differential privacy: each site adds its share of noise, masked by secure sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsight.core.types import Payload
from fedsight.privacy.accounting import Events
from fedsight.privacy.base import Plan, Protected, mechanisms
from fedsight.privacy.clip import clip
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.secagg.quantise import MODULUS
from fedsight.privacy.skellam import Levels, Round


@mechanisms.add("distributed", paper="Agarwal et al. 2021, Algorithm 1; Kairouz et al. 2021")
class Distributed(Protected):
    """Updates are clipped, rounded, and get Skellam noise at their sites; only the sum is seen.

    The noise is sized for the sites that must answer and do not collude, by the rates in
    `[secure]`; that of the others comes on top. Who takes part is known to the coordinator:
    nothing is amplified, neighbours replace one site's images by others, and a site is accounted
    as if it took part in every round.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "client"
    trusts: ClassVar[str] = (
        "secure aggregation: that no more sites collude with the coordinator than secure.corrupt"
    )
    covers: ClassVar[str] = (
        "all that a site's {things} change in the sums that the coordinator sees"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "shares"
    with_masks: ClassVar[str] = "The noise is added to the levels that are masked."
    clip: float = Field(1.0, gt=0)  # largest joint L2 norm of an update

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """One sum a round."""
        one = self._round(plan)
        levels = self._levels(plan, noise)
        return [(one.release(levels.scale, levels.deviation), rounds)]

    def levels(self, plan: Plan) -> Levels:
        """How the updates of a round are rounded, and how much noise each gets."""
        return self._levels(plan, self.noise(plan))

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The update, clipped; the noise is added to its levels, when it is masked."""
        return clip(payload, self.clip, site)

    def _levels(self, plan: Plan, noise: float) -> Levels:
        return self._round(plan).levels(noise, plan.bits or MODULUS, MODULUS)

    def _round(self, plan: Plan) -> Round:
        return Round(plan.size, plan.terms, plan.honest, self.clip, plan.reach)
