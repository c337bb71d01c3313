"""The run scheduler: carries a deployed run from its program to its result by a series of jobs.

FLARE aborts a job when one of its processes dies, does not let a site rejoin a job, and cannot
resume one. So each job runs the round loop from the last checkpoint on, with the sites that are
connected when it starts, and the scheduler starts one job after another until the run is finished.
A crash of any process costs at most the round in progress.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsight.coordinator.asked import answered, asked
from fedsight.coordinator.callbacks import Callback, RoundEnded, RunBegan, RunEnded, notify
from fedsight.coordinator.folders import CARRIED, LOCK
from fedsight.coordinator.live import LIVE, Live
from fedsight.coordinator.store import RunStore
from fedsight.core import errors, locks
from fedsight.core.disk import is_full
from fedsight.core.errors import (
    ConfigError,
    DeployError,
    FedSightError,
    HeldError,
    Interrupted,
    SiteError,
    StoreError,
)
from fedsight.core.files import json_object
from fedsight.deploy.declaration import gather, read_declaration
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.operators import Permitted
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server import final_models
from fedsight.deploy.server.job import JOB_FILE, read_outcome
from fedsight.deploy.server.job_definition import write_job
from fedsight.deploy.server.joining import final_sites, is_trained
from fedsight.deploy.server.leavers import Leavers, has_gone
from fedsight.deploy.server.operator import OperatorSession, open_session
from fedsight.deploy.server.remote_runs import MAX_PATIENCE
from fedsight.deploy.server.signs import Signs
from fedsight.program import config
from fedsight.program.program import Program, Speed

# How many jobs without a finished round in between stop the run, by how they ended: with an error,
# or because a process died, which is restarted. A handover is no failure, and neither is a site
# that leaves before a start (`Leavers`).
MAX_FAILURES = {"failed": 3, "lost": 10, "handover": 1}
START_TIMEOUT = 180.0  # seconds for a job's processes to start
STATUS_INTERVAL = 2.0  # seconds between queries of a job's status
ABORT_TIMEOUT = 5.0  # seconds to open a session in order to abort a job
LATE_SITES_TIMEOUT = 20.0  # seconds to wait for sites beyond the quorum
WAITING_NOTICE_AFTER = 2.0  # seconds of waiting for sites until the user is told
POLL_INTERVAL = 0.25  # seconds


def prepare(
    federation: FederationFolder,
    program: Program,
    speed: Speed,
    store: RunStore,
    force: bool = False,
) -> None:
    """Make the folder of a run of `program` on the federation; `resume` then trains.

    Raises StoreError if it holds a run already, unless `force` is set.
    """
    config.check_elsewhere(program, speed, len(federation.admitted()) or None)
    facts = {
        "command": "run",
        "name": program.name,
        "fingerprint": program.fingerprint,
        "federation": str(federation.folder),
        "id": secrets.token_hex(8),
    }
    store.create(program, speed, facts, force)


def resume(
    federation: FederationFolder,
    store: RunStore,
    callbacks: Sequence[Callback],
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Continue a run of the federation until it is finished; returns the summary.

    Raises StoreError if another process does so.
    """
    program, _ = store.program()
    scheduler = RunScheduler(federation, program, store, callbacks, notify)
    carried = locks.hold(store.folder / CARRIED, locks.GLANCE, _carried(store.folder))
    answered(store.folder)  # whatever was asked of an earlier process
    # The coordinator of a job says what it does, and this process how the run ended.
    with carried, Live(store.folder, stops=False).ending():
        try:
            return scheduler.run()
        except KeyboardInterrupt:
            try:
                scheduler.abort()
            except DeployError as error:
                notify(error.cause)
            raise Interrupted(
                f"stopped; the last checkpoint in {store.folder} is complete",
                f"continue with: fedsight resume {store.folder}",
            ) from None


