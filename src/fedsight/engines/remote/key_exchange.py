"""The coordinator's side of the four phases of secure aggregation, over network connections.

A site that fails in a phase has dropped out; the round continues without it.
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

_serials = itertools.count(time.time_ns() // 1_000_000)  # larger than those of any earlier process


class Exchange:
    """Key exchange for the rounds of one run; `converse` talks to sites and returns failures."""

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
        """Run phases 0 and 1 with `sites`; returns the reasons of those that dropped out.

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
        # Reports too few sites once, here, rather than as a failure of each site.
        _naming(problems, lambda: server.adverts(0))
        left = [site for site in known if site not in problems]
        problems |= self._converse(left, share)
        _naming(problems, lambda: server.inbox(0))
        left = [site for site in left if site not in problems]
        self._inboxes = {site: server.inbox(self._numbers[site]) for site in left}
        return problems

    def inbox(self, site: str) -> bytes:
        """The encrypted shares that a site needs for masking."""
        return self._inboxes[site]

    def finish(self, outcome: Outcome, total: SecureSum) -> None:
        """Phase 3: remove the masks from the sum. Raises SiteError if too few sites are left."""
        server = self._server
        assert server is not None
        sites = [one.site for one in outcome.accepted]
        request = server.request([self._numbers[site] for site in sites])

        def unmask(talk: Talk) -> None:
            _, message = talk.ask("unmask", {}, request)
            with self._lock:
                server.answer(self._numbers[talk.site], message)

        lost = self._converse(
            sites, unmask
        )  # their updates still count: the others can unmask them
        _naming(lost, lambda: server.unmask(total.words))

    def _identify(self, talk: Talk) -> None:
        answer, _ = talk.ask("identify", {})
        key = answer.get("identity")
        try:
            if not isinstance(key, str) or len(bytes.fromhex(key)) != PUBLIC or key != key.lower():
                raise ValueError
        except ValueError:
            cause = f"site '{talk.site}' has no identity key"
            raise SiteError(cause, "run the same FedSight version there") from None
        self._identities[talk.site] = key


def _naming(problems: Mapping[str, str], do: Callable[[], object]) -> None:
    """Run `do`; a SiteError that it raises also says why the first site dropped out."""
    try:
        do()
    except SiteError as error:
        raise SiteError(f"{error.cause}{_first(problems)}", error.cure) from None


def _first(problems: Mapping[str, str]) -> str:
    return f"; the first that dropped out: {next(iter(problems.values()))}" if problems else ""
