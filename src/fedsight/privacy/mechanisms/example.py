"""Example-level differential privacy: each site trains by DP-SGD on its own images."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field

from fedsight.privacy.accounting import Events, spent
from fedsight.privacy.base import Plan, Protected, mechanisms
from fedsight.privacy.sampling import Poisson


@mechanisms.add("example", paper="Abadi et al. 2016, Algorithm 1")
class Example(Protected):
    """DP-SGD at every site: each image's gradient is clipped, and noise is added to their sum.

    A step draws each image independently, `train.batch` of them on average. A site is accounted by
    its own number of images and steps; without a noise multiplier it adds the least noise that
    keeps its own rounds within epsilon. The run's epsilon is that of the worst site.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "example"
    trusts: ClassVar[str] = "the site that holds the {modality}"
    covers: ClassVar[str] = (
        "everything that one {modality} changes in the updates that leave its site"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "steps"
    with_cohort: ClassVar[str] = "A site is accounted as if it took part in every round."
    with_masks: ClassVar[str] = "The update is rounded and masked."
    clip: float = Field(1.0, gt=0)  # largest L2 norm of one image's gradient

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """The steps of the site whose number of images costs most."""
        return self._events(worst(self, plan), rounds, noise)

    def _events(self, plan: Plan, rounds: int, noise: float) -> Events:
        images = plan.sizes[0]
        coin = Poisson(min(1.0, plan.batch / images))
        return [(coin.event(images, noise), rounds * steps(plan, images))]

    def at(self, plan: Plan, images: int) -> float:
        """The noise multiplier of a site with `images` images."""
        return self.noise(replace(plan, sizes=(images,)))

    def spent(self, plan: Plan, rounds: int) -> float:
        """Epsilon at the worst site."""
        return super().spent(worst(self, plan), rounds)


def steps(plan: Plan, images: int) -> int:
    """Local steps per round at a site with `images` images."""
    return plan.passes * math.ceil(images / plan.batch)


@lru_cache(maxsize=64)
def worst(mechanism: Example, plan: Plan) -> Plan:
    """The plan of the site whose number of images costs most over all rounds."""
    if len(plan.sizes) <= 1:
        return plan

    def cost(images: int) -> float:
        alone = replace(plan, sizes=(images,))
        noise = mechanism.noise_multiplier or 1.0  # the ranking hardly depends on it
        return spent(mechanism._events(alone, plan.rounds, noise), mechanism.delta, "rdp")

    return replace(plan, sizes=(max(plan.sizes, key=cost),))
