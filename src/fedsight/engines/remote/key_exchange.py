"""The coordinator's side of the phases of secure aggregation, over network connections.

A site that fails in a phase has dropped out; the round continues without it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from fedsight.aggregation.secure import SecureSum
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Outcome
from fedsight.engines.protected import adopted, order_digest
from fedsight.engines.remote.conversation import Talk
from fedsight.privacy.secagg.keys import CHALLENGE, identity_part, is_public, signed
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.program.federation import Federation

Converse = Callable[[Iterable[str], Callable[[Talk], None]], dict[str, str]]
Recognise = Callable[[str, str], None]  # a site's name and its identity key
T = TypeVar("T")


class _Serials:
    """Numbers of attempts, which increase from one process to the next as well."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def __next__(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000_000)
            return self._last


_serials = _Serials()  # of all runs of this process


class Exchange:
    """Key exchange for the rounds of one run; `converse` talks to sites and returns failures.

    `recognise` raises SiteError for a site that shows another identity key than before: the other
    sites would refuse a round with it, one by one, and seem to be at fault.
    """

    def __init__(
        self, federation: Federation, run: str, converse: Converse, recognise: Recognise
    ) -> None:
        self._federation = federation
        self._run = run
        self._converse = converse
        self._recognise = recognise
        self._identities: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server: SecAggServer | None = None
        self._numbers: dict[str, int] = {}

    def begin(
        self, order: Order, accepted: Mapping[str, int], sites: Sequence[str], total: SecureSum
    ) -> dict[str, str]:
        """Run phases 0 to 2 with `sites`; returns the reasons of those that dropped out.

        `accepted` is the last round in which each site's reply counted.

        Raises SiteError when too few are left.
        """
        unknown = [site for site in sites if site not in self._identities]
        problems = self._converse(unknown, self._identify)
        known = [site for site in sites if site in self._identities]
        # The program's parameters for the whole cohort, including absent sites.
        parameters = self._federation.program.secure.parameters(len(sites))
        roster = tuple((site, self._identities[site]) for site in known)
        if len(known) < parameters.survivors:
            cause = (
                f"only {len(known)} of {len(sites)} sites are present in round {order.round}, and "
                f"secure aggregation needs {parameters.survivors}"
            )
            cure = "check the rejected sites, or raise secure.dropout"
            raise SiteError(f"{cause}{_first(problems)}", cure)
        # Sites that are already missing count towards the permitted drop-outs.
        again = _naming(problems, lambda: self._federation.program.secure.parameters(len(known)))
        again = replace(again, survivors=max(again.survivors, parameters.survivors))
        binding = Binding(
            self._run,
            order.round,
            next(_serials),
            order_digest(order, adopted(self._federation)),
            roster,
            tuple(accepted.get(site, 0) for site in known),
            again,
            total.quantiser.table(),
        )
        server = self._server = SecAggServer(binding)
        self._numbers = {site: number for number, site in enumerate(known)}

        problems |= self._phase("advertise", known, lambda _: binding.data, server.advert)
        # Reports too few sites once, here, rather than as a failure of each site.
        _naming(problems, lambda: server.adverts(0))
        left = [site for site in known if site not in problems]
        problems |= self._phase("share", left, server.adverts, server.share)
        _naming(problems, lambda: server.inbox(0))
        left = [site for site in left if site not in problems]
        problems |= self._phase("confirm", left, server.inbox, server.confirm)
        _naming(problems, server.check_ready)
        return problems

    def finish(self, outcome: Outcome, total: SecureSum) -> None:
        """Phases 4 and 5: agree on the survivors, and remove the masks from their sum.

        Raises SiteError when too few sites are left.
        """
        server = self._server
        assert server is not None
        sites = [one.site for one in outcome.accepted]
        lists = server.lists(self._numbers[site] for site in sites)
        members = [site for site in sites if self._numbers[site] in server.committee]
        # The updates of those lost from here on still count: the others can unmask them.
        lost = self._phase("agree", members, lambda _: lists, server.agree)
        _naming(lost, lambda: server.request(0))
        lost |= self._phase("unmask", sites, server.request, server.answer)
        _naming(lost, lambda: server.unmask(total.words))

    def _phase(
        self,
        kind: str,
        sites: Iterable[str],
        question: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
    ) -> dict[str, str]:
        """One question to each site, and what is done with the answers; why sites dropped out."""

        def ask(talk: Talk) -> None:
            number = self._numbers[talk.site]
            with self._lock:
                body = question(number)
            _, message = talk.ask(kind, {}, body)
            with self._lock:
                take(number, message)

        return self._converse(sites, ask)

    def _identify(self, talk: Talk) -> None:
        """Ask a site for its identity key, and for a proof that it holds it.

        Every site refuses a roster that has one key twice, so without the proof a site that shows
        another's public key would end every round.
        """
        challenge = secrets.token_bytes(CHALLENGE)
        answer, _ = talk.ask("identify", {"challenge": challenge.hex()})
        key, proof = answer.get("identity"), answer.get("proof")
        content = identity_part(talk.site, challenge)
        if not is_public(key) or not signed(bytes.fromhex(key), _signature(proof), content):
            cause = f"site '{talk.site}' does not prove that it holds the identity key it shows"
            raise SiteError(cause, "run the same FedSight version there; if that is so, it cheats")
        with self._lock:
            if twin := next((s for s, known in self._identities.items() if known == key), None):
                cause = f"site '{talk.site}' has the identity key of site '{twin}'"
                cure = "remove identity.key at one of them: it makes a new one"
                raise SiteError(cause, cure)
            self._recognise(talk.site, key)
            self._identities[talk.site] = key


def _signature(proof: object) -> bytes:
    """A signature in hex as bytes; empty if it is not one."""
    try:
        return bytes.fromhex(proof) if isinstance(proof, str) else b""
    except ValueError:
        return b""


def _naming(problems: Mapping[str, str], do: Callable[[], T]) -> T:
    """The result of `do`; a SiteError that it raises also says why the first site dropped out."""
    try:
        return do()
    except SiteError as error:
        raise SiteError(f"{error.cause}{_first(problems)}", error.cure) from None


def _first(problems: Mapping[str, str]) -> str:
    return f"; the first that dropped out: {next(iter(problems.values()))}" if problems else ""
