"""A site's secure-aggregation client in one job: its answers, and the protection of its updates.

The secrets of a round are only in this process's memory: if it ends, the site has dropped out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsight.core import package
from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.integers import share_of
from fedsight.core.text import printable
from fedsight.core.types import PartSpec, PartSpecs, Payload
from fedsight.deploy.membership.revocations import check_roster
from fedsight.deploy.site.incoming import count
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.deploy.site.peer_keys import AttemptCounter, NoMasksError, PeerKeys
from fedsight.deploy.site.release import Release, no_run
from fedsight.deploy.site.trainer import TrainedUpdate, TrainStep
from fedsight.engines.protected import (
    encoding_plan_of,
    masks_sums,
    order_digest,
    sums_table,
)
from fedsight.engines.remote import messages
from fedsight.governance.charges import Charge, charge
from fedsight.privacy.noise import fresh
from fedsight.privacy.secagg.client import SecAggClient
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.keys import Identity, identity_part, is_challenge
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.messages import Binding, Lists
from fedsight.privacy.secagg.words import packed
from fedsight.program.program import Program

SecAggAnswer = tuple[dict[str, Any], bytes | memoryview]
MAX_TERMS = 1 << 20  # sites in a sum
_SAME_VERSION = (
    "run the same FedSight version at the coordinator and at the sites; if that is so, the "
    "coordinator is malicious: ask the operator"
)
Refused = Callable[[str, str], None]  # takes the kind of a request, and why it was refused


def _unrecorded(kind: str, why: str) -> None:
    pass


@dataclass(frozen=True)
class Protection:
    """What becomes of an update before it leaves, known before it is trained."""

    apply: Callable[[TrainedUpdate], bytes | memoryview]  # the bytes that leave
    charge: Charge | None = None  # their privacy cost; None: that of the update itself


@dataclass(frozen=True)
class Sums:
    """Sums over test images that are to be masked: of the model after a `round`, by the `digest` of
    what they are of (`sums_digest`); this site's `own` parts, and the coordinator's `table` of all;
    and the owner's rule for such sums (`policy`).
    """

    round: int
    digest: str
    own: PartSpecs
    table: Mapping[str, Any]
    policy: str


class SiteSecAgg:
    """The secure-aggregation client of the site `name`, whose folder is `home`."""

    def __init__(self, home: Path, name: str, refused: Refused = _unrecorded) -> None:
        self._home = home
        self._name = name
        self._refused = refused
        self._lock = threading.Lock()
        self._run: tuple[Program, OwnerSettings, str] | None = None
        self._release: Release | None = None
        self._client: SecAggClient | None = None
        self.answers: Mapping[str, Callable[[dict[str, Any], bytes], SecAggAnswer]] = {
            "identify": self._identify,
            "advertise": self._advertise,
            "share": self._phase(SecAggClient.share),
            "confirm": self._phase(self._confirm),
            "agree": self._phase(lambda client, body: client.agree(body, self._check_sum)),
            "unmask": self._phase(lambda client, body: client.unmask(body, self._record_sum)),
        }

    def join(self, program: Program, owner: OwnerSettings, run: str, release: Release) -> None:
        """Take part in the run `run` from now on; `release` records which sums come out.

        It waits for an answer that is being made in another thread: keys that were begun for the
        program before would otherwise be there afterwards, and mask what is trained under this one.
        """
        with self._lock:
            self._run, self._client, self._release = (program, owner, run), None, release

    def attempt(self) -> bytes:
        """Identifies the current attempt at a round; empty before the first one."""
        return self._client.binding.digest if self._client else b""

    def protection(
        self,
        step: TrainStep,
        adopted: Tensor | None,
        fields: dict[str, Any],
        integers: PartSpecs | None = None,
    ) -> Protection:
        """Return what protects the update of `step`, which also starts from what was `adopted`.

        `integers` are the integer parts of this site's updates. Raises SiteError if the keys were
        made for another round, order or quantiser. The update is masked only once it is trained, so
        that a failed training can be repeated.
        """
        if self._run is None:
            raise no_run()
        program, owner, _ = self._run
        if not program.secure.rounds_values:
            return Protection(lambda found: messages.pack(found.payload.values()))
        quantiser = dict(fields.get("quantiser") or {})
        sizes = _sizes(program, quantiser)
        cap, terms = count(quantiser, "cap"), count(quantiser, "terms")
        if not cap or not 1 <= terms <= MAX_TERMS or min(sizes.values(), default=0) < 0:
            raise SiteError("the coordinator sent an invalid quantiser", "update the coordinator")
        # Only the sum of masked updates is revealed. Another attempt may sum other sites: with the
        # same noise, the difference of the two sums would have almost none. So it is always fresh.
        bounded = _with_bounds(integers or {}, quantiser.get("integers"), terms)
        plan = encoding_plan_of(program, sizes, cap, fresh, bounded)
        plan = replace(plan, secret=owner.contract.protected)
        encoder = plan.quantiser(terms)
        client = self._client
        if program.secure.masks:
            client = self._current_client()
            digest = order_digest(step.order, adopted)
            _check_binding(client, step, digest, encoder.table())
            _check_terms(client.binding, program, terms)

        def protect(found: TrainedUpdate) -> bytes:
            payload, weight = found.payload, found.weight
            encoder.check(payload, weight, self._name)
            masker = None
            if program.secure.masks and client is not None:
                with self._lock:
                    masker = self._recorded_masker(client)
            words = plan.protect(encoder, payload, weight, self._name, step.order.round, masker)
            return packed(words, encoder)

        if encoder.deviation:  # a share of noise, which counts only in the sum of this many sites
            return Protection(protect, charge(program.privacy, plan.accounted(terms), 1))
        return Protection(protect)

    def masked(self, about: Sums) -> Callable[[Payload], bytes]:
        """What masks this site's sums over test images.

        Raises SiteError if the keys were made for other sums than these.
        """
        client = self._current_client()
        binding, terms = client.binding, about.table.get("terms")
        if type(terms) is not int or not len(binding.roster) <= terms <= MAX_TERMS:
            raise _other_integers()
        integers = Integers.of(_with_bounds(about.own, about.table, terms), terms)
        made_for = binding.round, binding.order, dict(binding.quantiser)
        if masks_sums(binding.quantiser) and binding.quantiser.get("policy") != about.policy:
            raise SiteError(
                "the keys of secure aggregation were made for sites whose owners have another rule "
                "in contract.figures and contract.figures_lists",
                "the coordinator confuses its sites, or is malicious: ask the operator",
            )
        if made_for != (about.round, about.digest, sums_table(integers, about.policy)):
            raise SiteError(
                "the keys of secure aggregation were not made for these sums over test images",
                "the coordinator confuses its questions, or is malicious: ask the operator",
            )

        def protect(payload: Payload) -> bytes:
            words = integers.encode(payload, self._name)
            with self._lock:
                self._recorded_masker(client).mask(np.empty(0, np.uint32), words)
            return integers.pack(words)

        return protect

    def _recorded_masker(self, client: SecAggClient) -> Masker:
        """The masks of what leaves next, once its neighbours' keys are on the disk: who led all of
        them can unmask it without asking this site, which would have no trace of their keys."""
        try:
            PeerKeys(self._home).record(client.met)
            return client.masker()
        except FedSightError as error:
            raise NoMasksError(error.cause, error.cure, error.final) from error

    # Requests of the coordinator ----------------------------------------------------------

    def _identify(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        """The identity key, and a signature that proves that this site holds it."""
        challenge, identity = fields.get("challenge"), self._identity()
        if not is_challenge(challenge):
            raise SiteError("the coordinator sent no valid challenge", "update the coordinator")
        proof = identity.sign(identity_part(self._name, bytes.fromhex(str(challenge))))
        return {"identity": identity.public.hex(), "proof": proof.hex()}, b""

    def _advertise(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        """Phase 0: begin an attempt at a round, if its binding fits the run."""
        with self._lock:
            binding = Binding.read(body)
            if self._client is None or self._client.binding.digest != binding.digest:
                self._client = self._begin(binding)
            return {}, self._client.advertise()

    def _phase(
        self, answer: Callable[[SecAggClient, bytes], bytes]
    ) -> Callable[[dict[str, Any], bytes], SecAggAnswer]:
        """What answers the question of a later phase."""

        def handle(fields: dict[str, Any], body: bytes) -> SecAggAnswer:
            with self._lock:
                return {}, answer(self._current_client(), body)

        return handle

    def _confirm(self, client: SecAggClient, body: bytes) -> bytes:
        """The answer may be a complaint, which the owner should see too."""
        said = client.confirm(body)
        if client.unopened:
            names = ", ".join(client.unopened)
            self._refused("confirm", f"shares sealed by {names} were altered by them or on the way")
        return said

    def _check_sum(self, lists: Lists) -> None:
        """Raise DeployError before this site signs lists whose sum it would not help to unmask."""
        assert self._release is not None
        self._release.check_sum(*self._summed(lists))

    def _record_sum(self, lists: Lists) -> None:
        """Record a sum, and the keys of those in it, before the shares that uncover it leave."""
        assert self._release is not None
        client = self._current_client()
        roster, own = client.binding.roster, client.number
        # Not when the attempt begins: a roster is a list of names, of which any may be invented.
        summed = [roster[site] for site in sorted(lists.survivors) if site != own]
        self._release.record_sum(*self._summed(lists))
        PeerKeys(self._home).record(client.met, summed)

    def _summed(self, lists: Lists) -> tuple[int, list[str], bool]:
        """The round, the sites, and whether it is of sums over test images: then nothing else has
        been masked with these keys."""
        binding = self._current_client().binding
        names = [binding.name(site) for site in lists.survivors]
        return binding.round, names, masks_sums(binding.quantiser)

    def _begin(self, binding: Binding) -> SecAggClient:
        if self._run is None:
            raise no_run()
        program, owner, run = self._run
        if not program.secure.masks or binding.run != run:
            raise SiteError(
                "the coordinator begins secure aggregation for a run that this site has not joined",
                "propose the run first",
            )
        if binding.program != program.fingerprint:
            raise SiteError(
                f"the keys of secure aggregation are for the program {binding.program[:12]}, and "
                f"this site takes part in {program.fingerprint[:12]}",
                "the coordinator has proposed different programs to the sites, by which it could "
                "tell their updates apart: ask the operator",
            )
        _check_package(binding)
        names = [name for name, _ in binding.roster]
        if self._name not in names:
            raise SiteError(
                "this site is not in the coordinator's roster", "add it, or do not ask it"
            )
        check_roster(self._home, names)
        owner.contract.check_sites(len(names))  # here it need not take the coordinator's word
        minimums = owner.secure.minimums.at_least(program.secure.parameters(len(names)))
        client = SecAggClient(self._identity(), binding, names.index(self._name), minimums)
        PeerKeys(self._home).check(binding.roster)
        AttemptCounter(self._home).advance(run, binding.serial)
        return client

    def _current_client(self) -> SecAggClient:
        if self._client is None:
            raise SiteError(
                "this site has no keys for secure aggregation: it was restarted, or was never "
                "asked for them",
                "it takes part again in the next round",
            )
        return self._client

    def _identity(self) -> Identity:
        return Identity.at(self._home / "identity.key")


def _sizes(program: Program, quantiser: Mapping[str, Any]) -> dict[str, int]:
    """The lengths of the parts that are rounded, by name, in the order in which they are sent.

    Raises SiteError for other parts than the program's, and for another order: keys are bound to
    names and lengths only, and a coordinator that had one site send its parts in another order than
    the others would tell its values from theirs.
    """
    sizes = {str(part): int(size) for part, size in dict(quantiser.get("sizes") or {}).items()}
    if tuple(sizes) != program.parts:
        raise SiteError(
            f"the round's parts are {', '.join(sizes) or 'none'}, and this site sends "
            f"{', '.join(program.parts)}",
            _SAME_VERSION,
        )
    return sizes


def _with_bounds(own: PartSpecs, table: Any, terms: int) -> PartSpecs:
    """This site's integer parts with the round's bounds, which follow from the largest site.

    Raises SiteError for other parts or impossible bounds.
    """
    given = table if isinstance(table, dict) else {}
    sizes, bounds = given.get("sizes", {}), given.get("bounds", {})
    if sizes != {part: spec.values for part, spec in own.items()} or not isinstance(bounds, dict):
        raise _other_integers()
    found = {}
    for part, spec in own.items():
        bound = bounds.get(part)
        if type(bound) is not int or not 0 <= bound <= share_of(None, terms):
            raise _other_integers()
        _check_bound(spec, bound, terms)
        found[part] = replace(spec, bound=bound)
    return found


def _check_bound(own: PartSpec, bound: int, terms: int) -> None:
    """Raise SiteError for a bound below what this site's number of images allows.

    With a bound of its choice the coordinator could ask whether an integer exceeds it: the site
    would have to refuse.
    """
    if bound < (share_of(None, terms) if own.bound is None else own.bound):
        raise _other_integers()


def _other_integers() -> SiteError:
    return SiteError(
        "the round's integer parts are not those of this site's program and images",
        _SAME_VERSION,
    )


def _check_package(binding: Binding) -> None:
    """Raise SiteError unless the round's keys are for the FedSight code that runs here.

    What a coordinator states when it proposes a run may be another for each site. All sites of a
    round have keys for one binding: so none of them trains as another version does, by which the
    coordinator could tell its update from theirs in the sum.
    """
    found, ours = binding.package, package.installed().sha256
    if found != ours:
        shown = printable(found[: package.SHOWN]) or "(none)"
        raise SiteError(
            "the keys of secure aggregation are for FedSight code with the hash "
            f"{shown}, and this site runs {ours[: package.SHOWN]}",
            _SAME_VERSION,
        )


def _check_terms(binding: Binding, program: Program, terms: int) -> None:
    """Raise SiteError unless noise and rounding for `terms` sites suffice for this round."""
    if terms < len(binding.roster):  # more sites, more of whom may collude
        raise SiteError(
            f"noise and rounding are for {terms} sites, and {len(binding.roster)} have keys for "
            "the round",
            "this is a bug in the coordinator",
        )
    survivors = binding.parameters.survivors
    assumed = program.secure.parameters(terms).survivors
    if survivors < assumed:  # a sum of fewer sites has less noise than is accounted
        raise SiteError(
            f"noise and rounding are for {terms} sites of which {assumed} survive, but the round "
            f"may be unmasked with {survivors}",
            "this is a bug in the coordinator",
        )


def _check_binding(
    client: SecAggClient, step: TrainStep, digest: str, quantiser: dict[str, Any]
) -> None:
    """Raise SiteError unless the keys were made for this round, order, memory and quantiser.

    All sites have keys for the same binding. So none of them trains from anything else than the
    others, by which a coordinator could tell its update from theirs in the sum.
    """
    binding, round = client.binding, step.order.round
    made_for = binding.round, binding.order, binding.accepted[client.number]
    if made_for != (round, digest, step.accepted) or dict(binding.quantiser) != quantiser:
        raise SiteError(
            f"the keys of secure aggregation were not made for round {round} with this order and "
            "quantiser",
            "the coordinator confuses its rounds, or is malicious: ask the operator",
        )
