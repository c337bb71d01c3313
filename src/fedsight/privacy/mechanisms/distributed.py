"""Distributed differential privacy: each site adds a share of the noise under a secure sum."""

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
    """Updates are clipped, rounded and noised (Skellam) at their sites; only the sum is seen.

    The noise is sized for the sites that must answer and do not collude, at the rates in
    `[secure]`; the noise of the other sites comes on top. The coordinator knows who takes part, so
    nothing is amplified, neighbours replace all images of one site, and a site is accounted as if
    it took part in every round.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "client"
    trusts: ClassVar[str] = (
        "secure aggregation: at most a share of secure.corrupt of the sites colludes with the "
        "coordinator"
    )
    covers: ClassVar[str] = (
        "everything that a site's {modalities} change in the sums that the coordinator sees"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "shares"
    with_masks: ClassVar[str] = "The noise is added to the levels that are masked."
    clip: float = Field(1.0, gt=0)  # largest joint L2 norm of an update

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """One sum per round."""
        one = self._round(plan)
        levels = self._levels(plan, noise)
        return [(one.release(levels.scale, levels.deviation), rounds)]

    def levels(self, plan: Plan) -> Levels:
        """The rounding of the updates in a round, and the noise of each."""
        return self._levels(plan, self.noise(plan))

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The clipped update; noise is added to its levels when it is masked."""
        return clip(payload, self.clip, site)

    def _levels(self, plan: Plan, noise: float) -> Levels:
        return self._round(plan).levels(noise, plan.bits or MODULUS, MODULUS)

    def _round(self, plan: Plan) -> Round:
        return Round(plan.size, plan.terms, plan.honest, self.clip, plan.reach)
