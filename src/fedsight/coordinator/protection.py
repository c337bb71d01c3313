"""The coordinator's side of protected updates: cohorts, noise on sums, and the epsilon spent."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any

from fedsight.algorithms.base import Mean, State
from fedsight.core.errors import ConfigError, Problem
from fedsight.core.types import RoundSum
from fedsight.privacy.base import Protected, split
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import MakeNoise, Noise, fresh
from fedsight.program import rules
from fedsight.program.federation import Federation


class Protection:
    """What the run's privacy mechanism does between rounds.

    Cohorts are drawn from `secret` and noise is always fresh; in a simulation, where `secret` is
    None, both are drawn from the program's seed.
    Raises ConfigError when not even one round fits into the target epsilon, or delta is too large.
    """

    def __init__(self, federation: Federation, secret: int | None = None) -> None:
        self.mechanism = federation.program.privacy
        self.plan = federation.accounted
        self.simulated = secret is None
        self._federation = federation
        program = federation.program
        seeded = partial(Noise, program.seed, program.fingerprint)
        self._noise: MakeNoise = seeded if secret is None else fresh
        # Without amplification cohorts need not be secret, so they are drawn from the seed.
        secret = secret if self.mechanism.protects else None
        self._seed = program.train_seed if secret is None else secret
        self.rounds = self.plan.rounds
        if isinstance(self.mechanism, Protected):
            _check_delta(self.mechanism, federation.population)
            self.rounds = self.mechanism.rounds(self.plan)
            if not self.rounds:
                cause = f"not one round stays within epsilon {self.mechanism.epsilon:g}: the first "
                cause += f"would spend {self.mechanism.spent(self.plan, 1):.3g}"
                cure = "raise it or privacy.noise_multiplier, or leave the multiplier out"
                raise ConfigError([Problem("privacy.epsilon", cause, cure)])

    def cohort(self, round: int) -> list[int]:
        """The clients of `round`, sorted."""
        sampler = self.mechanism.sampler(self.plan)
        return sampler.draw(self._federation.population, self._seed, round)

    def mean(self, total: RoundSum, state: State, round: int) -> tuple[Mean, State, State]:
        """The mean of a round's sum as the algorithm may see it, and both parts of the state."""
        own, rest = split(state)
        noise = partial(self._noise, "round", round)
        released = self.mechanism.mean(total, self.plan, own, noise)
        share = self._share(released.replies, total)
        mean = Mean(released.parts, share, released.integers, released.deviation)
        return mean, released.state, rest

    def _share(self, replies: float, total: RoundSum) -> float:
        """The share that the sites in a mean have of the weight of all sites."""
        if self._federation.program.rounds.weighting == "uniform":
            return replies / self._federation.population
        return total.weight / self._weight

    @cached_property
    def _weight(self) -> int:
        """What all sites count for together."""
        sizes = map(self._federation.size, range(self._federation.population))
        return sum(map(self._federation.program.rounds.weight, sizes))

    def epsilon(self, round: int) -> float | None:
        """Epsilon spent after `round`; None if nothing is protected or no noise was added."""
        if not isinstance(self.mechanism, Protected):
            return None
        spent = self.mechanism.spent(self.plan, round)
        return spent if math.isfinite(spent) else None

    @property
    def _words(self) -> dict[str, str]:
        seen = self._federation.dataset.preprocess
        return {"modality": seen.modality, "modalities": seen.modalities}

    def facts(self) -> dict[str, Any] | None:
        """What a reader must know to judge the epsilon; None if nothing is protected."""
        mechanism = self.mechanism
        if not isinstance(mechanism, Protected):
            return None
        facts: dict[str, Any] = {
            "mechanism": mechanism.registered,
            "unit": mechanism.unit,
            "trusts": mechanism.trusted(self.plan).format(**self._words),
            "covers": mechanism.covers.format(**self._words),
            "delta": mechanism.delta,
            "target": mechanism.epsilon,
            "rounds_within": self.rounds,
            "rounds_planned": self.plan.rounds,
            "neighbours": "",
            "noise_from": "the program's seed (a simulation)" if self.simulated else "a secret",
        }
        noise = 1.0
        if isinstance(mechanism, Example):
            facts["noise_multiplier"] = (
                mechanism.noise_multiplier
            )  # as set; otherwise each site has its own
        else:
            noise = facts["noise_multiplier"] = mechanism.noise(self.plan)
        for event, _ in mechanism.events(self.plan, 1, noise):
            facts["neighbours"] = event.neighbours
            facts["sampling"] = _sampling(event.kind, event.rate)
        if getattr(mechanism.sampler(self.plan), "known", False):
            facts["sampling"] = "a cohort that its sites know (no amplification)"
        facts["not_covered"] = list(self._not_covered())
        return facts

    def summary(self, round: int) -> dict[str, Any] | None:
        """`facts`, with the epsilon spent by the end."""
        facts = self.facts()
        if facts is None:
            return None
        stopped = round < self.plan.rounds
        return {"epsilon": self.epsilon(round), **facts, "rounds": round, "stopped": stopped}

    def _not_covered(self) -> list[str]:
        views, modalities = self._federation.views, self._words["modalities"]
        found = [f"how many {modalities} of each class a site declares"]
        if any(view.site is not None for view in views):
            found.append(f"figures measured on the sites' own test {modalities}")
        if self._federation.program.rounds.compared:
            found.append("which round was kept or ended training, by figures without noise")
        if self._federation.partition.name(0) and not self.simulated:
            found.append("whether a site answered, and when")
        found += rules.remarks(self._federation.program, self._federation.network)
        return found


def _check_delta(mechanism: Protected, clients: int) -> None:
    """Raise ConfigError for a delta that permits publishing all of some client."""
    if mechanism.unit == "client" and clients > 1 and mechanism.delta * clients >= 1:
        cause = f"{mechanism.delta:g} permits revealing one of {clients:,} clients entirely"
        cure = f"choose a delta below {1 / clients:.0e}"
        raise ConfigError([Problem("privacy.delta", cause, cure)])


def _sampling(kind: str, rate: float) -> str:
    if kind == "poisson":
        return f"poisson, rate {rate:.4g}"
    names = {"fixed_size": "fixed size, without replacement", "matrix": "fixed groups in turn"}
    return names.get(kind, "everyone (no amplification)")
