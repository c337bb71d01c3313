"""The ledger's file: an append-only table of hash-chained entries, with its head in a second file.

Anyone who can write the site's files can rewrite both from the first entry on; a hash chain without
a secret cannot prevent that. It reveals every smaller change: an entry that was changed, swapped,
added or removed, and an older copy of the ledger put in place of the current one.

A process that has checked all entries checks them again only when the file is not as it left it:
otherwise each entry would cost as much time as there are entries. The head is compared each time,
and entries with another chain have another head.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedsight.core import locks
from fedsight.core.errors import FedSightError, StoreError
from fedsight.core.files import refuse_readable, write_atomically
from fedsight.governance.entries import GENESIS, LedgerEntry, chain_hash

LOCK_TIMEOUT = 20.0  # seconds to wait for another process of the site to finish writing
SETTLED = 1_000_000_000  # nanoseconds after which a change has another time than the one before
HEADER = 100  # bytes of SQLite's own at the beginning of its file
CHANGES = slice(24, 28)  # of these, a counter that each transaction raises by one
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS at_the_end BEFORE INSERT ON entries
    WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class LedgerAlteredError(StoreError):
    """The ledger is not as it was written; `number` is the first entry that shows it."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(
            f"the site's ledger was altered: entry {number} {why}",
            "nothing leaves this site until its owner has found out who changed ledger.sqlite or "
            "ledger.head, and has restored the newest backup of both",
        )
        self.number = number

    def __reduce__(self) -> tuple[type[FedSightError], tuple[str, str]]:
        return StoreError, (self.cause, self.cure)


class Mark(NamedTuple):
    """By what a file is seen to be as it was left: two are equal unless it was changed."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds; nobody but the kernel sets it
    header: bytes

    @property
    def changes(self) -> int:
        """How many transactions there were."""
        return int.from_bytes(self.header[CHANGES])

    @property
    def settled(self) -> bool:
        """Whether a change from now on shows: the kernel's clock has ticked since the last one."""
        return time.time_ns() - max(self.modified, self.changed) > SETTLED


class LedgerFile:
    """The entries in `home/ledger.sqlite`, checked against `home/ledger.head`."""

    def __init__(self, home: Path) -> None:
        self._path = home / "ledger.sqlite"
        self._head_path = home / "ledger.head"
        self._lock = home / ".ledger.lock"
        self.number, self.hash = 0, GENESIS  # of the last entry that was read
        self._left: Mark | None = None  # the table as it was left, if a change of it would show
        self._changes = 0  # of the table that was read last

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """The table, locked for this process; StoreError if it cannot be read or written."""
        busy = StoreError(
            "another process is using the site's ledger",
            "end other FedSight processes that work in the site's folder",
        )
        try:
            with locks.hold(self._lock, LOCK_TIMEOUT, busy), self._connected() as table:
                yield table
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StoreError(
                f"the site's ledger cannot be read or written ({why})",
                "free some space at the site, or restore a backup; nothing leaves the site "
                "without its ledger",
            ) from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if not self._head_path.exists():
            if self._path.exists():
                raise LedgerAlteredError(1, "cannot be checked: ledger.head is missing")
            self._write_head(0, GENESIS)
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        for path in (self._path, self._head_path):
            refuse_readable(path, "the site's ledger")
        table = sqlite3.connect(self._path, isolation_level=None, timeout=LOCK_TIMEOUT)
        try:
            # When a commit returns, it is on the disk, and in this one file.
            table.execute("PRAGMA journal_mode = TRUNCATE")
            table.execute("PRAGMA synchronous = FULL")
            table.execute("PRAGMA trusted_schema = OFF")
            table.executescript(_SCHEMA)
            yield table
        finally:
            table.close()

    def read(self, table: sqlite3.Connection) -> Iterator[LedgerEntry]:
        """The entries added since the last call. Raises LedgerAlteredError; all are checked, unless
        nothing has changed since this object did so or added one."""
        head, head_hash = self._read_head()
        mark, left = self._mark(), self._left
        if mark == left and (head, head_hash) == (self.number, self.hash):
            return
        self._left, self._changes = None, mark.changes
        previous, known, last = GENESIS, self.number, 0
        for number, body, hash in table.execute("SELECT * FROM entries ORDER BY number"):
            last += 1
            if number != last:
                raise LedgerAlteredError(last, "is missing")
            if type(body) is not str or hash != chain_hash(previous, body):
                raise LedgerAlteredError(last, "does not fit the hash chain")
            if (last == head and hash != head_hash) or (last == known and hash != self.hash):
                raise LedgerAlteredError(last, "is not the one that was written")
            if last > known:
                entry = _decoded(last, body)
                self.number, self.hash = last, hash
                yield entry
            previous = hash
        if last < max(head, known):
            raise LedgerAlteredError(last + 1, f"is missing: there were {max(head, known)}")
        if last > head + 1:
            raise LedgerAlteredError(head + 2, "was not written by this site's process")
        if last == head + 1:  # the process was killed after writing the entry, before the head
            self._write_head(last, previous)
        self._left = mark if mark.settled else None

    def append(self, table: sqlite3.Connection, entry: LedgerEntry) -> None:
        """Add the next entry; it is on the disk when this returns. Call `read` first."""
        body = entry.encode()
        hash = chain_hash(self.hash, body)
        self._left = None
        table.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, body, hash))
        self._write_head(entry.number, hash)
        self.number, self.hash = entry.number, hash
        # A time that is no tick of the kernel's clock: a change in the same tick shows, too.
        os.utime(self._path, ns=(time.time_ns(),) * 2)
        mark = self._mark()
        if mark.changes == self._changes + 1:  # the only change since all entries were checked
            self._left = mark
        self._changes = mark.changes

    def _mark(self) -> Mark:
        """What the table's file is now.

        Not to be called within a transaction: when a process closes a file it loses all its POSIX
        locks on it, SQLite's too.
        """
        with self._path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            return Mark(
                *(found.st_dev, found.st_ino, found.st_size),
                *(found.st_mtime_ns, found.st_ctime_ns),
                file.read(HEADER),
            )

    def _read_head(self) -> tuple[int, str]:
        try:
            number, hash = json.loads(self._head_path.read_text(encoding="ascii"))
            if type(number) is not int or type(hash) is not str or number < 0:
                raise ValueError
        except (ValueError, TypeError):
            raise LedgerAlteredError(1, "cannot be checked: ledger.head is unreadable") from None
        return number, hash

    def _write_head(self, number: int, hash: str) -> None:
        write_atomically(self._head_path, json.dumps([number, hash]).encode(), 0o600)


def _decoded(number: int, body: str) -> LedgerEntry:
    try:
        entry = LedgerEntry.decode(body)
        if entry.number != number:
            raise ValueError(f"numbered {entry.number}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LedgerAlteredError(number, f"cannot be read ({error})") from None
    return entry
