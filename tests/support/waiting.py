"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until `true()`; AssertionError if that takes more than `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"this has not happened within {seconds:.0f} s"
        time.sleep(0.02)
