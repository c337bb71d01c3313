"""Contestant: FedSight's embedded engine with two workers."""

from __future__ import annotations

import time

import numpy as np
import torch
from task import Job
from torch import nn

from fedsight.algorithms.base import Mean, algorithms
from fedsight.core.types import Order
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.data.shift import Shift
from fedsight.engine.base import Federation
from fedsight.engine.embedded import EmbeddedEngine
from fedsight.models.base import models
from fedsight.run.program import Program, Rounds, Speed, Train
from fedsight.tasks.base import tasks

WORKERS = 2


def program(job: Job) -> Program:
    """The job as FedSight's users write it."""
    return Program(
        name="benchmark",
        seed=job.seed,
        data=sources.get("fashion-mnist-12k")(),
        split=splits.get("virtual")(sites=job.population, samples=job.images),
        shift=Shift(),
        model=models.get(job.model)(),
        task=tasks.get("classify")(),
        algorithm=algorithms.get("fedavg")(),
        train=Train(epochs=1, batch=job.batch, lr=job.lr),
        rounds=Rounds(rounds=job.rounds, cohort=job.cohort, evaluate_every=job.rounds),
    )


# ---- TO BE REPLACED by the round loop of fedsight.run.loop, once it is there: a user's round has
# ---- its cohort choice, history line and checkpoint too, and they belong into the time.
def train(job: Job) -> tuple[list[float], nn.Module]:
    """All rounds; the moments at which they began and the last one ended, and the network."""
    plan = program(job)
    dataset = plan.data.open()
    partition = plan.split.divide(dataset.train, len(dataset.classes), plan.seed)
    federation = Federation(plan, dataset, partition, views=())
    network = federation.network()
    layout = plan.layout(network)
    vector = layout.read(network.module)[layout.travelling]
    state = plan.algorithm.init(vector)
    engine = EmbeddedEngine(federation, Speed(workers=WORKERS))
    draws = np.random.default_rng(job.seed)
    stamps = [time.perf_counter()]
    for round in range(1, job.rounds + 1):
        cohort = draws.choice(job.population, job.cohort, replace=False).tolist()
        outcome = engine.train(Order(round, vector), cohort, lambda: None)
        assert not outcome.rejected
        mean = Mean(outcome.total.mean(), len(cohort), job.population)
        vector, state = plan.algorithm.step(vector, state, mean, round)
        stamps.append(time.perf_counter())
    engine.close()
    whole = layout.read(network.module)
    whole[layout.travelling] = vector
    layout.bind(network.module, whole)
    return stamps, network.module


# ---- END of the part to be replaced.


def main() -> None:
    job = Job.given()
    stamps, network = train(job)
    torch.set_num_threads(WORKERS)
    job.report_stamps(stamps, job.accuracy(network), f"{WORKERS} workers, 1 thread each")


if __name__ == "__main__":
    main()
