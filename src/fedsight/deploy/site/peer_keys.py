"""What a site remembers for secure aggregation: the other sites' keys, and each run's attempts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically

LOCK_TIMEOUT = 10.0  # seconds to wait for another job of the same run


class PeerKeys:
    """`peers.json` in a site's folder: the identity key that each site first showed.

    The owner may write keys into the file beforehand, or compare the recorded ones over another
    channel. A key that changes later is refused.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "peers.json"

    def check(self, roster: Iterable[tuple[str, str]]) -> None:
        """Record the keys of new sites; DeployError, and nothing recorded, if a key has changed."""
        known = self._read()
        new = {}
        for name, key in roster:
            if name not in known:
                new[name] = key
            elif known[name] != key:
                raise DeployError(
                    f"site '{name}' shows another identity key ({key[:16]}) than before "
                    f"({str(known[name])[:16]})",
                    "it may be an impostor; if its owner confirms the new key over another "
                    "channel, remove the old one from peers.json",
                )
        if new:
            write_atomically(self._path, json.dumps({**known, **new}, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        """The recorded keys; DeployError if the file cannot be read."""
        try:
            known = json.loads(self._path.read_bytes()) if self._path.exists() else {}
            if not isinstance(known, dict):
                raise ValueError("expected an object")
        except (OSError, ValueError):
            raise DeployError(
                "peers.json, this site's record of the other sites' keys, cannot be read",
                "restore it from a backup; a new file would trust any key at first",
            ) from None
        return known


class AttemptCounter:
    """`secagg.json` in a run's memory: the numbers of attempts at rounds only increase."""

    def __init__(self, memory: Path) -> None:
        self._path = memory / "secagg.json"

    def advance(self, serial: int) -> None:
        """Record that attempt `serial` begins; DeployError unless it is higher than all before."""
        busy = DeployError(
            "another process of this site is beginning a round of this run", "try again"
        )
        with locks.hold(self._path.with_suffix(".lock"), LOCK_TIMEOUT, busy):
            if serial <= self._last():
                raise DeployError(
                    "the coordinator repeats an attempt at a round that has ended",
                    "start the round again; if this recurs, the messages may be replayed: ask "
                    "the operator",
                )
            write_atomically(self._path, json.dumps({"serial": serial}).encode())

    def _last(self) -> int:
        """The number of the last attempt, -1 before the first one."""
        if not self._path.exists():
            return -1
        try:
            return int(json.loads(self._path.read_bytes())["serial"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DeployError(
                "secagg.json in this run's memory cannot be read",
                "start the run again under another name",
            ) from None
