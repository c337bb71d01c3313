"""The sites of a federation as the server sees them, for the terminal and the console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedsight.core.disk import is_full
from fedsight.core.package import installed
from fedsight.deploy.membership import hosts
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.presence import Presence, State, presences
from fedsight.deploy.membership.renewal import endings
from fedsight.deploy.membership.requests import is_operators
from fedsight.deploy.processes import supervisor
from fedsight.language.message import Text, message

LONGEST = 80  # characters of what a site calls the source of its images


@dataclass(frozen=True)
class SiteRow:
    """One site: whether it is connected, and what it declares. All of the latter is its choice.
    Times are seconds since 1970."""

    name: str
    connected: bool
    since: float | None  # when it came, or when it was last seen; None: it never came
    source: str
    train: int | None
    test: int | None
    classes: int | None
    skipped: int | None  # corrupt images that were left out
    revoked: str  # why, if it was
    package: str = ""  # the FedSight code that it says it runs
    state: State = ""  # what it says of itself
    other: bool = False  # whether that is not the code of this machine
    # whether the server cannot note that it hears from the site: its disk is full
    unknown: bool = False


@dataclass(frozen=True)
class Sites:
    """All sites, and whether the server runs that they connect to."""

    federation: str
    address: str
    serving: bool
    rows: tuple[SiteRow, ...]
    state: supervisor.State = "running"  # of the server's process

    def table(self) -> dict[str, Any]:
        """As plain values, for scripts."""
        return {**asdict(self), "package": str(installed())}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Sites:
        """From plain values; TypeError or KeyError unless they are those of a federation."""
        rows = tuple(SiteRow(**row) for row in table["rows"])
        state = table.get("state", "running")  # an older server says none
        return cls(table["federation"], table["address"], table["serving"], rows, state)


def certificates_table(federation: FederationFolder) -> list[dict[str, Any]]:
    """When the certificates of a federation end, as plain values."""
    return [one.table() for one in endings(federation)]


def sites(federation: FederationFolder) -> Sites:
    """The sites that were admitted, that ever connected, or that were revoked."""
    found, gone = presences(federation.presences), federation.revoked()
    revoked = {name: why for name, why in gone.items() if not is_operators(name)}
    names = sorted({*federation.admitted(), *found, *revoked})
    invitation, full = federation.invitation, is_full(federation.server_home)
    return Sites(
        federation.name,
        hosts.written(invitation.host, invitation.port),
        supervisor.is_running(federation.server_home),
        tuple(_row(name, found.get(name), revoked.get(name, ""), full) for name in names),
        supervisor.state(federation.server_home),
    )


def server_words(state: supervisor.State, process: int | None = None) -> Text:
    """The state of a server's process in words."""
    match state:
        case "running" if process is None:
            return message("the server is running")
        case "running":
            return message("the server is running (process {n})", n=process)
        case "suspended":
            return message("a process of the server is suspended (SIGSTOP): kill -CONT")
        case "starting":
            return message("the server is starting")
        case "restarting":
            return message("the server's process has ended and is being restarted")
    return message("the server is not running: start it with `fedsight server start`")


def _row(name: str, one: Presence | None, revoked: str, full: bool) -> SiteRow:
    declared = one.declared if one is not None else None
    facts: Mapping[str, Any] = declared if isinstance(declared, Mapping) else {}
    classes = facts.get("classes")
    alive = one is not None and one.alive
    since = None if one is None else one.since if alive else one.seen
    return SiteRow(
        name=name,
        connected=alive,
        since=since,
        source=str(facts.get("source", ""))[:LONGEST],
        train=_count(facts.get("train")),
        test=_count(facts.get("test")),
        classes=len(classes) if isinstance(classes, list) else None,
        skipped=_count(facts.get("skipped")),
        revoked=revoked,
        state=one.state if one is not None and alive else "",
        package=one.package if one is not None else "",
        other=one is not None and one.package not in ("", str(installed())),
        unknown=full and one is not None and not alive and one.state != "leaving",
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int else None
