"""A federation on loopback for tests: a real server and real sites, under mutual TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from processes import DEPLOYED, wait_until

from fedsight.coordinator.callbacks import Callback
from fedsight.coordinator.store import RunStore
from fedsight.deploy import demo
from fedsight.deploy.membership import presence
from fedsight.deploy.server import scheduler
from fedsight.program import config
from fedsight.program.program import Program, Speed

ROLES = {  # what tells processes of sites and servers apart: a part of the command line
    "parent": "_train",
    "job": "worker_process",
    "trainer": "site.trainer_process",
}


def _ipv6() -> str:
    """The loopback address of IPv6; a second one of IPv4 on a machine without IPv6."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return "::1"
    return "127.0.0.2"


IPV6 = _ipv6()


class Loopback:
    """The processes of a federation, which tests start and kill."""

    def __init__(
        self,
        folder: Path,
        count: int,
        stack: contextlib.ExitStack,
        host: str = "localhost",
        recognisers: bool = False,
    ) -> None:
        """`recognisers`: each site makes one of the model that a run ends with, which takes it
        longer than to train."""
        self.federation, sites = demo.prepare(folder, count, host)
        self._recognisers = recognisers
        self.sites = {site.name: site for site in sites}
        self.running = stack.enter_context(demo.all_ended())
        self.said: list[str] = []

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.federation.folder / "server"

    def start_server(self, *options: str) -> None:
        """Start the server."""
        words = ("server", "start", "--federation", str(self.federation.folder), *options)
        self.running[self.server] = demo.launch(words, self.server)

    def start_site(self, name: str, *options: str) -> None:
        """Start a site on its part of the built-in sample."""
        home = self.sites[name].folder
        if not self._recognisers:
            _choose_none(home / "site.toml")
        words = ("site", "start", str(home), "--data", demo.SAMPLE, *options)
        self.running[home] = demo.launch(words, home)

    def start(self) -> None:
        """Start the server and all sites, and wait until they are connected."""
        self.start_server()
        for name in self.sites:
            self.start_site(name)
        demo.wait_for(self.federation, list(self.sites), self.running)

    def process(self, home: Path, role: str) -> psutil.Process | None:
        """A process of the role `role` that the supervisor of the folder `home` has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.running[home].pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any(ROLES[role] in word for word in process.cmdline()):
                        return process
        return None

    def process_left(self, home: Path) -> bool:
        """Whether any process still works in the folder `home`, whoever started it."""
        words = (str(home) + "/", str(home))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(word.startswith(words[0]) or word == words[1] for word in process.cmdline()):
                    return True
        return False

    def kill(self, home: Path, role: str) -> None:
        """SIGKILL a process, as soon as it runs."""
        wait_until(lambda: self.process(home, role) is not None, DEPLOYED)
        process = self.process(home, role)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)

    def alive(self, name: str) -> bool:
        """Whether the server counts the site as connected."""
        found = presence.presence(self.federation.presences, name)
        return found is not None and found.alive

    def run(self, name: str, watch: Callback | None = None, **sections: Any) -> RunStore:
        """A whole run; returns when it has ended."""
        program, speed = program_of(len(self.sites), **sections)
        store = RunStore(self.federation.runs / name)
        reporters = [] if watch is None else [watch]
        scheduler.prepare(self.federation, program, speed, store)
        scheduler.resume(self.federation, store, reporters, self.said.append)
        return store


def _choose_none(path: Path) -> None:
    """Have the site whose settings are in `path` make no recogniser."""
    usual, text = "# choose = true", path.read_text()
    if "[delivery]" not in text:
        text += f"\n[delivery]\n{usual}\n"
    path.write_text(text.replace(usual, "choose = false"))


def program_of(sites: int, **sections: Any) -> tuple[Program, Speed]:
    """A small program on the built-in sample, split over `sites` sites."""
    base = {
        "data": {"name": demo.SAMPLE},
        "split": {"name": "quantity", "sites": sites},
        "model": {"name": "small_cnn", "width": 4, "blocks": 1},
        "train": {"batch": 64, "lr": 0.05},
        "rounds": {"rounds": 2, "evaluate_every": 2, "deadline": 60.0},
        "speed": {"workers": 1},
    }
    tables = {name: {**base.get(name, {}), **sections.get(name, {})} for name in base | sections}
    return config.parse(tables, Path.cwd())


@contextlib.contextmanager
def loopback(
    folder: Path, count: int, host: str = "localhost", recognisers: bool = False
) -> Iterator[Loopback]:
    """A federation of `count` sites that is up and running."""
    with contextlib.ExitStack() as stack:
        made = Loopback(folder, count, stack, host, recognisers)
        made.start()
        yield made
