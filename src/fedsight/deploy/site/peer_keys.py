"""What a site remembers for secure aggregation: the other sites' keys, and attempts at rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership.requests import check_name
from fedsight.deploy.site.caused_outside import CausedOutsideError
from fedsight.privacy.secagg.messages import MOST_SITES

LOCK_TIMEOUT = 10.0  # seconds to wait for another job of this site
RUNS = 32  # runs of which each one's last attempt is remembered
AHEAD = 24 * 3600 * 1000  # milliseconds that the coordinator's clock may be ahead of this site's


Peer = tuple[str, str]  # a site's name and its identity key, in hex
UNMET = "unmet"  # marks the key of a site that has not proven that it holds it


class NoMasksError(DeployError, CausedOutsideError):
    """There are no masks for an update: the keys of those whose masks it has could not be recorded,
    or a phase of the round is still to come, or over.

    That does not depend on the images: another job was at it, showed another key, or the disk is
    full; or the update was asked for too soon. A coordinator may bring it about, and end it while
    the site makes zeros.
    """


class PeerKeys:
    """`peers.json` in the folder of a site or a federation: the first identity key of each site.

    The owner may write keys into the file beforehand, or compare the recorded ones over another
    channel. A key that changes later is refused. The coordinator names the sites, so their names
    are checked and their number is limited, and a name alone is not recorded: only that of a site
    that was met (it has proven that it holds its key), or over which a sum was certified. The
    latter stand there as `{"unmet": key}`, take only what room is left, and make room for sites
    that are met, the newest first.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "peers.json"

    def check(self, roster: Iterable[Peer]) -> None:
        """Raise DeployError if a key has changed, if a name cannot be a site's, or if there would
        be more than MOST_SITES, were all these sites met."""
        self._compare(self._read(), dict(roster))

    def record(self, met: Iterable[Peer], named: Iterable[Peer] = ()) -> None:
        """Record the keys of sites that were met, and of others that were `named` in a sum.

        Raises DeployError, and records nothing, as `check` does for those that were met.
        """
        busy = DeployError("another process is recording the sites' keys", "try again", False)
        # Two jobs that wrote at once would lose a key, and with it what it protects from.
        with locks.hold(self._path.with_suffix(".lock"), LOCK_TIMEOUT, busy):
            before = self._read()
            known, new = dict(before), dict(met)
            self._compare(known, new)
            known |= new
            unmet = [name for name, key in known.items() if not isinstance(key, str)]
            while len(known) > MOST_SITES and unmet:
                del known[unmet.pop()]
            for name, key in named:
                if name not in known and len(known) < MOST_SITES:
                    known[name] = {UNMET: key}
            if known != before:
                write_atomically(self._path, json.dumps(known, indent=1).encode())

    def _compare(self, known: Mapping[str, Any], roster: Mapping[str, str]) -> None:
        met = sum(isinstance(key, str) for key in known.values())
        new = 0
        for name, key in roster.items():
            if name not in known:
                check_name(name, "a site")
            elif (first := _key(known[name])) != key:
                raise DeployError(
                    f"site '{name}' shows another identity key ({key[:16]}) than before "
                    f"({first[:16]})",
                    "it may be an impostor; if its owner confirms the new key over another "
                    "channel, remove the old one from peers.json",
                )
            new += not isinstance(known.get(name), str)
        if met + new > MOST_SITES:
            raise DeployError(
                f"the coordinator names {new:,} new sites, and this site knows "
                f"{met:,}; it remembers {MOST_SITES:,} at most",
                "if the federation is that large, remove from peers.json the sites that have left "
                "it; otherwise ask the operator",
            )

    def _read(self) -> dict[str, Any]:
        """The recorded keys; DeployError if the file cannot be read."""
        try:
            known = json.loads(self._path.read_bytes()) if self._path.exists() else {}
            if not isinstance(known, dict):
                raise ValueError("expected an object")
        except (OSError, ValueError, RecursionError):
            raise DeployError(
                "peers.json, the record of the sites' identity keys, cannot be read",
                "restore it from a backup; a new file would trust any key at first",
            ) from None
        return known


def _key(entry: Any) -> str:
    """The key in an entry of peers.json; what an owner has mistyped is nobody's."""
    return str(entry.get(UNMET) if isinstance(entry, dict) else entry)


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
        busy = DeployError("another process of this site is beginning a round", "try again", False)
        with locks.hold(self._path.with_suffix(".lock"), LOCK_TIMEOUT, busy):
            floor, last = self._read()
            if serial <= last.get(run, floor):
                raise DeployError(
                    f"the coordinator repeats an attempt at a round that has ended: its number is "
                    f"{serial}, and number {last.get(run, floor)} has been seen",
                    "start the round again. If this recurs, either messages are replayed: ask the "
                    "operator. Or the coordinator's clock, which numbers the attempts, was ahead "
                    "and has been set back: correct it, then remove secagg.json at this site",
                    final=False,
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
