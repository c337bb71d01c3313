"""The site's log: what left the site, when, how many bytes, and under which protections."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.errors import StoreError
from fedsight.core.files import append_line, records


class SiteLog:
    """Lines of JSON in `log.jsonl` of a site's folder, each written before the data leave."""

    def __init__(self, home: Path) -> None:
        self.path = home / "log.jsonl"

    def write(self, event: str, **facts: Any) -> None:
        """Append a line; StoreError if that fails: then nothing may leave."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        try:
            append_line(self.path, line)
        except OSError as error:
            raise StoreError(
                f"the site's log cannot be written ({error.strerror})",
                "free some space at the site; nothing leaves the site without its log",
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; a crash may leave an incomplete last one."""
        return records(self.path)
