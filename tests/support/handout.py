"""The order in which files of tests are handed out to the processes that run them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping

ANY = 0.5  # seconds, about, of a file of which nothing is known: its tests are quick or new
LONGER = 2.0  # times as long as they compute is what tests of real federations take, about


def order(
    files: Iterable[str], seconds: Mapping[str, float], waiting: Collection[str], processes: int
) -> list[str]:
    """The files, those that take longest first, by the `seconds` that they compute.

    Of those in `waiting`, whose tests wait for servers and sites most of the time, half of the
    processes have one at a time at most, as far as can be told: where all of them waited, a
    processor would be idle.
    """
    found = {
        name: (seconds.get(name, 0.0) + ANY) * (LONGER if name in waiting else 1) for name in files
    }
    queues = {
        waits: deque(sorted((f for f in found if (f in waiting) == waits), key=lambda f: -found[f]))
        for waits in (True, False)
    }
    # When each process is free again, which it is, and whether it waits until then.
    busy = [(0.0, number, False) for number in range(processes)]
    ordered: list[str] = []
    while len(ordered) < len(found):
        free, number, _ = heapq.heappop(busy)
        others = sum(waits for *_, waits in busy)
        waits = bool(queues[True]) and (others < processes // 2 or not queues[False])
        ordered.append(queues[waits].popleft())
        heapq.heappush(busy, (free + found[ordered[-1]], number, waits))
    return ordered
