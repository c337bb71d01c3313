"""What is seen of a site, from files alone: nothing of it says how many images there are.

Whoever can read the port may be another user of the machine. The cost of updates depends on the
number of images, so it is only told in steps.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fedsight.core.errors import FedSightError
from fedsight.deploy.membership import presence
from fedsight.deploy.monitoring.look import (
    Follower,
    Happened,
    Look,
    certificates_near_end,
    clause_of,
    count,
    look_at_certificates,
    look_at_machine,
)
from fedsight.deploy.monitoring.settings import HookSettings
from fedsight.deploy.site import state, unanswered
from fedsight.deploy.site.delivery.received import Received
from fedsight.deploy.site.owner import read_contract
from fedsight.deploy.site.refusals import HELD, Asked
from fedsight.governance.contract import Contract
from fedsight.governance.costs import Costs, is_charged
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Limit

STEPS = 20  # in which the cost is told
ENTRIES = 500  # that are read at a time, so that whoever writes does not wait
ACCOUNTING = 30.0  # seconds between two accounts
ACCOUNTING_WAIT = (
    1.0  # seconds that one is waited for; it counts at a later look if it takes longer
)
LEAST_SILENCE = 2.0  # seconds: a heartbeat may be on its way
_ROUND = re.compile(r"round (\d{1,9})")
# What a line of JSON repeats of one in log.jsonl. Reasons may name files, which stay there.
_TOLD = ("run", "program", "fingerprint", "round", "times", "what", "asked_by")
_QUIET = ("started",)  # it says how many images there are
_SIZED = ("update",)  # other answers say how many there are, and so by how many digits they say it
QUESTIONS = 1000  # about updates, of which the answers are recognised
_LEVELS = {"refused": "warning", "failed": "error", "error": "error"}


class SiteLook:
    """Looks at a site again and again; `known` is what it knew before a restart."""

    def __init__(
        self, home: Path, hooks: HookSettings, began: float, known: dict[str, Any]
    ) -> None:
        self._home, self._hooks, self._began = home, hooks, began
        self._answered = time.monotonic()  # a clock that nobody sets
        self._log = Follower(home / "log.jsonl", from_the_start=False)
        self._refusals: Counter[str] = Counter()
        self._ledger = LedgerReader(home)
        self._accounted = (-math.inf, 0, 0.0)  # when, of how many entries, epsilon
        self._accounting: threading.Thread | None = None
        self._was_up: bool | None = known.get("up") if isinstance(known.get("up"), bool) else None
        received = known.get("received")
        self._received = set(map(str, received)) if isinstance(received, list) else None

    @property
    def known(self) -> dict[str, Any]:
        """What must outlive this process, so that nothing is told twice or never."""
        return {"up": self._was_up, "received": sorted(self._received or ())}

    def look(self) -> Look:
        """What is seen now."""
        look = Look()
        look_at_machine(look, self._home, self._began)
        paths = {"site": self._home / "kit" / "startup" / "client.crt"}
        left = look_at_certificates(look, paths)
        look.happened += certificates_near_end(left, self._hooks.days)
        self._look_at_connection(look)
        self._look_at_work(look)
        self._look_at_log(look)
        try:
            contract = read_contract(self._home / "owner.toml")
        except FedSightError:
            contract = None
        if contract is None or not (self._home / "owner.toml").exists():
            look.reasons.append("the contract cannot be read")
        self._look_at_ledger(look, contract)
        self._look_at_received(look)
        return look

    def _look_at_connection(self, look: Look) -> None:
        connected = presence.is_answered(self._home)
        look.set("connected", connected)
        now = time.monotonic()
        if connected:
            self._answered = now
            if self._was_up is not True:
                look.happened.append(Happened("server_answers"))
            self._was_up = True
            return
        look.reasons.append(unanswered.shortly(self._home).text("en"))
        silent = now - self._answered
        if self._was_up and silent > max(self._hooks.lost_after, LEAST_SILENCE):
            self._was_up = False
            facts = {"silent_seconds": int(silent)}
            look.happened.append(Happened("server_lost", "", facts, "warning"))

    def _look_at_work(self, look: Look) -> None:
        works, said = state.works(self._home), state.state_of(self._home)
        if said == "stopped":
            look.reasons.append("a process of the site is suspended")
        look.set("drained", state.is_drained(self._home))
        look.set("working", bool(works))
        named = _ROUND.search(works[0].doing) if works else None
        look.set("round", int(named[1]) if named else 0)

    def _look_at_log(self, look: Look) -> None:
        for line in self._log.new():
            event = str(line.get("event"))
            if event == "refused" and line.get("what") != HELD:
                times = count(line.get("times")) or 1
                self._refusals[clause_of(line.get("why"))] += times - times // 10
            if event in _QUIET:
                continue
            keys = (*_TOLD, "bytes") if event in _SIZED else _TOLD
            facts = {key: _plain(line[key]) for key in keys if key in line}
            if event == "refused":
                facts["clause"] = clause_of(line.get("why"))
            level = _LEVELS.get(event, "info")
            look.happened.append(Happened(Asked.short(event), "", facts, level))
        look.values["refusals_total"] = dict(self._refusals)

    def _look_at_ledger(self, look: Look, contract: Contract | None) -> None:
        self._ledger.read()
        look.set("ledger_entries", self._ledger.number)
        look.set("updates_total", self._ledger.updates)
        look.set("updates_bytes_total", self._ledger.bytes)
        if why := _not_writable(self._home):
            look.reasons.append(why)
        if contract is None or (limit := contract.limit) is None:
            return
        spent = self._spent(self._ledger.costs.get(contract.data_set, Costs()), limit)
        share = min(spent / limit.epsilon, 1.0)  # an update that would cost more does not leave
        shown = limit.epsilon * math.ceil(share * STEPS - 1e-9) / STEPS
        look.values["epsilon_spent"] = {contract.data_set: float(f"{shown:.6g}")}
        look.values["epsilon_permitted"] = {contract.data_set: limit.epsilon}
        if share >= self._hooks.budget:
            facts = {"data_set": contract.data_set, "permitted": limit.epsilon}
            least = limit.epsilon * math.floor(share * STEPS) / STEPS
            facts["spent_at_least"] = float(f"{least:.6g}")
            what = Happened("budget_near_end", contract.data_set, facts, "warning")
            look.happened.append(what)

    def _spent(self, costs: Costs, limit: Limit) -> float:
        """What was spent, as far as it is known: a thread of its own computes it."""
        when, number, _ = self._accounted
        due = number != self._ledger.number and time.monotonic() - when > ACCOUNTING
        if due and (self._accounting is None or not self._accounting.is_alive()):
            costs, number = costs.copy(), self._ledger.number

            def account() -> None:
                spent = costs.epsilon(limit.delta, limit.trusted)
                self._accounted = time.monotonic(), number, spent

            self._accounting = threading.Thread(target=account, daemon=True, name="accounting")
            self._accounting.start()
            self._accounting.join(ACCOUNTING_WAIT)
        return self._accounted[2]

    def _look_at_received(self, look: Look) -> None:
        """A run that has ended sends its model."""
        received = Received(self._home)
        keys = set(received.orders())
        for key in sorted(keys - self._received) if self._received is not None else ():
            facts: dict[str, Any] = {"key": key}
            with contextlib.suppress(FedSightError):
                order = received.read(key)
                if order is not None:
                    name = Asked.short(order.program.get("name", ""))
                    facts |= {"run": Asked.short(order.run), "program": name}
            look.happened.append(Happened("run_ended", key, facts))
        self._received = keys


class LedgerReader:
    """Reads a site's ledger beside those who write it, without their lock, some entries at a time.

    It verifies nothing: that is for whoever charges the ledger.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "ledger.sqlite"
        self.number = self.updates = self.bytes = 0
        self.costs: dict[str, Costs] = {}
        self._asked: dict[str, None] = {}  # the latest questions about updates

    def read(self) -> None:
        """Read what was added, unless somebody is writing just now."""
        if not self._path.exists():
            return
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError, KeyError):
            while rows := self._rows():
                for number, body in rows:
                    self._add(LedgerEntry.decode(body))
                    self.number = number

    def _rows(self) -> list[tuple[int, str]]:
        what = "SELECT number, body FROM entries WHERE number > ? ORDER BY number LIMIT ?"
        table = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=0.1)
        with contextlib.closing(table):
            return list(table.execute(what, (self.number, ENTRIES)))

    def _add(self, entry: LedgerEntry) -> None:
        if entry.kind == "update":
            self._asked[entry.question] = None
            if len(self._asked) > QUESTIONS:
                del self._asked[next(iter(self._asked))]
        if entry.kind == "released" and entry.question in self._asked:
            self.updates += 1
            self.bytes += entry.bytes
        if is_charged(entry):
            self.costs.setdefault(entry.data_set, Costs()).add(entry)


def _not_writable(home: Path) -> str:
    """Why the ledger could not be written; empty if it could. Nothing is written to find out."""
    files = [home / name for name in ("ledger.sqlite", "ledger.head")]
    places = [home, *(path for path in files if path.exists())]
    if not all(os.access(place, os.W_OK) for place in places):
        return "the ledger cannot be written"
    if files[0].exists() != files[1].exists():
        return "a part of the ledger is missing"
    if os.statvfs(home).f_flag & os.ST_RDONLY:
        return "the ledger's disk is read-only"
    try:
        if files[1].exists():
            json.loads(files[1].read_text(encoding="ascii"))
    except (OSError, ValueError):
        return "the ledger cannot be read"
    return ""


def _plain(value: object) -> object:
    """A number as it is, a text shortened, a list as its texts."""
    if isinstance(value, list):
        return [Asked.short(one) for one in value[:10]]
    return value if isinstance(value, int | float) else Asked.short(value)
