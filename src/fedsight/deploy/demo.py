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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

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


def prefork_process() -> AbstractContextManager[None]:
    """Meanwhile, all processes that are started here are forked from one prefork process.

    On machines of their own, each server and each site has one of its own
    (`deploy/processes/supervisor.py`).
    """
    imports = ["nvflare.cli", "fedsight.cli.app"]
    return prefork.prefork_process([*imports, *supervisor.ALL_MODULES])


def prepare(folder: Path, count: int, host: str = "localhost") -> DemoFederation:
    """Create a federation with `count` admitted sites in `folder`: keys, certificates, kits."""
    federation = FederationFolder.create(folder / NAME, host, free_port())

    def make_site(name: str) -> SiteFolder:
        request = SiteFolder.create(folder / name, name, federation.invitation)
        federation.admit(request)  # writes the answer next to the request, in the site's folder
        site = SiteFolder.open(folder / name)
        site.install_kit()
        return site

    names = [site_name(number, count) for number in range(count)]
    with ThreadPoolExecutor(MAX_KIT_THREADS, thread_name_prefix="kit") as pool:
        return DemoFederation(federation, list(pool.map(make_site, names)))


def run(
    demo: DemoFederation,
    program: Program,
    speed: Speed,
    store: RunStore,
    callbacks: Sequence[Callback],
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Start server and sites, train, and end them whatever happens; returns the summary."""
    federation, sites = demo
    commands: list[tuple[Path, tuple[str, ...]]] = [
        (federation.server_home, ("server", "start", "--federation", str(federation.folder)))
    ]
    for site in sites:
        commands.append((site.folder, ("site", "start", str(site.folder), "--data", SAMPLE)))
    with all_ended() as running:
        for home, command in commands:
            running[home] = launch(command, home)
        notify(f"started the server and {len(sites)} sites; waiting for them to connect")
        wait_for(federation, [site.name for site in sites], running)
        scheduler.prepare(federation, program, speed, store)
        return scheduler.resume(federation, store, callbacks, notify)


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
        for process in running.values():
            process.terminate()
        deadline = time.monotonic() + TERMINATION_TIMEOUT
        for process in running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # the processes that it started end with it
                process.wait()
        signal.signal(signal.SIGINT, ignored[signal.SIGINT])
        signal.signal(signal.SIGTERM, before)
