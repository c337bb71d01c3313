"""The prefork process: imports everything once, then forks the other processes on request.

A site trains in three processes: FLARE's, a job's and the job's trainer. Importing PyTorch would
take each of them seconds. Instead they are forked from a process that has imported it and does
nothing else, so they start at once and share the imported memory, and a crash of one still leaves
the others alive. The prefork process has a single thread, so no fork can inherit a lock that a
missing thread holds.

A process requests another one over a socket (`deploy/processes/spawn.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import pickle
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Never, TypeVar, cast

from fedsight.core.errors import DataError, EngineError, FedSightError
from fedsight.deploy.processes import memory_reclaim
from fedsight.deploy.processes.spawn import (
    ADDRESS_VARIABLE,
    INT32,
    UINT32,
    ProcessSpec,
    describe_exit,
    end_with_parent,
    kill,
    receive_exactly,
)

REQUEST_TIMEOUT = 2.0  # seconds in which a request must arrive completely
MAX_REQUEST_BYTES = 1 << 22
MAX_DESCRIPTORS = 16  # file descriptors that come with a request
POLL_INTERVAL = 0.1  # seconds
# Characters of the folder for temporary files; the address of a Unix socket is short (`unix(7)`).
MAX_FOLDER_CHARACTERS = 80
_PR_SET_PDEATHSIG = 1  # `prctl(2)`
_TERMINATION_SIGNALS = {signal.SIGTERM, signal.SIGINT}
T = TypeVar("T")


# Forking ------------------------------------------------------------------------------------------


def prepare(modules: Iterable[str], environment: Mapping[str, str]) -> None:
    """Import what the forks will need; call it once, in a process with a single thread."""
    from setproctitle import getproctitle  # comes with the extra `deploy`, like FLARE

    getproctitle()  # locates the title in memory, before the environment changes
    os.environ.update(environment)  # some variables are read by the imported modules
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, exit codes would be lost
    memory_reclaim.use_one_arena()
    for module in modules:
        importlib.import_module(module)
    # A garbage collection in a fork would write to every page, and so copy it.
    memory_reclaim.freeze_live_objects()


def fork() -> int:
    """Like `os.fork`, but the child dies with this process and blocks SIGTERM and SIGINT.

    They stay blocked until the child enters `exit_at_end`: this process's handlers would end this
    process's other children. Raises OSError if no process can be created.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # an unwritable stream must not prevent the fork
            stream.flush()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATION_SIGNALS)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINATION_SIGNALS)
    if pid == 0:
        with contextlib.suppress(OSError, AttributeError):  # Linux only
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # the parent's exit handlers are not the child's
    return pid


class exit_at_end(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads like a function
    """Runs the body as the whole life of a fork: the process exits after it.

    A fork must never return into the frames that it inherited.
    """

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINATION_SIGNALS)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Never:
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            code = 130
        elif error is not None:
            traceback.print_exception(error)
            code = 1
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at exit
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_module(spec: ProcessSpec, output: int, descriptors: Sequence[int]) -> None:
    """Run what `spec` says in this process, a fresh fork; returns when it has ended."""
    os.setsid()
    with Path(os.devnull).open("rb") as devnull:
        os.dup2(devnull.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    close_all_except({0, 1, 2, *descriptors})
    os.chdir(spec.folder)
    os.environ.clear()
    os.environ.update(spec.environment)
    from setproctitle import setproctitle

    arguments = [*spec.arguments, *map(str, descriptors)]
    setproctitle(" ".join(["fedsight:", spec.module, *arguments]))
    end_with_parent()
    sys.argv = [spec.module, *arguments]
    if not hasattr(sys.modules.get(spec.module), "__path__"):
        sys.modules.pop(spec.module, None)  # it runs again, as __main__
    runpy.run_module(spec.module, run_name="__main__", alter_sys=True)


def close_all_except(kept: set[int]) -> None:
    """Close the prefork process's open files: its locks, its socket, other connections."""
    for path in list(Path("/dev/fd").iterdir()):
        if int(path.name) not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(path.name))


# One call in a fork -------------------------------------------------------------------------------