class RunScheduler:
    """Runs one job after another until a run is finished."""

    def __init__(
        self,
        federation: FederationFolder,
        program: Program,
        store: RunStore,
        callbacks: Sequence[Callback],
        notify: Callable[[str], None],
    ) -> None:
        self._federation = federation
        self._program = program
        self._store = store
        self._callbacks = callbacks
        self._notify = notify
        self._job: str | None = None  # FLARE's ID of the current job
        self._number = secrets.randbelow(1 << 30)  # of the current job; it counts up
        self._reported: int | None = None  # the last round that the callbacks have seen
        self._history_size = 0  # bytes of the history that they have seen
        self._told: dict[str, str] = {}  # without which sites the run goes on, as the user knows
        self._signs = Signs(federation, store.folder, notify)
        self._leavers = Leavers()
        self._permitted = Permitted(federation.folder)
        self._sites: Sequence[str] = ()  # of the current job, or of the last one
        self._starts = False  # whether the user knows that jobs take a while to start
        self._began = 0.0  # when the current job did, in seconds since 1970

    def run(self) -> dict[str, Any]:
        """Run job after job; returns the summary.

        Of a finished run, only the model is sent again to sites that lack it.
        """
        if (self._store.folder / "summary.json").exists():
            return self._send_again()
        failures, done = Counter[str](), self._last_round()
        while True:
            sites = self._wait_for_sites()
            self._number += 1
            (self._store.folder / JOB_FILE).unlink(missing_ok=True)
            outcome = self._run_job(sites)
            if outcome["state"] == "finished":
                return self._finish()
            if outcome["state"] == "left":
                self._notify(f"{outcome['cause']}; starting another one")
                continue
            if outcome.get("family") == HeldError.__name__:
                self._wait_for_owners(outcome)
                continue
            before, done = done, self._last_round()
            if outcome["state"] == "failed" and not outcome["again"]:
                raise _error(outcome)
            progressed = done > before or outcome["state"] == "handover"
            if progressed:
                failures.clear()
            failures[outcome["state"]] += not progressed
            if failures[outcome["state"]] >= MAX_FAILURES[outcome["state"]]:
                raise _error(outcome)
            why = outcome.get("why") or outcome.get("cause")
            self._notify(f"after round {done}: {why}; continuing")

    def _send_again(self) -> dict[str, Any]:
        """Send the model of a finished run to its sites that are connected; returns the summary."""
        sites = self._wait_for_lacking()
        if sites:
            self._number += 1
            (self._store.folder / JOB_FILE).unlink(missing_ok=True)
            outcome = self._run_job(sites)
            if outcome["state"] != "finished":
                raise _error(outcome)
        return self._finish()

    def _require_going_on(self) -> None:
        """Raise KeyboardInterrupt, as Ctrl-C does, when the user asked that the run stop, and
        DeployError when the operator on another machine who asked for it may start no runs now."""
        if asked(self._store.folder) == "stop":
            answered(self._store.folder)
            raise KeyboardInterrupt
        signer = self._federation.signer
        if signer is not None and self._permitted().get(signer.operator) is not False:
            raise DeployError(
                f"{signer.operator}, who asked for this run, may start no runs any more",
                f"continue as another operator with: fedsight resume {self._store.folder}",
            )

    def abort(self) -> None:
        """Abort the current job; DeployError if the server cannot be reached."""
        if self._job is not None:
            with self._open_session(ABORT_TIMEOUT) as session:
                session.abort(self._job)

    def _run_job(self, sites: Sequence[str]) -> dict[str, Any]:
        """Run one job; returns its outcome, as it reports it or as it is seen from outside."""
        arguments = {
            "run": self._store.folder.name,
            "fingerprint": self._program.fingerprint,
            "number": self._number,
        }
        home, self._began = self._federation.server_home, time.time()
        self._sites = sites
        self._signs.look(sites)  # what is the matter already, before anything is waited for
        server, before = supervisor.process_id(home), presence.presences(self._federation.presences)
        with self._open_session(self._program.rounds.deadline) as session:
            self._job = self._submit(session, sites, arguments)
            there = {site: before.get(site) for site in sites}
            outcome = self._wait_for_start(session, there) or self._wait_for_end(sites)
        # A server that was restarted knows nothing of the job, and neither do its sites.
        if outcome["state"] in ("lost", "left") and supervisor.process_id(home) == server:
            with contextlib.suppress(DeployError):  # nothing may be left of the job
                self.abort()
        self._job = None
        return outcome

    def _submit(
        self, session: OperatorSession, sites: Sequence[str], arguments: Mapping[str, Any]
    ) -> str:
        """Submit a job for the sites, here or where its operator is; returns its ID."""
        name, patience = self._store.folder.name, self._program.rounds.deadline
        if (signer := self._federation.signer) is not None:
            return signer.submit(name, sites, arguments, patience, self._require_going_on)
        with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
            write_job(Path(scratch), name, sites, arguments)
            return session.submit(Path(scratch))

    def _wait_for_start(
        self, session: OperatorSession, sites: Mapping[str, presence.Presence | None]
    ) -> dict[str, Any] | None:
        """Wait until the coordinator's process runs; the outcome if it never did.

        `sites`: those of the job, as they were when it was submitted. A job starts with all of its
        sites or not at all, so it ends once one of them has gone: the next one is without it, or
        waits for it.
        """
        began = asked = time.monotonic()
        while read_outcome(self._store, self._number) is None:
            self._require_going_on()
            time.sleep(POLL_INTERVAL)
            self._signs.look(list(sites))
            found = presence.presences(self._federation.presences)
            if gone := [site for site in sites if has_gone(sites[site], found.get(site))]:
                return self._left(gone)
            now = time.monotonic()
            if now - asked < STATUS_INTERVAL:
                continue
            asked = now
            if not self._starts:
                self._starts = True
                self._notify(
                    "the server starts this run at its sites, and asks whether they take part"
                )
            try:
                status = session.status(str(self._job))
            except DeployError:
                return _lost("the server was restarted")
            if status.startswith(("FINISHED", "FAILED")):
                if silent := [site for site in sites if site in found and not found[site].alive]:
                    return self._left(silent)
                return _lost(f"a job ended before it started ({status})")
            if now - began > START_TIMEOUT:
                return _lost(f"a job did not start within {START_TIMEOUT:.0f} s")
        return None

    def _left(self, sites: Sequence[str]) -> dict[str, Any]:
        """The outcome of a job that could not start because `sites` have left."""
        for site in sites:
            self._leavers.note(site)
        lost = _lost(f"site '{sites[0]}' left before a job with it had started")
        return {**lost, "state": "left"}

    def _wait_for_end(self, sites: Sequence[str]) -> dict[str, Any]:
        """Report rounds, and what becomes of the job's sites, until the coordinator's process has
        ended; returns the outcome."""
        while True:
            self._require_going_on()
            ended = not locks.held(self._store.folder / LOCK)
            self._report_sites(sites)
            self._report_rounds()
            outcome = read_outcome(self._store, self._number)
            if outcome is not None and outcome["state"] != "running":
                return outcome
            if ended and is_full(self._store.folder):  # the coordinator cannot write why it ended
                raise StoreError(
                    f"the disk of {self._store.folder} is full; the last checkpoint is complete",
                    f"free some space, then run: fedsight resume {self._store.folder}",
                )
            if ended:
                return _lost("a process of the job or the server was killed")
            time.sleep(POLL_INTERVAL)

    def _wait_for_sites(self) -> list[str]:
        """The connected sites: all if they connect soon, else at least the quorum, or any that can
        measure a model that is trained.

        Raises SiteError if too few are connected at the deadline.
        """
        began, notified = time.monotonic(), False
        deadline = self._program.rounds.deadline
        final = final_sites(self._store, self._program)
        trained = is_trained(self._store, self._program)
        quorum = 1 if trained else self._program.rounds.quorum
        while True:
            self._require_going_on()
            self._signs.look(self._sites)
            expected = self._federation.admitted()
            found = presence.presences(self._federation.presences)
            # A drained site still lets a model be measured in whose training it had a part.
            there = {name for name, one in found.items() if one.ready or (trained and one.alive)}
            connected = {name for name in there if self._leavers.may_join(found[name])}
            ready = [site for site in expected if site in connected]
            if final is not None:  # others may be there or not
                expected = [site for site in expected if site in final]
            missing = [site for site in expected if site not in connected]
            present = len(expected) - len(missing)
            waited = time.monotonic() - began
            least = quorum or len(expected)
            if expected and (not missing or (waited > LATE_SITES_TIMEOUT and present >= least)):
                for site in missing:
                    alive = site in found and found[site].alive
                    why = "was drained by its owner" if alive else "is not connected"
                    if site in there:
                        self._tell(site, f"site '{site}' has left before jobs had started")
                    else:
                        self._tell(site, f"site '{site}' {why}")
                return ready
            if waited > deadline:
                raise SiteError(
                    f"{present} of {len(expected)} sites are connected, and the run needs "
                    f"{least}; missing: {', '.join(missing[:5]) or 'all'}",
                    "start the missing sites, or set rounds.quorum; then continue with: "
                    f"fedsight resume {self._store.folder}",
                )
            if waited > WAITING_NOTICE_AFTER and not notified:
                self._notify(f"waiting for {', '.join(missing[:5]) or 'sites to be admitted'}")
                notified = True
            time.sleep(POLL_INTERVAL)

    def _wait_for_owners(self, outcome: dict[str, Any]) -> None:
        """Wait until the owner of a site has decided about the program, or a site has started anew.

        Raises HeldError at the deadline: what the job ended with.
        """
        began, deadline = time.monotonic(), self._program.rounds.deadline
        self._notify(f"{outcome['cause']}; waiting for up to {deadline:.0f} s")
        while time.monotonic() - began < deadline:
            self._require_going_on()
            found = presence.presences(self._federation.presences).values()
            if any(
                one.decided_since(self._began) or (one.settled and one.since > self._began)
                for one in found
            ):
                return
            time.sleep(POLL_INTERVAL)
        if not any(one.is_deciding for one in found):  # else it is tried before it is given up
            raise _error(outcome)

    def _report_sites(self, sites: Sequence[str]) -> None:
        """Tell without which sites the run goes on, and why, as soon as the coordinator knows, and
        what keeps it from going on."""
        self._signs.look(sites, self._began)
        live = json_object(self._store.folder / LIVE)
        if float(live.get("began", 0.0)) < self._began:
            return  # what an earlier job said
        for site, why in {**live.get("absent", {}), **live.get("refused", {})}.items():
            self._tell(str(site), str(why))

    def _tell(self, site: str, why: str) -> None:
        if self._told.get(site) != why:
            self._told[site] = why
            self._notify(f"going on without '{site}': {why}")

    def _wait_for_lacking(self) -> list[str]:
        """The connected sites of a finished run, once those that lack its model are among them, or
        have been waited for."""
        began, revoked = time.monotonic(), self._federation.revoked()
        took_part = self._store.read_json("run.json").get("declared", {})
        roster = [site for site in sorted(took_part) if site not in revoked]
        lacking = set(roster) - final_models.received(self._store)
        while True:
            found = presence.presences(self._federation.presences)
            ready = [site for site in roster if site in found and found[site].alive]
            if lacking <= set(ready) or time.monotonic() - began > LATE_SITES_TIMEOUT:
                return ready
            time.sleep(POLL_INTERVAL)

    def _last_round(self) -> int:
        checkpoint = self._store.load_checkpoint()
        return checkpoint.round if checkpoint else 0

    def _report_rounds(self) -> None:
        """Pass new rounds of the history on to the callbacks."""
        if self._reported is None:
            tables = self._store.read_json("run.json").get("declared")
            if tables is None:
                return  # no site has declared its images yet
            roster = {site: read_declaration(tables[site], site) for site in tables}
            self._reported = self._last_round()
            notify(self._callbacks, RunBegan(gather(self._program, roster), self._reported))
        path = self._store.folder / "history.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._history_size:
            return
        self._history_size = size
        for line in self._store.history():
            if line["round"] > self._reported:
                self._reported = line["round"]
                for site in line["sites"]:
                    self._told.pop(site, None)
                last = line["round"] == self._program.rounds.rounds
                notify(self._callbacks, RoundEnded(line, None, last))

    def _finish(self) -> dict[str, Any]:
        summary = self._store.read_json("summary.json")
        for site, why in final_models.missing(self._store).items():
            self._notify(
                f"site '{site}' lacks the run's model: {why}. Once it is connected, run: "
                f"fedsight resume {self._store.folder}"
            )
        notify(self._callbacks, RunEnded(summary))
        return summary

    def _open_session(self, timeout: float) -> AbstractContextManager[OperatorSession]:
        federation = self._federation
        if federation.signer is not None:
            timeout = min(timeout, MAX_PATIENCE)
        return open_session(federation.operator_kit, federation.operator_name, timeout)


def _carried(folder: Path) -> StoreError:
    return StoreError(f"another process carries on the run in {folder}", "wait until it ends")


def _lost(cause: str) -> dict[str, Any]:
    """The outcome of a job that could not report one itself."""
    cure = "look at server/kit/log.txt, and at the sites' logs"
    return {"state": "lost", "family": "EngineError", "cause": cause, "cure": cure}


def _error(outcome: dict[str, Any]) -> FedSightError:
    """The error with which a job ended."""
    family = getattr(errors, str(outcome.get("family")), SiteError)
    if (
        not (isinstance(family, type) and issubclass(family, FedSightError))
        or family is ConfigError
    ):
        family = DeployError
    return family(str(outcome.get("cause")), str(outcome.get("cure") or ""))
