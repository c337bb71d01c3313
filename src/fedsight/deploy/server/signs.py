"""What keeps a run from going on, told to whoever waits for it as soon as it can be seen: a server
that is not there, a process that a signal holds, a site that is silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsight.coordinator.live import LIVE
from fedsight.core.files import json_object
from fedsight.core.package import installed, started_with
from fedsight.core.process_facts import is_suspended
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.presence import HEARTBEAT_TIMEOUT, Presence
from fedsight.deploy.membership.renewal import server_ended
from fedsight.deploy.processes import supervisor


class Signs:
    """Looks at files and processes of the server's machine, and tells each change once.

    Nothing is concluded from them: a site that is silent may be slow, and is waited for as before.
    """

    def __init__(
        self, federation: FederationFolder, run: Path, notify: Callable[[str], None]
    ) -> None:
        self._federation, self._run, self._notify = federation, run, notify
        self._told: dict[str, str] = {}  # what is the matter, by whose matter it is
        self._server: tuple[supervisor.State, int | None] | None = None
        self._serves = 0.0  # since when it does, if it did not; of a clock that nobody sets

    def look(self, sites: Sequence[str], began: float | None = None) -> None:
        """Tell what has changed at the server, at these sites, and in the job that `began` then, in
        seconds since 1970."""
        if not self._look_at_server():
            return  # which alone hears from the sites
        if began is not None:
            self._look_at_job(began)
        found, revoked = presence.presences(self._federation.presences), self._federation.revoked()
        for site in sites:
            if site in revoked:
                self._tell(site, f"site '{site}' was revoked: nothing counts from it any more")
            elif site in found and found[site].state != "leaving":
                self._look_at_site(site, found[site])

    def _look_at_server(self) -> bool:
        """Whether the server runs, and so hears from sites."""
        home = self._federation.server_home
        state, process = supervisor.state(home), supervisor.process_id(home)
        if self._server not in (None, (state, process)):
            self._serves = time.monotonic()
        self._server = state, process
        match state:
            case "ended" if (ended := server_ended(self._federation)) is not None:
                self._tell(
                    "server",
                    f"the server is not running, and its certificate ended on {ended}: fedsight "
                    "federation renew, then fedsight server start",
                )
            case "ended":
                self._tell("server", "the server is not running: fedsight server start")
            case "suspended":
                self._tell("server", "a process of the server is suspended (SIGSTOP): kill -CONT")
            case "restarting":
                self._tell("server", "the server's process has ended and is being restarted")
            case "running":
                if self._told.pop("server", None):
                    self._notify("the server runs again")
                self._look_at_code()
        return state == "running"

    def _look_at_code(self) -> None:
        """Tell if the server runs other FedSight code than this process, which is the run's."""
        other = started_with(self._federation.server_home)
        if other is not None:
            self._tell(
                "code",
                f"the server was started with FedSight {other}, and this machine has "
                f"{installed()}: start the server again",
            )
        else:
            self._told.pop("code", None)

    def _look_at_job(self, began: float) -> None:
        live = json_object(self._run / LIVE)
        process, since = live.get("process"), live.get("began")
        if type(process) is not int or not isinstance(since, float) or since < began:
            return  # of another job
        if is_suspended(process):
            self._tell(
                "job", f"the coordinator's process of this run ({process}) is suspended (SIGSTOP)"
            )
        elif self._told.pop("job", None):
            self._notify("the coordinator's process goes on")

    def _look_at_site(self, site: str, one: Presence) -> None:
        listened = time.monotonic() - self._serves
        if one.alive and one.package not in ("", str(installed())):
            self._tell(
                site,
                f"site '{site}' runs FedSight {one.package}, and this machine {installed()}: it "
                "can take part in no run until both are the same",
            )
        elif one.alive and one.state == "stopped":
            self._tell(
                site, f"site '{site}' is connected, but one of its processes is suspended (SIGSTOP)"
            )
        elif not one.alive and listened > HEARTBEAT_TIMEOUT:
            self._tell(
                site,
                f"site '{site}' has not been heard from for {HEARTBEAT_TIMEOUT:.0f} seconds: its "
                "machine, its network or its FedSight may be down. It is waited for",
            )
        elif one.alive and self._told.pop(site, ""):
            self._notify(f"site '{site}' is there again")

    def _tell(self, whose: str, what: str) -> None:
        if self._told.get(whose) != what:
            self._told[whose] = what
            self._notify(what)
