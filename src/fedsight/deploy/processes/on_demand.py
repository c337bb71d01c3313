"""A prefork process that exists only while jobs need it.

What a job's processes import (PyTorch above all) takes some 300 MiB, and a site waits for most of
its life. So the supervisor does not import it. It forks a process that imports everything, and that
forks what is asked for; it ends when nobody has needed it for a while, and the next job starts
another. The first one begins with the supervisor, as a run often follows soon.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, TypeVar, cast

from fedsight.core.errors import EngineError
from fedsight.core.package import note_imports
from fedsight.deploy.processes import prefork
from fedsight.deploy.processes.spawn import describe_exit, end_with_parent, kill, turn_away

# Seconds without a job after which it ends: the jobs of a run follow one another sooner.
KEPT = 60.0
RESTART_DELAYS = (0.5, 15.0)  # seconds before another one after one has died: first, and at most
TERMINATION_TIMEOUT = 2.0  # seconds for it to end its processes
POLL_INTERVAL = 0.1  # seconds
INSTALL = "install FedSight and what it needs again"
REFUSED = 3  # its exit code once it has turned away who asked
TITLE = f"fedsight: {prefork.__name__}"
T = TypeVar("T")


class PreforkOnDemand(prefork.PreforkServer):
    """Starts processes itself, as its base class does, and lets another process serve requests."""

    def __init__(
        self,
        listener: socket.socket,
        modules: Sequence[str],
        notify: Callable[[str], None],
        kept: float = KEPT,
    ) -> None:
        """`modules`: what the requested processes will import; `notify` is told of a prefork
        process that dies, and its processes with it."""
        super().__init__(listener)
        listener.setblocking(False)
        self._modules = modules
        self._notify = notify
        self._kept = kept
        self._delay, self._not_before = RESTART_DELAYS[0], 0.0
        self.prefork: int | None = None  # the process that serves requests, if there is one

    def serve(self, seconds: float) -> None:
        """Wait for at most `seconds`; start the prefork process if somebody needs it."""
        if self.prefork is not None:
            ended, status = os.waitpid(self.prefork, os.WNOHANG)
            if ended:
                self.prefork = None  # what came too late for it still waits at the listener
                self._note(os.waitstatus_to_exitcode(status))
        if self.prefork is not None or time.monotonic() < self._not_before:
            time.sleep(min(seconds, POLL_INTERVAL))
            return
        if select.select([self._listener], [], [], seconds)[0]:
            self.begin()

    def begin(self) -> None:
        """Start the prefork process, unless there is one."""
        if self.prefork is not None:
            return
        try:
            pid = prefork.fork()
        except OSError as error:
            _refuse(self._listener, f"no process can be started: {error}")
            return
        if pid == 0:
            with prefork.exit_at_end():
                _serve(self._listener, self._modules, self._kept)
        self.prefork = pid

    def call(self, work: Callable[[], T]) -> T:
        """Start the prefork process, and call `work` in a fork of it; its result.

        To be called before `serve`. Raises as `run_in_fork` does. The prefork process stays as long
        as after a job, so that one that comes soon does not wait until all is imported again.
        """
        first = partial(_serve, self._listener, self._modules, self._kept, work)
        self.prefork, outcome = prefork.fork_with_outcome(first)
        with outcome:
            data = outcome.read()
        if data:
            with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it died while it wrote
                return cast(T, prefork.result(data))
        pid, self.prefork = self.prefork, None
        return cast(T, prefork.result(b"", os.waitpid(pid, 0)[1]))

    def _note(self, code: int) -> None:
        """The prefork process has ended. If it died, who waits for it would have the next one die
        as well, for want of memory for example."""
        if code == 0:
            self._delay = RESTART_DELAYS[0]
        if code in (0, REFUSED):
            return
        why = f"the process that starts jobs {describe_exit(code)}, and their processes with it"
        _refuse(self._listener, why)
        self._not_before = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, RESTART_DELAYS[1])
        with contextlib.suppress(OSError):  # the terminal is gone, or the disk is full
            self._notify(why)

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


def _serve(
    listener: socket.socket,
    modules: Sequence[str],
    kept: float,
    first: Callable[[], object] | None = None,
    outcome: BinaryIO | None = None,
) -> None:
    """The life of the prefork process; `outcome`: where to write what `first` has come to."""
    os.setsid()  # Ctrl-C at the terminal is for the supervisor, which ends this process
    written = set() if outcome is None else {outcome.fileno()}
    prefork.close_all_except({0, 1, 2, listener.fileno(), *written})
    from setproctitle import setproctitle

    setproctitle(TITLE)
    end_with_parent()
    try:
        prefork.prepare(modules, {})
    except BaseException as error:  # also a module that ends the process
        why = f"{type(error).__name__}: {error}"
        if outcome is not None:
            outcome.write(prefork.pickled_error(EngineError(why, INSTALL)))
        _refuse(listener, why)
        sys.exit(REFUSED)
    note_imports()  # a job's process says so by name, and trains nothing
    if first is not None and outcome is not None:
        with outcome:
            outcome.write(prefork.pickled_outcome(partial(prefork.run_in_fork, first)))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with contextlib.closing(prefork.PreforkServer(listener)) as server:
        needed = time.monotonic()
        while time.monotonic() - needed < kept:
            server.serve(POLL_INTERVAL)
            if server.busy:
                needed = time.monotonic()


def _refuse(listener: socket.socket, why: str) -> None:
    """Turn all away who wait for a process, and say why."""
    with contextlib.suppress(BlockingIOError):
        while True:
            turn_away(listener.accept()[0], why)
            with contextlib.suppress(OSError):  # the log may not be writable
                print(f"a request for a process failed: {why}", file=sys.stderr)
                sys.stderr.flush()
