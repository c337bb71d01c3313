"""One process from which the processes of sites and servers are forked, for all tests of a run."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fedsight.deploy.processes import prefork, spawn, supervisor

MODULES = (*supervisor.ALL_MODULES, "short_waits")


@contextlib.contextmanager
def shared_prefork() -> Iterator[None]:
    """Meanwhile `spawn.start` forks, here and in the processes that this one starts.

    The prefork process is only started when it is first asked for a process: its imports take
    seconds, and most tests do not need it. It ends with this process.
    """
    with prefork.listening_socket() as door:
        address = str(door.getsockname())
        over, end = socket.socketpair()
        starter = threading.Thread(target=_start_when_asked, args=(door, over), daemon=True)
        starter.start()
        os.environ[spawn.ADDRESS_VARIABLE] = address
        try:
            yield
        finally:
            del os.environ[spawn.ADDRESS_VARIABLE]
            end.close()
            starter.join()
            over.close()


def _start_when_asked(door: socket.socket, over: socket.socket) -> None:
    """Start the process on the first request, which waits in the socket; end it after `over`."""
    if over in select.select([door, over], [], [])[0]:
        return
    number = door.fileno()
    words = ["-m", "fedsight.deploy.processes.prefork", str(number), *MODULES]
    process = subprocess.Popen(
        [sys.executable, *words],
        pass_fds=[number],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    door.close()  # whoever asks after the process has died must not wait
    select.select([over], [], [])
    process.communicate()  # it ends with its input
