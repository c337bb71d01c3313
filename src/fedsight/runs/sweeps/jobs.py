"""Cells side by side, each in a process of its own, with its share of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import cast

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.engines.pool import Pool
from fedsight.program.program import Speed
from fedsight.runs.sweeps.cell import Advanced, Finished, Setup, run_cell
from fedsight.runs.sweeps.plan import Cell, SweepPlan

News = Advanced | Finished | FedSightError
Hear = Callable[[Cell, News], None]


@dataclass(frozen=True)
class Share:
    """How many cells run at once, on how many cores in all."""

    jobs: int
    cores: int

    @classmethod
    def of(cls, cells: Sequence[Cell], jobs: int | None) -> Share:
        """The share for `jobs` cells at once; None: as many as keep all cores busy, each with the
        workers that its program asks for, or with one. On a GPU one after the other.

        Raises ConfigError for fewer than one.
        """
        if jobs is not None and (type(jobs) is not int or jobs < 1):
            cause = f"expected a number of runs from 1, got {jobs!r}"
            raise ConfigError([Problem("--jobs", cause, "leave it out, or correct it")])
        cores = len(os.sched_getaffinity(0))
        if jobs is None:
            busy = [(one.speed.workers or 1) * one.speed.threads for one in cells]
            on_cpu = all(one.speed.on_cpu for one in cells)
            jobs = max(1, cores // max(busy, default=1)) if on_cpu else 1
        return cls(max(1, min(jobs, len(cells))), cores)

    def speed(self, cell: Cell) -> Speed:
        """The cell's speed settings with its number of workers, unless the program gives one."""
        if cell.speed.workers or not cell.speed.on_cpu:
            return cell.speed
        workers = max(1, self.cores // (self.jobs * cell.speed.threads))
        return cell.speed.model_copy(update={"workers": workers})

    @property
    def threads(self) -> int:
        """Threads of the process that leads a cell's run."""
        return max(1, self.cores // self.jobs)


def side_by_side(plan: SweepPlan, cells: Sequence[Cell], share: Share, hear: Hear) -> None:
    """Run `cells`, so many at once as `share` says, and tell what comes of each.

    A cell that fails does not stop the others: `hear` gets its error. Interrupted, this ends the
    processes, which leave their runs at a checkpoint.
    """
    waiting, running = deque(cells), dict[Connection, tuple[Pool, Cell]]()
    try:
        while waiting or running:
            while waiting and len(running) < share.jobs:
                cell = waiting.popleft()
                try:
                    pool = _begun(plan, cell, share)
                except FedSightError as error:
                    hear(cell, error)
                    continue
                running[pool.pipes[0]] = (pool, cell)
            for ready in wait(list(running)):
                pipe = cast(Connection, ready)
                pool, cell = running[pipe]
                news = _news(pool, cell)
                hear(cell, news)
                if not isinstance(news, Advanced):
                    del running[pipe]
                    pool.close()
    finally:
        _end([pool for pool, _ in running.values()])


def _begun(plan: SweepPlan, cell: Cell, share: Share) -> Pool:
    setup = Setup(cell.program, share.speed(cell), plan.run(cell), share.threads)
    return Pool(run_cell, [setup], daemon=False)


def _news(pool: Pool, cell: Cell) -> News:
    try:
        found: News = pool.receive(0, f"running {cell.place}")
    except FedSightError as error:
        return error
    return found


def _end(pools: Sequence[Pool]) -> None:
    """End the processes: all begin to end at once."""
    with _uninterrupted():
        for pool in pools:
            pool.hang_up()
        for pool in pools:
            pool.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Meanwhile, Ctrl-C does nothing: the processes end within seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
