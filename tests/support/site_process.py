"""A site service in a process of its own, which answers over a pipe until it is killed."""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedsight.deploy.processes import spawn
from fedsight.deploy.site.service import SiteService


class SiteProcess:
    """The handle on the process, which is forked as a site's job is."""

    def __init__(self, home: Path, name: str) -> None:
        self._pipe, theirs = Pipe()
        self._lock = threading.Lock()
        self._process = spawn.start(__name__, [str(home), name], 2, [theirs.fileno()])
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def answer(self, kind: str, header: str, body: bytes) -> tuple[Any, Any]:
        """Its answer; ConnectionError if it is gone."""
        try:
            with self._lock:
                # Not `send`, whose buffer would be in the traceback when the pipe is broken: Python
                # 3.12 and 3.13 fail when they collect such a buffer.
                self._pipe.send_bytes(pickle.dumps((kind, header, body)))
                return self._pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            raise ConnectionError from None

    def kill(self) -> None:
        """SIGKILL; its trainer ends with it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._pipe.close()


def serve(pipe: Connection, home: Path, name: str) -> None:
    """Answer until the pipe closes."""
    service = SiteService(home, name)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question: tuple[str, str, bytes] = pipe.recv()
            pipe.send(service.answer(*question))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[3])), Path(sys.argv[1]), sys.argv[2])
