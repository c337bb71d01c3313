"""The default engine: worker processes on one machine that share memory and return exact sums."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedsight.core.layout import Layout
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Note, Outcome
from fedsight.engines.in_process import by_view, chunks
from fedsight.engines.pool import Pool, context
from fedsight.engines.protected import Keys, shared_tensors, total_of, total_over
from fedsight.engines.worker import (
    Done,
    MeasureCommand,
    Measured,
    Rejected,
    Setup,
    TrainCommand,
    work,
)
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Message = Note | Rejected | Measured | Done


class WorkerEngine:
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
        layout: Layout = federation.program.layout(federation.network())
        start = torch.zeros(layout.shared.stop)
        extras = federation.program.shared(federation.program.init(start))
        self._vector = Shared((layout.travelling.stop,), torch.float32)
        self._extras = {name: Shared.of(value) for name, value in extras.items()}
        blank = total_of(federation, layout, 1)
        ticket = context().Value("q", 0)
        setups = [
            Setup(
                federation,
                folder,
                speed,
                self._vector,
                self._extras,
                shared_tensors(blank),
                ticket,
            )
            for _ in range(min(speed.processes, federation.population))
        ]
        self._ticket = ticket
        self._totals = [total_over(federation, layout, setup.totals) for setup in setups]
        self._keys = Keys(federation)
        self._pool = Pool(work, setups)
        try:
            for worker in range(len(setups)):
                self._pool.receive(worker, "starting")
        except BaseException:
            self.close()
            raise

    def train(self, order: Order, cohort: Sequence[int], on_reply: Callable[[], None]) -> Outcome:
        """One round of local training; SiteError never reaches here, rejections are noted."""
        self._publish(order)
        # The last clients decide when a round ends, so the largest go first.
        largest_first = sorted(cohort, key=self.federation.size, reverse=True)
        outcome = Outcome(self._totals[0])
        doing = f"training in round {order.round}"
        self._totals[0].filled(len(cohort), 0, 0)
        maskers = self._keys.begin(order, cohort, self._totals[0])
        command = TrainCommand(order.round, largest_first, maskers)
        for worker, message in self._ask(command, doing):
            if isinstance(message, Done):
                self._totals[worker].filled(len(cohort), message.count, message.weight)
                continue
            if isinstance(message, Note):
                outcome.notes.append(message)
            elif isinstance(message, Rejected):
                outcome.rejected[self.federation.name(message.client)] = message.cause
            on_reply()
        for other in self._totals[1:]:
            outcome.total.merge(other)  # type: ignore[arg-type]  # all of one kind
        outcome.notes.sort(key=lambda note: note.client)
        self._keys.finish(outcome, len(cohort))
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
        """End the workers and remove scratch memory."""
        self._pool.close()
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
        busy = set(range(len(self._pool)))
        for worker in busy:
            self._pool.send(worker, command, doing)
        for worker, message in self._pool.messages(busy, doing):
            if isinstance(message, Done):
                busy.discard(worker)
            yield worker, message
