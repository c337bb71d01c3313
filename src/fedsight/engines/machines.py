"""The worker engine of one of several machines: each trains its share of every cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Arrival, Earlier, Outcome, Work
from fedsight.engines.group import Group
from fedsight.engines.in_process import by_view, chunks, measured
from fedsight.engines.worker import MeasureCommand
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Program, Speed


def problems(program: Program) -> list[Problem]:
    """What of a program several machines cannot do together."""
    found = []
    if program.aggregation.needs_replies:
        cause = "this rule needs single replies, which stay on the machine that made them"
        found.append(Problem("aggregation.name", cause, "run it on one machine"))
    if program.secure.masks:
        cause = "the keys of a simulation are made by one process, and there are several"
        cure = "secure.name = 'quantised' gives the same model; or run it on one machine"
        found.append(Problem("secure.name", cause, cure))
    return found


class MachinesEngine(WorkerEngine):
    """Worker processes on this machine, for this machine's share of the sites.

    All machines run the same round loop. A site is always trained and measured on the same one,
    which holds its memory. The integers of the partial sums are added over all machines, so every
    one gets the same sum, and the same as a single machine. Machines may compute the server's step
    differently: all train from the vector of number 0.
    """

    def __init__(
        self, federation: Federation, speed: Speed, group: Group, memory: Path | None = None
    ) -> None:
        """Raises ConfigError if the program cannot be run so."""
        if found := problems(federation.program):
            raise ConfigError(found)
        self._group = group
        super().__init__(federation, speed, memory)

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """Start a round on all machines."""
        first = self._totals[0]
        outcome, group = Outcome(first), self._group
        tasks = (Earlier(order, cohort, 1.0), *earlier)
        terms = sum(len(task.clients) for task in tasks)
        first.filled(terms, 0, 0)
        mine = [
            replace(
                task,
                order=self._common(task.order),
                clients=[one for one in task.clients if one % group.size == group.rank],
            )
            for task in tasks
        ]
        local = self._trained(mine, {}, terms)

        def arrivals() -> Iterator[Arrival]:
            arrived, failed = [], None
            try:
                for arrival in local:
                    arrived.append(arrival)
                    yield arrival
            except FedSightError as error:  # the others must hear of it
                failed = error
            for number, theirs in enumerate(group.gathered(failed or arrived)):
                if isinstance(theirs, FedSightError):
                    raise theirs
                yield from theirs if number != group.rank else ()

        def settle() -> None:
            self._merge()
            for tensor in first.tensors.values():
                group.added(tensor)
            counts = torch.tensor([first.count, first.weight])
            group.added(counts)
            first.filled(terms, *counts.tolist())

        return Work(outcome, arrivals(), settle)

    def measure(
        self,
        vector: Tensor,
        round: int,
        validation: bool = False,
        difference: Tensor | None = None,
    ) -> list[Metrics]:
        """The metric sums of each view, each chunk measured on one machine."""
        self._publish(self._common(Order(round, vector)))
        tested, group = measured(self.federation, validation), self._group
        jobs = chunks(tested)
        mine: dict[int, int] = {}
        for number, (view, _) in enumerate(jobs):
            site = tested.views[view].site
            if (number if site is None else site) % group.size == group.rank:
                mine[len(mine)] = number
        command = MeasureCommand(round, [jobs[number] for number in mine.values()], validation)
        found: dict[int, Metrics] | FedSightError
        try:
            found = {mine[job]: sums for job, sums in self._measured(command, round).items()}
        except FedSightError as error:
            found = error
        done: dict[int, Metrics] = {}
        for theirs in group.gathered(found):
            if isinstance(theirs, FedSightError):
                raise theirs
            done |= theirs
        return by_view(tested, jobs, [done[job] for job in range(len(jobs))])

    def _common(self, order: Order) -> Order:
        """The order of number 0."""
        vector = order.vector.clone()
        shared = {name: value.clone() for name, value in order.shared.items()}
        for tensor in (vector, *(shared[name] for name in sorted(shared))):
            self._group.copied(tensor)
        return replace(order, vector=vector, shared=shared)
