"""Central client-level differential privacy: sites clip, a trusted coordinator adds noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import FedSightError, Problem, SiteError
from fedsight.core.types import Payload, RoundSum
from fedsight.privacy.accounting import Events
from fedsight.privacy.base import PREFIX, Plan, Protected, Released, State, mechanisms
from fedsight.privacy.clip import check_clipped, clip, cut, flat, norm
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.sampling import Everyone, FixedSize, Poisson, Sampler

CLIP = f"{PREFIX}clip"
BELOW = f"{PREFIX}below"  # part of a payload: 1/2 if its norm was below the clip, else -1/2


@mechanisms.add("central", paper="McMahan et al. 2018, Algorithm 1; clip: Andrew et al. 2021")
class Central(Protected):
    """DP-FedAvg: each update is clipped as a whole, and Gaussian noise is added to the sum.

    A cohort amplifies where it is secret. Under secure aggregation each of its sites learns who the
    others are, so nothing is amplified.

    The sum is divided by the expected size of a cohort, never by the actual one, and all updates
    have the same weight. With `quantile` the clip adapts: it approaches the norm that this share of
    the updates stays below, estimated from noised counts that epsilon includes.
    """

    unit: ClassVar[Literal["", "client", "example"]] = "client"
    trusts: ClassVar[str] = "the coordinator, which sees each clipped update before the noise"
    covers: ClassVar[str] = (
        "everything that one client's {modalities} ever change in the published models"
    )
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "coordinator"
    with_cohort: ClassVar[str] = "Only a coin for each client amplifies as Poisson sampling does."
    with_quorum: ClassVar[str] = (
        "The sum is divided by the expected cohort anyway. Of a cohort that is smaller than the "
        "quorum, all must answer."
    )
    with_masks: ClassVar[str] = (
        "Noise is sized for the rounding too; single updates stay hidden. The sites of a round "
        "learn who takes part in it, so a cohort amplifies nothing. A run ends if the coins "
        "leave a round fewer than 3 sites; sampling = 'fixed' tosses none."
    )
    without_masks: ClassVar[str] = (
        "The coordinator sees each clipped update. A coin amplifies against everybody but the "
        "sites of a round, which learn how many these are."
    )
    # largest joint L2 norm of an update; with quantile, the initial one
    clip: float = Field(1.0, gt=0)
    # how rounds.cohort is drawn: each client independently, or a fixed number (costs more)
    sampling: Literal["poisson", "fixed"] = "poisson"
    quantile: float | None = Field(None, gt=0, lt=1)  # share of updates that should stay unclipped
    clip_rate: float = Field(0.2, gt=0, le=2)  # how fast the clip adapts, on a log scale
    # noise on the count of updates below the clip; None: at least a twentieth of the cohort
    count_noise: float | None = Field(None, gt=0)

    def sampler(self, plan: Plan) -> Sampler:
        """Poisson, fixed-size, or everyone."""
        if plan.cohort is None:
            return Everyone()
        if self.sampling == "fixed":
            return FixedSize(plan.cohort, plan.told)
        return Poisson(plan.cohort / plan.population, plan.told)

    def trusted(self, plan: Plan) -> str:
        """The coordinator, and whoever learns the size of a cohort that is to be secret."""
        if plan.told or self.sampler(plan).event(plan.population, 1.0).kind != "poisson":
            return self.trusts
        return self.trusts + ", and the sites of a round, which are told how many take part"

    def events(self, plan: Plan, rounds: int, noise: float) -> Events:
        """One release per round; the counts share its budget (see `_noises`)."""
        return [(self.sampler(plan).event(plan.population, noise), rounds)]

    def parts(self) -> Mapping[str, int]:
        """With a quantile, whether the update's norm was below the clip."""
        return {} if self.quantile is None else {BELOW: 1}

    def init(self) -> State:
        """The initial clip, if it adapts."""
        return {} if self.quantile is None else {CLIP: torch.tensor([self.clip])}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """The clip of the round."""
        return state

    def release(
        self,
        payload: Payload,
        shared: Mapping[str, Tensor],
        plan: Plan,
        site: str,
        noise: MakeNoise,
    ) -> Payload:
        """The update, clipped; the coordinator adds the noise."""
        most = float(shared[CLIP]) if self.quantile is not None else self.clip
        released = clip(payload, most, site)
        if self.quantile is not None:
            below = norm(payload, site) <= most
            released[BELOW] = torch.tensor([0.5 if below else -0.5])
        return released

    def check_reply(self, payload: Payload, shared: Mapping[str, Tensor], site: str) -> None:
        """Refuse what is longer than the clip, or counts as more than one update below it.

        A count of -10^8 would move the clip of all sites to its largest or smallest value.
        """
        parts = dict(payload)
        below = parts.pop(BELOW, None)
        check_clipped(parts, float(shared[CLIP]) if below is not None else self.clip, site)
        if below is not None and abs(float(below)) != 0.5:
            raise SiteError(
                f"site '{site}' counts its update as {float(below):.3g} below the clip, not 1/2 or "
                "-1/2",
                "run the same FedSight version at this site; if that is so, it cheats: revoke it",
            )

    def mean(self, total: RoundSum, plan: Plan, state: State, noise: MakeNoise) -> Released:
        """(sum + noise) / expected cohort; for an empty cohort only noise."""
        found = total.plain()
        count = found.pop(BELOW, None)
        expected = self.sampler(plan).expected(plan.population)
        most = float(state[CLIP]) if self.quantile is not None else self.clip
        deviation, bits = self._noises(plan)
        stream = noise("sum", values=total.tensors.values())
        vector = flat(found)
        reached = plan.reached(most, len(vector))
        vector = (vector + stream.normal(len(vector), deviation * reached)) / expected
        if count is not None:
            assert self.quantile is not None
            bits *= plan.reached(0.5, 1) / 0.5  # the count is rounded too
            share = float((count + stream.normal(1, bits)) / expected) + 0.5
            # Masked counts are not checked one by one, so the exponent may be anything.
            change = math.exp(min(-self.clip_rate * (share - self.quantile), 700.0))
            most = min(max(most * change, 1e-6), 1e6)
            state = {CLIP: torch.tensor([most])}
        return Released(cut(vector, found), round(expected), state)

    def _noises(self, plan: Plan) -> tuple[float, float]:
        """Noise multiplier of the update, and noise on the count (Andrew et al., Theorem 1).

        Together they cost as much as one release with the plan's noise multiplier z:
        z^-2 = z_update^-2 + (2 * noise on the count)^-2, because the count changes by one half.
        """
        z = self.noise(plan)
        if self.quantile is None:
            return z, 0.0
        bits = self.count_noise or max(self.sampler(plan).expected(plan.population) / 20, z)
        if 2 * bits <= z:
            raise FedSightError(
                f"with a noise multiplier of {z:.3g}, a count noise of {bits:.3g} alone would "
                "exceed the budget",
                f"raise privacy.count_noise above {z / 2:.3g}, or leave it out",
            )
        return (z**-2 - (2 * bits) ** -2) ** -0.5, bits

    def check(self) -> list[Problem]:
        """Settings that need a quantile, without one."""
        problems = super().check()
        if self.quantile is None and self.count_noise is not None:
            cause = "without a quantile nothing is counted"
            cure = "set privacy.quantile = 0.5, or remove privacy.count_noise"
            problems.append(Problem("privacy.count_noise", cause, cure))
        return problems
