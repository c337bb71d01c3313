"""Keeps a FLARE process running: starts it, starts it again when it dies, ends it on request.

What FLARE's process starts in turn is forked here, too (`deploy/processes/prefork.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedsight.core import locks
from fedsight.core.errors import DeployError, StoreError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership.kits import HEARTBEAT, organisation
from fedsight.deploy.processes import prefork, spawn

PAUSE = (0.5, 15.0)  # seconds before a dead process is started again: at first, and at most
LASTED = 60.0  # seconds after which a process counts as having run well
GRACE = 8.0  # seconds to end by itself
LOOK = 0.2
LINE = {
    # FLARE keeps what it needs to repeat a message, and a thread, for so many seconds after each:
    # ours are answered within few, and asked again if not.
    "NVFLARE_STREAMING_RETRY_TIMEOUT": "8",
    "NVFLARE_STREAMING_RETRY_WAIT": "4",
    # Bytes of a message. It makes room for as many as are announced, before they come: 4 GiB, if
    # it is not told less. Ours are a header and a piece or a binding, 32 MiB at the very most.
    "NVFLARE_STREAMING_MAX_BLOB_SIZE": str(64 << 20),
}
_APP = "nvflare.private.fed.app"
SERVER = (  # what the processes of a server import
    f"{_APP}.server.server_train",
    f"{_APP}.server.runner_process",
    "nvflare.collab.runtime.controller",
    "fedsight.deploy.flare",
    "fedsight.deploy.server.job",
)
SITE = (  # and those of a site
    f"{_APP}.client.client_train",
    f"{_APP}.client.worker_process",
    "nvflare.collab.runtime.executor",
    "fedsight.deploy.flare",
    "fedsight.deploy.site.service",
    "fedsight.deploy.site.trainer_process",
)


class Supervisor:
    """One long-lived child process, in a session of its own."""

    def __init__(
        self, module: str, words: Sequence[str], folder: Path, home: Path, needs: Sequence[str] = ()
    ) -> None:
        """`needs`: modules that it and what it starts will import."""
        self.module, self.words = module, words
        self._folder = folder
        self._home = home
        self._needs = needs
        self._pid: int | None = None
        self._asked = False

    def run(self, say: Callable[[str], None], look: Callable[[], None] = lambda: None) -> None:
        """Keep the process running until SIGTERM or Ctrl-C; `look` is called all the while.

        One that cannot be started now, since the disk is full, say, is tried again, too.
        """
        before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        pause = PAUSE[0]
        prefork.prepare(self._needs, LINE)
        with prefork.door() as door, contextlib.closing(prefork.Prefork(door)) as others:
            try:
                while not self._asked:
                    began = time.monotonic()
                    try:
                        self._start(others)
                    except (OSError, StoreError) as error:
                        self._end(others)
                        why = error.cause if isinstance(error, StoreError) else error
                        what = f"its process cannot be started ({why}); trying"
                    else:
                        what = f"its process ended with code {self._watch(others, look)}; starting"
                    if self._asked:
                        break
                    lasted = time.monotonic() - began > LASTED
                    pause = PAUSE[0] if lasted else min(2 * pause, PAUSE[1])
                    with contextlib.suppress(OSError):  # who listened is gone, or the disk is full
                        say(f"{what} it again in {pause:.0f} s")
                    self._sleep(pause, others)
            finally:
                self._end(others)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _start(self, others: prefork.Prefork) -> None:
        """Raises OSError or StoreError when it cannot; then the process may be running even so."""
        environment = {
            **os.environ,
            "FEDSIGHT_HOME": str(self._home),
            spawn.ADDRESS: others.address,
        }
        start = spawn.Start(self.module, self.words, environment, str(self._folder))
        with (self._folder / "process.txt").open("ab") as output:
            self._pid = others.start(start, output.fileno())
        write_atomically(self._home / "process.pid", str(self._pid).encode())

    def _watch(self, others: prefork.Prefork, look: Callable[[], None]) -> int | None:
        while not self._asked:
            code = self._poll()
            if code is not None:
                return code
            with contextlib.suppress(OSError):  # as above
                look()
            others.look(LOOK)
        return None

    def _poll(self) -> int | None:
        """The exit code of the process; None while it runs."""
        if self._pid is None:
            return 0
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            return None
        self._pid = None
        return os.waitstatus_to_exitcode(status)

    def _sleep(self, seconds: float, others: prefork.Prefork) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._asked:
            others.look(min(LOOK, seconds))

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def _end(self, others: prefork.Prefork) -> None:
        if (pid := self._pid) is None or self._poll() is not None:
            return
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while self._poll() is None and time.monotonic() < until:
            others.look(LOOK)
        with contextlib.suppress(ProcessLookupError):  # what it started in its session, too
            os.killpg(pid, signal.SIGKILL)
        if self._pid is not None:
            os.waitpid(pid, 0)
            self._pid = None


@contextlib.contextmanager
def only_one(home: Path, what: str) -> Iterator[None]:
    """A folder's process runs once: two with one identity would take each other's messages."""
    cause = f"{what} is running already, from the same folder {home}"
    # `kept` looks by taking the lock for a moment.
    with locks.hold(home / ".lock", 0.5, DeployError(cause, "end it first")):
        yield


def kept(home: Path) -> bool:
    """Whether somebody keeps the process of the folder `home` running now."""
    return locks.held(home / ".lock")


def server(kit: Path, home: Path) -> Supervisor:
    """The coordinator's FLARE process."""
    words = ["-m", str(kit), "-s", "fed_server.json", "--set", "secure_train=true"]
    more = ["org=server", "config_folder=config"]
    return Supervisor(SERVER[0], [*words, *more], kit, home, SERVER)


def site(kit: Path, home: Path, name: str) -> Supervisor:
    """A site's FLARE process."""
    words = ["-m", str(kit), "-s", "fed_client.json", "--set", "secure_train=true", f"uid={name}"]
    more = [f"org={organisation(name)}", "config_folder=config", f"heart_beat_interval={HEARTBEAT}"]
    return Supervisor(SITE[0], [*words, *more], kit, home, SITE)
