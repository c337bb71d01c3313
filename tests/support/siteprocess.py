"""A site in a process of its own: a seat that answers over a pipe, until somebody kills it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedsight.deploy.processes.spawn import end_with_parent
from fedsight.deploy.site.service import SiteService


class SiteProcess:
    """The handle on it."""

    def __init__(self, home: Path, name: str) -> None:
        self._pipe, theirs = Pipe()
        self._lock = threading.Lock()
        words = [sys.executable, __file__, str(theirs.fileno()), str(home), name]
        folder = str(Path(__file__).parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
        self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def answer(self, kind: str, header: str, body: bytes) -> tuple[Any, Any]:
        """Its answer; ConnectionError if it is gone."""
        try:
            with self._lock:
                self._pipe.send((kind, header, body))
                return self._pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            raise ConnectionError from None

    def kill(self) -> None:
        """SIGKILL; its trainer ends with it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._pipe.close()


def serve(pipe: Connection, home: Path, name: str) -> None:
    """Answer until the pipe closes."""
    seat = SiteService(home, name)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question: tuple[str, str, bytes] = pipe.recv()
            pipe.send(seat.answer(*question))


if __name__ == "__main__":
    end_with_parent()
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
