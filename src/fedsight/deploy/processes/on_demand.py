"""A prefork process that exists only while jobs need it.

What a job's processes import (PyTorch above all) takes some 300 MiB, and a site waits for most of
its life. So the supervisor does not import it. When a job asks for a process, the supervisor forks
one that imports everything, and then forks what is asked for; it ends when nobody has needed it for
a while, and the next job starts another.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from fedsight.deploy.package import require_unchanged
from fedsight.deploy.processes import prefork
from fedsight.deploy.processes.spawn import end_with_parent, kill

KEPT = (
    60.0  # seconds without a job after which it ends: the jobs of a run follow one another sooner
)
TERMINATION_TIMEOUT = 2.0  # seconds for it to end its processes
POLL_INTERVAL = 0.1  # seconds
TITLE = f"fedsight: {prefork.__name__}"


class PreforkOnDemand(prefork.PreforkServer):
    """Starts processes itself, as its base class does, and lets another process serve requests."""

    def __init__(self, listener: socket.socket, modules: Sequence[str], kept: float = KEPT) -> None:
        """`modules`: what the requested processes will import."""
        super().__init__(listener)
        self._modules = modules
        self._kept = kept
        self.prefork: int | None = None  # the process that serves requests, if there is one

    def serve(self, seconds: float) -> None:
        """Wait for at most `seconds`; start the prefork process if somebody needs it."""
        if self.prefork is not None:
            ended, _ = os.waitpid(self.prefork, os.WNOHANG)
            if not ended:
                time.sleep(min(seconds, POLL_INTERVAL))
                return
            self.prefork = None  # what came too late for it still waits at the listener
        if not select.select([self._listener], [], [], seconds)[0]:
            return
        try:
            pid = prefork.fork()
        except OSError as error:
            _refuse(self._listener, f"no process can be started here: {error}")
            return
        if pid == 0:
            with prefork.exit_at_end():
                _serve(self._listener, self._modules, self._kept)
        self.prefork = pid

    def close(self) -> None:
        """End the prefork process, and with it all requested processes."""
        if self.prefork is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.prefork, signal.SIGTERM)
            deadline = time.monotonic() + TERMINATION_TIMEOUT
            while not os.waitpid(self.prefork, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    kill(self.prefork)
                time.sleep(0.01)
            self.prefork = None
        super().close()


def _serve(listener: socket.socket, modules: Sequence[str], kept: float) -> None:
    """The life of the prefork process."""
    os.setsid()  # Ctrl-C at the terminal is for the supervisor, which ends this process
    prefork.close_all_except({0, 1, 2, listener.fileno()})
    from setproctitle import setproctitle

    setproctitle(TITLE)
    end_with_parent()
    try:
        prefork.prepare(modules, {})
        require_unchanged()
    except Exception as error:  # old and new code together would train something else
        _refuse(listener, str(error) or repr(error))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with contextlib.closing(prefork.PreforkServer(listener)) as server:
        needed = time.monotonic()
        while time.monotonic() - needed < kept:
            server.serve(POLL_INTERVAL)
            if server.busy:
                needed = time.monotonic()


def _refuse(listener: socket.socket, why: str) -> None:
    """Turn the next requester away, and say why."""
    listener.accept()[0].close()
    with contextlib.suppress(OSError):  # the log may not be writable
        print(f"a request for a process failed: {why}", file=sys.stderr)
        sys.stderr.flush()
