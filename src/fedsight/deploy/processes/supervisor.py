"""Keeps a FLARE process running: starts it, restarts it when it dies, ends it on request.

All processes that FLARE's process starts in turn are forked from a prefork process: from the
supervisor itself where it has imported what they need, else from one that exists while they do
(`deploy/processes/on_demand.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from fedsight.core import locks, process_facts
from fedsight.core.errors import DeployError, StoreError
from fedsight.core.files import trim, write_atomically
from fedsight.core.package import installed
from fedsight.deploy.membership.kits import HEARTBEAT_INTERVAL, organisation
from fedsight.deploy.processes import prefork, spawn
from fedsight.deploy.processes.on_demand import PreforkOnDemand

RESTART_DELAYS = (0.5, 15.0)  # seconds before a dead process is restarted: first, and at most
STABLE_AFTER = 60.0  # seconds after which a process counts as having run well
FAREWELL_TIMEOUT = HEARTBEAT_INTERVAL + 1.0  # seconds for a site to announce that it stops
TERMINATION_TIMEOUT = 8.0  # seconds for a process to end by itself after SIGTERM
LOCK_TIMEOUT = 0.5  # seconds; `is_running` holds the lock for a moment
POLL_INTERVAL = 0.2  # seconds
FLARE_ENVIRONMENT = {
    # FLARE keeps each message, and a thread, for so many seconds in case it must be sent again.
    # Ours are answered within a few seconds, and are asked again if they are not.
    "NVFLARE_STREAMING_RETRY_TIMEOUT": "8",
    "NVFLARE_STREAMING_RETRY_WAIT": "4",
    # Maximum size of a message in bytes. FLARE allocates the announced size before the message
    # arrives, up to 4 GiB by default. Ours are a header and a piece or a binding, 32 MiB at most.
    "NVFLARE_STREAMING_MAX_BLOB_SIZE": str(64 << 20),
}
PROCESS_FILE = "process.pid"  # in the folder of a site or server: the number of its process
LISTEN_VARIABLE = "FEDSIGHT_LISTEN"  # the only address on which a server is to listen, or none
FLARE_ENTRY = "fedsight.deploy.flare.process"  # sets limits, then runs a module of FLARE's
MAX_OUTPUT_BYTES = 1 << 20  # of what a process prints; then older lines are dropped
TRIM_INTERVAL = 5.0  # seconds
_APP = "nvflare.private.fed.app"
_OURS = (FLARE_ENTRY, "fedsight.deploy.flare.launching", "fedsight.deploy.flare.presence")
# Imported by the supervisor and by FLARE's process; the first one is run. None needs PyTorch.
SERVER_MODULES = (f"{_APP}.server.server_train", *_OURS)
SITE_MODULES = (f"{_APP}.client.client_train", *_OURS, "fedsight.deploy.flare.orders")
# FLARE imports these when a process has its first connection: all ways to connect, used or not.
_DRIVERS = tuple(f"nvflare.fuel.f3.drivers.{name}" for name in ("aio_http_driver", "grpc_driver"))
SERVER_JOB_MODULES = (  # imported by the processes of a job
    *_DRIVERS,
    f"{_APP}.server.runner_process",
    "nvflare.collab.runtime.controller",
    "fedsight.deploy.flare.components",
    "fedsight.deploy.server.job",
)
SITE_JOB_MODULES = (
    *_DRIVERS,
    f"{_APP}.client.worker_process",
    "nvflare.app_common.executors.client_api_executor",
    "nvflare.app_opt.pt.decomposers",
    "nvflare.collab.runtime.executor",
    "fedsight.deploy.flare.components",
    "fedsight.deploy.site.service",
    "fedsight.deploy.site.trainer_process",
)
ALL_MODULES = (  # with those of commands, and of a process that makes a recogniser
    *("nvflare.cli", "fedsight.cli.app", "fedsight.deploy.server.operator_session"),
    *(*SERVER_MODULES, *SERVER_JOB_MODULES, *SITE_MODULES, *SITE_JOB_MODULES),
    "fedsight.deploy.site.delivery.process",
)


State = Literal["ended", "starting", "restarting", "suspended", "running"]
Poll = Callable[[prefork.PreforkServer], None]
Farewell = Callable[[], bool]  # whether all has been said that is to be said before the end


class Supervisor(contextlib.AbstractContextManager["Supervisor"]):
    """Runs one long-lived child process, in a session of its own.

    A context manager: inside, `forks` can start processes, also before `run` is called.
    """

    forks: prefork.PreforkServer

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        home: Path,
        imports: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        """`folder`: the working directory; `home`: the folder of the site or the server.

        `imports`: modules that the process will import, and those that it starts.
        """
        self.module, self.arguments = module, arguments
        self._folder = folder
        self._home = home
        self._imports = imports
        self._notify: Callable[[str], None] = print
        self._open = contextlib.ExitStack()
        self.environment: dict[str, str] = {}  # besides this process's own
        self._output = folder / "process.txt"
        self._trimmed = 0.0
        self._pid: int | None = None
        self._stop_requested = False

    def __enter__(self) -> Supervisor:
        installed()  # of the code that is imported now, and that the forks run
        own, of_jobs = self._imports
        prefork.prepare(own, FLARE_ENVIRONMENT)
        with contextlib.ExitStack() as stack:
            # As in `run`, SIGTERM ends this process in order: it leaves no folder of a socket.
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            stack.callback(signal.signal, signal.SIGTERM, before)
            listener = stack.enter_context(prefork.listening_socket())
            self.forks = _prefork_server(listener, of_jobs, lambda text: self._notify(text))
            stack.callback(self.forks.close)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self,
        notify: Callable[[str], None],
        poll: Poll = lambda _: None,
        farewell: Farewell = lambda: True,
    ) -> None:
        """Keep the process running until SIGTERM or Ctrl-C; `poll` is called regularly, with what
        can start other processes.

        `farewell` is called before the process is ended on request, until it returns that nothing
        is left to say. A start that fails, for example because the disk is full, is tried again.
        """
        self._notify = notify
        before = {
            number: signal.signal(number, self._request_stop)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        delay = RESTART_DELAYS[0]
        try:
            self.forks.begin()  # a run often begins soon after its server and its sites
            while not self._stop_requested:
                began = time.monotonic()
                try:
                    self._start()
                except (OSError, StoreError) as error:
                    self._end()
                    why = error.cause if isinstance(error, StoreError) else error
                    event = f"its process cannot be started ({why}); retrying"
                else:
                    event = f"its process ended with code {self._watch(poll)}; restarting"
                if self._stop_requested:
                    break
                stable = time.monotonic() - began > STABLE_AFTER
                delay = RESTART_DELAYS[0] if stable else min(2 * delay, RESTART_DELAYS[1])
                with contextlib.suppress(OSError):  # the terminal is gone, or the disk is full
                    notify(f"{event} in {delay:.0f} s")
                self._sleep(delay)
        finally:
            self._say_farewell(farewell)
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        """Raises OSError or StoreError on failure; the process may be running even then."""
        environment = {
            **os.environ,
            **self.environment,
            "FEDSIGHT_HOME": str(self._home),
            spawn.ADDRESS_VARIABLE: self.forks.address,
        }
        spec = spawn.ProcessSpec(self.module, self.arguments, environment, str(self._folder))
        with self._output.open("ab") as output:
            self._pid = self.forks.start(spec, output.fileno())
        write_atomically(self._home / PROCESS_FILE, str(self._pid).encode())

    def _watch(self, poll: Poll) -> int | None:
        while not self._stop_requested:
            code = self._exit_code()
            if code is not None:
                return code
            with contextlib.suppress(OSError):  # as in `run`
                poll(self.forks)
                self._trim_output()
            self.forks.serve(POLL_INTERVAL)
        return None

    def _trim_output(self) -> None:
        """Shorten what the process has printed; it appends, and goes on with the same file."""
        if (now := time.monotonic()) - self._trimmed >= TRIM_INTERVAL:
            self._trimmed = now
            trim(self._output, MAX_OUTPUT_BYTES)

    def _exit_code(self) -> int | None:
        """The exit code of the process; None while it runs."""
        if self._pid is None:
            return 0
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            return None
        self._pid = None
        return os.waitstatus_to_exitcode(status)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop_requested:
            self.forks.serve(min(POLL_INTERVAL, seconds))

    def _request_stop(self, number: int, frame: object) -> None:
        self._stop_requested = True

    def _say_farewell(self, farewell: Farewell) -> None:
        deadline = time.monotonic() + FAREWELL_TIMEOUT
        while self._exit_code() is None and not farewell():
            if time.monotonic() >= deadline:
                return
            self.forks.serve(POLL_INTERVAL)

    def _end(self) -> None:
        if (pid := self._pid) is None or self._exit_code() is not None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + TERMINATION_TIMEOUT
        while self._exit_code() is None and time.monotonic() < deadline:
            self.forks.serve(POLL_INTERVAL)
        with contextlib.suppress(ProcessLookupError):  # including what it started in its session
            os.killpg(pid, signal.SIGKILL)
        if self._pid is not None:
            os.waitpid(pid, 0)
            self._pid = None


def _prefork_server(
    listener: socket.socket, modules: Sequence[str], notify: Callable[[str], None]
) -> prefork.PreforkServer:
    """What serves requests for processes that import `modules`."""
    if all(module in sys.modules for module in modules):  # in a demo, and forked from its process
        return prefork.PreforkServer(listener)
    return PreforkOnDemand(listener, modules, notify)


@contextlib.contextmanager
def exclusive(home: Path, what: str) -> Iterator[None]:
    """Ensure that `what` runs once from `home`; DeployError if it is running already.

    Two processes with one identity would take each other's messages. Until the process of `what`
    is started, `process_id` knows none: an earlier number may be another process's by now.
    """
    cause = f"{what} is already running from the folder {home}"
    with locks.hold(home / ".lock", LOCK_TIMEOUT, DeployError(cause, "end it first")):
        with contextlib.suppress(OSError):  # where it cannot be removed, it cannot be written
            (home / PROCESS_FILE).unlink()
        yield


def is_running(home: Path) -> bool:
    """Whether a supervisor for the folder `home` is running now."""
    return locks.held(home / ".lock")


def is_starting(home: Path) -> bool:
    """Whether the supervisor for `home` is running and has not started its process yet.

    A site opens all its images first, which takes as long as it takes.
    """
    return is_running(home) and not (home / PROCESS_FILE).exists()


def process_id(home: Path) -> int | None:
    """The ID of the process that the supervisor for `home` runs; None if there is none now."""
    try:
        pid = int((home / PROCESS_FILE).read_text())
    except (OSError, ValueError):
        return None
    try:
        os.kill(pid, 0)  # sends no signal, only checks
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists, under another user
    return pid


def state(home: Path) -> State:
    """What the supervisor for `home`, and the process that it runs, do now."""
    if not is_running(home):
        return "ended"
    if process_id(home) is None:
        return "starting" if is_starting(home) else "restarting"
    return "suspended" if is_suspended(home) else "running"


def is_suspended(home: Path) -> bool:
    """Whether a signal (SIGSTOP) or a debugger holds the process that the supervisor for `home`
    runs, the supervisor itself, which is its parent, or another process that this one started."""
    pid = process_id(home)
    if pid is None:
        return False
    supervisor = process_facts.parent(pid)
    every = {pid, supervisor, *process_facts.children(supervisor)}
    return any(map(process_facts.is_suspended, every))


def prefork_process() -> contextlib.AbstractContextManager[None]:
    """Meanwhile, all processes that are started here are forked from one prefork process.

    For a whole federation on one machine. On machines of their own, each server and each site has
    one of its own.
    """
    return prefork.prefork_process(ALL_MODULES)


def server(kit: Path, home: Path, listen: str | None = None) -> Supervisor:
    """The supervisor of the coordinator's FLARE process, which listens on the address `listen`."""
    arguments = ["-m", str(kit), "-s", "fed_server.json", "--set", "secure_train=true"]
    arguments += ["org=server", "config_folder=config"]
    imports = SERVER_MODULES, SERVER_JOB_MODULES
    made = Supervisor(FLARE_ENTRY, [SERVER_MODULES[0], *arguments], kit, home, imports)
    made.environment[LISTEN_VARIABLE] = listen or ""
    return made


def site(kit: Path, home: Path, name: str) -> Supervisor:
    """The supervisor of a site's FLARE process."""
    arguments = ["-m", str(kit), "-s", "fed_client.json", "--set", "secure_train=true"]
    arguments += [f"uid={name}", f"org={organisation(name)}", "config_folder=config"]
    arguments += [f"heart_beat_interval={HEARTBEAT_INTERVAL}"]
    imports = SITE_MODULES, SITE_JOB_MODULES
    return Supervisor(FLARE_ENTRY, [SITE_MODULES[0], *arguments], kit, home, imports)
