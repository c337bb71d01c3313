"""An entry of a site's ledger, and the chain of hashes that holds the entries together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

EntryKind = Literal["declaration", "update", "figures", "clock"]
GENESIS = hashlib.sha256(b"FedSight ledger 1").hexdigest()  # what the first entry follows


@dataclass(frozen=True)
class LedgerEntry:
    """What left a site, or is about to.

    `event` is the privacy event in plain values, None where nothing was protected by noise;
    `enforced` says that the noise was added at this site, not promised by the coordinator.
    """

    kind: EntryKind
    run: str = ""
    program: str = ""  # fingerprint
    round: int = 0
    bytes: int = 0
    sha256: str = ""  # of what left
    asked_by: tuple[str, ...] = ()  # operators who signed the job, as far as the site could check
    protections: tuple[str, ...] = ()
    data_set: str = ""  # the owner's name for it: what epsilon is spent on
    declared: str = ""  # SHA-256 of what the site declared of its images to this run
    event: Mapping[str, Any] | None = None
    times: int = 1  # how often the event happened: the steps of a round of DP-SGD
    enforced: bool = False
    delta: float | None = None
    number: int = 0  # from 1; the ledger's own
    time: str = ""  # UTC; the ledger's own

    @property
    def mark(self) -> tuple[str, str, int, str]:
        """What tells an answer that is given once more from a new one."""
        return self.kind, self.run, self.round, self.sha256

    @property
    def moment(self) -> datetime:
        """When it was written."""
        return datetime.fromisoformat(self.time)

    def encode(self) -> str:
        """The one text of this entry that its hash covers."""
        return canonical(asdict(self))

    @classmethod
    def decode(cls, text: str) -> LedgerEntry:
        """The entry in `text`; ValueError if it is none."""
        table = json.loads(text)
        if not isinstance(table, dict) or set(table) != {item.name for item in fields(cls)}:
            raise ValueError("it has other fields")
        lists = {key: tuple(table[key]) for key in ("asked_by", "protections")}
        made = cls(**{**table, **lists})
        if made.encode() != text or made.moment.utcoffset() is None:
            raise ValueError("it is written in another way")
        return made


def canonical(value: Any) -> str:
    """The one JSON text of plain values: sorted, without spaces, ASCII, without NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chained(previous: str, body: str) -> str:
    """The hash of an entry: SHA-256 over the hash before it and its own text."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)
