"""Who is connected, since when, with which images declared: a small file for each site.

The server's long-lived process writes them with every sign of life; the operator's commands and
the coordinator read them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsight.deploy.membership.kits import HEARTBEAT

ALIVE = 4 * HEARTBEAT  # seconds since the last sign of life
LONGEST = 1 << 20  # letters of a sign of life; a declaration of 10,000 classes has some 300,000
MOST_LETTERS = 64  # of what tells a process from others


@dataclass(frozen=True)
class Presence:
    """One site as the server sees it."""

    name: str
    since: float  # when the server first heard of the site's present process
    seen: float  # its last sign of life
    declared: dict[str, Any] | None  # what its owner's process found in its images
    process: str = ""  # what tells the site's present process from earlier ones

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.time() - self.seen

    @property
    def alive(self) -> bool:
        """Whether it is connected now."""
        return self.silence < ALIVE


def said(process: str, declared: dict[str, Any] | None) -> str:
    """What a site says of itself with each sign of life."""
    return json.dumps({"process": process, "declared": declared})


def understood(text: object) -> tuple[str, dict[str, Any] | None]:
    """The process and the declaration in a sign of life; blank where it is not as `said`."""
    if not isinstance(text, str) or len(text) > LONGEST:
        return "", None
    try:
        table = json.loads(text)
        process, declared = table["process"], table["declared"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", None
    process = process if isinstance(process, str) and len(process) <= MOST_LETTERS else ""
    return process, declared if isinstance(declared, dict) else None


def note(folder: Path, name: str, process: str, declared: dict[str, Any] | None) -> None:
    """Note a sign of life of a site's `process`. All times are this machine's: a site's clock may
    be wrong by hours."""
    folder.mkdir(exist_ok=True)
    path = _path(folder, name)
    partial = path.with_suffix(".partial")
    now, known = time.time(), _read(path)
    since = known.since if known is not None and known.process == process else now
    found = Presence(name, since, now, declared, process)
    partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    partial.replace(path)  # whole or not at all; the next sign of life comes soon


def presence(folder: Path, name: str) -> Presence | None:
    """The site's presence; None if it never connected."""
    return _read(_path(folder, name))


def presences(folder: Path) -> dict[str, Presence]:
    """All sites that ever connected, by name."""
    found = (_read(path) for path in sorted(folder.glob("*.json")))
    return {one.name: one for one in found if one is not None}


def heard(home: Path) -> None:
    """Note at the site that the server has answered a sign of life."""
    (home / "heard").touch()


class Hearing:
    """Says at the site when the server begins or ceases to answer."""

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self._path = home / "heard"
        self._path.unlink(missing_ok=True)
        self._say = say
        self._connected = False

    def look(self) -> None:
        """Has that changed?"""
        try:
            connected = time.time() - self._path.stat().st_mtime < ALIVE
        except FileNotFoundError:
            connected = False
        if connected != self._connected:
            self._connected = connected
            self._say(
                "connected"
                if connected
                else "the server does not answer: it or the line is down, or this site was "
                "revoked; trying on"
            )


def _path(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.json"


def _read(path: Path) -> Presence | None:
    try:
        return Presence(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
