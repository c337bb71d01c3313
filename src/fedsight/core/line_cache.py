"""Remembers what lines of growing files were read as, for whoever reads the files again and again.

A history gets a line with each round, and a console reads all of it whenever one comes: with 1,000
sites 15 kB each. A line is known by its SHA-256, so it makes no difference which file it is in, or
whether that was replaced meanwhile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

MOST = 4096  # lines that are remembered
T = TypeVar("T")


class LineCache(Generic[T]):
    """What `read` makes of a line; the same value each time, which nobody may change."""

    def __init__(self, read: Callable[[bytes], T], most: int = MOST) -> None:
        """`most`: how many lines are remembered, those that were read last."""
        self._read, self._most = read, most
        self._known: dict[bytes, T] = {}
        self._lock = threading.Lock()

    def __call__(self, line: bytes) -> T:
        """What the line says; raises what `read` raises, each time."""
        digest = hashlib.sha256(line).digest()
        with self._lock:
            if digest in self._known:
                value = self._known[digest] = self._known.pop(digest)  # the newest
                return value
        value = self._read(line)
        with self._lock:
            self._known[digest] = value
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        return value
