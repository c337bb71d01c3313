"""What the updates of one data set have cost: which events there were, and their epsilon."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fedsight.governance.entries import LedgerEntry, canonical

# Computes epsilon at a delta from events and how often each happened.
Accountant = Callable[[list[tuple[Mapping[str, Any], int]], float], float]


class Costs:
    """Counts the events of entries of one data set, and computes what they cost together."""

    def __init__(self, accountant: Accountant | None = None) -> None:
        self._accountant = accountant or fedsight_epsilon
        # How often each (event, enforced) happened; the event None is no noise.
        self._counts: Counter[tuple[str | None, bool]] = Counter()
        self._known: dict[tuple[Any, ...], float] = {}  # epsilons that were computed

    def copy(self) -> Costs:
        """The same, to be added to by itself."""
        found = Costs(self._accountant)
        found._counts, found._known = Counter(self._counts), self._known
        return found

    def add(self, entry: LedgerEntry) -> None:
        """Count what `entry` costs."""
        event = None if entry.event is None else canonical(entry.event)
        self._counts[event, entry.event is not None and entry.enforced] += entry.times

    def epsilon(self, delta: float, trusted: bool) -> float:
        """Epsilon at `delta`; infinite if an update left without noise that counts. `trusted`:
        noise that the coordinator promised counts too."""
        events = []
        for (text, enforced), count in sorted(self._counts.items(), key=repr):
            if text is None or not (enforced or trusted):
                return math.inf
            events.append((text, count))
        if not events:
            return 0.0
        key = (*events, delta)
        if key not in self._known:
            tables = [(json.loads(text), count) for text, count in events]
            self._known[key] = float(self._accountant(tables, delta))
        epsilon = self._known[key]
        return math.inf if math.isnan(epsilon) else epsilon


def is_charged(entry: LedgerEntry) -> bool:
    """Whether an entry is of something that costs epsilon."""
    return entry.kind == "update" or entry.event is not None


def fedsight_epsilon(events: list[tuple[Mapping[str, Any], int]], delta: float) -> float:
    """Epsilon of the events at `delta`, by FedSight's own accountant."""
    from fedsight.privacy.accounting import COARSE, spent
    from fedsight.privacy.event import Event

    found: float = spent([(Event.of(table), count) for table, count in events], delta, grid=COARSE)
    return found
