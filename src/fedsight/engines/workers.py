"""The default engine: worker processes on one machine, with shared memory and exact sums."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedsight.core.progress import progress
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Arrival, Earlier, Outcome, Work
from fedsight.engines.in_process import by_view, chunks, measured
from fedsight.engines.pool import Pool, context
from fedsight.engines.protected import Keys, aggregator_of, shared_memory_of
from fedsight.engines.worker import (
    Arrivals,
    Done,
    MeasureCommand,
    Measured,
    Setup,
    Team,
    TrainCommand,
    work,
)
from fedsight.privacy.secagg.masks import Masker
from fedsight.program.federation import Federation
from fedsight.program.kept import keep
from fedsight.program.program import Speed

Message = Arrivals | Measured | Done


class WorkerEngine:
    """Runs clients on worker processes, which `close` ends.

    The global vector is in shared memory. Each worker takes the next client when it is free, the
    largest first, and adds its update to its own aggregator. Merging these is exact, so the result
    does not depend on the number of workers or on which worker trained which client.
    """

    overlaps: ClassVar[bool] = True
    validates: ClassVar[bool] = True

    def __init__(self, federation: Federation, speed: Speed, memory: Path | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="fedsight-") if memory is None else None
        folder = Path(self._scratch.name) if self._scratch else memory
        assert folder is not None
        self.federation = federation
        keep(federation, speed, folder.parent)
        layout, program = federation.layout, federation.program
        extras = program.shared(program.init(torch.zeros(layout.shared.stop)))
        # Memory is taken only when it is written to.
        models = program.rounds.models(federation.population)
        self._vectors = Shared((models, layout.travelling.stop), torch.float32)
        self._extras = {name: Shared.of(value) for name, value in extras.items()}
        self._ticket = context().Value("q", 0)
        setups = [
            Setup(
                federation,
                folder,
                own,
                self._vectors,
                self._extras,
                shared_memory_of(federation),
                self._ticket,
            )
            for own in speed.each(min(speed.processes, federation.population))
        ]
        self._totals = [
            aggregator_of(
                federation, federation.terms, {k: s.tensor for k, s in one.totals.items()}
            )
            for one in setups
        ]
        self._keys, self._together = Keys(federation), speed.together
        self._pool = Pool(work, setups)
        try:
            for worker in range(len(setups)):
                self._pool.receive(worker, "starting")
        except BaseException:
            self.close()
            raise

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """Start a round, which continues whether or not the returned work is advanced."""
        first, tasks = self._totals[0], (Earlier(order, cohort, 1.0), *earlier)
        terms = sum(len(task.clients) for task in tasks)
        first.filled(terms, 0, 0)
        maskers = self._keys.begin(order, cohort, first)
        outcome = Outcome(first)
        arrivals = self._trained(tasks, maskers, terms)

        def settle() -> None:
            self._merge()
            self._keys.finish(outcome, len(cohort))

        return Work(outcome, arrivals, settle)

    def _trained(
        self, tasks: Sequence[Earlier], maskers: Mapping[str, Masker], terms: int
    ) -> Iterator[Arrival]:
        """Start training the clients of `tasks`, of a cohort of `terms`; the replies as they
        arrive. The first task is that of the newest model."""
        size, groups = self.federation.size, list[Team]()
        self._publish(tasks[0].order)
        for model, task in enumerate(tasks):
            largest_first = sorted(task.clients, key=size, reverse=True)
            alike = grouped(largest_first, size, self._together)
            groups += [Team(model, clients) for clients in alike]
            if model:
                self._vectors.tensor[model].copy_(task.order.vector)
        # The last clients determine when a round ends, so the largest go first.
        groups.sort(key=lambda group: size(group.clients[0]), reverse=True)
        models = [(task.order.round, task.factor) for task in tasks]
        command = TrainCommand(models, groups, maskers, terms)
        messages = self._ask(command, f"training in round {tasks[0].order.round}")

        def arrivals() -> Iterator[Arrival]:
            for worker, message in messages:
                if isinstance(message, Done):
                    self._totals[worker].filled(terms, message.count, message.weight)
                elif isinstance(message, Arrivals):
                    yield from message.replies

        return arrivals()

    def _merge(self) -> None:
        """Add the sums of all workers to the first one's."""
        for other in self._totals[1:]:
            self._totals[0].merge(other)

    def measure(
        self,
        vector: Tensor,
        round: int,
        validation: bool = False,
        difference: Tensor | None = None,
    ) -> list[Metrics]:
        """The metric sums of each view."""
        self._publish(Order(round, vector))
        tested = measured(self.federation, validation)
        jobs = chunks(tested)
        done = self._measured(MeasureCommand(round, jobs, validation), round)
        return by_view(tested, jobs, [done[job] for job in range(len(jobs))])

    def _measured(self, command: MeasureCommand, round: int) -> dict[int, Metrics]:
        """The sums of each of the command's jobs."""
        done: dict[int, Metrics] = {}
        for _, message in self._ask(command, f"measuring round {round}"):
            if isinstance(message, Measured):
                done[message.job] = message.metrics
                progress("test images measured, in parts", len(done), len(command.jobs))
        return done

    def close(self) -> None:
        """End the workers and remove the temporary folder."""
        self._pool.close()
        if self._scratch:
            self._scratch.cleanup()

    def _publish(self, order: Order) -> None:
        self._vectors.tensor[0].copy_(order.vector)
        for name, value in order.shared.items():
            self._extras[name].tensor.copy_(value)
        self._ticket.value = 0

    def _ask(
        self, command: TrainCommand | MeasureCommand, doing: str
    ) -> Iterator[tuple[int, Message]]:
        """Send `command` to all workers; returns their messages as they arrive."""
        busy = set(range(len(self._pool)))
        for worker in busy:
            self._pool.send(worker, command, doing)

        def messages() -> Iterator[tuple[int, Message]]:
            for worker, message in self._pool.messages(busy, doing):
                if isinstance(message, Done):
                    busy.discard(worker)
                yield worker, message

        return messages()


def grouped(
    clients: Sequence[int], size: Callable[[int], int], together: int
) -> list[Sequence[int]]:
    """Clients next to one another that have as many images, at most so many of them in a group."""
    found: list[Sequence[int]] = []
    for _, alike in itertools.groupby(clients, size):
        equal = list(alike)
        found += [equal[at : at + together] for at in range(0, len(equal), together)]
    return found
