"""Contestant: FedSight with two workers, as users run it: with history and checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

from stopwatch import Stopwatch
from task import Job

from fedsight.algorithms.base import algorithms
from fedsight.coordinator.store import RunStore
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.data.shift import Shift
from fedsight.models.base import models
from fedsight.program.program import Program, Speed
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train
from fedsight.runs import lifecycle
from fedsight.tasks.base import tasks

WORKERS = 2


def program(job: Job) -> Program:
    """The job as FedSight's users write it; one round more, since the last one is evaluated."""
    rounds = job.rounds + 1
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
        rounds=Rounds(rounds=rounds, cohort=job.cohort, evaluate_every=rounds),
    )


def main() -> None:
    job, watch = Job.given(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        speed = Speed(workers=WORKERS)
        summary = lifecycle.start(lifecycle.Start(program(job), speed, store, "run"), [watch])
    note = f"{WORKERS} workers, 1 thread each"
    job.report_stamps(watch.stamps[:-1], summary["accuracy"], note)


if __name__ == "__main__":
    main()
