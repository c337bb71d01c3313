"""What a site says of itself with each heartbeat: that it is drained, leaving, or at a standstill.

Small files in the site's folder: the processes of a site, which know these things, write them, and
the one that sends the heartbeats reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsight.core.errors import SiteError, StoreError
from fedsight.core.files import json_object, make_folder, write_atomically
from fedsight.core.process_facts import is_suspended, started
from fedsight.deploy.membership.presence import State
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site.refusals import Asked

DRAINED, LEAVING = "drained.json", "leaving"
WORK = "work"  # a folder: a notice of each trainer process


@dataclass(frozen=True)
class Work:
    """What a trainer process of the site is doing; one that serves another job may do more."""

    process: int
    started: int | None  # when the process began (`started`)
    doing: str
    since: float  # seconds since 1970
    run: str = ""  # for which it does so


@dataclass(frozen=True)
class Job:
    """What a job of the site takes part in."""

    process: int
    started: int | None  # when the process began
    run: str
    program: str  # fingerprint
    name: str  # of the program
    operators: tuple[str, ...]
    round: int  # that was asked for last; 0: none yet
    since: float  # seconds since 1970


def state_of(home: Path) -> State:
    """What the site in `home` says of itself; empty if it is ready."""
    if (home / LEAVING).exists():
        return "leaving"
    at_work = {one.process for one in works(home)} | {one.process for one in jobs(home)}
    if supervisor.is_suspended(home) or any(map(is_suspended, at_work)):
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
def at_work(home: Path, process: int, doing: str, run: str = "") -> Iterator[None]:
    """Meanwhile the trainer process `process` is `doing` something for a run."""
    path = home / WORK / f"{process}.json"
    found = Work(process, started(process), doing, time.time(), run)
    _notice(path, asdict(found))
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
                str(table.get("run", "")),
            )
            if started(one.process) == one.started:
                found.append(one)
    return sorted(found, key=lambda one: one.since)


def tell_job(home: Path, asked: Asked, round: int) -> None:
    """This process, a job of the site, takes part in a run."""
    if not asked.run:
        return
    process = os.getpid()
    facts = (asked.run, asked.program, asked.name, asked.operators, round, time.time())
    for path in (home / WORK).glob("*.job"):  # of jobs that were killed
        if path.stem != str(process) and _job(path) is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    found = Job(process, started(process), *facts)
    _notice(home / WORK / f"{process}.job", asdict(found))


def forget_job(home: Path) -> None:
    """This process takes part in nothing any more."""
    with contextlib.suppress(OSError):
        (home / WORK / f"{os.getpid()}.job").unlink(missing_ok=True)


def jobs(home: Path) -> list[Job]:
    """What the site takes part in, the longest first; jobs that are gone are left out."""
    found = (_job(path) for path in (home / WORK).glob("*.job"))
    return sorted((one for one in found if one is not None), key=lambda one: one.since)


def _job(path: Path) -> Job | None:
    table = json_object(path)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        facts = {**table, "operators": tuple(map(str, table["operators"]))}
        found = Job(**facts)
        if started(found.process) == found.started:
            return found
    return None


def _notice(path: Path, facts: Mapping[str, object]) -> None:
    """Write a notice, which is not a record: a full disk prevents nothing."""
    with contextlib.suppress(OSError, StoreError):
        make_folder(path.parent)
        partial = path.with_name(f".{path.name}.partial")  # no name that anybody looks for
        partial.write_text(json.dumps(facts))
        partial.replace(path)
