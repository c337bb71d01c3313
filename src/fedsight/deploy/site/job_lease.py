"""Whose turn it is to work on a site's memory of a run: one process at a time, the newest job's.

A killed or aborted job may leave a process behind that is alive, but slow to notice. So a new job
writes its token into `.next` of the memory's folder. Whoever holds `.lock` there ends itself when
it sees another's token, and the newest gets the lock. The one who holds it is the process that
writes, the trainer: that the lock is free means that nobody can write any more.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from fedsight.core import locks
from fedsight.core.errors import DeployError, EngineError
from fedsight.core.files import write_atomically

PATIENCE = 60.0  # seconds that a process gets to end when a newer job is there
LOOK = 0.2  # seconds
TAKEN_OVER = 75  # exit code of a process that ended because it is another's turn


def claim(memory: Path, token: str) -> None:
    """The job `token` begins: from now on it is the newest that works on `memory`.

    Raises StoreError when that cannot be written.
    """
    write_atomically(memory / ".next", token.encode())


def taken_over() -> EngineError:
    """What a job is told that is not the newest any more."""
    return EngineError("a newer job of this run has taken over", "it goes on there")


class JobLease:
    """The turn of the job `token`, held by this process until `end`.

    While it is held this process ends itself, at once and whatever it does, when a newer job is
    there. Raises EngineError if one is there already, DeployError if an older one does not end.
    """

    def __init__(self, memory: Path, token: str) -> None:
        self._path = memory / ".next"
        self._token = token
        until = time.monotonic() + PATIENCE
        cause = "another process of this site is still at work on this run, and does not end"
        busy = DeployError(cause, "its owner ends the processes of `fedsight site start`")
        while True:
            if not self._newest():
                raise taken_over()
            try:
                self._lock = locks.hold(memory / ".lock", LOOK, busy)
                break
            except DeployError:
                if time.monotonic() >= until:
                    raise
        if not self._newest():  # it came while this process waited
            self._lock.close()
            raise taken_over()
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="turn").start()

    def end(self) -> None:
        """Let go; nothing may be written after it."""
        self._over.set()
        self._lock.close()

    def _newest(self) -> bool:
        try:
            return self._path.read_text() == self._token
        except OSError:  # in doubt it is another's
            return False

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            if not self._newest() and not self._over.is_set():
                os._exit(TAKEN_OVER)
