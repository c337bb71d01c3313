"""Programs that wait for the approval of a site's owner, and what the owner has decided.

A request that waits is a file in the folder `programs` of the site, named by the program's whole
fingerprint, with its settings as the owner reads them. A decision is an entry of the ledger, which
cannot be changed afterwards; the file then only says what it was about.

Whoever coordinates chooses how many programs there are, how long their names and settings are, and
what they say. So there are at most so many requests, and of the same operators fewer; names are
shortened; and a program whose settings are too long to be read is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from fedsight.core import locks
from fedsight.core.errors import DeployError, HeldError, StoreError
from fedsight.core.files import (
    content,
    json_object,
    make_folder,
    refuse_links,
    write_atomically,
)
from fedsight.core.settings import without_none
from fedsight.deploy.membership.federation import check_site_folder
from fedsight.deploy.site.refusals import Asked
from fedsight.governance.contract import is_sha256, protections
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.program.program import Program

FOLDER = "programs"  # in the site's folder
MARK = "decided"  # in it: a random text, another one after each decision
MOST, MOST_OF_ONE = 100, 20  # requests that wait, and of the same operators
LONGEST = 1 << 16  # characters of a program's settings
FORGOTTEN = 30 * 24 * 3600.0  # seconds after which a request makes room for others
REPEATED = 60.0  # seconds after which it is written again that a program was asked for
LOCK_TIMEOUT = 10.0  # seconds
# What matters most of a program's settings, and its title.
FACTS = {
    "task": message("Task"),
    "model": message("Model"),
    "algorithm": message("Algorithm"),
    "rounds": message("Rounds"),
    "privacy": message("Noise"),
    "protections": message("Protections"),
    "plugins": message("Plug-ins"),
}


@dataclass(frozen=True)
class Request:
    """A program for which the owner's approval was asked. Times are seconds since 1970."""

    fingerprint: str
    name: str  # shortened; it is not part of the fingerprint
    run: str
    asked_by: tuple[str, ...]  # operators whose signature on the job the site has verified
    since: float
    last: float
    facts: dict[str, str]  # what matters most of the settings
    settings: str  # all that the fingerprint stands for, as TOML


@dataclass(frozen=True)
class Decided:
    """What the owner has decided about a program; of one that nobody had asked for, its fingerprint
    is all that is known."""

    entry: LedgerEntry
    request: Request | None

    @property
    def approved(self) -> bool:
        """Whether it may run."""
        return self.entry.kind == "approved"


def require(home: Path, ledger: Ledger, program: Program, asked: Asked) -> None:
    """Raise HeldError until the owner of the site in `home` has approved `program`, and DeployError
    if its owner has refused it. What waits is put before the owner."""
    decision = ledger.decision(program.fingerprint)
    require_not_declined(decision)
    if decision is None:
        _ask(home, ledger, program, asked)
        cause = "contract.approval: this program waits for the approval of the site's owner"
        raise HeldError(cause, "the site's owner decides: see contract.approval in site.toml")


def require_not_declined(decision: LedgerEntry | None) -> None:
    """Raise DeployError if the owner has refused a program by hand."""
    if decision is not None and decision.kind == "declined":
        cause = "the site's owner has refused this program"
        raise DeployError(cause, "that is final; with another seed it is another program")


def _ask(home: Path, ledger: Ledger, program: Program, asked: Asked) -> None:
    """Put a program before the owner. Raises HeldError if too many wait already, DeployError for
    one that is too long to be read, StoreError if it cannot be written."""
    text, now = settings_of(program), time.time()
    if len(text) > LONGEST:
        raise DeployError(
            f"contract.approval: the settings of this program have {len(text):,} characters, and "
            f"the site's owner is shown at most {LONGEST:,}",
            "shorten them: lists of classes, of sites, of groups",
        )
    with _locked(home):
        before = request(home, program.fingerprint)
        if before is not None and 0 <= now - before.last < REPEATED:
            return
        if before is None:
            _make_room(home, waiting(home, ledger), asked.operators, now)
        # What a job that nobody has signed for it says is not what the signer of another has said.
        if before is not None and not asked.operators:
            asked = replace(asked, run=before.run, name=before.name, operators=before.asked_by)
        found = Request(
            *(program.fingerprint, asked.name, asked.run, asked.operators),
            *(now if before is None else before.since, now),
            _facts(program),
            text,
        )
        write_atomically(_path(home, found.fingerprint), json.dumps(asdict(found)).encode(), 0o600)


def _make_room(home: Path, others: Sequence[Request], by: tuple[str, ...], now: float) -> None:
    """Forget requests that were not repeated for long; HeldError if too many are left."""
    kept = [one for one in others if now - one.last <= FORGOTTEN]
    for one in others:
        if one not in kept:
            _path(home, one.fingerprint).unlink(missing_ok=True)
    if len(kept) >= MOST or sum(one.asked_by == by for one in kept) >= MOST_OF_ONE:
        raise HeldError(
            "contract.approval: too many programs wait for the approval of the site's owner, and "
            "this one is not among them",
            "wait until its owner has decided about them",
        )


def settings_of(program: Program) -> str:
    """All settings that the fingerprint of `program` stands for, as the owner reads them."""
    table = {key: value for key, value in program.table().items() if key != "name"}
    return tomli_w.dumps(without_none(table))


