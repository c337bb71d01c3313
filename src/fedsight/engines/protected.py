"""Chooses a federation's aggregator, and manages secure aggregation keys on one machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fedsight.aggregation.base import Aggregator
from fedsight.aggregation.secure import EncodingPlan, SecureSum
from fedsight.core.layout import Kind
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Order, PartSpecs, Payload
from fedsight.engines.base import Outcome
from fedsight.models.base import Model
from fedsight.privacy.noise import MakeNoise, Noise
from fedsight.privacy.secagg import words
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.masks import Masker
from fedsight.program.federation import Federation
from fedsight.program.program import Program

_SUMS = "sums"


def encoding_plan(federation: Federation) -> EncodingPlan | None:
    """How a run's updates are rounded for secure aggregation; None if they are not rounded."""
    program = federation.program
    if not program.secure.rounds_values:
        return None
    cap = 1
    if program.rounds.weighting != "uniform":
        sizes = (federation.size(client) for client in range(federation.population))
        cap = program.secure.cap or max(map(program.rounds.weight, sizes), default=1)
    noise = partial(Noise, program.seed, program.fingerprint)  # seeded: this is a simulation
    return encoding_plan_of(program, federation.sizes, cap, noise, federation.integers)


def planned_reply(federation: Federation) -> int:
    """Bytes of the vectors of a reply; the most, if they vary."""
    rounded = encoding_plan(federation)
    if rounded is not None:
        return words.size(rounded.quantiser(federation.terms))
    return sum(spec.bytes for spec in federation.parts.values())


def encoding_plan_of(
    program: Program,
    sizes: Mapping[str, int],
    cap: int,
    noise: MakeNoise,
    integers: PartSpecs | None = None,
) -> EncodingPlan:
    """How the updates of `program` are rounded, but for the parts that are `integers`.

    `noise` is drawn from the secret of its place.
    """
    return EncodingPlan(
        program.secure,
        sizes,
        program.seed,
        cap,
        program.train.lr,
        program.privacy,
        program.rounds.rounds,
        noise,
        integers or {},
    )


def reply_bytes(federation: Federation, total: Aggregator, payload: Payload | None = None) -> int:
    """Bytes of the vectors of one reply to the round that `total` collects; the most, if they vary
    and it is not known which `payload` it has."""
    if isinstance(total, SecureSum):
        return words.size(total.quantiser)
    if payload is not None:
        return sum(one.numel() * one.element_size() for one in payload.values())
    return sum(spec.bytes for spec in federation.parts.values())


def aggregator_of(
    federation: Federation, terms: int, memory: Mapping[str, Tensor] | None = None
) -> Aggregator:
    """An empty aggregator for rounds of `federation`, in `memory` if it is given."""
    found = encoding_plan(federation)
    if found is not None:
        return SecureSum(found, terms, memory)
    return federation.program.aggregation.aggregator(federation.parts, terms, memory)


def shared_memory_of(federation: Federation) -> dict[str, Shared]:
    """Shared memory for the tensors of an aggregator of `federation`."""
    blank = aggregator_of(federation, federation.terms)
    return {name: Shared(tuple(t.shape), t.dtype) for name, t in blank.tensors.items()}


def order_digest(order: Order, adopted: Tensor | None = None) -> str:
    """SHA-256 of everything that training in a round starts from: the model, every other vector
    of the order by name and length, and the values that the sites have `adopted`."""
    vectors = {"vector": order.vector, **{f"shared {k}": v for k, v in order.shared.items()}}
    if adopted is not None:
        vectors["adopted"] = adopted
    digest = hashlib.sha256(b"fedsight order\0")
    for name, vector in sorted(vectors.items()):
        digest.update(json.dumps([name, vector.numel()]).encode())
        digest.update(vector.reshape(-1).contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def sums_digest(order: str, temperature: float | None) -> str:
    """SHA-256 of what masked sums over test images are of: the model, by the digest of its order,
    and the temperature of its scores. Keys that are bound to it serve no training."""
    digest = hashlib.sha256(b"fedsight sums over test images\0")
    digest.update(json.dumps([order, temperature]).encode())
    return digest.hexdigest()


def sums_table(integers: Integers, policy: str) -> dict[str, Any]:
    """What keys for masked sums over test images are bound to in place of a quantiser.

    `policy` is the owners' rule for such sums (`Contract.sum_policy`), the same at all sites of the
    sum: each sends nothing under keys that are bound to another than its own.
    """
    return {_SUMS: integers.table(), "policy": policy}


def masks_sums(table: Mapping[str, Any]) -> bool:
    """Whether keys that are bound to `table` mask such sums, and no updates."""
    return _SUMS in table


def starts_from_weights(model: Model) -> bool:
    """Whether sites adopt what does not travel, which the coordinator sends, before they train.

    Networks from plug-ins may say so with `fresh` alone. Of others that is not asked: it may read
    the file that a program names.
    """
    return model.pretrains or bool(model != model.fresh())


def adopted(federation: Federation) -> Tensor | None:
    """The personal and frozen values that begin as the coordinator's weights; None if there are
    none, or if they come from the seed. Sites that cannot make them are sent them."""
    layout, model = federation.layout, federation.program.model
    if not starts_from_weights(model):
        return None
    if not layout.length(Kind.PERSONAL) + layout.length(Kind.FROZEN):
        return None
    return federation.initial[layout.kept]


def adopted_bytes(federation: Federation) -> int:
    """Bytes of `adopted`, which a site is sent before its first order unless it has made them."""
    kept = adopted(federation)
    return 0 if kept is None else 4 * len(kept)


def is_rebuilt(federation: Federation, round: int, vector: Tensor) -> bool:
    """Whether sites build `vector`, the model after `round`, themselves: the initial one, unless
    only the coordinator has the weights that it is from."""
    if round or not federation.program.model.rebuildable:
        return False
    return bool(vector.equal(federation.initial[federation.layout.travelling]))


class Keys:
    """The keys of each round, for an engine with all sites on one machine."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._local = LocalExchange(federation.program.fingerprint)

    def begin(self, order: Order, cohort: Sequence[int], total: Aggregator) -> dict[str, Masker]:
        """The masker of each site of the cohort; empty without secure aggregation."""
        secure = self._federation.program.secure
        if not secure.masks or not isinstance(total, SecureSum):
            return {}
        sites = [self._federation.name(client) for client in sorted(cohort)]
        parameters, digest = secure.parameters(len(sites)), order_digest(order)
        return self._local.begin(order.round, digest, sites, parameters, total.quantiser)

    def finish(self, outcome: Outcome, asked: int) -> None:
        """Remove the masks from a round's sum; a rejected site counts as dropped out.

        Raises SiteError when too few are left. A round without a quorum stays masked.
        """
        program, total = self._federation.program, outcome.total
        if not program.secure.masks or not isinstance(total, SecureSum):
            return
        if len(outcome.accepted) >= program.rounds.needed(asked):
            self._local.finish(total.words, [one.site for one in outcome.accepted])
