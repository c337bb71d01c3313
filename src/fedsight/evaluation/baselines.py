"""A worker process that trains whole baselines: one site alone, or all images pooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from fedsight.coordinator.loop import Line, run
from fedsight.coordinator.store import Checkpoint
from fedsight.core.types import Metrics
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

POOLED = -1  # the job that trains on all images; other jobs are site numbers


@dataclass(frozen=True)
class TrainedBaseline:
    """A finished baseline: the sums of the federation's views."""

    job: int
    sums: list[Metrics]


class Tick:
    """A round of a baseline is done."""


@dataclass(frozen=True)
class _Ticker:
    send: Callable[[Tick], None]

    def on_reply(self) -> None:
        """A baseline has one client; its rounds are what counts."""

    def on_round(self, line: Line, checkpoint: Checkpoint, last: bool) -> None:
        """Tell the coordinator, and notice when it is gone."""
        self.send(Tick())


def work(setup: tuple[Federation, Speed], pipe: Connection) -> None:
    """Train the jobs that come, until the coordinator closes the pipe."""
    federation, speed = setup
    torch.set_num_threads(speed.threads)
    while True:
        job = pipe.recv()
        baseline = federation.all_pooled() if job == POOLED else federation.alone(job)
        engine = InProcessEngine(baseline, precision=speed.precision)
        try:
            trained = run(baseline, engine, lambda sums: {}, _Ticker(pipe.send))
        finally:
            engine.close()
        pipe.send(TrainedBaseline(job, trained.sums))
