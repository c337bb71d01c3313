"""Local client-level differential privacy: each site adds noise before anything leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsight.core.types import Payload
from fedsight.privacy import event
from fedsight.privacy.accounting import Events
from fedsight.privacy.base import Plan, Protected, mechanisms
from fedsight.privacy.clip import clip, cut, flat
from fedsight.privacy.noise import MakeNoise, added


@mechanisms.add("local", paper="Duchi et al. 2013; Gaussian as in Dwork and Roth 2014, appendix A")
class Local(Protected):
    """Each update is clipped as a whole, and its site adds Gaussian noise.

    Neighbouring data sets of a site may differ in every image, so an update can move by twice the
    clip, and the noise counts half. The coordinator knows who takes part, so nothing is amplified,
    and a site is accounted as if it took part in every round.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "client"
    trusts: ClassVar[str] = "nobody but the site itself"
    covers: ClassVar[str] = (
        "everything that a site's {modalities} change in the updates that leave it"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "site"
    clip: float = Field(1.0, gt=0)  # largest joint L2 norm of an update

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """One release per round; neighbours replace the whole data set."""
        return [(event.gaussian(noise, "replace_one"), rounds)]

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The update, clipped and noised."""
        clipped = clip(payload, self.clip, site)
        vector = flat(clipped)
        deviation = self.noise(plan) * self.clip
        drawn = noise("update", values=[vector]).normal(len(vector), deviation)
        return cut(added(vector, drawn, deviation), clipped)
