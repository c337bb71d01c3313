"""Vectors on their way to a site: their pieces come one by one, some of them twice or late."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.engines.remote import messages

LARGEST = 8 << 30  # bytes of a vector that a site accepts: two thousand million parameters
NAMES = ("vector", "extras", "personal")  # what a coordinator may send


def count(fields: Mapping[str, Any], key: str) -> int:
    """A count in a header of the coordinator's; SiteError for anything else."""
    return messages.whole_number(fields, key, "the coordinator")


@dataclass
class Vector:
    """What came of a vector under one mark."""

    mark: int
    data: bytearray
    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, stop), apart, ascending
    closed: bool = False  # it is in use: what it is trained from must be what was checked

    def put(self, start: int, body: bytes) -> None:
        """A piece in its place."""
        self.data[start : start + len(body)] = body
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*self.spans, (start, start + len(body))]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        self.spans = merged

    def holds(self, start: int, body: bytes) -> bool:
        """Whether a piece is there already, bit by bit."""
        return memoryview(self.data)[start : start + len(body)] == body


class Incoming:
    """The newest vector of each name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Vector] = {}  # by name

    def add(self, fields: Mapping[str, Any], body: bytes) -> None:
        """Put a piece in its place; SiteError if it does not fit, or would change what is in use.

        A piece that comes once more is harmless at any time.
        """
        mark = count(fields, "mark")
        start = count(fields, "start")
        total = count(fields, "total")
        name = str(fields.get("name"))
        misfit = SiteError(f"a piece of {name[:50]} does not fit", "update the coordinator")
        if total > LARGEST or start + len(body) > total or name not in NAMES:
            raise misfit
        with self._lock:
            known = self._newest.get(name)
            if known is not None and known.mark > mark:
                return  # the line was slow: the pieces of a later one have come already
            if known is None or known.mark < mark:
                known = self._newest[name] = Vector(mark, bytearray(total))
            if len(known.data) != total:
                raise misfit
            if not known.closed:
                known.put(start, body)
            elif not known.holds(start, body):
                raise SiteError(
                    f"a piece would change the {name} after it was put to use",
                    "the coordinator sends two under one mark, or cheats: ask the operator",
                )

    def whole(self, name: str, mark: int) -> bytearray:
        """The vector that came under `mark`, which does not change any more; SiteError if it is
        not here, or pieces of it are missing.
        """
        with self._lock:
            known = self._newest.get(name)
            if known is None or known.mark != mark:
                raise SiteError(f"the {name} that is meant is not here", "send it first")
            if known.spans != [(0, len(known.data))]:
                raise SiteError(
                    f"pieces of the {name} that is meant are missing", "send them first"
                )
            known.closed = True
            return known.data
