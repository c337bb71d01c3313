"""Rounds of secure aggregation under a coordinator that does as it likes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import KEY, SEED, Minimums, SecAggClient, mask_key
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.keys import PUBLIC, Identity, KeyPair, derive
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.shares import SHARE, join

LENGTH = 64


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


def binding(sites: int, parameters: Parameters, **changes: object) -> Binding:
    """The binding of a round of `sites` sites."""
    roster = tuple((f"site-{n}", identity(n).public.hex()) for n in range(sites))
    made = Binding(
        "run", "program", "", 1, 1, "order", roster, (0,) * sites, parameters, {"bits": 20}
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def update(site: int) -> Residues:
    """What a site wants to hide."""
    return np.random.default_rng(site).integers(0, 1 << 20, LENGTH).astype(np.uint32)


def lists(sites: int, dropped: Iterable[int]) -> m.Lists:
    """These dropped out, and all others survived."""
    gone = frozenset(dropped)
    return m.Lists(frozenset(range(sites)) - gone, gone)


class MaliciousCoordinator:
    """Relays messages, with whatever it likes left out, and collects the shares that it is given.

    A colluder is a site that tells it everything; here it is an honest client that is asked for
    whatever the coordinator wants to know.
    """

    def __init__(self, of: Binding, kind: type[SecAggClient] = SecAggClient) -> None:
        self.binding = of
        self.clients = {n: kind(identity(n), of, n, Minimums()) for n in range(len(of.roster))}
        self.adverts: dict[int, bytes] = {}
        self.sealed: dict[int, dict[int, bytes]] = {}  # dealer -> receiver -> sealed shares
        self.confirmed: dict[int, bytes] = {}
        self.agreed: dict[int, bytes] = {}
        self.updates: dict[int, Residues] = {}  # those that are not `update(site)`
        self.masked: dict[int, Residues] = {}
        self.inbox: dict[int, set[int]] = {}
        self.learnt: dict[tuple[int, bytes], dict[int, bytes]] = {}  # (site, secret) -> shares

    def advertise(self) -> None:
        """All sites send their keys."""
        for n, client in self.clients.items():
            self.adverts[n] = self._record(client.advertise(), m.ADVERTISE, m.ADVERT)[n]

    def deal(self, sites: Iterable[int], among: Iterable[int] | None = None) -> None:
        """`sites` deal shares to their neighbours, or to those of `among` that are neighbours."""
        chosen = set(self.adverts if among is None else among)
        for n in sites:
            near = {o: self.adverts[o] for o in self.binding.graph.of(n) if o in chosen}
            message = self.clients[n].share(m.write(m.ADVERTS, self.binding, near))
            self.sealed[n] = self._record(message, m.SHARES, m.SEALED)

    def mask(self, site: int, dealers: Iterable[int] | None = None) -> None:
        """Hand a site the shares of `dealers`, or of all its neighbours, and take its update."""
        near = set(self.binding.graph.of(site)) & set(self.sealed)
        self.inbox[site] = near = near if dealers is None else near & set(dealers)
        found = {o: self.sealed[o][site] for o in near if site in self.sealed[o]}
        message = self.clients[site].confirm(m.write(m.INBOX, self.binding, found))
        self.confirmed[site] = self._record(message, m.CONFIRM, 64)[site]
        self.masked[site] = self.updates.get(site, update(site)).copy()
        self.clients[site].masker().mask(self.masked[site])

    def agree(self, site: int, told: m.Lists) -> None:
        """Have a site sign lists."""
        message = self.clients[site].agree(m.write_lists(self.binding, told))
        self.agreed[site] = self._record(message, m.AGREE, 64)[site]

    def request(self, site: int, told: m.Lists, agreed: Mapping[int, bytes] | None = None) -> bytes:
        """The request to unmask, with the best proof that there is."""
        needed = self.binding.parameters.signatures
        known = dict(self.agreed if agreed is None else agreed)
        forged = sorted(self.binding.committee - set(known))[: max(0, needed - len(known))]
        signatures = known | dict.fromkeys(forged, bytes(64))
        first = sorted(signatures)[:needed]
        near = set(self.binding.graph.of(site)) & told.survivors & set(self.confirmed)
        if self.binding.graph.complete:
            near = set()
        proof = m.Proof({n: signatures[n] for n in first}, {n: self.confirmed[n] for n in near})
        return m.write_unmask(self.binding, told, proof)

    def learn(self, site: int, answer: bytes) -> None:
        """Note the shares in a site's answer to a request to unmask."""
        for subject, record in self._record(answer, m.ANSWER, 1 + SHARE).items():
            self.learnt.setdefault((subject, record[:1]), {})[site] = record[1:]

    def take_masks_off(self, sites: Iterable[int]) -> Residues:
        """The sum of the updates of `sites`, as far as what was learnt takes their masks off.

        Masks between two of `sites` cancel if both have them; ValueError for a missing secret.
        """
        group = set(sites)
        total = np.sum([self.masked[n] for n in sorted(group)], axis=0, dtype=np.uint32)
        for n in group:
            seed = self._secret(n, SEED)
            keys = [(derive(seed, self.binding.digest, b"fedsight self"), True)]
            for other in self.inbox[n] - {o for o in group if n in self.inbox.get(o, ())}:
                pair = KeyPair(self._secret(other, KEY))
                public = self.adverts[n][PUBLIC : 2 * PUBLIC]
                keys.append((mask_key(pair, public, self.binding.digest, (n, other)), other > n))
            masks.apply(total, keys)
        return total

    def _secret(self, site: int, kind: bytes) -> bytes:
        return join(self.learnt.get((site, kind), {}), self.binding.parameters.threshold)

    def _record(self, message: bytes, mark: bytes, length: int) -> dict[int, bytes]:
        return m.read(mark, self.binding, message, length, "a site")


def as_told(client: SecAggClient, request: bytes) -> bytes:
    """The answer of the first version's client, which believed the lists that it was told."""
    told, _ = m.read_unmask(client.binding, request)
    assert client.number in told.survivors
    assert len(told.survivors) >= client.binding.parameters.survivors
    return client._reveal(told)


def lies(sites: int, heard: Sequence[int], each: int) -> dict[int, m.Lists]:
    """What each site of a complete graph is told: that `each` of those that the target heard of
    dropped out, in turn, so that all their mask keys come out."""
    told, turn = {}, 0
    for site in range(sites):
        gone: list[int] = []
        while len(gone) < each:
            one, turn = heard[turn % len(heard)], turn + 1
            gone += [one] * (one != site)
        told[site] = lists(sites, gone)
    return told


def everybody_refuses(attacker: MaliciousCoordinator, told: dict[int, m.Lists]) -> None:
    """Some sign what they are told, but nobody answers without enough signatures of the same."""
    signed: dict[m.Lists, dict[int, bytes]] = {lie: {} for lie in told.values()}
    for site, lie in told.items():
        with contextlib.suppress(SiteError):
            attacker.agree(site, lie)
            signed[lie][site] = attacker.agreed[site]
    for site, lie in told.items():
        with pytest.raises(SiteError, match=r"nothing was revealed"):
            attacker.clients[site].unmask(attacker.request(site, lie, signed[lie]))
