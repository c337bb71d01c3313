"""A site's side of secure aggregation in one job: what it answers, and what it makes of an update.

Secrets of a round live in this process only: if it ends, the site has dropped out of the round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.deploy.site.incoming import count
from fedsight.deploy.site.owner import Owner
from fedsight.deploy.site.peer_keys import PeerKeys, Serial
from fedsight.deploy.site.trainer import TrainedUpdate
from fedsight.engines.protected import encoding_plan_of, fingerprint
from fedsight.engines.remote import messages
from fedsight.governance.charges import Charge, charge
from fedsight.privacy.noise import Noise, secret_at
from fedsight.privacy.secagg.client import SecAggClient
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.pack import pack
from fedsight.program.program import Program

SecAggAnswer = tuple[dict[str, Any], bytes | memoryview]
Protect = Callable[[TrainedUpdate], tuple[memoryview | bytes, Charge]]  # what leaves, and its cost
MOST_TERMS = 1 << 20  # sites in a sum


class SiteSecAgg:
    """One job's; `home` is the site's folder, `name` the site."""

    def __init__(self, home: Path, name: str) -> None:
        self._home = home
        self._name = name
        self._lock = threading.Lock()
        self._agreed: tuple[Program, Owner, str, Path] | None = None
        self._client: SecAggClient | None = None
        self.answers: Mapping[str, Callable[[dict[str, Any], bytes], SecAggAnswer]] = {
            "identify": self._identify,
            "advertise": self._advertise,
            "share": self._share,
            "unmask": self._unmask,
        }

    def join(self, program: Program, owner: Owner, run: str, memory: Path) -> None:
        """A run was agreed upon."""
        self._agreed, self._client = (program, owner, run, memory), None

    def session(self) -> bytes:
        """What tells this attempt at a round from others."""
        return self._client.binding.digest if self._client else b""

    def protection(
        self, round: int, vector: Tensor, fields: dict[str, Any], body: bytes
    ) -> Protect:
        """What is to be done to the update of `round`, which is trained from `vector`.

        Raises SiteError if the coordinator means another round or model than the keys were made
        for. The update is masked when it is there: a training that fails may be tried again.
        """
        if self._agreed is None:
            raise SiteError("no run was agreed upon", "propose one first")
        program = self._agreed[0]
        if not program.secure.rounds_values:
            return lambda found: (messages.pack(found.payload.values()), (found.event, found.times))
        quantiser = dict(fields.get("quantiser") or {})
        sizes = {str(part): int(size) for part, size in dict(quantiser.get("sizes") or {}).items()}
        cap, terms = count(quantiser, "cap"), count(quantiser, "terms")
        if not cap or not 1 <= terms <= MOST_TERMS or min(sizes.values(), default=0) < 0:
            raise SiteError("the coordinator's quantiser is none", "update the coordinator")
        secret = secret_at(self._home / "noise.key") if program.privacy.protects else 0
        # What leaves of a masked update is the sum. Another attempt may sum other sites: were the
        # noise the same, the difference of the two would have next to none.
        attempt = ("attempt", self.session().hex()) if program.secure.masks else ()
        noise = partial(Noise, secret, program.fingerprint, *attempt)
        plan = encoding_plan_of(program, sizes, cap, noise)
        how = plan.quantiser(terms)
        client = self._client
        if program.secure.masks:
            client = self._session()
            meant = (client.binding.round, client.binding.model, dict(client.binding.quantiser))
            if meant != (round, fingerprint(vector), how.table()):
                raise SiteError(
                    f"the keys of secure aggregation were not made for this round {round}, model "
                    "and quantiser",
                    "the coordinator mixes up its rounds, or cheats: ask the operator",
                )
            most, least = client.binding.parameters.survivors, program.secure.parameters(terms)
            if most < least.survivors:  # a sum of fewer has less noise than is accounted
                raise SiteError(
                    f"noise and rounding are for {terms} sites of which {least.survivors} survive, "
                    f"and the round may be unmasked by {most}",
                    "this is a defect of the coordinator",
                )

        def protect(found: TrainedUpdate) -> tuple[bytes, Charge]:
            payload, weight = found.payload, found.weight
            how.check(payload, weight, self._name)
            masker = None
            if program.secure.masks and client is not None:
                with self._lock:
                    masker = client.masker(body)
            words = plan.protect(how, payload, weight, self._name, round, masker)
            words &= np.uint32((1 << how.modulus) - 1)
            cost = found.event, found.times
            if how.deviation:
                cost = charge(program.privacy, plan.accounted(terms), weight)
            return pack(words, how.modulus), cost

        return protect

    # What the coordinator may ask ---------------------------------------------------------

    def _identify(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        return {"identity": self._identity().public.hex()}, b""

    def _advertise(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        """Phase 0: begin an attempt at a round, if everything that it is bound to is as agreed."""
        with self._lock:
            binding = Binding.read(body)
            if self._client is None or self._client.binding.digest != binding.digest:
                self._client = self._begin(binding)
            return {}, self._client.advertise()

    def _share(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        with self._lock:
            return {}, self._session().share(body)

    def _unmask(self, fields: dict[str, Any], body: bytes) -> SecAggAnswer:
        with self._lock:
            return {}, self._session().unmask(body)

    def _begin(self, binding: Binding) -> SecAggClient:
        if self._agreed is None:
            raise SiteError("no run was agreed upon", "propose one first")
        program, owner, run, memory = self._agreed
        if not program.secure.masks or binding.run != run:
            raise SiteError(
                "the coordinator begins secure aggregation for another run than was agreed upon",
                "propose it first",
            )
        names = [name for name, _ in binding.roster]
        if self._name not in names:
            raise SiteError("this site is not in the coordinator's roster", "leave it out, then")
        least = owner.secure.minimums.at_least(program.secure.parameters(len(names)))
        client = SecAggClient(self._identity(), binding, names.index(self._name), least)
        PeerKeys(self._home).check(binding.roster)
        Serial(memory).advance(binding.serial)
        return client

    def _session(self) -> SecAggClient:
        if self._client is None:
            raise SiteError(
                "this site has no keys for secure aggregation: it lost them, or was "
                "never asked for any",
                "it takes part again in the next round",
            )
        return self._client

    def _identity(self) -> Identity:
        return Identity.at(self._home / "identity.key")
