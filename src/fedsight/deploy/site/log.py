"""The site's log: what left the site, when, how many bytes, and under which protections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.errors import StoreError
from fedsight.core.files import append_line, records
from fedsight.language.english import from_english
from fedsight.language.message import message


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


def protections(line: Mapping[str, Any]) -> str:
    """What protected what left; empty if a line is about something else."""
    found = line.get("protections")
    if found is None:
        return ""
    words = [one if isinstance(one, str) else json.dumps(one) for one in found]
    return ", ".join(words) or str(message("none"))


def details(line: Mapping[str, Any]) -> str:
    """The facts of a line that have no column of their own."""
    if line.get("event") == "refused":
        why = from_english(str(line.get("why")))
        if type(line.get("times")) is int:
            why = message("{why} ({n:,} times)", why=why, n=line["times"])
        return f"{from_english(str(line.get('what')))}: {why}"
    shown = ("time", "event", "run", "round", "bytes", "protections", "fingerprint", "vectors")
    vectors = line.get("vectors") or {}
    words = [str(message("{name}: {n:,} values", name=name, n=n)) for name, n in vectors.items()]
    words += [
        f"{from_english(key)}: {_plain(value)}" for key, value in line.items() if key not in shown
    ]
    return ", ".join(words)


def _plain(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)
