"""The site's ledger: what left it over all runs and jobs, and what that has cost of its epsilon.

An entry is on the disk before anything leaves. A crash in between costs at most that round: it is
charged and not sent, never the other way round.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError, StoreError
from fedsight.governance import entries
from fedsight.governance.entries import LedgerEntry, canonical
from fedsight.governance.ledger_file import Chain

BACKWARDS = timedelta(minutes=5)  # how far a clock may go back between two entries
# Epsilon of events and how often each happened, at delta.
Account = Callable[[list[tuple[Mapping[str, Any], int]], float], float]


@dataclass(frozen=True)
class Limit:
    """What a data set's updates may cost together: `epsilon` at `delta`."""

    epsilon: float
    delta: float
    trusted: bool  # whether noise that the coordinator promises counts


class Ledger:
    """The ledger in a site's folder; opening it reads and checks every entry.

    Raises chain.Altered (a StoreError) when an entry is not as it was written, StoreError when the
    ledger cannot be read or written.
    """

    def __init__(self, home: Path, account: Account | None = None) -> None:
        self._chain = Chain(home)
        self._account = account or composed
        self._known: dict[tuple[str, str, int, str], LedgerEntry] = {}
        self._last: LedgerEntry | None = None
        # By data set: events, enforced or promised, and how many; None: not protected by noise.
        self._costs: dict[str, Counter[tuple[str | None, bool]]] = {}
        self._epsilons: dict[tuple[Any, ...], float] = {}  # what was computed before
        self.entries()

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last entry: noted elsewhere, it shows a ledger written anew."""
        return self._chain.number, self._chain.hash

    def entries(self) -> list[LedgerEntry]:
        """All entries, checked."""
        found = Chain(self._chain.path.parent)
        with self._chain.open() as table:
            for entry in self._chain.read(table):
                self._learn(entry)
            return list(found.read(table))

    def append(self, entry: LedgerEntry, limit: Limit | None = None) -> LedgerEntry:
        """Write an entry and return it with its number and time; what is known is not added again.

        Raises DeployError if it would cost more than `limit`, or if the clock has gone back.
        """
        with self._chain.open() as table:
            for found in self._chain.read(table):
                self._learn(found)
            known = self._known.get(entry.mark)
            if known is not None and _tells_nothing_new(entry, known):
                return known
            now = entries.now()
            if entry.kind != "clock":
                self._refuse_old(now)
            if limit is not None:
                self.refuse_more(entry, limit)
            number = self._chain.number + 1
            entry = replace(entry, number=number, time=now.isoformat(timespec="seconds"))
            self._chain.append(table, entry)
            self._learn(entry)
            return entry

    def spent(self, data_set: str, delta: float, trusted: bool = False) -> float:
        """Epsilon at `delta` of all that is known to have left of the data set.

        `trusted`: noise that the coordinator promised counts too. Infinite if an update left
        without noise.
        """
        return self._epsilon(self._costs.get(data_set, Counter()), delta, trusted)

    def would_spend(self, entry: LedgerEntry, delta: float, trusted: bool = False) -> float:
        """Epsilon at `delta` if `entry` left its data set, too."""
        costs = Counter(self._costs.get(entry.data_set, Counter()))
        costs[_cost(entry)] += entry.times
        return self._epsilon(costs, delta, trusted)

    def refuse_more(self, entry: LedgerEntry, limit: Limit) -> None:
        """Raise DeployError if the data set's updates would cost more than `limit` with `entry`."""
        would = self.would_spend(entry, limit.delta, limit.trusted)
        if would <= limit.epsilon:
            return
        spent = self.spent(entry.data_set, limit.delta, limit.trusted)
        if math.isinf(spent):
            cause = "an update of these images left without noise that counts here"
        elif math.isinf(would):
            cause = "the update would leave without noise that counts here"
        else:
            cause = (
                f"with this the updates would cost epsilon {would:.4g} at delta {limit.delta:g}, "
                f"and {limit.epsilon:g} is permitted ({spent:.4g} is spent)"
            )
        raise DeployError(
            f"contract.epsilon: {cause}", "its owner decides: contract.epsilon in site.toml"
        )

    def _epsilon(
        self, costs: Mapping[tuple[str | None, bool], int], delta: float, trusted: bool
    ) -> float:
        events = []
        for (text, enforced), count in sorted(costs.items(), key=repr):
            if text is None or not (enforced or trusted):
                return math.inf
            events.append((text, count))
        if not events:
            return 0.0
        key = (*events, delta)
        if key not in self._epsilons:
            tables = [(json.loads(text), count) for text, count in events]
            self._epsilons[key] = float(self._account(tables, delta))
        found = self._epsilons[key]
        return math.inf if math.isnan(found) else found

    def _learn(self, entry: LedgerEntry) -> None:
        self._last = entry
        self._known[entry.mark] = entry
        if entry.kind == "update" or entry.event is not None:
            costs = self._costs.setdefault(entry.data_set, Counter())
            costs[_cost(entry)] += entry.times

    def _refuse_old(self, now: datetime) -> None:
        last = self._last
        if last is not None and now < last.moment - BACKWARDS:
            raise StoreError(
                f"the site's clock says {now:%Y-%m-%d %H:%M} UTC, but entry {last.number} of its "
                f"ledger was written at {last.moment:%Y-%m-%d %H:%M}",
                "set the clock right; if it was wrong then and is right now, its owner says so "
                "with: fedsight site ledger --clock",
            )


def composed(events: list[tuple[Mapping[str, Any], int]], delta: float) -> float:
    """Epsilon by FedSight's accountant."""
    from fedsight.privacy.accounting import COARSE, spent
    from fedsight.privacy.event import Event

    found: float = spent([(Event.of(table), count) for table, count in events], delta, grid=COARSE)
    return found


def _tells_nothing_new(entry: LedgerEntry, known: LedgerEntry) -> bool:
    """Whether what `known` says has left is what would leave with `entry`, noise and all.

    Where the coordinator adds the noise, the same bytes get fresh noise each time they are summed.
    """
    if entry.kind == "clock" or (entry.event is not None and not entry.enforced):
        return False
    facts = ("event", "times", "enforced", "data_set")
    return all(getattr(entry, fact) == getattr(known, fact) for fact in facts)


def _cost(entry: LedgerEntry) -> tuple[str | None, bool]:
    return (None, False) if entry.event is None else (canonical(entry.event), entry.enforced)
