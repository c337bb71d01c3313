"""A worker process of the local engine: takes clients until none are left, and returns sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TypeVar

import torch

from fedsight.aggregation.base import Aggregator
from fedsight.aggregation.secure import SecureSum
from fedsight.core.allocator import keep_freed_memory
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Arrival, Counted
from fedsight.engines.in_process import LocalWorker
from fedsight.engines.protected import aggregator_of
from fedsight.privacy.secagg.masks import Masker
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Item = TypeVar("Item")
REPORT_INTERVAL = 0.05  # minimum seconds between two messages about replies


@dataclass(frozen=True)
class Setup:
    """What a worker gets when it starts."""

    federation: Federation
    memory: Path
    speed: Speed
    # rows: the global vector, written by the coordinator between rounds, and the earlier ones of a
    # buffered round
    vectors: Shared
    extras: Mapping[str, Shared]  # the algorithm's other vectors, likewise
    totals: Mapping[str, Shared]  # this worker's partial sums
    ticket: Synchronized[int]  # number of the next client or chunk to take, for all workers

    @property
    def in_place(self) -> bool:
        """Whether replies are collected directly in `totals`.

        Sums are accumulated in the worker's own memory, which is faster than shared memory, and
        copied once; rows of single replies are written only once anyway.
        """
        return self.federation.program.aggregation.needs_replies


@dataclass(frozen=True)
class Team:
    """Clients that train from vector number `model`, side by side if that is possible."""

    model: int
    clients: Sequence[int]


@dataclass(frozen=True)
class TrainCommand:
    """Train the clients of `groups`."""

    models: Sequence[tuple[int, float]]  # of each vector: its order's round, factor of its updates
    groups: Sequence[Team]
    maskers: Mapping[str, Masker]  # by site; empty without secure aggregation
    terms: int  # replies of the whole round, of which other machines may make some


@dataclass(frozen=True)
class MeasureCommand:
    """Measure the (view, start) chunks in `jobs` for the model after `round`."""

    round: int
    jobs: Sequence[tuple[int, int]]
    validation: bool = False  # of the validation part


@dataclass(frozen=True)
class Measured:
    """The sums of chunk number `job`."""

    job: int
    metrics: Metrics


@dataclass(frozen=True)
class Arrivals:
    """The replies since the last message, in order."""

    replies: Sequence[Arrival]


@dataclass(frozen=True)
class Done:
    """Nothing is left to take; `count` and `weight` are those of this worker's sum."""

    count: int = 0
    weight: int = 0


def work(setup: Setup, pipe: Connection) -> None:
    """Serve commands until the coordinator closes the pipe."""
    torch.set_num_threads(setup.speed.threads)
    worker = LocalWorker(setup.federation, setup.memory, setup.speed)
    keep_freed_memory()
    memory = {name: shared.tensor for name, shared in setup.totals.items()}
    total = aggregator_of(setup.federation, 1, memory) if setup.in_place else worker.sums()
    pipe.send("ready")
    while True:
        command = pipe.recv()
        if isinstance(command, TrainCommand):
            _train(setup, worker, total, command, pipe.send)
        else:
            _measure(setup, worker, command, pipe.send)


def _train(
    setup: Setup,
    worker: LocalWorker,
    total: Aggregator,
    command: TrainCommand,
    send: Callable[[Arrivals | Done], None],
) -> None:
    total.clear(command.terms)
    if isinstance(total, SecureSum):
        total.begin(command.models[0][0], command.maskers)
    extras = {name: shared.tensor for name, shared in setup.extras.items()}
    orders = [
        Order(round, vector, extras)
        for (round, _), vector in zip(command.models, setup.vectors.tensor, strict=False)
    ]
    arrived: list[Arrival] = []
    last = time.monotonic()
    for _, group in _tickets(setup, command.groups):
        counted = Counted(command.models[0][0], command.models[group.model][1])
        arrived += worker.train_group(orders[group.model], group.clients, total, counted)
        # The coordinator shares the cores, so short clients are reported in groups.
        if time.monotonic() - last > REPORT_INTERVAL:
            send(Arrivals(arrived))
            arrived, last = [], time.monotonic()
    if arrived:
        send(Arrivals(arrived))
    if not setup.in_place:
        for part, shared in setup.totals.items():
            shared.tensor.copy_(total.tensors[part])
    send(Done(total.count, total.weight))


def _measure(
    setup: Setup,
    worker: LocalWorker,
    command: MeasureCommand,
    send: Callable[[Measured | Done], None],
) -> None:
    for number, job in _tickets(setup, command.jobs):
        sums = worker.measure(setup.vectors.tensor[0], command.round, job, command.validation)
        send(Measured(number, sums))
    send(Done())


def _tickets(setup: Setup, items: Sequence[Item]) -> Iterator[tuple[int, Item]]:
    """The numbered items that this worker takes; each is taken by exactly one worker."""
    while True:
        with setup.ticket.get_lock():
            number = setup.ticket.value
            setup.ticket.value += 1
        if number >= len(items):
            return
        yield number, items[number]
