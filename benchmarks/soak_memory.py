"""The memory of a federation's processes over a run, and a line through it with its interval."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from loopback import Loopback, Seen, finished
from scipy.stats import t as student
from soak_consoles import Consoles

from fedsight.coordinator.store import RunStore

EVERY = 2.0  # seconds between two looks
WARM_UP = 0.4  # the part of a stretch over whose memory no line is fitted
# A line is fitted to the medians of so many blocks: what follows closely on one another is not
# independent, and would make the interval too narrow.
BLOCKS = 10
GROWTH = 0.02  # of its memory in a hundred rounds, at most: the upper end of the interval


@dataclass(frozen=True)
class Look:
    """What is held at one moment."""

    seconds: float
    rounds: int
    kib: Mapping[str, int]  # by part and role; a page is divided among those that share it
    who: Mapping[str, frozenset[tuple[int, int]]]  # by part: its processes


@dataclass
class Gauge:
    """Looks at the memory of server, sites and consoles every few seconds."""

    loopback: Loopback
    store: RunStore
    consoles: Consoles
    over: threading.Event = field(default_factory=threading.Event)
    looks: list[Look] = field(default_factory=list)
    threads: dict[str, int] = field(default_factory=dict)  # by role: the most of one process

    def run(self) -> None:
        """To be run in a thread of its own, until `over`."""
        began = time.monotonic()
        while not self.over.wait(EVERY):
            parts = {name: [one] for name, one in self.consoles.processes().items()}
            for home in self.loopback.homes():
                starter = self.loopback.starter(home)
                parts[home.name] = [*([starter] if starter else []), *self.loopback.look(home)]
            kib: dict[str, int] = {}
            for part, seen in parts.items():
                for one in seen:
                    kib[f"{part}: {one.role}"] = kib.get(f"{part}: {one.role}", 0) + one.share()
                    count = one.status().get("Threads", 0)
                    self.threads[one.role] = max(self.threads.get(one.role, 0), count)
            who = {part: processes_of(seen) for part, seen in parts.items()}
            now = time.monotonic() - began
            self.looks.append(Look(now, finished(self.store), kib, who))

    def quiet(self, first: int, last: int) -> dict[str, dict[str, Any]]:
        """By part, and by part and role: the line through the rounds after `first`, while no
        process of the part changed."""
        found: dict[str, dict[str, Any]] = {}
        looks = [look for look in self.looks if first < look.rounds < last]
        for part in dict.fromkeys(part for look in looks for part in look.who):
            same = unchanged(looks, part)
            roles = dict.fromkeys(key for look in same for key in look.kib if of(key) == part)
            for key in [part, *roles]:
                if line := through([(look.seconds, look.rounds, held(look, key)) for look in same]):
                    found[key] = line
        return found

    def whole(self) -> dict[str, dict[str, Any]]:
        """All processes of the server, of all sites, and the consoles from first to last, whoever
        came and went: the median MiB of each tenth of the time."""
        groups = {"server": ["server"], "all sites": [home.name for home in self.loopback.homes()]}
        groups["all sites"].remove("server")
        groups |= {name: [name] for name in self.consoles.found()}
        return {
            group: {
                "mib_by_tenth": [
                    round(float(np.median([total(look, parts) for look in block])) / 1024, 1)
                    for block in in_blocks(self.looks, 10)
                ]
            }
            for group, parts in groups.items()
        }


def of(key: str) -> str:
    """The part of a key `part: role`."""
    return key.partition(": ")[0]


def held(look: Look, key: str) -> int:
    """KiB of a part, or of a role in a part."""
    return look.kib.get(key, 0) if ": " in key else total(look, [key])


def total(look: Look, parts: Sequence[str]) -> int:
    """KiB of parts together."""
    return sum(value for key, value in look.kib.items() if of(key) in parts)


def unchanged(looks: Sequence[Look], part: str) -> list[Look]:
    """Those of the looks in which the part has the processes that it has the longest."""
    most = Counter(look.who.get(part, frozenset()) for look in looks).most_common(1)
    return [look for look in looks if most and look.who.get(part) == most[0][0]]


def in_blocks(values: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Cut into so many parts next to one another, or fewer."""
    count = min(count, len(values))
    edges = [round(number * len(values) / count) for number in range(count + 1)] if count else []
    return [values[a:b] for a, b in pairwise(edges)]


def through(points: Sequence[tuple[float, int, int]]) -> dict[str, Any] | None:
    """The line through (seconds, rounds, KiB) after the warm-up, with the 95 % interval of its
    slope; None if there are too few points."""
    kept = points[int(len(points) * WARM_UP) :]
    blocks = in_blocks(kept, BLOCKS)
    if len(blocks) < 4 or kept[-1][1] == kept[0][1]:
        return None
    seconds, rounds, kib = np.array([np.median(block, axis=0) for block in blocks]).T
    slope, error = slope_of(rounds, kib / 1024)
    hourly, _ = slope_of(seconds / 3600, kib / 1024)
    half = float(student.ppf(0.975, len(blocks) - 2)) * error
    middle = float(np.median(kib)) / 1024
    return {
        "mib": round(middle, 1),
        "rounds": kept[-1][1] - kept[0][1],
        "seconds": round(kept[-1][0] - kept[0][0], 1),
        "mib_per_100_rounds": [
            round(100 * value, 3) for value in (slope - half, slope, slope + half)
        ],
        "mib_per_hour": round(hourly, 1),
        "flat": 100 * (slope + half) <= GROWTH * middle,
    }


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope by least squares and its standard error."""
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    rest = y - y.mean() - slope * away
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (away @ away)))


def processes_of(seen: Sequence[Seen]) -> frozenset[tuple[int, int]]:
    """Who they are."""
    return frozenset((one.pid, one.began) for one in seen)
