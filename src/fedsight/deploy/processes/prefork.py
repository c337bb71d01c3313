"""Processes that are forked from the one that keeps them, in which everything is imported.

A site trains in three processes: the deployment engine's, a job's and its trainer's. Importing
PyTorch takes each of them seconds of computing. So they are forked from the keeper, which has
imported it and does nothing else: they begin at once and share the memory of what was imported,
and what kills one of them still leaves the others. The keeper has one thread only, so that no lock
can be held by a thread that its copy lacks.

A process that needs another asks the keeper for it over a socket (`deploy/processes/spawn.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedsight.core.errors import DataError, EngineError, FedSightError
from fedsight.deploy.processes import memory_reclaim
from fedsight.deploy.processes.forked import become, ended, fork
from fedsight.deploy.processes.spawn import ADDRESS, CODE, LENGTH, Start, kill, received

PATIENCE = 2.0  # seconds that a request may take to be said
LONGEST = 1 << 22  # bytes of a request
LOOK = 0.1
MOST_LETTERS = 80  # of the folder of temporary files: a socket's address is short (`unix(7)`)
T = TypeVar("T")


def prepare(modules: Iterable[str], environment: Mapping[str, str]) -> None:
    """Import what the forked processes need; call it once, in a process with a single thread."""
    from setproctitle import getproctitle  # comes with the extra `deploy`, as the engine does

    getproctitle()  # looks where the title is kept, for which the environment must be unchanged
    os.environ.update(environment)  # some is read by what is imported
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, nobody learns of exit codes
    memory_reclaim.one_for_all_threads()
    for module in modules:
        importlib.import_module(module)
    memory_reclaim.settle()  # a collection in a copy would write to, and so copy, every page


def aside(work: Callable[[], T]) -> T:
    """What `work` returns, from a copy of this process: what it starts stays there.

    Raises what `work` raises, if that is a FedSightError, and a DataError with the text of any
    other exception; EngineError if the copy dies, lacks memory, or cannot be made.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours, theirs = os.pipe()
    try:
        pid = fork()
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        cause = f"no process can be started here: {error.strerror or error}"
        raise EngineError(cause, "end other processes, or free memory") from None
    if pid == 0:
        with ended(), os.fdopen(theirs, "wb") as file:
            file.write(_outcome(work))
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as file:
            data = file.read()
    except BaseException:  # Ctrl-C
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    if status or not data:
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise EngineError(f"a process {how}", "often the machine ran out of memory: free some")
    done, value = pickle.loads(data)
    if not done:
        raise value
    return value  # type: ignore[no-any-return]


def _outcome(work: Callable[[], Any]) -> bytes:
    """Whether `work` was done, and what it returned or raised, pickled."""
    try:
        return pickle.dumps((True, work()))
    except FedSightError as error:
        raised: FedSightError = error
    except MemoryError:
        raised = EngineError("a process ran out of memory", "free some")
    except Exception as error:  # a file that cannot be read, or a defect: whoever waits is told
        place = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        raised = DataError(
            cause, "look at the images and their permissions; without fault, it is FedSight's"
        )
    return pickle.dumps((False, raised))


@contextlib.contextmanager
def door() -> Iterator[socket.socket]:
    """A socket to be asked at, which only this user can reach."""
    short = len(tempfile.gettempdir()) < MOST_LETTERS
    with (
        tempfile.TemporaryDirectory(prefix="fedsight-", dir=None if short else "/tmp") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made,
    ):
        made.bind(str(Path(place) / "forks"))
        made.listen()
        yield made


@contextlib.contextmanager
def apart(modules: Sequence[str]) -> Iterator[None]:
    """Meanwhile, `processes.begin` forks from a process of its own, which imports `modules`.

    For a process that has threads, and starts many others. They end with it.
    """
    with door() as made:
        keeper = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fedsight.deploy.processes.prefork",
                str(made.fileno()),
                *modules,
            ],
            pass_fds=[made.fileno()],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        before = os.environ.get(ADDRESS)
        os.environ[ADDRESS] = str(made.getsockname())
        made.close()  # or one would wait at it for a keeper that has died
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            if before is not None:
                os.environ[ADDRESS] = before
            keeper.communicate()  # it ends with its input


def _serve(number: int, modules: Sequence[str]) -> None:
    """Until the input ends, fork what is asked for at the socket `number`."""
    prepare(modules, {})
    made = socket.socket(fileno=number)
    with contextlib.closing(Prefork(made)) as forks:
        while not select.select([0], [], [], 0)[0]:
            forks.look(LOOK)


class Prefork:
    """The keeper's side: starts processes, for itself and for those who ask, and collects them."""

    def __init__(self, door: socket.socket) -> None:
        """Whoever can connect to `door` may ask."""
        self._door = door
        self.address = str(door.getsockname())
        self._watch = selectors.DefaultSelector()
        self._watch.register(self._door, selectors.EVENT_READ)
        self._asked: dict[int, socket.socket] = {}  # by whom each was asked for

    def start(self, start: Start, output: int, passed: Sequence[int] = ()) -> int:
        """Fork a process in a session of its own; returns its number.

        Its standard output and errors go to the descriptor `output`. The numbers of the
        descriptors `passed`, which it gets, too, are added to its words.
        """
        pid = fork()
        if pid == 0:
            with ended():
                become(start, output, passed)
        return pid

    def look(self, seconds: float) -> None:
        """Serve those who ask, for at most `seconds`; collect what ended, end what nobody wants."""
        for key, _ in self._watch.select(seconds):
            if key.fileobj is self._door:
                try:
                    self._serve(self._door.accept()[0])
                except Exception as error:  # whoever asked has died, or asked for nonsense
                    with contextlib.suppress(OSError):  # nor may the log be writable
                        print(f"a request for a process failed: {error!r}", file=sys.stderr)
                        sys.stderr.flush()
            else:  # nothing more is ever said: whoever asked has ended, or lets go
                kill(key.data)
                self._watch.unregister(key.fileobj)
        for pid, line in list(self._asked.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                self._tell(pid, line, os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """End all that was asked for."""
        for pid, line in list(self._asked.items()):
            kill(pid)
            self._tell(pid, line, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        self._watch.close()

    def _serve(self, line: socket.socket) -> None:
        until = time.monotonic() + PATIENCE
        line.settimeout(PATIENCE)
        descriptors: list[int] = []
        try:
            head, descriptors, _, _ = socket.recv_fds(line, LENGTH.size, 16)
            (length,) = LENGTH.unpack(head)
            if length > LONGEST:
                raise ValueError(f"{length} bytes")
            said = json.loads(received(line, length, until))
            pid = self.start(Start(**said), descriptors[0], descriptors[1:])
        except BaseException:
            line.close()
            raise
        finally:
            for one in descriptors:
                os.close(one)
        self._asked[pid] = line
        self._watch.register(line, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            line.sendall(LENGTH.pack(pid))

    def _tell(self, pid: int, line: socket.socket, code: int) -> None:
        del self._asked[pid]
        with contextlib.suppress(OSError):
            line.sendall(CODE.pack(code))
        with contextlib.suppress(KeyError):  # nobody waits for it any more
            self._watch.unregister(line)
        line.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2:])
