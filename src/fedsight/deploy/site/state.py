"""What a site says of itself with each heartbeat: that it is drained, leaving, or at a standstill.

Small files in the site's folder: the processes of a site, which know these things, write them, and
the one that sends the heartbeats reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import SiteError, StoreError
from fedsight.core.files import json_object, write_atomically
from fedsight.deploy.membership.presence import State
from fedsight.deploy.processes import spawn

DRAINED, LEAVING, WORK = "drained.json", "leaving", "work.json"


@dataclass(frozen=True)
class Work:
    """What the site's trainer process is doing."""

    process: int
    doing: str
    since: float  # seconds since 1970


def state_of(home: Path) -> State:
    """What the site in `home` says of itself; empty if it is ready."""
    if (home / LEAVING).exists():
        return "leaving"
    found = work(home)
    if found is not None and spawn.is_stopped(found.process):
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
    for name in (LEAVING, WORK):
        (home / name).unlink(missing_ok=True)


def leave(home: Path) -> None:
    """Say with the next heartbeat that the site is about to stop."""
    with contextlib.suppress(OSError):  # the disk is full: the server finds out by itself
        (home / LEAVING).touch()


@contextlib.contextmanager
def at_work(home: Path, process: int, doing: str) -> Iterator[None]:
    """Meanwhile the trainer process `process` is `doing` something."""
    path = home / WORK
    with contextlib.suppress(OSError):  # a notice, not a record
        partial = home / f".{WORK}.{os.getpid()}.partial"
        found = {"process": process, "doing": doing, "since": time.time()}
        partial.write_text(json.dumps(found))
        partial.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def work(home: Path) -> Work | None:
    """What the site's trainer process is doing; None if it has nothing to do."""
    found = json_object(home / WORK)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Work(int(found["process"]), str(found["doing"]), float(found["since"]))
    return None
