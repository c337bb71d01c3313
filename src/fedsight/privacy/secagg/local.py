"""All sides of secure aggregation in one process, for runs on one machine, with real masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.privacy.secagg.words import Words


class LocalExchange:
    """The rounds of one run, with identities that exist only in memory."""

    def __init__(self, program: str) -> None:
        """`program`: its fingerprint."""
        self._program = program
        self._identities: dict[str, Identity] = {}
        self._serial = itertools.count(1)
        self._clients: list[SecAggClient] = []
        self._server: SecAggServer | None = None

    def begin(
        self,
        round: int,
        order: str,
        sites: Sequence[str],
        parameters: Parameters,
        quantiser: Quantiser,
    ) -> dict[str, Masker]:
        """Exchange keys and shares between `sites`; returns the masks of each."""
        for site in sites:
            if site not in self._identities:
                self._identities[site] = Identity.fresh()
        known = [self._identities[site] for site in sites]
        roster = tuple((site, one.public.hex()) for site, one in zip(sites, known, strict=True))
        serial, table = next(self._serial), quantiser.table()
        binding = Binding(
            run="",
            program=self._program,
            package="",
            round=round,
            serial=serial,
            order=order,
            roster=roster,
            accepted=(0,) * len(sites),
            parameters=parameters,
            quantiser=table,
        )
        server = self._server = SecAggServer(binding)
        least = Minimums().at_least(parameters)
        self._clients = [
            SecAggClient(one, binding, number, least) for number, one in enumerate(known)
        ]
        for client in self._clients:
            server.advert(client.number, client.advertise())
        for client in self._clients:
            server.share(client.number, client.share(server.adverts(client.number)))
        for client in self._clients:
            server.confirm(client.number, client.confirm(server.inbox(client.number)))
        return {site: client.masker() for site, client in zip(sites, self._clients, strict=True)}

    def finish(self, total: Words, survivors: Iterable[str]) -> None:
        """Agree on `survivors`, and remove the masks from their sum; the other sites dropped out.

        Raises SiteError if too few are left.
        """
        server = self._server
        assert server is not None
        numbers = {name: number for number, (name, _) in enumerate(server.binding.roster)}
        left = [numbers[site] for site in survivors]
        lists = server.lists(left)
        for number in server.committee:
            server.agree(number, self._clients[number].agree(lists))
        for number in left:
            server.answer(number, self._clients[number].unmask(server.request(number)))
        server.unmask(total.levels, total.integers)
        self._clients = []
