"""The interface of privacy mechanisms: what they do at a site and at the coordinator, and the cost.

A mechanism adds noise either to what a site releases (`release`) or to the sum (`mean`), and
describes it as events. Its state is stored with the algorithm's, under names that begin with
PREFIX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsight.core.errors import Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import PartSpecs, Payload, RoundSum
from fedsight.privacy.accounting import COARSE, Events, calibrate, rounds_within, spent
from fedsight.privacy.event import MOST_NOISE
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.sampling import Everyone, FixedSize, Sampler

PREFIX = "privacy."
State = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What the accountant must know about a run besides its mechanism."""

    population: int  # clients
    cohort: int | None  # clients per round; None: all
    rounds: int
    batch: int = 1  # images per step
    passes: int = 1  # over a site's images per round, unless `steps` is set
    steps: int | None = None  # local steps per round at every site; None: those of `passes`
    sizes: tuple[int, ...] = ()  # the distinct numbers of images at the sites
    told: bool = False  # whether each site of a round learns which others take part in it
    # Under secure aggregation: values of an update, largest absolute value, sites in a sum, how
    # many of these are certain to answer and not to collude, bits per value (None: all that fit).
    size: int = 0
    reach: float = 0.0
    terms: int = 0
    honest: int = 0
    bits: int | None = None
    unit: float = 0.0  # the most by which secure aggregation's rounding changes a value
    # Of an algorithm whose rounds release only sums of integers in which single images can be
    # hidden: the unit of each part (`Algorithm.units`).
    units: tuple[tuple[str, float], ...] = ()

    def reached(self, clip: float, size: int) -> float:
        """Largest L2 norm of an update of `size` values, clipped to `clip` and then rounded."""
        return clip + math.sqrt(size) * self.unit


@dataclass(frozen=True)
class Released:
    """The result of a round: the mean of each part, the divisor, and the new state."""

    parts: dict[str, Tensor]  # float64 [d]
    replies: int
    state: State
    integers: Mapping[str, Tensor] = field(default_factory=dict)  # sums of int64 parts
    deviation: float = 0.0  # of the noise in these, in the plan's units


class Mechanism(Settings):
    """Base class: adds no noise and promises nothing."""

    unit: ClassVar[Literal["", "client", "example"]] = ""  # what epsilon protects
    trusts: ClassVar[str] = ""  # who must be trusted
    covers: ClassVar[str] = ""  # what epsilon covers; {modality}, {modalities}: image(s) or text(s)
    # where noise comes in: at the coordinator, at the site, in its training steps, or as shares of
    # sites that are enough only together
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = ""
    # whether it bounds and noises integer parts, too (`release`, `mean`)
    covers_integers: ClassVar[bool] = False
    # whether it noises those in which one image changes a bounded amount (`Plan.units`)
    covers_bounded_integers: ClassVar[bool] = False
    # what the page of compatibilities says of it with a cohort, a quorum, with masks and without
    with_cohort: ClassVar[str] = "Who takes part is known; nothing is amplified."
    with_quorum: ClassVar[str] = ""
    with_masks: ClassVar[str] = "The noised update is rounded and masked."
    without_masks: ClassVar[str] = "What the coordinator sees of a site is noised."

    @property
    def protects(self) -> bool:
        """Whether the mechanism has an epsilon."""
        return bool(self.unit)

    def fixes_population(self, cohort: int | None) -> bool:
        """Whether what a round costs depends on how many clients its cohort was drawn from.

        Then none may join once there was a round: all rounds are accounted by one population.
        """
        return self.noise_at == "coordinator" and cohort is not None

    def sampler(self, plan: Plan) -> Sampler:
        """The sampler that draws cohorts."""
        return Everyone() if plan.cohort is None else FixedSize(plan.cohort)

    def trusted(self, plan: Plan) -> str:
        """Who must be trusted for the epsilon of this plan; placeholders as in `covers`."""
        return self.trusts

    def parts(self) -> Mapping[str, int]:
        """Additional parts of a payload, beside the algorithm's: lengths by name."""
        return {}

    def widened(self, specs: PartSpecs, plan: Plan) -> PartSpecs:
        """The integer parts with the bounds of what leaves a site after `release`."""
        return specs

    def problems(self, plan: Plan) -> list[Problem]:
        """What is wrong with the noise that this plan needs."""
        return []

    def init(self) -> State:
        """The state before the first round."""
        return {}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """The part of the state that each site must know."""
        return {}

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The payload that leaves the site instead of `payload`."""
        return payload

    def check_reply(self, payload: Payload, shared: Mapping[str, Tensor], site: str) -> None:
        """Raise SiteError if `release` cannot have made what `site` sent without masks."""

    def mean(self, total: RoundSum, plan: Plan, state: State, noise: MakeNoise) -> Released:
        """Turn the sum of a cohort's releases into a mean."""
        return Released(total.mean(), total.count, state, total.integers())

    def check(self) -> list[Problem]:
        """Contradictory settings."""
        return []


class Protected(Mechanism):
    """Base class of mechanisms with an epsilon: either it or the noise multiplier is given."""

    epsilon: float | None = Field(None, gt=0, le=1000)  # target: a run stops before exceeding it
    delta: float = Field(1e-5, gt=0, lt=1)  # probability of failure: below 1 / number of units
    # noise over clipping norm; None: the least that keeps all rounds within epsilon
    noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE)

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """What `rounds` rounds release, for the client or example that they reveal most about."""
        raise NotImplementedError

    def noise(self, plan: Plan) -> float:
        """The noise multiplier of this plan; FedSightError if its epsilon is not attainable."""
        return self.noise_multiplier or _calibrated(self, plan)

    def spent(self, plan: Plan, rounds: int) -> float:
        """Epsilon after `rounds` rounds, an upper bound."""
        return spent(self.events(plan, rounds, self.noise(plan)), self.delta, grid=COARSE)

    def rounds(self, plan: Plan) -> int:
        """How many of the planned rounds stay within the target."""
        if self.epsilon is None or self.noise_multiplier is None:
            return plan.rounds
        noise = self.noise_multiplier
        return rounds_within(
            lambda rounds: self.events(plan, rounds, noise), self.epsilon, self.delta, plan.rounds
        )

    def check(self) -> list[Problem]:
        """Neither epsilon nor noise multiplier is set, or the accountant is not installed."""
        problems = []
        if self.epsilon is None and self.noise_multiplier is None:
            cause = "neither epsilon nor noise_multiplier is set"
            cure = "set a target, for example epsilon = 3, or noise_multiplier = 1"
            problems.append(Problem("privacy.epsilon", cause, cure))
        if find_spec("dp_accounting") is None:
            cause = "accounting needs dp-accounting, which is not installed"
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
