"""The virtual time of a simulation: how long a site takes in a round, and what it does until then.

All follows from the program's seed, the round and the site: nothing depends on the engine, on what
was learnt, or on who else takes part.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fedsight.core.draws import Draws, draws
from fedsight.participation.timing import SitePace
from fedsight.program.coding import order_bytes
from fedsight.program.workload import images_seen

if TYPE_CHECKING:
    from fedsight.program.federation import Federation
    from fedsight.program.program import Program


class VirtualTime:
    """How long the sites of a federation take (`[timing]`)."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._program = federation.program
        self._pace = lru_cache(maxsize=1 << 12)(self._paced)

    @property
    def passes(self) -> bool:
        """Whether any time passes at all."""
        return self._program.timing.passes

    def seconds(self, round: int, client: int, attempt: int = 1) -> float:
        """How long a client takes to answer the order of `round`, the `attempt`-th one."""
        site, images = self._federation.name(client), self._federation.size(client)
        seen = images_seen(self.lessened(round, site, images), images)
        return self._apart(round, site, attempt) + seen * self._pace(site).image

    def is_lost(self, round: int, client: int, attempt: int = 1) -> bool:
        """Whether its answer never comes."""
        site = self._federation.name(client)
        chance = self._pace(site).dropout
        return chance > 0 and self._draws(round, site, attempt, "dropout").uniform() < chance

    def lessened(self, round: int, site: str, images: int) -> Program:
        """The program as a site with so many images follows it in `round`: with fewer epochs
        or steps, if it would be late otherwise, and partial work is wanted (Li et al. 2020,
        FedProx, section 4.2).

        At least one is left, and a site for which that is too much is late.
        """
        program = self._program
        if not program.timing.partial:
            return program
        time = program.rounds.deadline - self._apart(round, site, 1)

        def taken(length: int) -> float:
            return images_seen(_lasting(program, length), images) * self._pace(site).image

        lengths = range(1, program.train.length + 1)
        return _lasting(program, max(1, bisect_right(lengths, time, key=taken)))

    def _apart(self, round: int, site: str, attempt: int) -> float:
        """What a site's answer takes besides training: transfers, and a delay."""
        pace = self._pace(site)
        delay = self._program.timing.delayed(
            pace.delay_seconds, self._draws(round, site, attempt, "delay")
        )
        return self._bytes * pace.byte + delay

    @property
    def _bytes(self) -> int:
        """What a site is sent and sends in a round: the model and its reply, as they are encoded.

        As if it had the last model, where differences are sent. The same at the coordinator and at
        a site whose network is a part of the model: an order has the whole model. Vectors that an
        order has besides, and what masks add, do not count.
        """
        whole = self._federation.whole or self._federation
        down = order_bytes(self._program, whole.layout)
        return down + sum(spec.bytes for spec in self._federation.parts.values())

    def _paced(self, site: str) -> SitePace:
        return self._program.timing.of(site, self._program.train_seed)

    def _draws(self, round: int, site: str, attempt: int, what: str) -> Draws:
        seed = self._program.train_seed
        return draws(seed, "round", round, "site", site, "attempt", attempt, what)


def _lasting(program: Program, length: int) -> Program:
    if length == program.train.length:
        return program
    return replace(program, train=program.train.lasting(length))
