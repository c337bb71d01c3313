"""Contestant: plain PyTorch in one process a core, training the same batches, no federation."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier

import torch
from task import Job
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F

PROCESSES = 2
Step = Callable[[Tensor, Tensor], None]


def optimizer_step(network: nn.Module, lr: float) -> Step:
    """The optimiser PyTorch offers, fused."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def functional_step(network: nn.Module, lr: float) -> Step:
    """Without an optimiser and without `.grad`: for small networks the overhead counts."""
    parameters = list(network.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        gradients = torch.autograd.grad(F.cross_entropy(network(x), y), parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-lr)

    return step


def pick(job: Job, network: nn.Module, clients: list[tuple[Tensor, Tensor]]) -> tuple[str, Step]:
    """The faster way to write a step, for this network on this machine."""
    best: tuple[float, str, Step] | None = None
    for name, make in (("fused SGD", optimizer_step), ("functional SGD", functional_step)):
        step = make(network, job.lr)
        seconds = []
        for x, y in clients[: max(8, job.cohort // 4)]:
            start = time.perf_counter()
            for batch in job.batches(x, y):
                step(*batch)
            seconds.append(time.perf_counter() - start)
        median = sorted(seconds)[len(seconds) // 2]
        if best is None or median < best[0]:
            best = (median, name, step)
    assert best is not None
    return best[1], best[2]


def train(number: int, job: Job, barrier: Barrier, results: multiprocessing.SimpleQueue) -> None:
    """Train every `PROCESSES`-th client of each round's cohort; put rates, accuracy and note."""
    torch.set_num_threads(1)
    torch.manual_seed(number)
    network, clients = job.network().train(), job.clients()
    name, step = pick(job, network, clients)
    barrier.wait()
    rates = []
    for round in range(job.rounds):
        start = time.perf_counter()
        first = round * job.cohort
        mine = range(first + number, first + job.cohort, PROCESSES)
        for client in mine:
            for batch in job.batches(*clients[client % job.population]):
                step(*batch)
        rates.append(len(mine) * job.images / (time.perf_counter() - start))
    barrier.wait()
    results.put((rates, job.accuracy(network), name))


def main() -> None:
    job = Job.given()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.SimpleQueue()
    arguments = (job, barrier, results)
    workers = [
        context.Process(target=train, args=(number, *arguments)) for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    parts = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    # Nobody waits for anybody, so the machine's rate is the sum of the processes' rates.
    rates = [sum(of_round) for of_round in zip(*(part[0] for part in parts), strict=True)]
    note = f"{PROCESSES} processes, 1 thread each, {parts[0][2]}"
    job.report(rates, sum(part[1] for part in parts) / len(parts), note)


if __name__ == "__main__":
    main()
