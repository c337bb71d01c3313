"""Starts another process: forked by the prefork process if there is one, else as a new program.

A forked process is requested over a Unix socket. The connection stays open: the requester learns
the exit code from it, and if the requester closes it or dies, the process is killed.

Run as a module, it runs another module that ends with its parent:

    python -m fedsight.deploy.processes.spawn MODULE ARGUMENTS...
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from fedsight.core.errors import EngineError

ADDRESS_VARIABLE = "FEDSIGHT_PREFORK"  # environment variable: the prefork process's socket
UINT32 = struct.Struct("<I")  # the length of a request, a process ID
INT32 = struct.Struct("<i")  # an exit code
START_TIMEOUT = 120.0  # seconds for the prefork process to answer; it may still be importing
PARENT_CHECK_INTERVAL = 0.5  # seconds
MAX_REASON = 1000  # bytes of why no process was started


@dataclass(frozen=True)
class ProcessSpec:
    """What a process runs: a module with arguments, like `python -m`."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str  # working directory


class Process(Protocol):
    """The handle on a process."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code; subprocess.TimeoutExpired after `timeout` seconds."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def start(
    module: str,
    arguments: Sequence[str],
    output: int,
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a process that runs `module`, and that ends with this process.

    Its standard output and error go to the file descriptor `output`. It inherits `descriptors`,
    whose numbers are appended to its arguments, and this process's environment extended by
    `environment`. Raises EngineError if the prefork process does not answer.
    """
    env = {**os.environ, **(environment or {})}
    if ADDRESS_VARIABLE in env:
        spec = ProcessSpec(module, arguments, env, str(Path.cwd()))
        return ForkedProcess(spec, output, descriptors)
    command = [sys.executable, "-m", "fedsight.deploy.processes.spawn", module, *arguments]
    return subprocess.Popen(
        [*command, *map(str, descriptors)],
        env=env,
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


class ForkedProcess:
    """A process that this one requested from the prefork process; it ends with this one."""

    def __init__(self, spec: ProcessSpec, output: int, descriptors: Sequence[int] = ()) -> None:
        request = json.dumps(asdict(spec)).encode()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connection.settimeout(START_TIMEOUT)
            self._connection.connect(spec.environment[ADDRESS_VARIABLE])
            head = [UINT32.pack(len(request))]
            socket.send_fds(self._connection, head, [output, *descriptors])
            self._connection.sendall(request)
            self.pid: int = UINT32.unpack(receive_exactly(self._connection, UINT32.size))[0]
            if not self.pid:
                raise ConnectionError(self._connection.recv(MAX_REASON).decode(errors="replace"))
            self._connection.settimeout(None)
        except (OSError, KeyError) as error:
            self._connection.close()
            raise EngineError(
                f"no process can be started here ({error})", "restart the site or the server"
            ) from None
        self._code: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._wait_for_exit, daemon=True, name=f"wait {self.pid}").start()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._code if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code; subprocess.TimeoutExpired after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self._code is not None
        return self._code

    def terminate(self) -> None:
        """Send SIGTERM."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        if not self._ended.is_set():
            kill(self.pid)

    def _wait_for_exit(self) -> None:
        try:
            code: int = INT32.unpack(receive_exactly(self._connection, INT32.size))[0]
        except OSError:  # the prefork process is gone, and all its processes with it
            code = -signal.SIGKILL
        self._code = code
        self._connection.close()
        self._ended.set()


def turn_away(connection: socket.socket, why: str) -> None:
    """Answer a request for a process with why there is none, and close the connection."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(0.0)
        connection.sendall(UINT32.pack(0) + why.encode()[:MAX_REASON])


def kill(pid: int) -> None:
    """Send SIGKILL to the process `pid` if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """How a process with the exit code `code` ended, as the second half of a sentence."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def receive_exactly(connection: socket.socket, length: int, deadline: float | None = None) -> bytes:
    """Receive `length` bytes; OSError if they do not arrive before `deadline` (monotonic time)."""
    data = b""
    while len(data) < length:
        if deadline is not None:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
        piece = connection.recv(length - len(data))
        if not piece:
            raise ConnectionError("the connection was closed")
        data += piece
    return data


def end_with_parent() -> None:
    """From now on this process ends soon after its parent, however the parent ends.

    An orphaned FLARE process would go on under an identity that a new process also uses. A timer
    checks rather than a thread, because a process that forks (`prefork.py`) must have one thread.
    """
    parent = os.getppid()

    def check(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGALRM, check)
    signal.siginterrupt(signal.SIGALRM, False)
    # A fork does not inherit the timer.
    signal.setitimer(signal.ITIMER_REAL, PARENT_CHECK_INTERVAL, PARENT_CHECK_INTERVAL)
    # The interpreter drops signal handlers when it ends: the next signal would kill it there.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
