"""The ledger's file: an append-only table whose entries are chained, and the head kept beside it.

Whoever may write the site's files can write both anew from the first entry on: a chain without a
secret cannot stop that. It makes every smaller change known: a changed, swapped, added or missing
entry, an older copy of the ledger put back.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fedsight.core import locks
from fedsight.core.errors import FedSightError, StoreError
from fedsight.core.files import refuse_readable, write_atomically
from fedsight.governance.entries import GENESIS, LedgerEntry, chained

PATIENCE = 20.0  # seconds to wait for another process of the site that writes
_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER IF NOT EXISTS at_the_end BEFORE INSERT ON entries
    WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""


class Altered(StoreError):  # noqa: N818 - a state of the ledger
    """The ledger is not as it was left; `number` is the first entry that shows it."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(
            f"the site's ledger was altered: entry {number} {why}",
            "nothing leaves this site; its owner finds out who changed ledger.sqlite or "
            "ledger.head, and puts back the newest copy of both",
        )
        self.number = number

    def __reduce__(self) -> tuple[type[FedSightError], tuple[str, str]]:
        return StoreError, (self.cause, self.cure)


class Chain:
    """The entries in `home/ledger.sqlite`, checked against `home/ledger.head`."""

    def __init__(self, home: Path) -> None:
        self.path = home / "ledger.sqlite"
        self.head = home / "ledger.head"
        self._lock = home / ".ledger.lock"
        self.number, self.hash = 0, GENESIS  # of the last entry that was read

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """The table, for this process alone; StoreError when it cannot be read or written."""
        busy = StoreError("the site's ledger is in use", "end what else works in the site's folder")
        try:
            with locks.hold(self._lock, PATIENCE, busy), self._connected() as table:
                yield table
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(
                f"the site's ledger cannot be read or written ({why})",
                "free some space at the site, or put back a whole copy: without its ledger, "
                "nothing leaves it",
            ) from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if not self.head.exists():
            if self.path.exists():
                raise Altered(1, "cannot be checked: ledger.head is missing")
            self._keep_head(0, GENESIS)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        for path in (self.path, self.head):
            refuse_readable(path, "the site's ledger")
        table = sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE)
        try:
            # A commit is on the disk, and all of it in this one file, when it returns.
            table.execute("PRAGMA journal_mode = TRUNCATE")
            table.execute("PRAGMA synchronous = FULL")
            table.execute("PRAGMA trusted_schema = OFF")
            table.executescript(_TABLES)
            yield table
        finally:
            table.close()

    def read(self, table: sqlite3.Connection) -> Iterator[LedgerEntry]:
        """The entries that are new since the last reading; Altered unless all are as they were."""
        kept, kept_hash = self._head()
        previous, known, last = GENESIS, self.number, 0
        for number, body, hash in table.execute("SELECT * FROM entries ORDER BY number"):
            last += 1
            if number != last:
                raise Altered(last, "is missing")
            if type(body) is not str or hash != chained(previous, body):
                raise Altered(last, "does not fit the chain")
            if (last == kept and hash != kept_hash) or (last == known and hash != self.hash):
                raise Altered(last, "is another one than was written")
            if last > known:
                entry = _decoded(last, body)
                self.number, self.hash = last, hash
                yield entry
            previous = hash
        if last < max(kept, known):
            raise Altered(last + 1, f"is missing: there were {max(kept, known)}")
        if last > kept + 1:
            raise Altered(kept + 2, "was not written by this site's process")
        if last == kept + 1:  # the process was killed between the entry and the head
            self._keep_head(last, previous)

    def append(self, table: sqlite3.Connection, entry: LedgerEntry) -> None:
        """Add the next entry; it is on the disk when this returns. All must have been read."""
        body = entry.encode()
        hash = chained(self.hash, body)
        table.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, body, hash))
        self._keep_head(entry.number, hash)
        self.number, self.hash = entry.number, hash

    def _head(self) -> tuple[int, str]:
        try:
            number, hash = json.loads(self.head.read_text(encoding="ascii"))
            if type(number) is not int or type(hash) is not str or number < 0:
                raise ValueError
        except (ValueError, TypeError):
            raise Altered(1, "cannot be checked: ledger.head is broken") from None
        return number, hash

    def _keep_head(self, number: int, hash: str) -> None:
        write_atomically(self.head, json.dumps([number, hash]).encode(), 0o600)


def _decoded(number: int, body: str) -> LedgerEntry:
    try:
        entry = LedgerEntry.decode(body)
        if entry.number != number:
            raise ValueError("it has another number")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Altered(number, f"cannot be read ({error})") from None
    return entry
