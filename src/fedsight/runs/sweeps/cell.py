"""One cell of a sweep, in a process of its own: it trains, tells how far it is, can be ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded, RunBegan
from fedsight.coordinator.folders import LOCK
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import Interrupted
from fedsight.core.locks import held
from fedsight.engines.pool import share_server
from fedsight.program.program import Program, Speed
from fedsight.runs import lifecycle

PATIENCE = 10.0  # seconds for a process of a killed sweep to leave the folder
RETRY_INTERVAL = 0.2  # seconds


@dataclass(frozen=True)
class Setup:
    """What the process of a cell gets: what to train, in which folder, with how many threads."""

    program: Program
    speed: Speed
    folder: Path
    threads: int  # of the process that leads the run; its workers have their own


@dataclass(frozen=True)
class Advanced:
    """The run has so many rounds; `resumed`: it had them before."""

    round: int
    resumed: bool = False


@dataclass(frozen=True)
class Finished:
    """The run is complete."""

    summary: dict[str, Any]


class _Teller(Callback):
    """Tells the sweep of each round."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def on(self, event: Event) -> None:
        match event:
            case RunBegan():
                self._pipe.send(Advanced(event.done, event.done > 0))
            case RoundEnded():
                self._pipe.send(Advanced(event.line["round"]))


def run_cell(setup: Setup, pipe: Connection) -> None:
    """Start or resume the run of a cell; ends early, at a checkpoint, when the pipe is closed."""
    share_server()
    torch.set_num_threads(setup.threads)
    unheard = threading.Event()
    try:
        with _interruptible(pipe, unheard):
            _await_leave(setup.folder)
            summary = _run(setup, [_Teller(pipe)])
    except (Interrupted, KeyboardInterrupt):
        if unheard.is_set():
            return  # nobody listens any more
        raise  # this run alone was asked to pause or to stop
    pipe.send(Finished(summary))


def _run(setup: Setup, callbacks: list[Callback]) -> dict[str, Any]:
    store = RunStore(setup.folder)
    if (setup.folder / "run.json").is_file():
        return lifecycle.resume(store, setup.speed.workers, callbacks, device=setup.speed.device)
    return lifecycle.start(lifecycle.Start(setup.program, setup.speed, store, "run"), callbacks)


def _await_leave(folder: Path) -> None:
    """Wait a little while another process holds the folder: one of a sweep that was killed."""
    until = time.monotonic() + PATIENCE
    while held(folder / LOCK) and time.monotonic() < until:
        time.sleep(RETRY_INTERVAL)


@contextmanager
def _interruptible(pipe: Connection, unheard: threading.Event) -> Iterator[None]:
    """Meanwhile, the end of the pipe interrupts the main thread as Ctrl-C would, once, and sets
    `unheard`.

    The pipe ends when the sweep closes it, and also when the sweep was killed.
    """
    over = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if not over.is_set():
            over.set()
            unheard.set()
            raise KeyboardInterrupt

    def watch() -> None:
        try:
            pipe.poll(None)
        except OSError:
            return  # closed here: the run is over
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
