"""Keeps the process that watches a server or a site running; polled by their supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec

from fedsight.core.errors import DeployError
from fedsight.core.extras import install
from fedsight.deploy.membership import hosts
from fedsight.deploy.monitoring.endpoint import BACKLOG
from fedsight.deploy.monitoring.job import JOB, Job
from fedsight.deploy.monitoring.lines import Output
from fedsight.deploy.monitoring.settings import HookSettings, MonitoringSettings
from fedsight.deploy.processes import prefork, spawn

MODULE = "fedsight.deploy.monitoring.process"
PAUSES = (1.0, 60.0)  # seconds until a process that died is started again: first, and at most
FAREWELL = 3.0  # seconds for the last hooks
STABLE = 60.0  # seconds after which it counts as having run well


class MonitorKeeper:
    """Starts the process, and starts it again when it dies. Nothing else depends on it."""

    def __init__(self, job: Job, listener: socket.socket | None, out: Output) -> None:
        self._job, self._listener, self._out = job, listener, out
        self._pid: int | None = None
        self._due, self._pause, self._began = 0.0, PAUSES[0], 0.0

    def poll(self, forks: prefork.PreforkServer) -> None:
        """Called regularly."""
        now = time.monotonic()
        if self._pid is not None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not ended:
                return
            self._pid = None
            stable = now - self._began > STABLE
            self._pause = PAUSES[0] if stable else min(2 * self._pause, PAUSES[1])
            self._due = now + self._pause
            how = spawn.describe_exit(os.waitstatus_to_exitcode(status))
            seconds = f"{self._pause:.0f}"
            self._out.notice(
                f"the monitoring process {how}; restarting in {seconds} s",
                event="monitor_ended",
                level="warning",
            )
        if now >= self._due:
            self._start(forks)

    def close(self) -> None:
        """End the process."""
        if self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGTERM)
            end = time.monotonic() + FAREWELL
            while time.monotonic() < end:
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    self._pid = None
                    return
                time.sleep(0.05)
            spawn.kill(self._pid)
            os.waitpid(self._pid, 0)
        self._pid = None

    def _start(self, forks: prefork.PreforkServer) -> None:
        descriptors = [] if self._listener is None else [self._listener.fileno()]
        environment = {**os.environ, JOB: self._job.encode()}
        spec = spawn.ProcessSpec(MODULE, [], environment, self._job.home)
        self._began = time.monotonic()
        self._due = self._began + PAUSES[0]  # if no process can be made now
        # It prints where this process does.
        self._pid = forks.start(spec, 1, descriptors)


@contextlib.contextmanager
def kept(
    job: Job, monitoring: MonitoringSettings, hooks: HookSettings, out: Output
) -> Iterator[MonitorKeeper | None]:
    """What watches, if anybody wants to know; DeployError if its port cannot be had."""
    if monitoring.port is None and not hooks.wanted and monitoring.log == "text":
        yield None
        return
    if find_spec("prometheus_client") is None:
        cause = "monitoring needs prometheus_client, which is not installed here"
        raise DeployError(cause, f"install it with: {install('deploy')}")
    with contextlib.ExitStack() as stack:
        listener = None
        if monitoring.port is not None:
            listener = stack.enter_context(_bound(monitoring.address, monitoring.port))
            place = hosts.written(monitoring.address, monitoring.port)
            out.notice(f"/healthz and /metrics are at {place}", event="monitoring")
        keeper = stack.enter_context(contextlib.closing(MonitorKeeper(job, listener, out)))
        yield keeper


def _bound(address: str, port: int) -> socket.socket:
    """A socket at the address; it outlives the process that listens."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise DeployError(
            f"/healthz and /metrics cannot be at {hosts.written(address, port)}: {error.strerror}",
            "end the program that uses the port, or choose another with --metrics",
        ) from None
    return found
