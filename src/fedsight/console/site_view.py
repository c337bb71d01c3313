"""What the console of a site's owner shows, from the files in the site's folder.

None of these functions writes anything, and what a page shows of a log or a ledger is limited: they
grow for as long as the site exists. No reason that may name an image gets onto a page: the owner
finds it in `log.jsonl`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsight.core.errors import FedSightError
from fedsight.core.files import opened, parse_json
from fedsight.core.finding import Finding
from fedsight.core.package import installed
from fedsight.core.settings import without_none
from fedsight.core.text import names_path
from fedsight.deploy.findings import (
    disk,
    fault,
    running_site,
    settings_in_force,
    site_certificate,
    tried,
)
from fedsight.deploy.membership import kits, presence
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import approvals, state, unanswered
from fedsight.deploy.site.approvals import Decided, Request
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.ledger_view import epsilons, runs
from fedsight.deploy.site.log import details, protections
from fedsight.deploy.site.owner import OwnerSettings, read_owner, tables
from fedsight.governance.contract import Contract
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

SHOWN = 200  # newest lines of a log, entries of a ledger
TAIL = 1 << 20  # bytes at the end of the log, of which the newest lines are shown
SHARE = 20  # what takes longer than QUICK seconds takes at most one part in so many of the time
QUICK = 0.05


@dataclass(frozen=True)
class Spent:
    """What the ledger's entries come to."""

    number: int  # of the last entry
    hash: str  # of it
    entries: Sequence[LedgerEntry]  # the newest
    runs: Sequence[Mapping[str, Any]]


class Pace:
    """Keeps work that takes long to a small part of the time."""

    def __init__(self) -> None:
        self._not_before = 0.0

    @property
    def due(self) -> bool:
        """Whether it may be done again."""
        return time.monotonic() >= self._not_before

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """It is done meanwhile."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        if now - began > QUICK:
            self._not_before = now + SHARE * (now - began)


class LedgerReader:
    """The site's ledger, read again only when it has changed. Threads may share it.

    The site cannot write its ledger while it is read. So what takes long is done again only after
    a while, and the newest entries may be missing.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock, self._costs = threading.Lock(), threading.Lock()
        self._ledger: Ledger | None = None
        self._spent: Spent | None = None
        self._epsilons: tuple[tuple[int, str], list[dict[str, Any]]] | None = None
        self._reading, self._adding, self._accounting = Pace(), Pace(), Pace()

    def ledger(self) -> Ledger | None:
        """The ledger; None if the site has none yet. Raises StoreError if it is not intact."""
        with self._lock:
            return self._refreshed()

    def read_again(self) -> None:
        """Read the ledger now, however long that takes: something was decided, and is shown."""
        with self._lock, contextlib.suppress(FedSightError):  # each page says what is wrong
            self._reading = Pace()
            self._refreshed()

    def _refreshed(self) -> Ledger | None:
        if not (self._home / "ledger.sqlite").exists():
            self._ledger = None
        elif self._reading.due or self._ledger is None:
            with self._reading.timed():
                if self._ledger is None:
                    self._ledger = Ledger(self._home)
                else:
                    self._ledger.refresh()
        return self._ledger

    def spent(self) -> Spent | None:
        """The newest entries, and what left for each run. None if there is no ledger."""
        with self._lock:
            ledger = self._refreshed()
            if ledger is None:
                return None
            before = self._spent
            same = before is not None and (before.number, before.hash) == ledger.head
            if before is None or (not same and self._adding.due):
                with self._adding.timed():
                    found = ledger.entries()
                self._spent = Spent(*ledger.head, found[: -SHOWN - 1 : -1], runs(found))
            return self._spent

    def epsilons(self, contract: Contract) -> tuple[int, list[dict[str, Any]]] | None:
        """What each data set has cost, and up to which entry. None if there is no ledger."""
        with self._lock:
            ledger = self._refreshed()
            if ledger is None:
                return None
        key = ledger.head[0], repr((contract.limit, contract.data_set))
        with self._costs:  # takes seconds, for which no other page waits
            before = self._epsilons
            other = before is None or before[0][1] != key[1]
            if before is None or other or (before[0] != key and self._accounting.due):
                with self._accounting.timed():
                    before = key, epsilons(ledger, contract, ledger.entries())
                self._epsilons = before
            return before[0][0], before[1]


@dataclass(frozen=True)
class Now:
    """What the site does now."""

    running: bool  # whether `fedsight site start` is running
    answered: bool  # whether the server answers
    said: str  # what the site says of itself: see `state.state_of`
    drained: bool
    jobs: Sequence[tuple[state.Job, Sequence[state.Work]]]
    why: Text  # the server may not answer

    @property
    def words(self) -> Text:
        """The state of the site in a word."""
        if not self.running:
            return message("not running")
        if self.said == "leaving":
            return message("is about to stop")
        if self.said == "stopped":
            return message("one of its processes is suspended")
        if not self.answered:
            return message("running, but {why}", why=self.why)
        return message("connected")


