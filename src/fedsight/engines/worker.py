"""A worker process of the embedded engine: takes clients until none are left, returns sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TypeVar

import torch

from fedsight.aggregation.secure import SecureSum
from fedsight.core.shared_memory import Shared
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Note, Total
from fedsight.engines.in_process import LocalWorker
from fedsight.engines.protected import total_of
from fedsight.privacy.secagg.masks import Masker
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setup:
    """What a worker is born with."""

    federation: Federation
    memory: Path
    speed: Speed
    vector: Shared  # the global vector, written by the coordinator between rounds
    extras: Mapping[str, Shared]  # the algorithm's other vectors, likewise
    totals: Mapping[str, Shared]  # this worker's partial sums
    ticket: Synchronized[int]  # number of the next client or chunk to take, for all workers


@dataclass(frozen=True)
class TrainCommand:
    """Train the clients of `cohort`."""

    round: int
    cohort: Sequence[int]
    maskers: Mapping[str, Masker]  # what sites mask with, where they do


@dataclass(frozen=True)
class MeasureCommand:
    """Measure the (view, start) chunks in `jobs` for the model after `round`."""

    round: int
    jobs: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Measured:
    """The sums of chunk number `job`."""

    job: int
    metrics: Metrics


@dataclass(frozen=True)
class Rejected:
    """A reply that was refused."""

    client: int
    cause: str


@dataclass(frozen=True)
class Done:
    """Nothing is left to take; `count` and `weight` of this worker's sum."""

    count: int = 0
    weight: int = 0


def work(setup: Setup, pipe: Connection) -> None:
    """Serve commands until the coordinator closes the pipe."""
    torch.set_num_threads(setup.speed.threads)
    speed = setup.speed
    desk = LocalWorker(setup.federation, setup.memory, speed.precision, speed.checkpoint_every)
    # Sums grow in this process's own memory, which is quicker than shared; they are copied once.
    total = total_of(setup.federation, desk.client.layout, 1)
    pipe.send("ready")
    while True:
        command = pipe.recv()
        if isinstance(command, TrainCommand):
            _train(setup, desk, total, command, pipe.send)
        else:
            _measure(setup, desk, command, pipe.send)


def _train(
    setup: Setup,
    desk: LocalWorker,
    total: Total,
    command: TrainCommand,
    send: Callable[[Note | Rejected | Done], None],
) -> None:
    total.clear(len(command.cohort))
    if isinstance(total, SecureSum):
        total.begin(command.round, command.maskers)
    extras = {name: shared.tensor for name, shared in setup.extras.items()}
    order = Order(command.round, setup.vector.tensor, extras)
    for _, client in _tickets(setup, command.cohort):
        note = desk.train(order, client, total)
        send(note if isinstance(note, Note) else Rejected(client, note.cause))
    for part, shared in setup.totals.items():
        shared.tensor.copy_(total.tensors[part])
    send(Done(total.count, total.weight))


def _measure(
    setup: Setup,
    desk: LocalWorker,
    command: MeasureCommand,
    send: Callable[[Measured | Done], None],
) -> None:
    for number, job in _tickets(setup, command.jobs):
        send(Measured(number, desk.measure(setup.vector.tensor, command.round, *job)))
    send(Done())


def _tickets(setup: Setup, items: Sequence[Item]) -> Iterator[tuple[int, Item]]:
    """Numbered items, each taken by exactly one worker."""
    while True:
        with setup.ticket.get_lock():
            number = setup.ticket.value
            setup.ticket.value += 1
        if number >= len(items):
            return
        yield number, items[number]
