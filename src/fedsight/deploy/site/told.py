"""What the owner of a site is told while it runs: each request that was refused or has failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedsight.deploy.monitoring.look import Follower

INTERVAL = 1.0  # seconds


class RefusalsTold:
    """Follows the site's log. Its refusals are limited (`deploy/site/refusals.py`), and may name
    files: `private` shows them to the owner alone."""

    def __init__(self, home: Path, private: Callable[[str], None]) -> None:
        self._log = Follower(home / "log.jsonl", from_the_start=False)
        self._private = private
        self._next = 0.0

    def poll(self) -> None:
        """Tell what is new; called regularly."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + INTERVAL
        for line in self._log.new():
            if line.get("event") in ("refused", "failed"):
                what, why = line.get("what"), line.get("why")
                self._private(f"the request '{what}' was refused or has failed: {why}")