def now(home: Path) -> Now:
    """What the site in `home` does now."""
    running = supervisor.is_running(home)
    works, jobs = (state.works(home), state.jobs(home)) if running else ([], [])
    return Now(
        running,
        running and presence.is_answered(home),
        state.state_of(home) if running else "",
        state.is_drained(home),
        [(job, [one for one in works if one.run == job.run]) for job in jobs],
        unanswered.shortly(home),
    )


@dataclass(frozen=True)
class Programs:
    """Programs that wait, and what the owner has decided."""

    waiting: Sequence[Request]
    decided: Sequence[Decided]
    full: bool  # whether others were turned away, or may be


def programs(home: Path, ledger: Ledger | None) -> Programs:
    """What waits for the owner of the site in `home`, and what was decided."""
    found = approvals.waiting(home, ledger)
    counts: dict[tuple[str, ...], int] = {}
    for one in found:
        counts[one.asked_by] = counts.get(one.asked_by, 0) + 1
    full = len(found) >= approvals.MOST or max(counts.values(), default=0) >= approvals.MOST_OF_ONE
    done = approvals.decided(home, ledger, SHOWN) if ledger is not None else []
    return Programs(found, done, full)


@dataclass(frozen=True)
class Line:
    """A line of the site's log."""

    time: str
    event: str
    run: str
    round: str
    bytes: int | None
    protections: str
    details: Text | str
    asked: str  # of what was refused: program and operators


def left(home: Path) -> list[Line]:
    """The newest lines of the site's log about anything but refusals, the newest first."""
    return [_line(one) for one in _tail(home) if one.get("event") != "refused"][:SHOWN]


def refused(home: Path) -> list[Line]:
    """The newest refusals in the site's log, the newest first."""
    return [_line(one) for one in _tail(home) if one.get("event") == "refused"][:SHOWN]


def _line(line: Mapping[str, Any]) -> Line:
    event, size = str(line.get("event")), line.get("bytes")
    told: Text | str = details(line)
    if event == "failed" or line.get("names_images") or names_path(str(line.get("why", ""))):
        told = message("the reason may name images: it is in log.jsonl")
    by = line.get("asked_by")
    who = [str(line.get("program", "")), *(map(str, by) if isinstance(by, list) else ())]
    return Line(
        time=str(line.get("time", "")),
        event=event,
        run=str(line.get("run", "")),
        round=str(line.get("round") or ""),
        bytes=size if type(size) is int else None,
        protections=protections(line),
        details=told,
        asked=", ".join(one for one in who if one),
    )


def _tail(home: Path) -> list[dict[str, Any]]:
    """The lines at the end of the log, the newest first; one that is half written is left out."""
    try:
        with opened(home / "log.jsonl", links=False) as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for line in reversed(lines[1:] if end > TAIL else lines):
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


@dataclass(frozen=True)
class Settings:
    """The owner's settings that are in force, without where the images are."""

    owner: OwnerSettings
    file: str  # that they were read from
    changed: bool  # whether site.toml has others by now

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Each setting and its value, as site.toml would say it."""
        found = without_none({key: tables(self.owner)[key] for key in _SECTIONS})
        return [
            (f"{section}.{key}", _said(value))
            for section, table in found.items()
            for key, value in table.items()
        ]


_SECTIONS = ("contract", "secure", "delivery", "speed")


def settings(home: Path) -> Settings:
    """The settings that hold at the site in `home`. Raises ConfigError if they cannot be read."""
    file, changed = settings_in_force(home)
    return Settings(read_owner(home / file, None), file, changed)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def health(site: SiteFolder, reader: LedgerReader) -> list[Finding]:
    """Whether the site can take part, as `fedsight site doctor` says it, without the images."""
    found = [Finding("FedSight", "ok", str(installed()))]
    found += running_site(site)
    if (site.kit / "startup").is_dir():
        found += site_certificate(site)
    else:
        found.append(Finding(message("admission"), "bad", message("not admitted yet")))
    found += tried(message("keys"), lambda: kits.check_keys_private(site.folder))
    try:
        ledger = reader.ledger()
    except FedSightError as error:
        found.append(fault(message("ledger"), error))
    else:
        value = message("none yet")
        if ledger is not None:
            value = message("intact, {n:,} entries", n=ledger.head[0])
        found.append(Finding(message("ledger"), "ok", value))
    found.append(disk(site.folder))
    return found


def recogniser_state(one: Mapping[str, Any]) -> Text:
    """What became of a final model, in a sentence."""
    if one["state"] == "delivered":
        return message("made")
    if one["state"] == "waiting" and not one["wanted"]:
        return message("not wanted: see choose below [delivery] in site.toml")
    if one["state"] == "waiting":
        return message("is being made while `fedsight site start` runs")
    why = from_english(one["why"])
    if names_path(str(one["why"])):
        why = message("the reason is shown by fedsight site recognisers")
    return message("not made yet: {why}", why=why)
