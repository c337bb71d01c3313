"""A whole federation on this machine: a server and some sites as real processes, and a run.

All files are in one folder, the processes talk over mutual TLS, and all of them end with the demo.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fedsight.core.errors import DeployError
from fedsight.data.partition import site_name
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.processes import spawn
from fedsight.deploy.processes.spawn import Process
from fedsight.deploy.server.server import free_port
from fedsight.deploy.site.folder import SiteFolder

SAMPLE = "fashion-mnist-12k"
NAME = "demo"
OUTPUT = "output.txt"  # what a process of the demo prints, in the folder that it runs from
TERMINATION_TIMEOUT = 15.0  # seconds for a process to end by itself after SIGTERM
CONNECT_TIMEOUT = 120.0  # seconds for all sites to connect
POLL_INTERVAL = 0.1  # seconds
MAX_KIT_THREADS = 4


class DemoFederation(NamedTuple):
    """A federation and its admitted sites."""

    federation: FederationFolder
    sites: list[SiteFolder]


def changes(sites: int, rounds: int) -> list[str]:
    """What the demo changes in the example of the sample."""
    sizes = [f"split.sites={sites}", f"rounds.rounds={rounds}"]
    # What real sites set aside for validation stays there.
    return [f"name={NAME}", *sizes, "rounds.validation=0"]


def prepare(
    folder: Path,
    count: int,
    host: str = "localhost",
    ready: Callable[[Path, Sequence[str]], object] = lambda home, command: None,
) -> DemoFederation:
    """Create a federation with `count` admitted sites in `folder`: keys, certificates, kits.

    `ready` is called for the server and for each site as soon as they can start, with their folder
    and the command that starts them there; for sites, in several threads.
    """
    federation = FederationFolder.create(folder / NAME, host, free_port())
    ready(federation.server_home, ("server", "start", "--federation", str(federation.folder)))

    def make_site(name: str) -> SiteFolder:
        request = SiteFolder.create(folder / name, name, federation.invitation)
        federation.admit(request)  # writes the answer next to the request, in the site's folder
        site = SiteFolder.open(folder / name)
        site.install_kit()
        ready(site.folder, ("site", "start", str(site.folder), "--data", SAMPLE))
        return site

    names = [site_name(number, count) for number in range(count)]
    with ThreadPoolExecutor(MAX_KIT_THREADS, thread_name_prefix="kit") as pool:
        return DemoFederation(federation, list(pool.map(make_site, names)))


@contextlib.contextmanager
def started(folder: Path, count: int) -> Iterator[tuple[DemoFederation, dict[Path, Process]]]:
    """A new federation in `folder` whose server and sites run meanwhile, by their folders."""
    with all_ended() as running:

        def ready(home: Path, command: Sequence[str]) -> None:
            running[home] = launch(command, home)

        yield prepare(folder, count, ready=ready), running


def launch(arguments: Sequence[str], home: Path, module: str = "fedsight") -> Process:
    """Run `fedsight ARGUMENTS`; Ctrl-C does not reach the process, which ends with this one."""
    with (home / OUTPUT).open("wb") as output:
        return spawn.start(module, arguments, output.fileno())


def wait_for(
    federation: FederationFolder,
    names: Sequence[str],
    running: dict[Path, Process],
    patience: float = CONNECT_TIMEOUT,
) -> None:
    """Wait until all sites are connected; DeployError if a process ends or time runs out."""
    deadline = time.monotonic() + patience
    while True:
        for home, process in running.items():
            if process.poll() is not None:
                output = (home / OUTPUT).read_text(encoding="utf-8", errors="replace")
                raise DeployError(
                    f"the process of {home.name} ended: {_error_message(output)}",
                    "run the demo with --keep DIR and look at the log files in DIR",
                )
        found = presence.presences(federation.presences)
        missing = [name for name in names if name not in found or not found[name].alive]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise DeployError(
                f"{', '.join(missing)} did not connect within {patience:.0f} s",
                f"run the demo with --keep DIR and look at DIR/{NAME}/server/kit/log.txt",
            )
        time.sleep(POLL_INTERVAL)


def _error_message(output: str) -> str:
    """The error that a process ended with, in one line."""
    return " ".join(output.rpartition("Error: ")[2].split())[-500:]


@contextlib.contextmanager
def all_ended() -> Iterator[dict[Path, Process]]:
    """Processes by folder, all of which are ended on exit, also after SIGTERM and Ctrl-C."""
    running: dict[Path, Process] = {}

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield running
    finally:
        ignored = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
        started = list(running.values())  # a second Ctrl-C may leave threads that start more
        for process in started:
            process.terminate()
        deadline = time.monotonic() + TERMINATION_TIMEOUT
        for process in started:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # the processes that it started end with it
                process.wait()
        signal.signal(signal.SIGINT, ignored[signal.SIGINT])
        signal.signal(signal.SIGTERM, before)
