"""Keeps a FLARE process running: starts it, starts it again when it dies, ends it on request."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.deploy.kits import HEARTBEAT, organisation

PAUSE = (0.5, 15.0)  # seconds before a dead process is started again: at first, and at most
LASTED = 60.0  # seconds after which a process counts as having run well
GRACE = 8.0  # seconds to end by itself
LOOK = 0.2
LINE = {
    # FLARE keeps what it needs to repeat a message, and a thread, for so many seconds after each:
    # ours are answered within few, and asked again if not.
    "NVFLARE_STREAMING_RETRY_TIMEOUT": "8",
    "NVFLARE_STREAMING_RETRY_WAIT": "4",
    # Else each of FLARE's many threads frees large pieces into a heap of its own, which keeps them.
    "MALLOC_ARENA_MAX": "1",
}


class Keeper:
    """One long-lived child process, in a session of its own."""

    def __init__(self, module: str, words: Sequence[str], folder: Path, home: Path) -> None:
        self._command = [sys.executable, "-m", "fedsight.deploy.child", module, *words]
        self._folder = folder
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def run(self, say: Callable[[str], None], look: Callable[[], None] = lambda: None) -> None:
        """Keep the process running until SIGTERM or Ctrl-C; `look` is called all the while."""
        before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        pause = PAUSE[0]
        try:
            while not self._asked:
                began = time.monotonic()
                self._start()
                code = self._watch(look)
                if self._asked:
                    break
                pause = PAUSE[0] if time.monotonic() - began > LASTED else min(2 * pause, PAUSE[1])
                say(f"its process ended with code {code}; starting it again in {pause:.0f} s")
                self._sleep(pause)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        with (self._folder / "process.txt").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, **LINE, "FEDSIGHT_HOME": str(self._home)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self._home / "process.pid").write_text(str(self._process.pid))

    def _watch(self, look: Callable[[], None]) -> int | None:
        assert self._process is not None
        while not self._asked:
            code = self._process.poll()
            if code is not None:
                return code
            look()
            time.sleep(LOOK)
        return None

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._asked:
            time.sleep(LOOK)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):  # job processes of its session too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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


def server(kit: Path, home: Path) -> Keeper:
    """The coordinator's FLARE process."""
    module = "nvflare.private.fed.app.server.server_train"
    words = ["-m", str(kit), "-s", "fed_server.json", "--set", "secure_train=true"]
    return Keeper(module, [*words, "org=server", "config_folder=config"], kit, home)


def site(kit: Path, home: Path, name: str) -> Keeper:
    """A site's FLARE process."""
    module = "nvflare.private.fed.app.client.client_train"
    words = ["-m", str(kit), "-s", "fed_client.json", "--set", "secure_train=true", f"uid={name}"]
    more = [f"org={organisation(name)}", "config_folder=config", f"heart_beat_interval={HEARTBEAT}"]
    return Keeper(module, [*words, *more], kit, home)
