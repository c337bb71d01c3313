"""A scripted coordinator of secure aggregation that asks one real site whatever it likes.

The other sites of its rounds collude: they are clients that tell it everything, and sign anything.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from attacked_site import AttackedSite

from fedsight.core.package import installed
from fedsight.core.types import Order
from fedsight.engines.protected import encoding_plan, order_digest
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.consistency import lists_part
from fedsight.privacy.secagg.keys import Identity
from fedsight.program.federation import Federation
from fedsight.program.program import Program

PEERS = ("peer-1", "peer-2", "peer-3")


@dataclass(frozen=True)
class Step:
    """One thing that the coordinator does.

    `kind`: begin, share, confirm, train, agree, unmask, again (the last question once more) or
    restart (of the site's job). `mangle`: what becomes of the body: "", cut, flip, long or other.
    """

    kind: str
    scale: float = 1.0  # of the model's parameters
    round: int = 1
    among: frozenset[int] = frozenset({0, 1, 2})  # of the peers, those that are named
    gone: frozenset[int] = frozenset()  # of all numbers, those said to have dropped out
    mangle: str = ""


@dataclass
class Randomness:
    """The operating system's, for keys: the same bytes in the same order, in each conversation."""

    drawn: int = 0

    def token_bytes(self, count: int) -> bytes:
        """The next bytes."""
        self.drawn += 1
        return hashlib.shake_256(b"%d" % self.drawn).digest(count)

    def randbelow(self, bound: int) -> int:
        """The next number."""
        return int.from_bytes(self.token_bytes(64), "big") % bound

    def rule(self, monkeypatch: Any) -> Randomness:
        """Make keys from these. Noise stays fresh: what it protects is not compared."""
        stand_in = SimpleNamespace(token_bytes=self.token_bytes, randbelow=self.randbelow)
        for module in ("keys", "client", "shares"):
            monkeypatch.setattr(f"fedsight.privacy.secagg.{module}.secrets", stand_in)
        return self


@dataclass
class Conversation:
    """Attempts at rounds with `site`; `said` is every answer, but the values of an update."""

    site: AttackedSite
    program: Program
    federation: Federation
    said: list[tuple[str, dict[str, Any], bytes]] = field(default_factory=list)
    binding: m.Binding | None = None
    peers: dict[int, SecAggClient] = field(default_factory=dict)
    adverts: dict[int, bytes] = field(default_factory=dict)
    signed: dict[int, bytes] = field(default_factory=dict)
    last: tuple[str, Mapping[str, Any], bytes] = ("identify", {}, b"")

    def hold(self, steps: list[Step]) -> Conversation:
        """Join the run, and do all of `steps`."""
        serials = itertools.count(1)
        self.said.append(("propose", self.site.join(self.program, sites=4), b""))
        for step in steps:
            if step.kind == "restart":
                self.site.restart()
                self.site.join(self.program, sites=4)
            elif step.kind == "again":
                self._ask(*self.last)
            elif step.kind == "begin":
                self._begin(step, next(serials))
            elif self.binding is None:
                self._ask(step.kind, {}, b"")
            elif step.kind == "train":
                self._train(step)
            else:
                self._ask(step.kind, {}, self._body(step))
        return self

    def _ask(self, kind: str, header: Mapping[str, Any], body: bytes) -> bytes:
        self.last = kind, header, body
        fields, data = self.site.ask(kind, header, body)
        self.said.append((kind, fields, data))
        return data

    def _order(self, step: Step) -> Order:
        start = self.federation.initial[self.federation.layout.travelling]
        return Order(step.round, start * step.scale)

    def _begin(self, step: Step, serial: int) -> None:
        """A binding of all, numbered with the site among them, and everybody's keys."""
        own = bytes.fromhex(self.site.identity())
        people = [Identity(hashlib.sha256(name.encode()).digest()) for name in PEERS]
        names = [*PEERS[:2], self.site.home.name, *PEERS[2:]]
        publics = [people[0].public, people[1].public, own, people[2].public]
        roster = tuple((name, key.hex()) for name, key in zip(names, publics, strict=True))
        plan = encoding_plan(self.federation)
        assert plan is not None
        given = self.program.secure.parameters(len(roster))
        order = order_digest(self._order(step))
        table = plan.quantiser(len(roster)).table()
        of = self.program.fingerprint, installed().sha256
        accepted = (0,) * len(roster)
        binding = m.Binding("run1", *of, step.round, serial, order, roster, accepted, given, table)
        body = _mangled(binding.data, step.mangle)
        answer = self._ask("advertise", {}, body)
        if step.mangle:
            return
        self.binding, self.adverts, self.signed = binding, {}, {}
        self.peers = {
            n: SecAggClient(people[n - (n > 2)], binding, n, Minimums()) for n in (0, 1, 3)
        }
        for n, client in self.peers.items():
            self.adverts |= m.read(m.ADVERTISE, binding, client.advertise(), m.ADVERT, str(n))
        if answer:
            self.adverts |= m.read(m.ADVERTISE, binding, answer, m.ADVERT, "site")

    def _train(self, step: Step) -> None:
        plan = encoding_plan(self.federation)
        assert plan is not None
        assert self.binding is not None
        fields, data = self.site.train(
            self._order(step).vector,
            None,
            step.round,
            accepted=0,
            quantiser=plan.quantiser(len(self.binding.roster)).table(),
        )
        self.said.append(("train", fields, bytes(len(data))))

    def _body(self, step: Step) -> bytes:
        """The body of a question of the phases after the first."""
        binding = self.binding
        assert binding is not None
        near = {0, 1, 3} & {(0, 1, 3)[n] for n in step.among}
        if step.kind == "share":
            body = m.write(m.ADVERTS, binding, {n: self.adverts[n] for n in near})
        elif step.kind == "confirm":
            body = m.write(m.INBOX, binding, self._sealed(near))
        else:
            body = self._lists(step, binding)
        return _mangled(body, step.mangle)

    def _sealed(self, near: set[int]) -> dict[int, bytes]:
        """The shares that peers deal to the site; each deals once in an attempt."""
        binding, found = self.binding, {}
        assert binding is not None
        for n in near & set(self.peers):
            others = {o: key for o, key in self.adverts.items() if o != n}
            dealt = self.peers[n].share(m.write(m.ADVERTS, binding, others))
            found[n] = m.read(m.SHARES, binding, dealt, m.SEALED, str(n)).get(2, bytes(m.SEALED))
        return found

    def _lists(self, step: Step, binding: m.Binding) -> bytes:
        survivors = frozenset(range(4)) - step.gone
        told = m.Lists(survivors, step.gone)
        if step.kind == "agree":
            return m.write_lists(binding, told)
        part = lists_part(binding, told)
        people = {n: Identity(hashlib.sha256(PEERS[n - (n > 2)].encode()).digest()) for n in (0, 1)}
        signatures = {n: one.sign(part) for n, one in people.items()}
        for kind, _, data in reversed(self.said):  # the site's own, from its last agreement
            if kind == "agree" and data:
                signatures |= m.read(m.AGREE, binding, data, 64, "site")
                break
        else:
            person = Identity(hashlib.sha256(PEERS[2].encode()).digest())
            signatures[3] = person.sign(part)
        return m.write_unmask(binding, told, m.Proof(signatures, {}))


def _mangled(body: bytes, how: str) -> bytes:
    if how == "cut":
        return body[: len(body) // 2]
    if how == "flip":
        return body[:-5] + bytes([body[-5] ^ 1]) + body[-4:] if len(body) > 5 else b"x"
    if how == "long":
        return body + body[-36:]
    return hashlib.shake_256(body).digest(len(body)) if how == "other" else body
