"""What a site has seen of the others: their identity keys, and how far each run has come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically

PATIENCE = 10.0  # seconds for another job of the same run to look and write


class PeerKeys:
    """`peers.json` of a site's folder: the key that each name had when it was first seen.

    The owner may write keys into it beforehand, or compare those that are there over another
    channel; a key that changes later is refused for good.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "peers.json"

    def check(self, roster: Iterable[tuple[str, str]]) -> None:
        """Remember new sites; DeployError, and nothing remembered, if a known one's key changed."""
        known = self._read()
        fresh = {}
        for name, key in roster:
            if name not in known:
                fresh[name] = key
            elif known[name] != key:
                raise DeployError(
                    f"site '{name}' shows another identity key ({key[:16]}) than the one that this "
                    f"site knows it by ({str(known[name])[:16]})",
                    "somebody stands in for it; if its owner confirms the new key over another "
                    "channel, take the old one out of peers.json",
                )
        if fresh:
            write_atomically(self._path, json.dumps({**known, **fresh}, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        """The keys; DeployError for a file that cannot be read: nobody is known then."""
        try:
            known = json.loads(self._path.read_bytes()) if self._path.exists() else {}
            if not isinstance(known, dict):
                raise ValueError("no table")
        except (OSError, ValueError):
            raise DeployError(
                "peers.json, this site's list of the others' keys, cannot be read",
                "restore it from a backup; a new one would trust whoever comes first",
            ) from None
        return known


class Serial:
    """`secagg.json` of a run's memory: attempts at rounds only count upwards, over restarts too."""

    def __init__(self, memory: Path) -> None:
        self._path = memory / "secagg.json"

    def advance(self, serial: int) -> None:
        """The attempt that begins now; DeployError if it, or a later one, was seen before."""
        busy = DeployError("another process of this site begins a round of this run", "try again")
        with locks.hold(self._path.with_suffix(".lock"), PATIENCE, busy):
            self._advance(serial)

    def _advance(self, serial: int) -> None:
        last = -1
        if self._path.exists():
            try:
                last = int(json.loads(self._path.read_bytes())["serial"])
            except (OSError, ValueError, KeyError, TypeError):
                cause = "secagg.json of this run's memory cannot be read"
                raise DeployError(cause, "start the run anew under another name") from None
        if serial <= last:
            raise DeployError(
                "the coordinator repeats an attempt at a round that is over: stale, or replayed",
                "start the round anew; if that happens again, ask the operator",
            )
        write_atomically(self._path, json.dumps({"serial": serial}).encode())
