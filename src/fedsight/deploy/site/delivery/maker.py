"""Has a site's recognisers made, one after the other, in a process of their own.

It is polled by the site's long-lived process, which has one thread and must not wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fedsight.core.errors import FedSightError, StoreError
from fedsight.core.files import trim
from fedsight.core.text import printable
from fedsight.deploy.processes import prefork, spawn
from fedsight.deploy.site.delivery.received import MAX_PROGRAM_NAME, Outcome, Received
from fedsight.deploy.site.delivery.settings import DeliverySettings

MODULE = "fedsight.deploy.site.delivery.process"
OUTPUT = "delivery.txt"  # in the site's folder: what the process prints
LOG_BYTES = 1 << 20  # of it; older lines are dropped
INTERVAL = 1.0  # seconds between looks at the orders
RETRY = 600.0  # seconds after which what failed is tried again; twice as long each time, up to
LONGEST = 86400.0


class RecogniserMaker:
    """Makes the recognisers that the orders in the site's folder `home` still lack."""

    def __init__(
        self, home: Path, settings: DeliverySettings, notify: Callable[[str], None]
    ) -> None:
        self._home, self._settings, self._notify = home, settings, notify
        self._received = Received(home)
        self._running: tuple[int, str] | None = None  # a process, and its order
        self._looked = 0.0
        self._due: dict[str, float] = {}  # when an order is tried again
        self._waits: dict[str, float] = {}  # how long it waited for the last time

    def poll(self, forks: prefork.PreforkServer) -> None:
        """Start the next process if none runs; tell of one that has ended."""
        if self._running is not None:
            pid, key = self._running
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._running = None
                self._tell(key, os.waitstatus_to_exitcode(status))
            return
        now = time.monotonic()
        if not self._settings.choose or now - self._looked < INTERVAL:
            return
        self._looked = now
        for key in self._received.wanting(self._settings.alone):
            if self._due.get(key, 0.0) <= now:
                self._start(forks, key)
                return

    def close(self) -> None:
        """End the process that runs, if one does; it is started again the next time."""
        if self._running is not None:
            spawn.kill(self._running[0])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._running[0], 0)
            self._running = None

    def _start(self, forks: prefork.PreforkServer, key: str) -> None:
        self._waits[key] = wait = min(LONGEST, 2 * self._waits.get(key, RETRY / 2))
        self._due[key] = time.monotonic() + wait
        trim(self._home / OUTPUT, LOG_BYTES)
        spec = spawn.ProcessSpec(MODULE, [str(self._home), key], dict(os.environ), str(self._home))
        with (self._home / OUTPUT).open("ab") as output:
            self._running = forks.start(spec, output.fileno()), key

    def _tell(self, key: str, code: int) -> None:
        """Say what became of an order; a process that died could not."""
        outcome = self._received.outcome(key)
        if code:
            outcome = self._died(key, code)
        if outcome is None:
            return
        name = self._name(key)
        if outcome.state == "delivered":
            place = self._home / outcome.folder
            self._notify(f"the recogniser of run '{name}' is in {place}")
        else:
            why, cure = outcome.why, outcome.cure
            self._notify(f"no recogniser of run '{name}' was made: {why}; {cure}")

    def _died(self, key: str, code: int) -> Outcome:
        """The outcome of a process that ended without recording one."""
        if code == -signal.SIGKILL:
            cure = "the machine may have run out of memory: free some; the site tries again"
        else:
            cure = "free some space if the disk is full, and see delivery.txt; the site tries again"
        why = f"its process {spawn.describe_exit(code)}"
        outcome = Outcome("failed", why=why, cure=cure)
        with contextlib.suppress(StoreError):
            self._received.conclude(key, outcome)
        return outcome

    def _name(self, key: str) -> str:
        with contextlib.suppress(FedSightError):
            order = self._received.read(key)
            if order is not None:
                return printable(order.program.get("name", order.run), MAX_PROGRAM_NAME)
        return key
