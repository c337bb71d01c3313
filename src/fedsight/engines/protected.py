"""Where secure aggregation meets the engines: a round's sum, and its keys in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from fedsight.aggregation.mean import PayloadSum
from fedsight.aggregation.secure import EncodingPlan, SecureSum
from fedsight.core.fixedpoint import ExactSum
from fedsight.core.layout import Layout
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Order
from fedsight.engines.base import Outcome, Total
from fedsight.privacy.base import Plan as Accounted
from fedsight.privacy.noise import MakeNoise, Noise
from fedsight.privacy.secagg import pack
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.masks import Masker
from fedsight.program.federation import Federation
from fedsight.program.program import Program


def plan(federation: Federation, sizes: Mapping[str, int]) -> EncodingPlan | None:
    """How a run's updates are rounded; None if they are not."""
    program = federation.program
    if not program.secure.rounds_values:
        return None
    cap = 1
    if program.rounds.weighting == "samples":
        largest = max((federation.size(c) for c in range(federation.population)), default=1)
        cap = program.secure.cap or largest
    noise = partial(Noise, program.seed, program.fingerprint)  # a simulation's
    return plan_of(program, sizes, cap, noise)


def plan_of(program: Program, sizes: Mapping[str, int], cap: int, noise: MakeNoise) -> EncodingPlan:
    """How the updates of `program` are rounded; `noise` is made under the secret of its place."""
    return EncodingPlan(
        program.secure,
        sizes,
        program.seed,
        cap,
        program.train.lr,
        program.privacy,
        program.rounds.rounds,
        noise,
    )


def accounted(federation: Federation) -> Accounted:
    """What the accountant must know of a run, its rounding included."""
    program, found = federation.program, federation.plan()
    if not (program.secure.rounds_values and program.privacy.protects):
        return found
    parts = federation.parts(program.layout(federation.network()))
    terms = program.rounds.cohort or federation.population
    return program.secure.facing(found, parts, terms, program.train.lr)


def reply_size(federation: Federation, layout: Layout) -> int:
    """Bytes of the vectors of one reply."""
    sizes = federation.parts(layout)
    found = plan(federation, sizes)
    if found is None:
        return 4 * sum(sizes.values())
    quantiser = found.quantiser(federation.program.rounds.cohort or federation.population)
    return pack.size(quantiser.length, quantiser.modulus)


def total_of(federation: Federation, layout: Layout, terms: int) -> Total:
    """An empty sum for rounds of `federation`."""
    sizes = federation.parts(layout)
    found = plan(federation, sizes)
    return PayloadSum.of(sizes, terms) if found is None else SecureSum(found, terms)


def shared_tensors(total: Total) -> dict[str, Shared]:
    """Shared memory for what `total` holds."""
    return {name: Shared((len(t),), t.dtype) for name, t in total.tensors.items()}


def total_over(federation: Federation, layout: Layout, shared: Mapping[str, Shared]) -> Total:
    """A sum that lies in shared memory."""
    found = plan(federation, federation.parts(layout))
    if found is None:
        return PayloadSum({part: ExactSum(0, 1, one.tensor) for part, one in shared.items()})
    return SecureSum(found, 1, shared["sum"].tensor)


def fingerprint(vector: torch.Tensor) -> str:
    """SHA-256 of the vector that a round trains from."""
    return hashlib.sha256(vector.contiguous().numpy().data).hexdigest()


class Keys:
    """The keys of each round of an engine that has all sites on one machine."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._local = LocalExchange(federation.program.fingerprint)

    def begin(self, order: Order, cohort: Sequence[int], total: Total) -> dict[str, Masker]:
        """What each site of the cohort is to mask with; nothing if nobody masks."""
        secure = self._federation.program.secure
        if not secure.masks or not isinstance(total, SecureSum):
            return {}
        sites = [self._federation.name(client) for client in sorted(cohort)]
        parameters, model = secure.parameters(len(sites)), fingerprint(order.vector)
        return self._local.begin(order.round, model, sites, parameters, total.quantiser)

    def finish(self, outcome: Outcome, asked: int) -> None:
        """Take the masks off a round's sum; a rejected site dropped out.

        Raises SiteError when too few are left. A round that lacks its quorum stays masked.
        """
        program, total = self._federation.program, outcome.total
        if not program.secure.masks or not isinstance(total, SecureSum):
            return
        if len(outcome.notes) >= (program.rounds.quorum or asked):
            self._local.finish(total.words, [note.site for note in outcome.notes])
