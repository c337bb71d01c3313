"""Helpers for tests with real processes: wait for something, look whether a process runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

TIMEOUT = 60.0  # seconds after which a test gives up
DEPLOYED = 90.0  # the same where whole servers and sites start
POLL_INTERVAL = 0.02  # seconds


def wait_until(condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Wait until `condition()` is true; AssertionError if it does not become true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s"
        time.sleep(POLL_INTERVAL)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie (nobody may be there to reap an orphan)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def python_path(*folders: Path) -> str:
    """A PYTHONPATH for a child process that imports like this one, and from `folders` first."""
    return os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
