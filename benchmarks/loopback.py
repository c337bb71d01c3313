"""A federation on loopback for benchmarks: real processes that are found, killed and kept again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsight.coordinator.store import RunStore
from fedsight.deploy import demo
from fedsight.deploy.processes import spawn

AGAIN = 1.0  # seconds until a process that ended is started again, as an init system would
LOOK = 0.2
FIRST, EACH = 240.0, 20.0  # seconds until all are connected, on a machine with other work, too
LEFT = 15.0  # seconds that processes get to be gone after their starters
ROLES = {  # a word of the command line that tells the role
    "nvflare.private.fed.app.server.server_train": "server's parent",
    "nvflare.private.fed.app.server.runner_process": "coordinator's job",
    "nvflare.private.fed.app.client.client_train": "site's parent",
    "nvflare.private.fed.app.client.worker_process": "site's job",
    "fedsight.deploy.site.trainer_process": "trainer",
    "fedsight.deploy.processes.prefork": "prefork process",
}


@dataclass(frozen=True)
class Seen:
    """A process; its number and its start name it for good."""

    pid: int
    began: int  # clock ticks since the machine started
    role: str

    @property
    def alive(self) -> bool:
        """Whether it is still there, and no other under its number."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.began and found[2] not in "ZX"

    @classmethod
    def of(cls, pid: int, role: str) -> Seen | None:
        """The process with that number; None if there is none."""
        found = _stat(pid)
        return None if found is None else cls(pid, found[1], role)

    def kill(self) -> bool:
        """End it at once; False if it is gone already."""
        return self.send(signal.SIGKILL)

    def send(self, number: int) -> bool:
        """Send it a signal; False if it is gone already."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def status(self) -> dict[str, int]:
        """VmRSS, RssAnon and so on in KiB, and Threads (`proc_pid_status(5)`); {} if it is gone."""
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            pairs = (line.split() for line in lines if line.startswith(("Vm", "Rss", "Threads")))
            return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs}
        return {}

    def share(self) -> int:
        """KiB in memory, a page divided by the number of processes that share it; 0 if gone."""
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return 0

    def ticks(self) -> int:
        """Clock ticks of computing so far; 0 if it is gone."""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.pid}/stat").read_text()
            return sum(map(int, text.rpartition(")")[2].split()[11:13]))
        return 0


def below(pid: int) -> list[Seen]:
    """All processes below `pid` that have a role, the oldest first."""
    children: dict[int, list[tuple[int, int]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if found := _stat(int(folder.name)):
            children.setdefault(found[0], []).append((int(folder.name), found[1]))
    seen, queue = [], [pid]
    while queue:
        for child, began in children.get(queue.pop(), []):
            queue.append(child)
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").split()
                role = next((ROLES[word] for word in words if word in ROLES), None)
                if role is not None:
                    seen.append(Seen(child, began, role))
    return sorted(seen, key=lambda one: one.began)


class Loopback:
    """A server and `count` sites in `folder`, with keys, certificates and kits, not yet started."""

    def __init__(self, folder: Path, count: int) -> None:
        self.federation, self.sites = demo.prepare(folder, count)
        self.server = self.federation.folder / "server"
        self._words: dict[Path, tuple[str, ...]] = {
            self.server: ("server", "start", "--federation", str(self.federation.folder))
        }
        for site in self.sites:
            self._words[site.folder] = ("site", "start", str(site.folder), "--data", demo.SAMPLE)
        self._processes: dict[Path, spawn.Process] = {}
        self._seen: set[Seen] = set()
        self._lock = threading.Lock()
        self.restarts = 0  # of whole `fedsight ... start` processes

    @contextlib.contextmanager
    def up(self, again: bool = False) -> Iterator[None]:
        """Start everything and wait until all sites are connected; end it, whatever happens.

        With `again`, a `fedsight ... start` process that ended is started again a second later.
        """
        with demo.all_ended() as processes:
            self._processes = processes
            for home, words in self._words.items():
                processes[home] = demo.launch(words, home)
            names = [site.name for site in self.sites]
            demo.wait_for(self.federation, names, processes, FIRST + EACH * len(names))
            over = threading.Event()
            init = threading.Thread(target=self._init_system, args=(over,), daemon=True)
            try:
                if again:
                    init.start()
                yield
            finally:
                over.set()
                if again:
                    init.join()
                self.look()

    def homes(self) -> list[Path]:
        """The folders of the server and of all sites."""
        return list(self._words)

    def find(self, role: str, home: Path) -> Seen | None:
        """The youngest process with a role below a site's folder, or the server's, if there is one.

        A job process of an earlier segment may still be ending.
        """
        return next((one for one in self.look(home)[::-1] if one.role == role), None)

    def starter(self, home: Path) -> Seen | None:
        """The `fedsight ... start` process of a folder."""
        process = self._processes[home]
        return None if process.poll() is not None else Seen.of(process.pid, "start command")

    def look(self, home: Path | None = None) -> list[Seen]:
        """The processes below one folder's starter, or all of them."""
        with self._lock:
            homes = list(self._processes) if home is None else [home]
            found = [one for each in homes for one in below(self._processes[each].pid)]
            self._seen.update(found)
        return found

    def leftovers(self) -> list[str]:
        """Whatever outlived its starter, ended now; call it after `up`."""
        until = time.monotonic() + LEFT
        while any(one.alive for one in self._seen) and time.monotonic() < until:
            time.sleep(LOOK)
        return [f"{one.role} (process {one.pid})" for one in self._seen if one.kill()]

    def updates(self, run: str) -> list[dict[str, Any]]:
        """The sites' log lines of updates of the run with that identity, each with its site."""
        return [
            {"site": site.name, **line}
            for site in self.sites
            for line in site.log.read()
            if line.get("event") == "update" and line.get("run") == run
        ]

    def _init_system(self, over: threading.Event) -> None:
        while not over.wait(LOOK):
            for home, process in list(self._processes.items()):
                if process.poll() is None:
                    continue
                if over.wait(AGAIN):
                    return
                self.restarts += 1
                with self._lock:
                    self._processes[home] = demo.launch(self._words[home], home)


def brief(name: str, sites: int, rounds: int, **network: int) -> dict[str, Any]:
    """The program of a run that computes little: four images a site, evaluated at the end.

    `network` has settings of `small_cnn`.
    """
    return {
        "name": name,
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "virtual", "sites": sites, "samples": 4},
        "model": {"name": "small_cnn", **network},
        "train": {"batch": 4, "lr": 0.01},
        "rounds": {"rounds": rounds, "evaluate_every": rounds},
    }


def finished(store: RunStore) -> int:
    """Rounds in the history of a run."""
    path = store.folder / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def identity(store: RunStore) -> str:
    """What the sites' logs call a run."""
    return str(json.loads((store.folder / "run.json").read_text())["id"])


def available() -> int:
    """Bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) * 1024


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Parent, start and state of a process (`proc_pid_stat(5)`)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), fields[0]
