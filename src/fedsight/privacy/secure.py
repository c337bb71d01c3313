"""Settings for secure aggregation: `[secure]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field

from fedsight.core.errors import Problem, SiteError
from fedsight.core.settings import Settings
from fedsight.privacy.base import PREFIX, Plan
from fedsight.privacy.secagg.graph import GRINDING, Parameters, colluding, parameters
from fedsight.privacy.secagg.quantise import MODULUS, Quantiser, spare
from fedsight.privacy.skellam import Levels

LEAST_BITS = 2  # per value of a site


class Secure(Settings):
    """Secure aggregation, which hides single updates from the coordinator: `[secure]`."""

    # `secagg` masks updates; `quantised` only rounds them in the same way and hides nothing
    name: Literal["none", "quantised", "secagg"] = "none"
    clip: float = Field(1.0, gt=0)  # largest absolute value of an update; larger ones are clipped
    # the same for an algorithm's other vectors; None: secure.clip / train.lr, as for a gradient
    clip_others: float | None = Field(None, gt=0)
    norm: float | None = Field(None, gt=0)  # largest joint L2 norm of all vectors; None: no limit
    # bits per value; None: as many as fit
    bits: int | None = Field(None, ge=LEAST_BITS, lt=MODULUS)
    # largest weight; None: that of the largest site, as declared
    cap: int | None = Field(None, ge=1)
    corrupt: float = Field(0.1, ge=0, lt=1)  # share of the cohort that may collude
    dropout: float = Field(0.1, ge=0, lt=1)  # share of the cohort that may drop out
    # protect against a coordinator that tells different sites different things
    split_view: bool = True
    # how many drawings of the graph (log2) such a coordinator may try out to find a weak one
    grinding: int = Field(GRINDING, ge=0, le=80)
    # shares needed to reconstruct a secret; None: as computed
    threshold: int | None = Field(None, ge=2)
    neighbours: int | None = Field(None, ge=2)  # neighbours of each site; None: as computed

    @property
    def rounds_values(self) -> bool:
        """Whether values are quantised."""
        return self.name != "none"

    @property
    def masks(self) -> bool:
        """Whether values are masked."""
        return self.name == "secagg"

    def parameters(self, sites: int) -> Parameters:
        """The graph of a round of `sites` sites; SiteError if none is both secure and robust."""
        found = self._computed(sites, self.neighbours or 2)
        t = max(self.threshold or 0, found.threshold)
        return replace(found, threshold=t, survivors=max(t, found.survivors))

    def _computed(self, sites: int, neighbours: int = 2) -> Parameters:
        """The smallest parameters, with so many neighbours at least."""
        rates = sites, self.corrupt, self.dropout, self.split_view
        return parameters(*rates, grinding=self.grinding, neighbours=neighbours)

    def quantiser(
        self,
        sizes: Mapping[str, int],
        terms: int,
        cap: int,
        lr: float,
        levels: Levels | None = None,
    ) -> Quantiser:
        """The rounding for a round of `terms` sites; `sizes` are the lengths of its vectors.

        A mechanism that adds noise to the levels determines them by `levels`.
        """
        bits, deviation = min(self.bits or MODULUS, MODULUS - spare(terms)), 0.0
        if levels is not None:
            bits, deviation = levels.bits, levels.deviation
        ranges = self._ranges(sizes, lr)
        return Quantiser(sizes, ranges, self.norm, bits, terms, cap, deviation)

    def facing(self, plan: Plan, sizes: Mapping[str, int], terms: int, lr: float) -> Plan:
        """`plan` with what the accountant must know about the rounding and the honest sites."""
        if not self.rounds_values:
            return plan
        most = (
            min(plan.population, 2 * terms + 100) if plan.cohort else terms
        )  # a Poisson cohort may be larger
        rough = self.quantiser(sizes, most, 1, lr)
        reach = min(rough.ranges.values(), default=0.0)  # integers alone are not rounded
        unit = 2 * max(rough.ranges.values(), default=0.0) / ((1 << rough.bits) - 1)
        honest = 0  # without masks, no site's noise hides another site's update
        if self.masks:
            honest = self.parameters(terms).survivors - colluding(terms, self.corrupt)
        return replace(
            plan,
            unit=unit,
            size=rough.length,
            reach=reach,
            terms=terms,
            honest=honest,
            bits=self.bits,
        )

    def _ranges(self, sizes: Mapping[str, int], lr: float) -> dict[str, float]:
        others = self.clip / lr if self.clip_others is None else self.clip_others
        known = {"delta": self.clip}
        # The additional parts of a mechanism (`Mechanism.parts`) are within 1.
        known |= {part: 1.0 for part in sizes if part.startswith(PREFIX)}
        return {part: known.get(part, others) for part in sizes}

    def check(self, cohort: int | None, quorum: int | None) -> list[Problem]:
        """Unsound settings, for a cohort whose size may not be known yet."""
        if not self.rounds_values or cohort is None:
            return []
        if self.bits is not None and self.bits + spare(cohort) > MODULUS:
            cause = f"a sum of {cohort} values of {self.bits} bits does not fit {MODULUS} bits"
            cure = f"lower secure.bits to {MODULUS - spare(cohort)}, or leave it out"
            return [Problem("secure.bits", cause, cure)]
        return self._check_graph(cohort, quorum) if self.masks else []

    def _check_graph(self, cohort: int, quorum: int | None) -> list[Problem]:
        try:
            found, least = self.parameters(cohort), self._computed(cohort)
        except SiteError as error:
            return [Problem("secure", error.cause, error.cure)]
        problems = []
        if self.threshold is not None and not least.threshold <= self.threshold <= cohort:
            cause = f"a threshold of {self.threshold} is not between {least.threshold} and {cohort}"
            cure = "leave it out: the smallest secure threshold is computed"
            problems.append(Problem("secure.threshold", cause, cure))
        if self.neighbours is not None and self.neighbours < least.neighbours:
            cause = f"{self.neighbours} neighbours are fewer than the {least.neighbours} required"
            cure = "leave it out: the smallest secure number is computed"
            problems.append(Problem("secure.neighbours", cause, cure))
        if quorum is not None and quorum < found.survivors:
            cause = (
                f"a quorum of {quorum} is too small to unmask a round: {found.survivors} are needed"
            )
            cure = f"raise rounds.quorum to {found.survivors} or more, or raise secure.dropout"
            problems.append(Problem("rounds.quorum", cause, cure))
        return problems
