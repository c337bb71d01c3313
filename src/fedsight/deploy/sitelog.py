"""The site's own log: what left the building, when, how many bytes, under which protections."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.errors import StoreError


class SiteLog:
    """Lines of JSON in `log.jsonl` of the site's folder; a line is on the disk before data leave."""

    def __init__(self, home: Path) -> None:
        self.path = home / "log.jsonl"

    def write(self, event: str, **facts: Any) -> None:
        """Add a line. Raises StoreError when it cannot be written: then nothing may leave."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"the site's log cannot be written ({error.strerror})",
                "free some space at the site: without its log, nothing leaves it",
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All lines; a torn last one, left by a crash, is not one."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found
