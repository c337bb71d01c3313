"""The default engine: worker processes on one machine that share memory and return exact sums."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fedsight.aggregate.mean import PayloadSum
from fedsight.core.errors import EngineError, FedSightError
from fedsight.core.fixedpoint import ExactSum
from fedsight.core.layout import Layout
from fedsight.core.sharing import Shared
from fedsight.core.types import Metrics, Order
from fedsight.engine.base import Federation, Note, Outcome
from fedsight.engine.inline import by_view, chunks
from fedsight.engine.worker import (
    Done,
    MeasureCommand,
    Measured,
    Rejected,
    Setup,
    TrainCommand,
    work,
)
from fedsight.run.program import Speed

Message = Note | Rejected | Measured | Done | Literal["ready"]
GRACE = 5.0  # seconds that a worker gets to end by itself


class EmbeddedEngine:
    """Clients on worker processes, which `close` ends.

    The global vector lies in shared memory. Each worker takes the next client when it is free,
    the largest first, and adds its update to its own exact sum; only these sums are merged, so
    the result does not depend on the number of workers or on who trained whom.
    """

    def __init__(self, federation: Federation, speed: Speed, memory: Path | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="fedsight-") if memory is None else None
        folder = Path(self._scratch.name) if self._scratch else memory
        assert folder is not None
        self.federation = federation
        algorithm = federation.program.algorithm
        layout: Layout = federation.program.layout(federation.network())
        start = torch.zeros(layout.shared.stop)
        extras = algorithm.shared(algorithm.init(start))
        self._vector = Shared((layout.travelling.stop,), torch.float32)
        self._extras = {name: Shared.of(value) for name, value in extras.items()}
        parts = federation.parts(layout)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fedsight.engine.worker"])
        self._ticket = context.Value("q", 0)
        self._totals: list[PayloadSum] = []
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for number in range(min(speed.processes, federation.population)):
            totals = {part: Shared((size,), torch.int64) for part, size in parts.items()}
            setup = Setup(
                federation,
                folder,
                speed.precision,
                speed.threads,
                self._vector,
                self._extras,
                totals,
                self._ticket,
            )
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(setup, theirs), name=f"fedsight-worker-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
            self._totals.append(
                PayloadSum({p: ExactSum(0, 1, shared.tensor) for p, shared in totals.items()})
            )
        for pipe in self._pipes:
            self._receive(pipe, "starting")

    def train(self, order: Order, cohort: Sequence[int], on_reply: Callable[[], None]) -> Outcome:
        """One round of local training; SiteError never reaches here, rejections are noted."""
        self._publish(order)
        # The last clients decide when a round ends, so the largest go first.
        largest_first = sorted(cohort, key=self.federation.size, reverse=True)
        outcome = Outcome(self._totals[0])
        doing = f"training in round {order.round}"
        for worker, message in self._ask(TrainCommand(order.round, largest_first), doing):
            if isinstance(message, Done):
                for total in self._totals[worker].sums.values():
                    total.terms = len(cohort)
                    total.count, total.weight = message.count, message.weight
                continue
            if isinstance(message, Note):
                outcome.notes.append(message)
            elif isinstance(message, Rejected):
                outcome.rejected[self.federation.name(message.client)] = message.cause
            on_reply()
        for other in self._totals[1:]:
            outcome.total.merge(other)
        outcome.notes.sort(key=lambda note: note.client)
        return outcome

    def measure(self, vector: Tensor, round: int) -> list[Metrics]:
        """The sums of each view."""
        self._publish(Order(round, vector))
        jobs = chunks(self.federation)
        done: dict[int, Metrics] = {}
        for _, message in self._ask(MeasureCommand(round, jobs), f"measuring round {round}"):
            if isinstance(message, Measured):
                done[message.job] = message.metrics
        return by_view(self.federation, jobs, [done[job] for job in range(len(jobs))])

    def close(self) -> None:
        """End the workers: politely, then firmly."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(GRACE)
            if process.is_alive():
                process.kill()
                process.join()
        if self._scratch:
            self._scratch.cleanup()

    def _publish(self, order: Order) -> None:
        self._vector.tensor.copy_(order.vector)
        for name, value in order.shared.items():
            self._extras[name].tensor.copy_(value)
        self._ticket.value = 0

    def _ask(
        self, command: TrainCommand | MeasureCommand, doing: str
    ) -> Iterator[tuple[int, Message]]:
        """Send `command` to all workers; their messages as they come, until each is done."""
        for pipe in self._pipes:
            try:
                pipe.send(command)
            except BrokenPipeError:
                raise self._death(pipe, doing) from None
        busy = dict(zip(self._pipes, range(len(self._pipes)), strict=True))
        while busy:
            for pipe in wait(list(busy)):
                message = self._receive(cast(Connection, pipe), doing)
                yield busy[pipe], message
                if isinstance(message, Done):
                    del busy[pipe]

    def _receive(self, pipe: Connection, doing: str) -> Message:
        try:
            message: Message | FedSightError = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death(pipe, doing) from None
        if isinstance(message, FedSightError):
            raise message
        return message

    def _death(self, pipe: Connection, doing: str) -> EngineError:
        process = self._processes[self._pipes.index(pipe)]
        process.join(GRACE)
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError(
            f"worker process {process.name} died while {doing} ({how})",
            "often the machine ran out of memory: lower speed.workers or train.batch, then "
            "`fedsight resume` goes on from the last checkpoint",
        )
