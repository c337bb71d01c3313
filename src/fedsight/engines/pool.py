"""A pool of worker processes, each with a pipe; they are always ended with the pool."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from fedsight.core.errors import EngineError, FedSightError
from fedsight.engines.parcel import Parcel, main_hidden
from fedsight.program.fingerprints import own_place

PATIENCE = 1.0  # seconds to wait for a busy worker to notice that its pipe is closed
GRACE = 5.0  # seconds that a worker has to end after SIGTERM
# Where the parts of programs are, which are imported when a program names them.
PARTS = tuple(
    f"fedsight.{room}."
    for room in ("algorithms", "compression", "data", "models", "privacy", "tasks")
)

# (setup, pipe): runs in the worker until the pipe is closed
Serve = Callable[[Any, Connection], None]


def context() -> Any:
    """The start method: workers are forked from a clean server that has imported everything."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["fedsight.engines.worker", "fedsight.evaluation.baselines", *_parts()]
    )
    return found


def _parts() -> list[str]:
    """The parts of programs that this process has imported: without them in the server, each worker
    would import those of its program again, which takes it longer than to start."""
    return sorted(name for name in list(sys.modules) if name.startswith(PARTS))


def share_server() -> None:
    """In a worker: its own workers are to come from the server that it was forked from itself.

    multiprocessing would start another server, which imports everything once more. It has no public
    way to say this, so where its inside is another, that is what happens.
    """
    server: Any = getattr(forkserver, "_forkserver", None)
    known = ("_forkserver_address", "_forkserver_alive_fd")
    if all(getattr(server, name, None) is not None for name in known) and getattr(
        server, "_forkserver_authkey", True
    ):
        server.ensure_running = forkserver.ensure_running = lambda: None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the workers have started: one interrupted while starting would print a
    traceback.

    Workers and the server that they are forked from ignore Ctrl-C; the coordinator handles it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the server
    try:
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


class Pool:
    """One process for each setup, running `serve(setup, pipe)`.

    A setup may hold objects defined in a script or a notebook, which are pickled by value. A
    FedSightError that a worker raises is raised here; a worker that dies is an EngineError. Workers
    end when the pipe closes, so they do not outlive a coordinator that was killed.
    """

    def __init__(self, serve: Serve, setups: Sequence[Any], daemon: bool = True) -> None:
        """Workers that are no `daemon` may have workers of their own."""
        self._daemon = daemon
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        start_context = context()
        try:
            with _uninterrupted(), main_hidden():
                for number, setup in enumerate(setups):
                    self._start(start_context, serve, setup, number)
        except BaseException:
            self.close()
            raise

    def _start(self, start_context: Any, serve: Serve, setup: Any, number: int) -> None:
        ours, theirs = start_context.Pipe()
        process = start_context.Process(
            target=_run_worker,
            args=(serve, Parcel(setup), theirs),
            name=f"fedsight-worker-{number}",
            daemon=self._daemon,
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def __len__(self) -> int:
        return len(self._pipes)

    @property
    def pipes(self) -> Sequence[Connection]:
        """The workers' pipes, to wait for the messages of several pools."""
        return self._pipes

    def send(self, worker: int, message: object, doing: str) -> None:
        """Send `message` to a worker; `doing` describes the work, for the error if it is dead."""
        with contextlib.suppress(BrokenPipeError):
            self._pipes[worker].send(message)
            return
        # Not in an `except`, whose traceback would stay with the new error: it has a view of the
        # message, and that crashes Python 3.12 when it is collected as garbage.
        raise self._death_error(worker, doing)

    def receive(self, worker: int, doing: str) -> Any:
        """Wait for the next message of one worker."""
        try:
            message = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            raise self._death_error(worker, doing) from None
        if isinstance(message, FedSightError):
            raise message
        return message

    def messages(self, busy: set[int], doing: str) -> Iterator[tuple[int, Any]]:
        """Yield (worker, message) as they arrive, until the caller has emptied `busy`."""
        while busy:
            numbers = {self._pipes[worker]: worker for worker in busy}
            for pipe in wait(list(numbers)):
                worker = numbers[cast(Connection, pipe)]
                yield worker, self.receive(worker, doing)

    def hang_up(self) -> None:
        """Close the pipes, at which the workers begin to end."""
        for pipe in self._pipes:
            pipe.close()

    def close(self) -> None:
        """End the workers: close the pipes, then SIGTERM, then SIGKILL."""
        self.hang_up()
        for process in self._processes:
            process.join(PATIENCE)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(GRACE)
            if process.is_alive():
                process.kill()
                process.join()

    def _death_error(self, worker: int, doing: str) -> EngineError:
        process = self._processes[worker]
        process.join(GRACE)
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError(
            f"worker process {process.name} died while {doing} ({how})",
            "the machine may have run out of memory: lower speed.workers or train.batch, then "
            "continue from the last checkpoint with `fedsight resume`",
        )


def _run_worker(serve: Serve, parcel: Parcel, pipe: Connection) -> None:
    """The worker's main function: reports errors to the coordinator, if it still exists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(parcel.open(), pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the coordinator is gone
    except FedSightError as error:
        pipe.send(error)
    except Exception as error:  # without this, the user would only see a dead process
        what, place = f"{type(error).__name__}: {error}", own_place(error)
        if place is not None:
            pipe.send(
                EngineError(f"your code failed: {what} ({place})", "correct it and run again")
            )
            return
        cure = f"this is a bug in FedSight; please report it with\n{traceback.format_exc()}"
        pipe.send(EngineError(f"a worker failed: {what}", cure))
