"""An entry of a site's ledger, and the hash chain that links the entries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

EntryKind = Literal[
    "declaration", "update", "figures", "losses", "scores", "released", "sum", "test sum",
    "refused", "approved", "declined", "clock",
]  # fmt: skip
# What a site's owner has decided by hand about a program.
DECISIONS: frozenset[EntryKind] = frozenset(("approved", "declined"))
# Sums over test images, of which `contract.evaluations` permits so many.
SUMS: frozenset[EntryKind] = frozenset(("figures", "losses", "scores"))
# Those for the calibration of a run, both of one model.
CALIBRATION: frozenset[EntryKind] = frozenset(("losses", "scores"))
# Fields that are written only where they say something.
_RARE = ("personal", "model", "same", "why")
GENESIS = hashlib.sha256(b"FedSight ledger 1").hexdigest()  # the hash before the first entry


@dataclass(frozen=True)
class LedgerEntry:
    """A record of a question that the site answers, or of an answer that leaves it.

    A question is charged before the work on it begins (`declaration`, `update`, `figures`), and its
    answer is recorded before it leaves (`released`, with the same `question`). A `sum` is recorded
    before the site helps to unmask it; its `question` is the digest of the sites that it is over.
    Of a program that was `refused`, `run` and `program` are what the coordinator called them.
    One that the owner `approved` or `declined` by hand is meant by its whole fingerprint alone;
    `run` and `asked_by` are those of the last request for it.
    `event` is the privacy event in plain values, or None if no noise protects the answer.
    `enforced` is true if the site adds the noise itself, false if the coordinator promises it.
    `personal` figures are those of a model with parameters that stay at the site: the same question
    may have another answer the next time. The `losses` and the `scores` of a run are sums for its
    calibration, both of one `model`; neither belongs to a round, so theirs is 0. Masked ones are
    different bytes with each attempt's keys, and `same` is what they have in common. A `test sum`
    is to these what a `sum` is to updates.
    """

    kind: EntryKind
    run: str = ""
    program: str = ""  # fingerprint
    round: int = 0
    attempt: int = 0  # the coordinator's number for the question; the same question keeps it
    question: str = ""  # SHA-256 of all that the answer may depend on, besides the images
    bytes: int = 0  # of the answer, once it is released
    sha256: str = ""  # of the answer
    asked_by: tuple[str, ...] = ()  # operators whose signature on the job the site has verified
    protections: tuple[str, ...] = ()
    data_set: str = ""  # the owner's name for the images that epsilon is spent on
    declared: str = ""  # SHA-256 of the site's data declaration for this run
    event: Mapping[str, Any] | None = None
    times: int = 1  # how often the event happened, for example DP-SGD steps in a round
    enforced: bool = False
    delta: float | None = None
    personal: bool = False
    model: str = ""  # SHA-256 of the model that is measured, and its round: of losses and scores
    same: str = ""  # SHA-256 of the question without the keys of its masks, if it has any
    why: str = ""  # a program was refused
    number: int = 0  # counts from 1; set by the ledger
    time: str = ""  # UTC; set by the ledger

    @property
    def asked(self) -> tuple[str, str, str, int]:
        """What the question is about: kind, run, program and round."""
        return self.kind, self.run, self.program, self.round

    @property
    def written_at(self) -> datetime:
        """When the entry was written."""
        return datetime.fromisoformat(self.time)

    def encode(self) -> str:
        """The canonical text of this entry, which its hash covers."""
        table = dict(vars(self))  # `asdict` would copy each value, of tens of thousands of entries
        for name in _RARE:
            if not table[name]:
                del table[name]
        return canonical(table)

    @classmethod
    def decode(cls, text: str) -> LedgerEntry:
        """The entry in `text`; ValueError if it is not the canonical text of an entry."""
        table = json.loads(text)
        expected = {item.name for item in fields(cls)}
        if not isinstance(table, dict) or {*table, *_RARE} != expected:
            raise ValueError("unexpected fields")
        lists = {key: tuple(table[key]) for key in ("asked_by", "protections")}
        entry = cls(**{**table, **lists})
        if entry.encode() != text or entry.written_at.utcoffset() is None:
            raise ValueError("not in canonical form")
        return entry


def canonical(value: Any) -> str:
    """The canonical JSON text of plain values: keys sorted, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chain_hash(previous: str, body: str) -> str:
    """The hash of an entry: SHA-256 over the previous entry's hash and the text `body`."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def now() -> datetime:
    """The current time of this machine, in UTC."""
    return datetime.now(UTC)
