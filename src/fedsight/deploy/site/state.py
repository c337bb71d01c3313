"""What a site says of itself with each heartbeat: that it is drained, leaving, or at a standstill.

Small files in the site's folder: the processes of a site, which know these things, write them, and
the one that sends the heartbeats reads them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsight.core.errors import SiteError, StoreError
from fedsight.core.files import json_object, make_folder, write_atomically
from fedsight.deploy.membership.presence import State
from fedsight.deploy.processes import spawn

DRAINED, LEAVING = "drained.json", "leaving"
WORK = "work"  # a folder: a notice of each trainer process


@dataclass(frozen=True)
class Work:
    """What a trainer process of the site is doing; one that serves another job may do more."""

    process: int
    started: int | None  # when the process began (`spawn.started`)
    doing: str
    since: float  # seconds since 1970


def state_of(home: Path) -> State:
    """What the site in `home` says of itself; empty if it is ready."""
    if (home / LEAVING).exists():
        return "leaving"
    if any(spawn.is_stopped(one.process) for one in works(home)):
        return "stopped"
    return "drained" if is_drained(home) else ""


def drain(home: Path, on: bool) -> None:
    """Have the site finish the round in progress and take nothing new, or (`on` is false) take part
    again. It holds over restarts. Raises StoreError if it cannot be written."""
    if on:
        write_atomically(home / DRAINED, json.dumps({"since": time.time()}).encode())
        return
    try:
        (home / DRAINED).unlink(missing_ok=True)
    except OSError as error:
        cause = f"{home / DRAINED} cannot be removed: {error.strerror}"
        raise StoreError(cause, "remove the file") from None


def is_drained(home: Path) -> bool:
    """Whether the owner has drained the site."""
    return (home / DRAINED).exists()


def require_taking_part(home: Path) -> None:
    """Raise SiteError if the owner has drained the site."""
    if is_drained(home):
        cause = "its owner has drained this site: it takes part in nothing new"
        raise SiteError(cause, "its owner lets it take part again with: fedsight site drain --end")


def arrive(home: Path) -> None:
    """Forget what an earlier process of the site said of itself."""
    (home / LEAVING).unlink(missing_ok=True)
    shutil.rmtree(home / WORK, ignore_errors=True)


def leave(home: Path) -> None:
    """Say with the next heartbeat that the site is about to stop."""
    with contextlib.suppress(OSError):  # the disk is full: the server finds out by itself
        (home / LEAVING).touch()


@contextlib.contextmanager
def at_work(home: Path, process: int, doing: str) -> Iterator[None]:
    """Meanwhile the trainer process `process` is `doing` something."""
    path = home / WORK / f"{process}.json"
    with contextlib.suppress(OSError, StoreError):  # a notice, not a record
        make_folder(path.parent)
        found = Work(process, spawn.started(process), doing, time.time())
        partial = path.with_name(f".{process}.partial")  # no name that `works` looks for
        partial.write_text(json.dumps(asdict(found)))
        partial.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def works(home: Path) -> list[Work]:
    """What the site's trainer processes are doing, the longest work first; those of processes that
    are gone are left out, also if another process has got their number."""
    found = []
    for path in (home / WORK).glob("*.json"):
        table = json_object(path)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            one = Work(
                int(table["process"]),
                table["started"],
                str(table["doing"]),
                float(table["since"]),
            )
            if spawn.started(one.process) == one.started:
                found.append(one)
    return sorted(found, key=lambda one: one.since)
