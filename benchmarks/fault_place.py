"""A small federation on this machine whose server and sites have a clock and a disk of their own,
for `faults.py`: real processes that are found, stopped, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import tomli_w
from fault_watch import Told, follow, looks
from loopback import ROLES

from fedsight.deploy import demo
from fedsight.deploy.membership import presence
from fedsight.deploy.processes import spawn

PROGRAM = {
    "data": {"name": demo.SAMPLE},
    "split": {"name": "quantity", "sites": 2},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
    "train": {"batch": 64, "lr": 0.05, "steps": 4},
    "rounds": {"rounds": 100_000, "evaluate_every": 1000, "deadline": 120.0},
    "speed": {"workers": 1},
}
SETTLED = 3.0  # seconds that the run goes on before something happens to it
PATIENCE = 120.0  # seconds for anything to start
CLOCK = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class Line:
    """A line that a person saw for the first time."""

    at: float  # of time.monotonic()
    who: str
    place: str
    text: str


@dataclass
class Clock:
    """The clock of a machine, as its processes see it; that of this machine stays as it is."""

    library: Path | None
    file: Path

    def __post_init__(self) -> None:
        self.jump(0)

    def jump(self, seconds: float) -> None:
        """Set it so much ahead of the true time."""
        mode = "r+b" if self.file.exists() else "wb"  # the processes have the file mapped
        with self.file.open(mode) as file:
            file.write(struct.pack("q", round(seconds)))

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to have this clock."""
        if self.library is None:
            return {}
        return {"LD_PRELOAD": str(self.library), "FEDSIGHT_CLOCK": str(self.file)}


