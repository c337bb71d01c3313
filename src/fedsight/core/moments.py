"""A moment that all processes of a machine can measure from, whatever happens to its clock.

The time of day jumps when somebody sets it. Linux counts the seconds since the machine started for
all processes alike (`CLOCK_MONOTONIC`, clock_gettime(2)); they begin again with each start, whose
random name (`boot_id`, random(4)) tells which of them a moment counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Moment:
    """A moment, as it can be written into a file."""

    wall: float  # seconds since 1970
    ticks: float  # seconds since the machine started
    boot: str  # which start of the machine

    @classmethod
    def now(cls) -> Moment:
        """This moment."""
        return cls(time.time(), time.monotonic(), _boot())

    @property
    def ago(self) -> float:
        """Seconds since then; by the time of day only if the machine was started in between."""
        passed = time.monotonic() - self.ticks
        if self.boot != _boot() or passed < 0:
            return time.time() - self.wall
        return passed


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""  # another system than Linux
