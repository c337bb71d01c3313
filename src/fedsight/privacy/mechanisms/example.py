"""Example-level differential privacy: sites train by DP-SGD, or noise their sums over images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.types import PartSpecs, Payload, RoundSum
from fedsight.privacy import event
from fedsight.privacy.accounting import Events, spent
from fedsight.privacy.base import Plan, Protected, Released, State, mechanisms
from fedsight.privacy.noise import FINEST, TAIL, MakeNoise
from fedsight.privacy.sampling import Poisson


@mechanisms.add("example", paper="Abadi et al. 2016, Algorithm 1")
class Example(Protected):
    """Noise at every site on sums to which each image contributes a bounded amount.

    Where sites train it is DP-SGD: each image's gradient is clipped, and noise is added to their
    sum. A step draws each image independently, `train.batch` of them on average. A site is
    accounted by its own number of images and steps; without a noise multiplier it adds the least
    noise that keeps its own rounds within epsilon. The run's epsilon is that of the worst site.

    Where sites send sums of integers (closed forms) all parts of a round together are one release
    of the Gaussian mechanism. The noise is rounded to whole numbers, so sums stay exact.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "example"
    trusts: ClassVar[str] = "the site that holds the {modality}"
    covers: ClassVar[str] = (
        "everything that one {modality} changes in the updates that leave its site"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "steps"
    with_cohort: ClassVar[str] = "A site is accounted as if it took part in every round."
    with_masks: ClassVar[str] = "The update is rounded and masked."
    covers_bounded_integers: ClassVar[bool] = True
    clip: float = Field(1.0, gt=0)  # largest L2 norm of one image's gradient

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """The steps of the site whose number of images costs most; one release of its sums."""
        if plan.units:
            return [(event.gaussian(noise), rounds)]
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
        return super().spent(plan if plan.units else worst(self, plan), rounds)

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The sums of integers with noise of whole numbers; what was trained has noise already.

        A whole number plus rounded noise is the noised number, rounded: what leaves depends on the
        images only through it. (Halves are rounded up: to even numbers, coarse noise would be even
        more often than odd.) Raises ConfigError as `problems` says.
        """
        if problems := self.problems(plan):
            raise ConfigError(problems)
        released = dict(payload)
        for part, deviation in self._deviations(plan).items():
            values = payload[part]
            drawn = noise("sums", part, values=[values]).normal(len(values), deviation)
            released[part] = values + (drawn + 0.5).floor().to(torch.int64)
        return released

    def _deviations(self, plan: Plan) -> dict[str, float]:
        """The standard deviation of the noise on each sum of integers; none where sites train."""
        return {part: self.noise(plan) * unit for part, unit in plan.units}

    def problems(self, plan: Plan) -> list[Problem]:
        """Noise that is too large to have all its digits."""
        if all(TAIL * deviation <= FINEST for deviation in self._deviations(plan).values()):
            return []
        z = self.noise(plan)
        cause = f"noise of {z:g} times what one image changes is too coarse for whole numbers"
        cure = "lower it, or algorithm.bits"
        return [Problem("privacy.noise_multiplier", cause, cure)]

    def widened(self, specs: PartSpecs, plan: Plan) -> PartSpecs:
        """With room for the noise."""
        found = dict(specs)
        for part, deviation in self._deviations(plan).items():
            bound = found[part].bound
            if bound is not None:
                room = math.ceil(TAIL * deviation) + 1
                found[part] = replace(found[part], bound=bound + room)
        return found

    def mean(self, total: RoundSum, plan: Plan, state: State, noise: MakeNoise) -> Released:
        """The mean, and the deviation of the noise that the sites added to sums of integers."""
        deviation = self.noise(plan) * math.sqrt(total.count) if plan.units else 0.0
        return replace(super().mean(total, plan, state, noise), deviation=deviation)


def steps(plan: Plan, images: int) -> int:
    """Local steps per round at a site with `images` images."""
    return plan.passes * steps_of_pass(plan, images) if plan.steps is None else plan.steps


def steps_of_pass(plan: Plan, images: int) -> int:
    """Local steps that see `images` images once on average."""
    return math.ceil(images / plan.batch)


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
