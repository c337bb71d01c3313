"""The lease on a site's memory of a run: only one process works on it, that of the newest job.

A killed or aborted job may leave a process behind that is still alive. So a new job writes its
token to `.lease` in the memory's folder. The process that holds `.lock` there ends itself when it
sees another job's token, and the newest job gets the lock. The trainer holds the lock, because it
is the process that writes: a free lock means that no other process can still write.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from fedsight.core import locks
from fedsight.core.errors import EngineError
from fedsight.core.files import write_atomically
from fedsight.deploy.site.caused_outside import CausedOutsideError

TAKEOVER_TIMEOUT = 60.0  # seconds for the process of an older job to end
POLL_INTERVAL = 0.2  # seconds
# The cure where the machine lacks something.
FREE_SOMETHING = "free memory or disk space at the site, or restart it, and send the request again"
TAKEN_OVER = 75  # exit code of a process that ended because a newer job took over


def claim(memory: Path, token: str) -> None:
    """Make the job `token` the newest one that works on `memory`; StoreError if that fails."""
    write_atomically(memory / ".lease", token.encode())


class TakenOverError(EngineError, CausedOutsideError):
    """This job is no longer the newest."""


class NoLeaseError(EngineError, CausedOutsideError):
    """This job is the newest, and yet cannot work on the run's memory now: the process of an older
    one does not end, or the machine has no file or thread left to watch the lease with.
    """


def taken_over() -> TakenOverError:
    """The error of a job that is no longer the newest."""
    return TakenOverError("a newer job of this run has taken over", "follow the newer job")


class JobLease:
    """The lease of the job `token`, held by this process until `release`.

    While this process holds it, a newer job's claim ends the process at once, whatever it does.
    Raises TakenOverError if there is a newer job already, NoLeaseError if an older one does not end
    or the machine lacks what a lease takes.
    """

    def __init__(self, memory: Path, token: str) -> None:
        self._path = memory / ".lease"
        self._token = token
        deadline = time.monotonic() + TAKEOVER_TIMEOUT
        busy = NoLeaseError(
            "another process of this site is still working on this run, and does not end",
            "end the processes of `fedsight site start` at the site",
        )
        while True:
            if not self._is_newest():
                raise taken_over()
            try:
                self._lock = locks.hold(memory / ".lock", POLL_INTERVAL, busy)
                break
            except NoLeaseError:
                if time.monotonic() >= deadline:
                    raise
            except OSError as error:
                raise _lacking(error) from error
        if not self._is_newest():  # a newer job claimed the lease while this process waited
            self._lock.close()
            raise taken_over()
        self._released = threading.Event()
        try:
            threading.Thread(target=self._watch, daemon=True, name="job lease").start()
        except RuntimeError as error:  # no thread is left
            self._lock.close()
            raise _lacking(error) from error

    def release(self) -> None:
        """Release the lease; this process must not write to the memory afterwards."""
        self._released.set()
        self._lock.close()

    def _is_newest(self) -> bool:
        try:
            return self._path.read_text() == self._token
        except OSError:  # if in doubt, a newer job may be there
            return False

    def _watch(self) -> None:
        while not self._released.wait(POLL_INTERVAL):
            if not self._is_newest() and not self._released.is_set():
                os._exit(TAKEN_OVER)


def _lacking(error: Exception) -> NoLeaseError:
    return NoLeaseError(
        f"the memory of this run cannot be worked on ({type(error).__name__})",
        FREE_SOMETHING,
    )
