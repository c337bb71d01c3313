"""What is seen of a server and its federation: from files alone, so that nothing waits for it."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fedsight.coordinator.folders import CARRIED, LOCK
from fedsight.coordinator.live import LIVE
from fedsight.core import locks
from fedsight.core.files import json_object
from fedsight.core.text import MAX_MESSAGE, printable
from fedsight.deploy.health import SILENCE
from fedsight.deploy.membership import hosts
from fedsight.deploy.membership.certificates import AUTHORITY_SOON
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.presence import (
    HEARTBEAT_TIMEOUT,
    TRAFFIC_FILE,
    Presence,
    presences,
)
from fedsight.deploy.monitoring.look import (
    Follower,
    Happened,
    Look,
    certificates_near_end,
    clause_of,
    count,
    look_at_certificates,
    look_at_machine,
    number,
)
from fedsight.deploy.monitoring.settings import HookSettings
from fedsight.deploy.processes import supervisor
from fedsight.runs import listing

MAX_SITES, MAX_RUNS = 200, 20  # that have a label of their own
CONNECT_TIMEOUT, CONNECT_INTERVAL = 2.0, 15.0  # seconds
LOOK_AGAIN = 2.0  # seconds for which a silent site is given the benefit of the doubt
UNDECIDED = 30.0  # seconds for which a run may be between two processes
SETTLING = 20.0  # seconds after the start in which the engine may still be importing
ENDED = ("finished", "failed", "stopped", "paused")


class ServerLook:
    """Looks at a federation's server again and again; `known` is what it knew before a restart."""

    def __init__(
        self, folder: Path, hooks: HookSettings, began: float, known: dict[str, Any]
    ) -> None:
        self._federation = FederationFolder.open(folder)
        self._hooks, self._began = hooks, began
        self._silent: dict[str, float] = {}  # since when sites have been silent
        runs, up = known.get("runs"), known.get("up")
        # Each run by the name of its folder: whether it has ended, and that was told.
        self._runs: dict[str, bool] | None = dict(runs) if isinstance(runs, dict) else None
        self._seen_up = set(map(str, up)) if isinstance(up, list) else set()
        self._followers: dict[str, Follower] = {}
        self._rounds: dict[str, tuple[int, float]] = {}  # the last round of a run, and its seconds
        self._unheld: dict[str, float] = {}  # since when nobody is at work in a run
        self._totals: dict[str, Counter[str]] = {
            "replies_total": Counter(accepted=0, rejected=0),
            "refusals_total": Counter(),
            "runs_ended_total": Counter(dict.fromkeys(ENDED, 0)),
        }
        self._complete = 0
        self._port = (0.0, "")  # when it was tried, and why it failed

    @property
    def known(self) -> dict[str, Any]:
        """What must outlive this process, so that nothing is told twice or never."""
        return {"runs": self._runs or {}, "up": sorted(self._seen_up)}

    def look(self) -> Look:
        """What is seen now."""
        look, home = Look(), self._federation.server_home
        look_at_machine(look, home, self._began)
        startup = {"server": home / "kit" / "startup" / "server.crt"}
        startup["operator"] = self._federation.operator_kit / "startup" / "client.crt"
        startup["authority"] = self._federation.authority
        left = look_at_certificates(look, startup)
        sooner = {"authority": max(self._hooks.days, AUTHORITY_SOON)}
        look.happened += certificates_near_end(left, self._hooks.days, sooner)
        self._look_at_process(look, home)
        self._look_at_sites(look)
        self._look_at_runs(look)
        for name, totals in self._totals.items():
            look.values[name] = dict(totals)
        look.set("rounds_total", self._complete)
        return look

    def _look_at_process(self, look: Look, home: Path) -> None:
        """Whether FLARE's process lives, and its port accepts; and what it has carried."""
        traffic, pid = json_object(home / TRAFFIC_FILE), supervisor.process_id(home)
        sites = traffic.get("sites")
        pairs = [one for one in (sites.values() if isinstance(sites, dict) else ()) if _pair(one)]
        for place, direction in enumerate(("received", "sent")):
            by_direction = look.values.setdefault("bytes_total", {})
            by_direction[direction] = float(sum(one[place] for one in pairs))
        written = number(traffic.get("time")) or 0.0
        if pid is None:
            look.reasons.append("the server's process is not running")
        elif supervisor.is_suspended(home):
            look.reasons.append("a process of the server is suspended")
        elif time.time() - max(written, self._began + SETTLING) > SILENCE:
            look.reasons.append("the server's process has written nothing for a while")
        elif why := self._port_fault():
            look.reasons.append(why)

    def _port_fault(self) -> str:
        """Why the port does not accept; tried now and then, since the server has work to do."""
        tried, why = self._port
        if time.monotonic() - tried < (CONNECT_INTERVAL if not why else CONNECT_TIMEOUT):
            return why
        why = ""
        try:
            host, port = self._federation.invitation.host, self._federation.invitation.port
            address = hosts.loopback_address(host) or "127.0.0.1"
            with socket.create_connection((address, port), CONNECT_TIMEOUT):
                pass
        except OSError:
            why = "the server's port does not accept connections"
        self._port = time.monotonic(), why
        return why

    def _look_at_sites(self, look: Look) -> None:
        admitted = self._federation.admitted()
        found = presences(self._federation.presences)
        states = Counter(dict.fromkeys(("ready", "drained", "stopped", "absent"), 0))
        up: dict[str, float] = {}
        for site in admitted:
            one = found.get(site)
            alive = one is not None and one.alive
            up[site] = float(alive)
            states[(one.state or "ready") if one is not None and alive else "absent"] += 1
            self._look_at_site(look, site, one)
        self._seen_up &= set(admitted)
        look.values["sites"] = dict(states)
        look.set("sites_expected", len(admitted))
        look.values["site_up"] = dict(list(up.items())[:MAX_SITES])

    def _look_at_site(self, look: Look, site: str, one: Presence | None) -> None:
        """Whether a site has come, has left, or is lost: silent without a word of farewell."""
        if one is None:
            return
        known = site in self._seen_up
        if one.alive and not known:
            self._seen_up.add(site)
            look.happened.append(Happened("site_connected", site, {"site": site}))
        elif one.state == "leaving" and known:
            self._seen_up.discard(site)
            look.happened.append(Happened("site_left", site, {"site": site}))
        if one.alive or site not in self._seen_up:
            self._silent.pop(site, None)
            return
        # By a clock that nobody sets: when that of the machine jumps, every site seems silent.
        since = self._silent.setdefault(site, time.monotonic())
        wait = max(self._hooks.lost_after - HEARTBEAT_TIMEOUT, LOOK_AGAIN)
        if time.monotonic() - since >= wait:
            self._seen_up.discard(site)
            facts = {"site": site, "silent_seconds": int(one.silence)}
            look.happened.append(Happened("site_lost", site, facts, "warning"))

    def _look_at_runs(self, look: Look) -> None:
        root = self._federation.runs
        folders = sorted(path.parent for path in root.glob("*/run.json"))
        first, self._runs = self._runs is None, self._runs or {}
        running: list[Path] = []
        for folder in folders:
            if locks.held(folder / LOCK) or locks.held(folder / CARRIED):
                running.append(folder)
                self._unheld.pop(folder.name, None)
                unseen = not first and folder.name not in self._runs
                if self._runs.get(folder.name) is not False:
                    self._runs[folder.name] = False
                    look.happened.append(Happened("run_began", folder.name, {"run": folder.name}))
                self._follow(look, folder, from_the_start=unseen)
            elif first:
                self._runs.setdefault(folder.name, True)
            elif not self._runs.get(folder.name, False):
                self._follow(look, folder, from_the_start=folder.name not in self._runs)
                self._end(look, folder)
        names = {folder.name for folder in folders}
        for name in [name for name in self._runs if name not in names]:
            del self._runs[name]
        for name in [name for name in self._followers if name not in {f.name for f in running}]:
            if self._runs.get(name, True):
                self._followers.pop(name, None)
                self._rounds.pop(name, None)
        look.set("runs", len(running))
        self._look_at_live(look, running[:MAX_RUNS])

    def _look_at_live(self, look: Look, running: list[Path]) -> None:
        by_run: dict[str, dict[str, float]] = {
            name: {} for name in ("run_round", "run_rounds", "run_waiting", "round_seconds")
        }
        for folder in running:
            live = json_object(folder / LIVE)
            waiting = live.get("waiting")
            by_run["run_round"][folder.name] = float(count(live.get("round")))
            by_run["run_rounds"][folder.name] = float(count(live.get("rounds")))
            there = len(waiting) if isinstance(waiting, list) else 0
            by_run["run_waiting"][folder.name] = float(there)
            if folder.name in self._rounds:
                by_run["round_seconds"][folder.name] = self._rounds[folder.name][1]
        look.values |= by_run

    def _follow(self, look: Look, folder: Path, from_the_start: bool) -> None:
        """Count what the rounds that were completed since the last look brought."""
        if folder.name not in self._followers:
            follower = Follower(folder / "history.jsonl", from_the_start)
            self._followers[folder.name] = follower
        for line in self._followers[folder.name].new():
            rejected = line.get("rejected")
            reasons = list(rejected.values()) if isinstance(rejected, dict) else []
            accepted, round = count(line.get("replies")), count(line.get("round"))
            seconds = number(line.get("seconds")) or 0.0
            self._totals["replies_total"].update(accepted=accepted, rejected=len(reasons))
            self._totals["refusals_total"].update(map(clause_of, reasons))
            self._complete += 1
            self._rounds[folder.name] = round, seconds
            facts = {"run": folder.name, "round": round, "replies": accepted}
            facts |= {"rejected": len(reasons), "seconds": float(f"{seconds:.4g}")}
            level = "warning" if reasons else "info"
            look.happened.append(Happened("round_ended", folder.name, facts, level))

    def _end(self, look: Look, folder: Path) -> None:
        """Tell how a run ended at which nobody works any more."""
        run = listing.look(folder)
        if run.state == "running":
            return
        state: str = run.state
        if state == "interrupted":  # it may be between two processes, or not have begun
            since = self._unheld.setdefault(folder.name, time.monotonic())
            if time.monotonic() - since < UNDECIDED:
                return
            state = "failed"
        assert self._runs is not None
        self._unheld.pop(folder.name, None)
        begun = folder.name in self._runs or run.state != "interrupted"
        self._runs[folder.name] = True
        if not begun:  # it was made, and nobody has worked at it
            return
        self._totals["runs_ended_total"][state] += 1
        facts: dict[str, Any] = {"run": folder.name, "how": run.state, "rounds": run.round}
        if state == "failed":
            cause = run.cause or "its processes are gone"
            facts["cause"] = printable(cause, MAX_MESSAGE)
        event, level = ("run_failed", "error") if state == "failed" else ("run_ended", "info")
        look.happened.append(Happened(event, folder.name, facts, level))


def _pair(one: object) -> bool:
    """Whether it is a pair of whole numbers."""
    return isinstance(one, list) and len(one) == 2 and all(count(part) == part for part in one)
