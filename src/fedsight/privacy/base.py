"""What a protection of updates is: what it does at a site, at the coordinator, and what it costs.

A mechanism disturbs either what a site releases (`release`) or the sum of all (`mean`), and says
as events what that was. Its state lies with the algorithm's, under names that begin with PREFIX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsight.core.errors import Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Payload, RoundSum
from fedsight.privacy.accounting import COARSE, Events, calibrate, rounds_within, spent
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.sampling import Everyone, FixedSize, Sampler

PREFIX = "privacy."
State = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What an accountant must know of a run besides its mechanism."""

    population: int  # clients
    cohort: int | None  # clients of a round; None: all
    rounds: int
    batch: int = 1  # images in a step
    passes: int = 1  # over a site's images in a round
    sizes: tuple[int, ...] = ()  # the different numbers of images that sites have
    # Under secure aggregation: values of an update, largest absolute value, sites in a sum, how
    # many of these answer and do not collude for certain, bits of a value (None: all that fit).
    size: int = 0
    reach: float = 0.0
    terms: int = 0
    honest: int = 0
    bits: int | None = None
    unit: float = 0.0  # how far secure aggregation's rounding moves a value, at most

    def reached(self, clip: float, size: int) -> float:
        """Largest L2 norm of an update of `size` values, clipped to `clip` and then rounded."""
        return clip + math.sqrt(size) * self.unit


@dataclass(frozen=True)
class Released:
    """What a round's sum became: the mean of each part, and by how many it was divided."""

    parts: dict[str, Tensor]  # float64 [d]
    replies: int
    state: State


class Mechanism(Settings):
    """Base: nothing is disturbed, and nothing is promised."""

    unit: ClassVar[Literal["", "client", "example"]] = ""  # whose data epsilon speaks of
    trusts: ClassVar[str] = ""  # whom it must trust
    covers: ClassVar[str] = ""  # what epsilon speaks of; {thing} and {things}: image(s) or text(s)
    # where noise comes in: at the coordinator, at the site, in its training steps, or as shares of
    # sites that are enough only together
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = ""
    # what the page of compatibilities says of it with a cohort, a quorum, with masks and without
    with_cohort: ClassVar[str] = "Who takes part is known; nothing is amplified."
    with_quorum: ClassVar[str] = ""
    with_masks: ClassVar[str] = "The noised update is rounded and masked."
    without_masks: ClassVar[str] = "What the coordinator sees of a site is noised."

    @property
    def protects(self) -> bool:
        """Whether there is an epsilon at all."""
        return bool(self.unit)

    def sampler(self, plan: Plan) -> Sampler:
        """How cohorts are drawn."""
        return Everyone() if plan.cohort is None else FixedSize(plan.cohort)

    def parts(self) -> Mapping[str, int]:
        """What a payload holds besides the algorithm's parts: lengths by name."""
        return {}

    def init(self) -> State:
        """The state before the first round."""
        return {}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """What of the state each site must know."""
        return {}

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """What leaves a site in place of `payload`."""
        return payload

    def mean(self, total: RoundSum, plan: Plan, state: State, noise: MakeNoise) -> Released:
        """What becomes of the sum of a cohort's releases."""
        return Released(total.mean(), total.count, state)

    def check(self) -> list[Problem]:
        """Settings that contradict one another."""
        return []


class Protected(Mechanism):
    """Base of those with an epsilon: either it or the noise multiplier decides the other."""

    epsilon: float | None = Field(None, gt=0, le=1000)  # target: a run stops before exceeding it
    delta: float = Field(1e-5, gt=0, lt=1)  # chance of failure: below one over the number of units
    # noise over clipping norm; None: as little as keeps all rounds within epsilon
    noise_multiplier: float | None = Field(None, gt=0)

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """What `rounds` rounds release, for the unit that they tell most of."""
        raise NotImplementedError

    def noise(self, plan: Plan) -> float:
        """The noise multiplier of this plan; FedSightError if its epsilon cannot be had."""
        return self.noise_multiplier or _calibrated(self, plan)

    def spent(self, plan: Plan, rounds: int) -> float:
        """Epsilon after so many rounds, an upper bound."""
        return spent(self.events(plan, rounds, self.noise(plan)), self.delta, grid=COARSE)

    def rounds(self, plan: Plan) -> int:
        """How many of the planned rounds fit into the target."""
        if self.epsilon is None or self.noise_multiplier is None:
            return plan.rounds
        noise = self.noise_multiplier
        return rounds_within(
            lambda rounds: self.events(plan, rounds, noise), self.epsilon, self.delta, plan.rounds
        )

    def check(self) -> list[Problem]:
        """Neither of the two that decide, or no accountant."""
        problems = []
        if self.epsilon is None and self.noise_multiplier is None:
            cause = "neither the target nor the noise is said"
            cure = "write epsilon = 3, say, or noise_multiplier = 1"
            problems.append(Problem("privacy.epsilon", cause, cure))
        if find_spec("dp_accounting") is None:
            cause = "accounting needs dp-accounting, which is not installed here"
            cure = "install it with: pip install 'fedsight[privacy]'"
            problems.append(Problem("privacy", cause, cure))
        return problems


mechanisms: Registry[Mechanism] = Registry("mechanism", "fedsight.privacy.mechanisms")


@lru_cache(maxsize=256)
def _calibrated(mechanism: Protected, plan: Plan) -> float:
    assert mechanism.epsilon is not None
    return calibrate(
        lambda noise: mechanism.events(plan, plan.rounds, noise), mechanism.epsilon, mechanism.delta
    )


def split(state: State) -> tuple[State, State]:
    """The mechanism's state, and the algorithm's."""
    own = {name: value for name, value in state.items() if name.startswith(PREFIX)}
    return own, {name: value for name, value in state.items() if name not in own}
