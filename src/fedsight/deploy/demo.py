"""A whole federation on this machine: a server and some sites as processes of their own, mutual
TLS between them, and a run; all in one folder, and nothing left behind.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DeployError
from fedsight.data.partition import site_name
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.processes import prefork, spawn, supervisor
from fedsight.deploy.processes.spawn import Process
from fedsight.deploy.server import scheduler
from fedsight.deploy.server.server import free_port
from fedsight.deploy.site.folder import SiteFolder
from fedsight.program.program import Program, Speed

SAMPLE = "fashion-mnist-12k"
NAME = "demo"
GRACE = 15.0  # seconds that a process gets to end by itself
START = 120.0  # seconds that all sites get to connect
LOOK = 0.1
Say = Callable[[str], None]


def together() -> AbstractContextManager[None]:
    """Meanwhile, all that is started here is forked from one process, which has the imports done.

    On machines of their own, each server and site is that process for itself
    (`deploy/processes/supervisor.py`).
    """
    return prefork.apart(["nvflare.cli", "fedsight.cli.app", *supervisor.SERVER, *supervisor.SITE])


def prepare(folder: Path, count: int) -> tuple[FederationFolder, list[SiteFolder]]:
    """A federation of `count` admitted sites in `folder`: keys, certificates, kits."""
    federation = FederationFolder.create(folder / NAME, "localhost", free_port())

    def one(name: str) -> SiteFolder:
        request = SiteFolder.create(folder / name, name, federation.invitation)
        federation.admit(request)  # the answer lies beside the request: in the site's folder
        site = SiteFolder.open(folder / name)
        site.settle()
        return site

    names = [site_name(number, count) for number in range(count)]
    with ThreadPoolExecutor(4, thread_name_prefix="kit") as pool:
        return federation, list(pool.map(one, names))


def run(
    federation: FederationFolder,
    sites: Sequence[SiteFolder],
    program: Program,
    speed: Speed,
    store: RunStore,
    reporters: Sequence[Callback],
    say: Say,
) -> dict[str, Any]:
    """Start server and sites, train, end them whatever happens; returns the summary."""
    with contextlib.ExitStack() as stack:
        start: list[tuple[str, ...]] = [("server", "start", "--federation", str(federation.folder))]
        start += [("site", "start", str(site.folder), "--data", SAMPLE) for site in sites]
        homes = [federation.folder / "server", *(site.folder for site in sites)]
        running = stack.enter_context(all_ended())
        for words, home in zip(start, homes, strict=True):
            running[home] = launch(words, home)
        say(f"started the server and {len(sites)} sites; waiting until they are connected")
        wait_for(federation, [site.name for site in sites], running)
        return scheduler.start(federation, program, speed, store, reporters, say)


def launch(words: Sequence[str], home: Path, module: str = "fedsight") -> Process:
    """`fedsight WORDS` as a process that Ctrl-C does not reach, and that ends with this one."""
    with (home / "said.txt").open("wb") as said:
        return spawn.begin(module, words, said.fileno())


def wait_for(
    federation: FederationFolder, names: Sequence[str], running: dict[Path, Process]
) -> None:
    """Wait until all sites are connected; DeployError if a process ends or they do not come."""
    until = time.monotonic() + START
    while True:
        for home, process in running.items():
            if process.poll() is not None:
                said = (home / "said.txt").read_text(encoding="utf-8", errors="replace")
                raise DeployError(
                    f"the process of {home.name} ended: {_last_words(said)}",
                    "look at its folder: run the demo with --keep DIR",
                )
        found = presence.presences(federation.presences)
        missing = [name for name in names if name not in found or not found[name].alive]
        if not missing:
            return
        if time.monotonic() > until:
            raise DeployError(
                f"{', '.join(missing)} did not connect within {START:.0f} s",
                "run the demo with --keep DIR and look at server/kit/log.txt in it",
            )
        time.sleep(LOOK)


def _last_words(said: str) -> str:
    """The error that a process ended with, as one line."""
    return " ".join(said.rpartition("Error: ")[2].split())[-500:]


@contextlib.contextmanager
def all_ended() -> Iterator[dict[Path, Process]]:
    """A place for processes, all of which are ended at the end, SIGTERM and Ctrl-C included."""
    running: dict[Path, Process] = {}

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield running
    finally:
        ignored = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
        for process in running.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for process in running.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # what it keeps ends with it
                process.wait()
        signal.signal(signal.SIGINT, ignored[signal.SIGINT])
        signal.signal(signal.SIGTERM, before)
