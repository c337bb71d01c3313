"""A deployed run from its program to its finished folder: a chain of short jobs.

FLARE aborts a job when one of its processes dies, lets no site rejoin one, and does not resume
one. So each job is a segment of the round loop, from the last checkpoint on, with the sites that
are there when it starts; this module starts one after the other until the run is finished. A crash
of anybody costs at most the round in progress.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback, RoundEnded, RunBegan, RunEnded, tell
from fedsight.coordinator.store import RunStore
from fedsight.core import errors, locks
from fedsight.core.errors import (
    ConfigError,
    DeployError,
    FedSightError,
    Interrupted,
    SiteError,
    StoreError,
)
from fedsight.deploy.declaration import gather, read_declaration
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder
from fedsight.deploy.server import server
from fedsight.deploy.server.job import OUTCOME
from fedsight.deploy.server.operator import Operator, console, write_job
from fedsight.program import config
from fedsight.program.program import Program, Speed

TRIES = 3  # segments without a finished round, one after the other, until the run is stopped
CRASHES = 10  # the same, when it was processes that died: they have been started again
START = 180.0  # seconds that a job's processes get to start
ASK = 2.0  # seconds between questions to the server
LEAST_FREE = 1 << 20  # bytes of disk, without which a coordinator cannot even say why it ended
LATE = 20.0  # seconds that a segment waits for sites beyond the quorum
LOOK = 0.25
Say = Callable[[str], None]


def start(
    federation: FederationFolder,
    program: Program,
    speed: Speed,
    store: RunStore,
    reporters: Sequence[Callback],
    say: Say,
) -> dict[str, Any]:
    """Run `program` on the federation from the beginning; returns the summary."""
    config.check_elsewhere(program, speed)
    facts = {
        "command": "run",
        "name": program.name,
        "fingerprint": program.fingerprint,
        "federation": str(federation.folder),
        "id": secrets.token_hex(8),
    }
    store.create(program, speed, facts)
    return resume(federation, store, reporters, say)


def resume(
    federation: FederationFolder, store: RunStore, reporters: Sequence[Callback], say: Say
) -> dict[str, Any]:
    """Go on with a run of the federation until it is finished; returns the summary."""
    program, _ = store.program()
    chain = _Chain(federation, program, store, reporters, say)
    try:
        return chain.run()
    except KeyboardInterrupt:
        try:
            chain.abort()
        except DeployError as error:
            say(error.cause)
        raise Interrupted(
            f"stopped by Ctrl-C; the last checkpoint in {store.folder} is whole",
            f"go on with: fedsight resume {store.folder}",
        ) from None


class _Chain:
    def __init__(
        self,
        federation: FederationFolder,
        program: Program,
        store: RunStore,
        reporters: Sequence[Callback],
        say: Say,
    ) -> None:
        self._federation = federation
        self._program = program
        self._store = store
        self._reporters = reporters
        self._say = say
        self._job: str | None = None
        # of the job in work; what a coordinator of an earlier one writes late does not count
        self._number = secrets.randbelow(1 << 30)
        self._shown: int | None = None  # rounds that the reporters have heard of
        self._size = 0  # of the history when they heard

    def run(self) -> dict[str, Any]:
        """Segment after segment."""
        failures, done = 0, self._rounds()
        while True:
            sites = self._gathered()
            self._number += 1
            (self._store.folder / OUTCOME).unlink(missing_ok=True)
            outcome = self._segment(self._number, sites)
            if outcome["state"] == "finished":
                return self._finish()
            before, done = done, self._rounds()
            if outcome["state"] == "failed" and not outcome["again"]:
                raise _raised(outcome)
            failures = 0 if done > before or outcome["state"] == "handover" else failures + 1
            if failures >= (CRASHES if outcome["state"] == "lost" else TRIES):
                raise _raised(outcome)
            self._say(f"after round {done}: {outcome.get('why') or outcome.get('cause')}; going on")

    def abort(self) -> None:
        """End the job in work, if the server can still be asked to."""
        if self._job is not None:
            with self._console(5) as line:
                line.abort(self._job)

    def _segment(self, number: int, sites: Sequence[str]) -> dict[str, Any]:
        """One job; how it ended, by its own word or by what is left of it."""
        words = {
            "run": self._store.folder.name,
            "fingerprint": self._program.fingerprint,
            "number": number,
        }
        patience = self._program.rounds.deadline
        home = self._federation.folder / "server"
        began = server.process(home)
        with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
            write_job(Path(scratch), self._store.folder.name, sites, words)
            with self._console(patience) as line:
                self._job = line.submit(Path(scratch))
                outcome = self._started(line) or self._ended()
        # A server that was started again knows nothing of the job, nor do its sites.
        if outcome["state"] == "lost" and server.process(home) == began:
            with contextlib.suppress(DeployError):  # what is left of it; it may be gone as a whole
                self.abort()
        self._job = None
        return outcome

    def _started(self, line: Operator) -> dict[str, Any] | None:
        """Wait until the coordinator's process is at work; how it ended if it never was."""
        began = asked = time.monotonic()
        while self._outcome() is None:
            time.sleep(LOOK)
            now = time.monotonic()
            if now - asked < ASK:
                continue
            asked = now
            try:
                status = line.status(str(self._job))
            except DeployError:
                return _lost("the server was started again")
            if status.startswith(("FINISHED", "FAILED")):
                return _lost(f"a job ended before it began ({status})")
            if now - began > START:
                return _lost(f"a job did not start within {START:.0f} s")
        return None

    def _ended(self) -> dict[str, Any]:
        """Wait until the coordinator's process has ended."""
        while True:
            over = not locks.held(self._store.folder / ".lock")
            self._tell()
            outcome = self._outcome()
            if outcome is not None and outcome["state"] != "running":
                return outcome
            if over and shutil.disk_usage(self._store.folder).free < LEAST_FREE:
                raise StoreError(
                    f"the disk of {self._store.folder} is full; the last checkpoint is whole",
                    f"free some space, then: fedsight resume {self._store.folder}",
                )
            if over:
                return _lost("a process of the job was killed, or the server was")
            time.sleep(LOOK)

    def _outcome(self) -> dict[str, Any] | None:
        path = self._store.folder / OUTCOME
        found = self._store.read_json(OUTCOME) if path.exists() else None
        return found if found is not None and found.get("number") == self._number else None

    def _gathered(self) -> list[str]:
        """The sites that are there: all if they come soon, the quorum if it comes at all."""
        began, told = time.monotonic(), False
        deadline = self._program.rounds.deadline
        while True:
            expected = self._federation.admitted()
            found = presence.presences(self._federation.presences)
            there = {name for name, one in found.items() if one.alive}
            ready = [site for site in expected if site in there]
            missing = [site for site in expected if site not in there]
            waited = time.monotonic() - began
            least = self._program.rounds.quorum or len(expected)
            if expected and (not missing or (waited > LATE and len(ready) >= least)):
                return ready
            if waited > deadline:
                raise SiteError(
                    f"{len(ready)} of {len(expected)} sites are connected, and the run needs "
                    f"{least}; missing: {', '.join(missing[:5]) or 'all'}",
                    "start the missing sites, or set rounds.quorum; then go on with: "
                    f"fedsight resume {self._store.folder}",
                )
            if waited > 2 and not told:
                self._say(f"waiting for {', '.join(missing[:5]) or 'sites to be admitted'}")
                told = True
            time.sleep(LOOK)

    def _rounds(self) -> int:
        checkpoint = self._store.load_checkpoint()
        return checkpoint.round if checkpoint else 0

    def _tell(self) -> None:
        """Tell the reporters of the rounds that are new in the history, if it has changed."""
        if self._shown is None:
            tables = self._store.read_json("run.json").get("declared")
            if tables is None:
                return  # no site has been asked yet
            roster = {site: read_declaration(tables[site], site) for site in tables}
            self._shown = self._rounds()
            tell(self._reporters, RunBegan(gather(self._program, roster), self._shown))
        path = self._store.folder / "history.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size = size
        for line in self._store.history():
            if line["round"] > self._shown:
                self._shown = line["round"]
                last = line["round"] == self._program.rounds.rounds
                tell(self._reporters, RoundEnded(line, None, last))

    def _finish(self) -> dict[str, Any]:
        summary = self._store.read_json("summary.json")
        tell(self._reporters, RunEnded(summary))
        return summary

    def _console(self, patience: float) -> AbstractContextManager[Operator]:
        return console(self._federation.operator_kit, OPERATOR, patience)


def _lost(cause: str) -> dict[str, Any]:
    """A segment that ended without a word of its own."""
    cure = "look at server/kit/log.txt, and at the sites' logs"
    return {"state": "lost", "family": "EngineError", "cause": cause, "cure": cure}


def _raised(outcome: dict[str, Any]) -> FedSightError:
    """The segment's error, as if it had been raised here."""
    family = getattr(errors, str(outcome.get("family")), SiteError)
    if (
        not (isinstance(family, type) and issubclass(family, FedSightError))
        or family is ConfigError
    ):
        family = DeployError
    return family(str(outcome.get("cause")), str(outcome.get("cure") or ""))
