"""Another process, which a process asks its prefork process for, and what the two say.

The line stays open: its end is the end of the process that was asked for, too.
"""

from __future__ import annotations

import contextlib
import json
import os
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

ADDRESS = "FEDSIGHT_FORKS"  # the variable that tells a process where its keeper listens
LENGTH = struct.Struct("<I")  # of a request; and the number of a process
CODE = struct.Struct("<i")  # an exit code
PATIENCE = 120.0  # seconds that a keeper gets to answer: it may still be importing


@dataclass(frozen=True)
class Start:
    """What is to run: a module with its words, as `python -m` would."""

    module: str
    words: Sequence[str]
    environment: Mapping[str, str]
    folder: str


def begin(
    module: str,
    words: Sequence[str],
    output: int,
    passed: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Another process, as `Forks.start` makes them, with `environment` besides this one's own.

    Forked by this one's keeper; started as a program where there is none. Raises EngineError if
    the keeper does not answer. It ends with this process.
    """
    env = {**os.environ, **(environment or {})}
    if ADDRESS in env:
        return Fork(Start(module, words, env, str(Path.cwd())), output, passed)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fedsight.deploy.processes.child",
            module,
            *words,
            *map(str, passed),
        ],
        env=env,
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


class Process(Protocol):
    """The handle on a process."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended; subprocess.TimeoutExpired after `timeout` seconds."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


class Fork:
    """A process that this one asked its keeper for; it ends with this one."""

    def __init__(self, start: Start, output: int, passed: Sequence[int] = ()) -> None:
        said = json.dumps(asdict(start)).encode()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._line.settimeout(PATIENCE)
            self._line.connect(start.environment[ADDRESS])
            socket.send_fds(self._line, [LENGTH.pack(len(said))], [output, *passed])
            self._line.sendall(said)
            self.pid: int = LENGTH.unpack(received(self._line, LENGTH.size))[0]
            self._line.settimeout(None)
        except (OSError, KeyError) as error:
            self._line.close()
            raise EngineError(
                f"no process can be started here ({error})", "start the site or server anew"
            ) from None
        self._code: int | None = None
        self._over = threading.Event()
        threading.Thread(target=self._wait, daemon=True, name=f"fork {self.pid}").start()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._code if self._over.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended; subprocess.TimeoutExpired after `timeout` seconds."""
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self._code is not None
        return self._code

    def terminate(self) -> None:
        """SIGTERM."""
        if not self._over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        if not self._over.is_set():
            kill(self.pid)

    def _wait(self) -> None:
        try:
            code: int = CODE.unpack(received(self._line, CODE.size))[0]
        except OSError:  # the keeper is gone, and all its processes with it
            code = -signal.SIGKILL
        self._code = code
        self._line.close()
        self._over.set()


def kill(pid: int) -> None:
    """SIGKILL, unless it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def received(line: socket.socket, length: int, until: float | None = None) -> bytes:
    """Exactly `length` bytes, before the moment `until`; OSError if they do not come."""
    data = b""
    while len(data) < length:
        if until is not None:
            line.settimeout(max(0.01, until - time.monotonic()))
        piece = line.recv(length - len(data))
        if not piece:
            raise ConnectionError("the line was closed")
        data += piece
    return data
