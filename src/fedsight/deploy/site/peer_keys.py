"""What a site remembers for secure aggregation: the other sites' keys, and attempts at rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership.requests import check_name
from fedsight.privacy.secagg.messages import MOST_SITES

LOCK_TIMEOUT = 10.0  # seconds to wait for another job of this site
RUNS = 32  # runs of which each one's last attempt is remembered
AHEAD = 24 * 3600 * 1000  # milliseconds that the coordinator's clock may be ahead of this site's


class PeerKeys:
    """`peers.json` in the folder of a site or a federation: the first identity key of each site.

    The owner may write keys into the file beforehand, or compare the recorded ones over another
    channel. A key that changes later is refused. The coordinator names the sites, so their names
    are checked and their number is limited.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "peers.json"

    def check(self, roster: Iterable[tuple[str, str]]) -> None:
        """Record the keys of new sites.

        Raises DeployError, and records nothing, if a key has changed, if a name cannot be a site's,
        or if there would be more than MOST_SITES.
        """
        busy = DeployError("another process is recording the sites' keys", "try again")
        # Two jobs that wrote at once would lose a key, and with it what it protects from.
        with locks.hold(self._path.with_suffix(".lock"), LOCK_TIMEOUT, busy):
            self._check(roster)

    def _check(self, roster: Iterable[tuple[str, str]]) -> None:
        known = self._read()
        new = {}
        for name, key in roster:
            if name not in known:
                check_name(name, "a site")
                new[name] = key
            elif known[name] != key:
                raise DeployError(
                    f"site '{name}' shows another identity key ({key[:16]}) than before "
                    f"({str(known[name])[:16]})",
                    "it may be an impostor; if its owner confirms the new key over another "
                    "channel, remove the old one from peers.json",
                )
        if len(known) + len(new) > MOST_SITES:
            raise DeployError(
                f"the coordinator names {len(new):,} new sites, and this site knows "
                f"{len(known):,}; it remembers {MOST_SITES:,} at most",
                "if the federation is that large, remove from peers.json the sites that have left "
                "it; otherwise ask the operator",
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
                "peers.json, the record of the sites' identity keys, cannot be read",
                "restore it from a backup; a new file would trust any key at first",
            ) from None
        return known


class AttemptCounter:
    """`secagg.json` in a site's folder: the numbers of attempts at rounds only increase.

    They are milliseconds of the coordinator's clock, so one far ahead of this site's is refused: it
    would leave no higher one for any run to come.

    It outlives the memory of a run. Of the last RUNS runs it holds the number of each one's last
    attempt, because runs that go on at the same time may overtake one another; any other run has
    to begin above the numbers that were dropped.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "secagg.json"

    def advance(self, run: str, serial: int) -> None:
        """Record that attempt `serial` begins in `run`.

        Raises DeployError unless it is higher than all attempts before, and not far ahead of this
        site's clock.
        """
        if serial > time.time_ns() // 1_000_000 + AHEAD:
            raise DeployError(
                f"the coordinator's number of an attempt at a round, {serial}, is more than a day "
                "ahead of this site's clock",
                "correct the clock that is wrong; if neither is, ask the operator",
            )
        busy = DeployError("another process of this site is beginning a round", "try again")
        with locks.hold(self._path.with_suffix(".lock"), LOCK_TIMEOUT, busy):
            floor, last = self._read()
            if serial <= last.get(run, floor):
                raise DeployError(
                    f"the coordinator repeats an attempt at a round that has ended: its number is "
                    f"{serial}, and number {last.get(run, floor)} has been seen",
                    "start the round again. If this recurs, either messages are replayed: ask the "
                    "operator. Or the coordinator's clock, which numbers the attempts, was ahead "
                    "and has been set back: correct it, then remove secagg.json at this site",
                )
            last[run] = serial
            while len(last) > RUNS:
                oldest = min(last, key=last.__getitem__)
                floor = max(floor, last.pop(oldest))
            table = {"others": floor, "runs": last}
            write_atomically(self._path, json.dumps(table, indent=1).encode())

    def _read(self) -> tuple[int, dict[str, int]]:
        """The highest number of the runs that were dropped, and the last one of each other run."""
        if not self._path.exists():
            return -1, {}
        try:
            table = json.loads(self._path.read_bytes())
            return int(table["others"]), {str(k): int(v) for k, v in table["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DeployError(
                "secagg.json, this site's record of the attempts at rounds, cannot be read",
                "restore it from a backup, or remove it: then an old attempt may be repeated once",
            ) from None
