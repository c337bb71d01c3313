"""The settings of monitoring and hooks: sections of `site.toml`, and of `server.toml`."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.settings import Settings

Side = Literal["server", "site"]
LogFormat = Literal["text", "json"]
Event = Literal[
    "run_ended",
    "run_failed",
    "site_lost",
    "server_lost",
    "budget_near_end",
    "certificate_near_end",
]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Events = Annotated[tuple[Event, ...], Field(strict=False)]
# What each side can know: a site is not told why a run fails, and a server not what a site's owner
# permits.
EVENTS: dict[Side, tuple[Event, ...]] = {
    "server": ("run_ended", "run_failed", "site_lost", "certificate_near_end"),
    "site": ("run_ended", "server_lost", "budget_near_end", "certificate_near_end"),
}


class MonitoringSettings(Settings):
    """Health, metrics and log lines: `[monitoring]` of site.toml, and of server.toml.

    The port is closed unless it is set. Whoever can reach it can read all that it tells.
    """

    # of /healthz and /metrics; not set: closed. `--metrics` sets it for one start
    port: int | None = Field(None, ge=1, le=65535)
    address: str = "127.0.0.1"  # of this machine, where that port listens; see the guide
    log: LogFormat = "text"  # what `start` prints: sentences, or a JSON object on each line

    def check(self) -> list[Problem]:
        """The problems of these settings."""
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            cause = f"'{self.address}' is not the address of a network interface"
            cure = 'write "127.0.0.1", or in a container "0.0.0.0"'
            return [Problem("monitoring.address", cause, cure)]
        return []


class HookSettings(Settings):
    """Whom to tell when something has happened: `[hooks]` of site.toml, and of server.toml.

    A hook gets a JSON object, on its standard input or as the body of a POST. Nothing waits for it.
    """

    # a program with its arguments, without a shell; it gets the object on its standard input
    command: Words = ()
    url: str | None = None  # gets the JSON by POST; https, or http on this machine
    events: Events | None = None  # only these; by default all that this side knows of
    timeout: float = Field(10.0, gt=0, le=300)  # seconds that a hook may take
    lost_after: float = Field(30.0, ge=0)  # seconds of silence until the other side is lost
    budget: float = Field(0.9, gt=0, le=1)  # share of epsilon from which a budget is near its end
    # before a certificate's end; the authority's is told a year before, as members join anew then
    days: int = Field(30, ge=1)

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self.command) or self.url is not None

    def check(self, side: Side) -> list[Problem]:
        """The problems of these settings on one side."""
        problems = []
        if self.command and (why := _not_a_program(self.command[0])):
            cure = "give the whole path of a program that may be executed, then its arguments"
            problems.append(Problem("hooks.command", why, cure))
        if self.url is not None and not _is_safe(self.url):
            cause = "it is neither an https URL nor an http URL of this machine"  # it may be secret
            cure = 'write for example "https://alerts.example.org/fedsight"'
            problems.append(Problem("hooks.url", cause, cure))
        for event in self.events or []:
            if event not in EVENTS[side]:
                cause = f"a {side} does not know of '{event}'"
                problems.append(Problem("hooks.events", cause, f"use: {', '.join(EVENTS[side])}"))
        return problems

    def tells(self, event: str) -> bool:
        """Whether the event is told: it has to be one that hooks are for, whatever else is seen."""
        return self.wanted and event in (get_args(Event) if self.events is None else self.events)


def check(side: Side, monitoring: MonitoringSettings, hooks: HookSettings) -> None:
    """Raise ConfigError with the problems of both sections."""
    if problems := [*monitoring.check(), *hooks.check(side)]:
        raise ConfigError(problems)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_safe(url: str) -> bool:
    try:
        found = urlsplit(url)
        port = found.port  # raises ValueError if it is none
    except ValueError:
        return False
    if not found.hostname or port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return found.scheme == "https" or (found.scheme == "http" and is_loopback(found.hostname))


def _not_a_program(path: str) -> str:
    """Why `path` cannot be executed; empty if it can."""
    if not Path(path).is_absolute():
        return f"'{path}' is not a whole path"
    if not Path(path).is_file():
        return f"there is no file '{path}'"
    return "" if os.access(path, os.X_OK) else f"'{path}' may not be executed"