def run_in_fork(work: Callable[[], T]) -> T:
    """Call `work` in a fork and return its result, so that its threads and files stay there.

    Raises what `work` raises if that is a FedSightError, and a DataError with the text of any other
    exception. Raises EngineError if the fork dies, runs out of memory, or cannot be made.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid, outcome = fork_with_outcome(lambda file: file.write(pickled_outcome(work)))
    try:
        with outcome:
            data = outcome.read()
    except BaseException:  # Ctrl-C
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    return cast(T, result(data, status))


def fork_with_outcome(life: Callable[[BinaryIO], object]) -> tuple[int, BinaryIO]:
    """A fork that calls `life` with a file to write to; its process ID, and where to read that.

    Raises EngineError if no process can be created.
    """
    ours, theirs = os.pipe()
    try:
        pid = fork()
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        cause = f"no process can be started here: {error.strerror or error}"
        raise EngineError(cause, "end other processes, or free some memory") from None
    if pid == 0:
        with exit_at_end(), os.fdopen(theirs, "wb") as file:
            life(file)
    os.close(theirs)
    return pid, os.fdopen(ours, "rb")


def result(data: bytes, status: int = 0) -> Any:
    """What the outcome in `data` gives, or raises; `status`: how its process ended, if it did."""
    if status or not data:
        cause = f"a process {describe_exit(os.waitstatus_to_exitcode(status))}"
        raise EngineError(cause, "the machine may have run out of memory: free some")
    succeeded, value = pickle.loads(data)
    if not succeeded:
        raise value
    return value


def pickled_outcome(work: Callable[[], Any]) -> bytes:
    """(True, the result of `work`) or (False, the error to raise), pickled."""
    try:
        return pickle.dumps((True, work()))
    except FedSightError as error:
        raised: FedSightError = error
    except MemoryError:
        raised = EngineError("a process ran out of memory", "free some memory")
    except Exception as error:  # an unreadable file, or a bug: the caller must be told
        place = traceback.extract_tb(error.__traceback__)[-1]
        raised = DataError(
            f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})",
            "check the images and their permissions; if they are fine, this is a bug in FedSight",
        )
    return pickled_error(raised)


def pickled_error(error: FedSightError) -> bytes:
    """The outcome of work that raised `error`, pickled."""
    return pickle.dumps((False, error))


# Forks on request ---------------------------------------------------------------------------------


@contextlib.contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """A Unix socket for requests, which only this user can reach."""
    short = len(tempfile.gettempdir()) < MAX_FOLDER_CHARACTERS
    with (
        tempfile.TemporaryDirectory(prefix="fedsight-", dir=None if short else "/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(str(Path(folder) / "prefork"))
        listener.listen()
        yield listener


class PreforkServer:
    """The server side of `spawn.start`: forks processes, and reports their exit codes."""

    def __init__(self, listener: socket.socket) -> None:
        """Anyone who can connect to `listener` may request a process."""
        self._listener = listener
        self.address = str(listener.getsockname())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._requesters: dict[int, socket.socket] = {}  # by process ID
        self._exits: dict[int, int] = {}  # by process ID: a descriptor that is ready once it ends

    @property
    def busy(self) -> bool:
        """Whether a requested process is running."""
        return bool(self._requesters)

    def start(self, spec: ProcessSpec, output: int, descriptors: Sequence[int] = ()) -> int:
        """Fork a process in a session of its own; returns its process ID.

        Arguments as in `spawn.start`. Raises OSError if no process can be created.
        """
        pid = fork()
        if pid == 0:
            with exit_at_end():
                run_module(spec, output, descriptors)
        return pid

    def begin(self) -> None:
        """Import soon what requested processes import; here, it is imported."""

    def call(self, work: Callable[[], T]) -> T:
        """Call `work` in a fork that has imported what requested processes import; its result.

        Raises as `run_in_fork` does.
        """
        return run_in_fork(work)

    def serve(self, seconds: float) -> None:
        """Serve requests for at most `seconds`, report exits, kill abandoned processes."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                try:
                    self._handle_request(self._listener.accept()[0])
                except Exception as error:  # the requester has died, or sent nonsense
                    with contextlib.suppress(OSError):  # the log may not be writable either
                        print(f"a request for a process failed: {error!r}", file=sys.stderr)
                        sys.stderr.flush()
            elif key.data is not None:
                # Requesters send nothing more: this one has closed the connection, or ended.
                kill(key.data)
                self._selector.unregister(key.fileobj)
        for pid, connection in list(self._requesters.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._report_exit(pid, connection, os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Kill all requested processes."""
        for pid, connection in list(self._requesters.items()):
            kill(pid)
            _, status = os.waitpid(pid, 0)
            self._report_exit(pid, connection, os.waitstatus_to_exitcode(status))
        self._selector.close()

    def _handle_request(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + REQUEST_TIMEOUT
        connection.settimeout(REQUEST_TIMEOUT)
        descriptors: list[int] = []
        try:
            head, descriptors, _, _ = socket.recv_fds(connection, UINT32.size, MAX_DESCRIPTORS)
            (length,) = UINT32.unpack(head)
            if length > MAX_REQUEST_BYTES:
                raise ValueError(f"{length} bytes")
            request = json.loads(receive_exactly(connection, length, deadline))
            pid = self.start(ProcessSpec(**request), descriptors[0], descriptors[1:])
        except BaseException:
            connection.close()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._requesters[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)
        with contextlib.suppress(AttributeError, OSError):  # else exits are noticed a moment later
            self._exits[pid] = os.pidfd_open(pid)
            self._selector.register(self._exits[pid], selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            connection.sendall(UINT32.pack(pid))

    def _report_exit(self, pid: int, connection: socket.socket, code: int) -> None:
        del self._requesters[pid]
        if (ended := self._exits.pop(pid, None)) is not None:
            with contextlib.suppress(KeyError):  # no room to register it
                self._selector.unregister(ended)
            os.close(ended)
        with contextlib.suppress(OSError):
            connection.sendall(INT32.pack(code))
        with contextlib.suppress(KeyError):  # the requester is gone already
            self._selector.unregister(connection)
        connection.close()


@contextlib.contextmanager
def prefork_process(modules: Sequence[str]) -> Iterator[None]:
    """Start a prefork process that imports `modules`; meanwhile, `spawn.start` forks from it.

    For a process that has threads of its own and starts many others. They end with it.
    """
    with listening_socket() as listener:
        name, descriptor = "fedsight.deploy.processes.prefork", listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", name, str(descriptor), *modules],
            pass_fds=[descriptor],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        before = os.environ.get(ADDRESS_VARIABLE)
        os.environ[ADDRESS_VARIABLE] = str(listener.getsockname())
        listener.close()  # or requests would wait for a prefork process that has died
        try:
            yield
        finally:
            del os.environ[ADDRESS_VARIABLE]
            if before is not None:
                os.environ[ADDRESS_VARIABLE] = before
            process.communicate()  # it ends when its input does


def _main(descriptor: int, modules: Sequence[str]) -> None:
    """Serve requests at the socket `descriptor` until standard input ends."""
    prepare(modules, {})
    listener = socket.socket(fileno=descriptor)
    with contextlib.closing(PreforkServer(listener)) as server:
        while not select.select([0], [], [], 0)[0]:
            server.serve(POLL_INTERVAL)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