def clock_library(folder: Path) -> Path | None:
    """The library of `clock.c`, made in `folder`; None if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    made = folder / "clock.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(made)]
    subprocess.run([compiler, *options, str(CLOCK)], check=True)
    return made


@dataclass
class Place:
    """A federation of two sites in `folder`; `library`: that of `clock.c`, for clocks that jump."""

    folder: Path
    library: Path | None = None
    environments: dict[str, dict[str, str]] = field(default_factory=dict)  # by who starts there

    def __post_init__(self) -> None:
        self.federation, sites = demo.prepare(self.folder, 2)
        self.sites = {site.name: site.folder for site in sites}
        self.server = self.federation.folder / "server"
        self.runs = self.folder / "runs"
        self.runs.mkdir()
        self.clocks = {
            name: Clock(self.library, self.folder / f"{name}.clock")
            for name in ("server", *self.sites)
        }
        self.processes: dict[str, spawn.Process] = {}
        self.lines: list[Line] = []
        self._watchers: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self._mounted: list[Path] = []

    def home(self, name: str) -> Path:
        """The folder of a site, or the server's."""
        return self.server if name == "server" else self.sites[name]

    def start(self, name: str, *options: str) -> None:
        """Start the server or a site."""
        home = self.home(name)
        words = ["site", "start", str(home), "--data", demo.SAMPLE]
        if name == "server":
            words = ["server", "start", "--federation", str(self.federation.folder)]
        with (home / demo.OUTPUT).open("ab") as output:
            self.processes[name] = self._spawn([*words, *options], name, output.fileno())

    def start_run(self, name: str = "run") -> None:
        """Start `fedsight run`."""
        table = {**PROGRAM, "name": name}
        path = self.runs / f"{name}.toml"
        path.write_text(tomli_w.dumps(table))
        with path.with_suffix(".said").open("ab") as output:
            where = ["--federation", str(self.federation.folder)]
            words = ["run", str(path), *where]
            self.processes[name] = self._spawn(words, "operator", output.fileno())

    def _spawn(self, words: Sequence[str], who: str, output: int) -> spawn.Process:
        clock = self.clocks["server" if who == "operator" else who]
        own = {**clock.environment, **self.environments.get(who, {})}
        environment = {**os.environ, "COLUMNS": "200", **own}
        if not own:
            return spawn.start("fedsight", words, output, environment=environment)
        environment.pop(spawn.ADDRESS_VARIABLE, None)  # a fork would be as its parent is
        command = [sys.executable, "-m", "fedsight.deploy.processes.spawn", "fedsight", *words]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def rounds(self, name: str = "run") -> int:
        """Finished rounds of a run."""
        path = self.federation.runs / name / "history.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def up(self, runs: bool = True) -> None:
        """Start everything, and a run, and let it go on for a moment."""
        self.start("server")
        for site in self.sites:
            self.start(site)
        self.wait(lambda: all(map(self.connected, self.sites)), "sites are connected")
        self.watch("run")
        if runs:
            self.start_run()
            self.wait(lambda: self.rounds() > 1, "the run has rounds")
            time.sleep(SETTLED)

    def connected(self, site: str) -> bool:
        """Whether the server hears from a site."""
        found = presence.presence(self.federation.presences, site)
        return found is not None and found.alive

    def wait(self, condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Wait until `condition()`; TimeoutError if it does not come."""
        until = time.monotonic() + patience
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {patience:.0f} s: {what}")
            time.sleep(0.05)

    def process(self, name: str, role: str) -> psutil.Process:
        """The youngest process of a role below a start command, or (`start`) that itself."""
        starter = psutil.Process(self.processes[name].pid)
        if role == "start":
            return starter
        words = {value: key for key, value in ROLES.items()}
        found = []
        for child in starter.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if words[role] in " ".join(child.cmdline()):
                    found.append(child)
        if not found:
            raise TimeoutError(f"{name} has no process '{role}'")
        return max(found, key=lambda one: one.create_time())

    def own_disk(self, name: str, megabytes: int) -> None:
        """Give a machine a small disk of its own, before anything is started there."""
        home = self.federation.folder if name == "server" else self.sites[name]
        kept = home.with_name(f"{home.name}.kept")
        home.rename(kept)
        home.mkdir()
        size = f"size={megabytes}m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(home)], check=True)
        self._mounted.append(home)
        shutil.copytree(kept, home, dirs_exist_ok=True)

    def fill_disk(self, name: str) -> None:
        """Leave no room on that disk."""
        home = self.federation.folder if name == "server" else self.sites[name]
        with contextlib.suppress(OSError), (home / "filler").open("wb", 0) as file:
            while True:
                file.write(bytes(1 << 16))

    def send(self, name: str, role: str, number: int) -> None:
        """Send a signal to a process, as soon as there is one of that role."""
        self.wait(lambda: self._has(name, role), f"{name} has a process '{role}'")
        os.kill(self.process(name, role).pid, number)

    def gone(self, name: str) -> None:
        """Wait until nothing works in the folder of a site or the server any more."""
        words = (f"{self.home(name)}/", str(self.home(name)))

        def works() -> bool:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    line = process.cmdline()
                    if any(word.startswith(words[0]) or word == words[1] for word in line):
                        return True
            return False

        ended = self.processes[name].poll
        self.wait(lambda: ended() is not None and not works(), f"the processes of {name} are gone")

    def well(self) -> bool:
        """Whether all start commands run."""
        return all(one.poll() is None for one in self.processes.values())

    def goes_on(self, run: str = "run") -> None:
        """Wait until all sites are connected and the run has made two rounds more."""
        self.wait(lambda: all(map(self.connected, self.sites)), "sites are connected")
        before = self.rounds(run)
        self.wait(lambda: self.rounds(run) > before + 1, "the run goes on", patience=60.0)
        time.sleep(SETTLED)

    def _has(self, name: str, role: str) -> bool:
        with contextlib.suppress(TimeoutError, psutil.Error):
            self.process(name, role)
            return True
        return False

    def watch(self, run: str) -> None:
        """Let the operator, the sites' owners and whoever waits for the run look."""
        words = ["server", str(self.federation.folder), str(self.runs / run)]
        self._watch("server", words)
        for site, home in self.sites.items():
            self._watch(site, ["site", str(home)])

    def _watch(self, machine: str, words: Sequence[str]) -> None:
        seen: set[str] = set()

        def tell(told: Told) -> None:
            seen.add(told.place)
            who = "run" if told.place in ("fedsight run", "fedsight runs list") else machine
            self.lines.append(Line(told.at, who, told.place, told.line))

        if self.library is None:
            what, folder, *rest = words
            arguments = looks(what, Path(folder), rest), tell, self._over
            threading.Thread(target=follow, args=arguments, daemon=True).start()
        else:
            self._watch_with_its_clock(machine, words, tell)
        self.wait(lambda: seen, "the first look")

    def _watch_with_its_clock(
        self, machine: str, words: Sequence[str], tell: Callable[[Told], None]
    ) -> None:
        script = Path(__file__).with_name("fault_watch.py")
        environment = {**os.environ, "COLUMNS": "200", **self.clocks[machine].environment}
        process = subprocess.Popen(
            [sys.executable, str(script), *words],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._watchers.append(process)

        def read() -> None:
            assert process.stdout is not None
            for text in process.stdout:
                tell(Told(*json.loads(text)))

        threading.Thread(target=read, daemon=True).start()

    def end(self) -> None:
        """End all processes."""
        self._over.set()
        for watcher in self._watchers:
            watcher.kill()
            watcher.wait()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.terminate()
        until = time.monotonic() + demo.TERMINATION_TIMEOUT
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for home in self._mounted:
            subprocess.run(["umount", "--lazy", str(home)], check=True)


@contextlib.contextmanager
def place(folder: Path, library: Path | None = None) -> Iterator[Place]:
    """A federation in `folder`, whose processes end with the block."""
    made = Place(folder, library)
    try:
        yield made
    finally:
        made.end()
