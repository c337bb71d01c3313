"""Vectors on their way to a site: their pieces come one by one, some of them twice or late."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.engine import wire

LARGEST = 8 << 30  # bytes of a vector that a site accepts: two thousand million parameters
NAMES = ("vector", "extras", "personal")  # what a coordinator may send


def count(fields: Mapping[str, Any], key: str) -> int:
    """A count in a header of the coordinator's; SiteError for anything else."""
    return wire.whole_number(fields, key, "the coordinator")


class Incoming:
    """The newest vector of each name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[int, bytearray]] = {}  # by name: its mark, and what came

    def add(self, fields: Mapping[str, Any], body: bytes) -> None:
        """Put a piece in its place; SiteError if it does not fit."""
        mark = count(fields, "mark")
        start = count(fields, "start")
        total = count(fields, "total")
        name = str(fields.get("name"))
        if total > LARGEST or start + len(body) > total or name not in NAMES:
            raise SiteError(f"a piece of {name[:50]} does not fit", "update the coordinator")
        with self._lock:
            known = self._newest.get(name)
            if known is not None and known[0] > mark:
                return  # the line was slow: the pieces of a later one have come already
            if known is None or known[0] < mark or len(known[1]) != total:
                known = self._newest[name] = mark, bytearray(total)
            known[1][start : start + len(body)] = body

    def whole(self, name: str, mark: int) -> bytearray:
        """The vector that came under `mark`; SiteError if it is not here."""
        with self._lock:
            known = self._newest.get(name)
        if known is None or known[0] != mark:
            raise SiteError(f"the {name} that is meant is not here", "send it first")
        return known[1]
