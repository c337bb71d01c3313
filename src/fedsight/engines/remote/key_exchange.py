"""The coordinator's four questions of secure aggregation, asked over a line.

A site that fails in one of them dropped out there; the round goes on without it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fedsight.aggregation.secure import SecureSum
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Outcome
from fedsight.engines.protected import fingerprint
from fedsight.engines.remote.conversation import Talk
from fedsight.privacy.secagg.keys import PUBLIC
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.program.federation import Federation

Converse = Callable[[Iterable[str], Callable[[Talk], None]], dict[str, str]]

_serials = itertools.count(time.time_ns() // 1_000_000)  # those of an earlier process were smaller


class Exchange:
    """The keys of the rounds of one run; `converse` talks to sites at once, and says who failed."""

    def __init__(self, federation: Federation, run: str, converse: Converse) -> None:
        self._federation = federation
        self._run = run
        self._converse = converse
        self._identities: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server: SecAggServer | None = None
        self._numbers: dict[str, int] = {}
        self._inboxes: dict[str, bytes] = {}

    def begin(self, order: Order, sites: Sequence[str], total: SecureSum) -> dict[str, str]:
        """Phases 0 and 1 with `sites`; the reasons of those that dropped out.

        Raises SiteError when too few are left.
        """
        unknown = [site for site in sites if site not in self._identities]
        problems = self._converse(unknown, self._identify)
        known = [site for site in sites if site in self._identities]
        # The program's numbers for the whole cohort, whoever of it is there.
        parameters = self._federation.program.secure.parameters(len(sites))
        roster = tuple((site, self._identities[site]) for site in known)
        if len(known) < parameters.survivors:
            cause = (
                f"only {len(known)} of {len(sites)} sites are there in round {order.round}, and "
                f"secure aggregation takes {parameters.survivors}"
            )
            cure = "look at the rejected sites, or raise secure.dropout"
            raise SiteError(f"{cause}{_first(problems)}", cure)
        # Who is missing already counts among those that may drop out.
        again = self._federation.program.secure.parameters(len(known))
        again = replace(again, survivors=max(again.survivors, parameters.survivors))
        binding = Binding(
            self._run,
            order.round,
            next(_serials),
            fingerprint(order.vector),
            roster,
            again,
            total.quantiser.table(),
        )
        server = self._server = SecAggServer(binding)
        self._numbers = {site: number for number, site in enumerate(known)}

        def advertise(talk: Talk) -> None:
            _, message = talk.ask("advertise", {}, binding.data)
            with self._lock:
                server.advert(self._numbers[talk.site], message)

        def share(talk: Talk) -> None:
            number = self._numbers[talk.site]
            _, message = talk.ask("share", {}, server.adverts(number))
            with self._lock:
                server.share(number, message)

        problems |= self._converse(known, advertise)
        # Too few of them is said here, once, and not as each site's own fault.
        _naming(problems, lambda: server.adverts(0))
        left = [site for site in known if site not in problems]
        problems |= self._converse(left, share)
        _naming(problems, lambda: server.inbox(0))
        left = [site for site in left if site not in problems]
        self._inboxes = {site: server.inbox(self._numbers[site]) for site in left}
        return problems

    def inbox(self, site: str) -> bytes:
        """What a site needs to mask with."""
        return self._inboxes[site]

    def finish(self, outcome: Outcome, total: SecureSum) -> None:
        """Phase 3: take the masks off the sum. Raises SiteError when too few sites are left."""
        server = self._server
        assert server is not None
        sites = [one.site for one in outcome.accepted]
        request = server.request([self._numbers[site] for site in sites])

        def unmask(talk: Talk) -> None:
            _, message = talk.ask("unmask", {}, request)
            with self._lock:
                server.answer(self._numbers[talk.site], message)

        lost = self._converse(sites, unmask)  # their updates count: the others can unmask them
        _naming(lost, lambda: server.unmask(total.words))

    def _identify(self, talk: Talk) -> None:
        answer, _ = talk.ask("identify", {})
        key = answer.get("identity")
        try:
            if not isinstance(key, str) or len(bytes.fromhex(key)) != PUBLIC or key != key.lower():
                raise ValueError
        except ValueError:
            cause = f"site '{talk.site}' has no identity key"
            raise SiteError(cause, "let it run the same FedSight version") from None
        self._identities[talk.site] = key


def _naming(problems: Mapping[str, str], do: Callable[[], object]) -> None:
    """Do something that fails when too few sites are left; its error says why the first is not."""
    try:
        do()
    except SiteError as error:
        raise SiteError(f"{error.cause}{_first(problems)}", error.cure) from None


def _first(problems: Mapping[str, str]) -> str:
    return f"; the first that dropped out: {next(iter(problems.values()))}" if problems else ""
