"""The site's own log: what left the building, when, how many bytes, under which protections."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.errors import ConfigError, DataError, DeployError, FedSightError, StoreError
from fedsight.core.files import append_line, records

_ABSOLUTE = re.compile(r"(?<![\w.])/")  # the beginning of a path


class SiteLog:
    """Lines of JSON in `log.jsonl` of a site's folder; each written before data leave."""

    def __init__(self, home: Path) -> None:
        self.path = home / "log.jsonl"

    def write(self, event: str, **facts: Any) -> None:
        """Add a line. Raises StoreError when it cannot be written: then nothing may leave."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        try:
            append_line(self.path, line)
        except OSError as error:
            raise StoreError(
                f"the site's log cannot be written ({error.strerror})",
                "free some space at the site: without its log, nothing leaves it",
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All lines; a torn last one, left by a crash, is not one."""
        return records(self.path)


def told(error: FedSightError) -> dict[str, Any]:
    """An error in words that may leave the site: none that could name its files."""
    if isinstance(error, ConfigError):  # the first problem says more than their number
        first = error.problems[0]
        error = DeployError(f"{first.where}: {first.cause}", first.cure)
    if isinstance(error, DataError) or _ABSOLUTE.search(f"{error.cause} {error.cure}"):
        cause = f"it cannot use its files ({type(error).__name__})"
        return {"error": cause, "cure": "its owner finds the reason in log.jsonl at the site"}
    return {"error": error.cause, "cure": error.cure}