def _facts(program: Program) -> dict[str, str]:
    """What matters most, by the keys of FACTS."""
    mechanism = program.privacy
    noise = getattr(mechanism, "noise_multiplier", None)
    told = {
        "task": program.task.registered,
        "model": program.model.registered,
        "algorithm": program.algorithm.registered,
        "rounds": str(program.rounds.rounds),
        "privacy": str(mechanism.registered) + ("" if noise is None else f" ({noise:g})"),
        "protections": ", ".join(protections(program)),
        "plugins": ", ".join(one.sha256 for one in program.plugins),
    }
    return {key: Asked.short(value) for key, value in told.items() if value}


def waiting(home: Path, ledger: Ledger | None) -> list[Request]:
    """The requests about which the owner has not decided, the oldest first; `ledger`: the site's,
    if there is one."""
    found = [
        request(home, path.stem)
        for path in (home / FOLDER).glob("*.json")
        if ledger is None or ledger.decision(path.stem) is None
    ]
    whole = (one for one in found if one is not None)
    return sorted(whole, key=lambda one: (one.since, one.fingerprint))


def decided(home: Path, ledger: Ledger, most: int | None = None) -> list[Decided]:
    """All that the owner has decided, the newest first, or the `most` newest."""
    newest = ledger.decisions()[::-1][:most]
    return [Decided(entry, request(home, entry.program)) for entry in newest]


def request(home: Path, fingerprint: str) -> Request | None:
    """The request for a program; None if there is none that is whole."""
    if not is_sha256(fingerprint):
        return None
    return _read(_path(home, fingerprint))


def decide(home: Path, fingerprint: str, approve: bool) -> LedgerEntry:
    """Record the owner's decision about the program with this whole fingerprint; the entry of the
    ledger that holds.

    Raises DeployError for what is not a whole fingerprint, for a program that was refused before,
    and for a user who is not the site's; StoreError if it cannot be recorded.
    """
    check_site_folder(home)
    if not is_sha256(fingerprint):
        cause = f"{Asked.short(fingerprint)!r} is not the fingerprint of a program"
        raise DeployError(cause, "give all 64 digits: fedsight site programs shows them")
    require_own(home)
    ledger = Ledger(home)
    with _locked(home):
        found = request(home, fingerprint)
        entry = LedgerEntry("approved" if approve else "declined", program=fingerprint)
        if found is not None:
            entry = replace(entry, run=found.run, asked_by=found.asked_by)
        entry = ledger.append_decision(entry)
        write_atomically(home / FOLDER / MARK, secrets.token_hex(8).encode())
        return entry


def mark(home: Path) -> str:
    """A random text that is another one once the owner has decided about any program: by that the
    server learns that it is worth asking again, and nothing else."""
    try:
        return content(home / FOLDER / MARK, links=False).decode("ascii")
    except (OSError, ValueError):
        return ""


def require_own(home: Path) -> None:
    """Raise DeployError for another user than the one whose the folder is, even if the system lets
    them write: the site could then not read its own ledger any more."""
    owner = home.stat().st_uid
    if owner != os.geteuid():
        cause = f"the folder {home} belongs to another user (number {owner})"
        raise DeployError(cause, f"decide as that user: sudo -u '#{owner}' fedsight ...")


def differences(found: Request, earlier: Sequence[Decided]) -> list[str] | None:
    """The settings in which a program differs from the one of the same name that was approved last,
    a line each; None if there is none. The operator chooses names, and a name is not what is
    approved."""
    for one in earlier:
        before = one.request
        if one.approved and before is not None and before.name == found.name:
            try:
                old, new = (_flat(tomllib.loads(text.settings)) for text in (before, found))
            except ValueError:  # somebody has changed a file
                continue
            return [
                f"{key}: {old.get(key, '-')} -> {new.get(key, '-')}"
                for key in sorted({*old, *new})
                if old.get(key) != new.get(key)
            ]
    return None


def _flat(table: dict[str, Any], within: str = "") -> dict[str, str]:
    """Settings by their dotted keys."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{within}{key}.")
        else:
            found[f"{within}{key}"] = json.dumps(value, ensure_ascii=False, default=str)
    return found


def iso(seconds: float) -> str:
    """Seconds since 1970 as an ISO time; empty for what is not a time."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return ""


def _read(path: Path) -> Request | None:
    if path.is_symlink():
        return None
    table: dict[str, Any] = json_object(path)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = Request(
            fingerprint=str(table["fingerprint"]),
            name=str(table["name"]),
            run=str(table["run"]),
            asked_by=tuple(map(str, table["asked_by"])),
            since=float(table["since"]),
            last=float(table["last"]),
            facts={str(key): str(value) for key, value in table["facts"].items()},
            settings=str(table["settings"]),
        )
        return found if found.fingerprint == path.stem else None
    return None


def _path(home: Path, fingerprint: str) -> Path:
    return home / FOLDER / f"{fingerprint}.json"


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """The folder of the requests, for this process alone."""
    refuse_links(home, FOLDER)
    make_folder(home / FOLDER)
    busy = StoreError(
        "another process is working on the list of programs of this site", "try it again"
    )
    try:
        lock = locks.hold(home / FOLDER / ".lock", LOCK_TIMEOUT, busy)
    except OSError as error:
        cause = f"the list of programs cannot be locked: {error.strerror}"
        raise StoreError(cause, f"look at the folder {home / FOLDER}") from None
    with lock:
        yield
