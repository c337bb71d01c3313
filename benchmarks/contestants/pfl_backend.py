"""Contestant: pfl's simulated backend; started by torchrun it spreads a cohort over processes."""

from __future__ import annotations

import itertools
import os

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from pfl_parts import Clock, Learner
from task import Job
from torch import distributed

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
CORES = 2


def population(job: Job) -> FederatedDataset:
    """All clients, made once; pfl keeps their batches (it does not shuffle them)."""
    datasets: list[Dataset] = [
        PyTorchTensorDataset((x, y), user_id=str(i)) for i, (x, y) in enumerate(job.clients())
    ]
    order = itertools.cycle(range(job.population))
    return FederatedDataset(datasets.__getitem__, lambda: next(order))


def main() -> None:
    job = Job.given()
    torch.set_num_threads(CORES // PROCESSES)
    np.random.seed(job.seed)
    torch.manual_seed(job.seed)
    learner = Learner(job.network()).train()
    model = PyTorchModel(
        learner,
        local_optimizer_create=lambda *args, **more: torch.optim.SGD(*args, fused=True, **more),
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0, fused=True),
    )
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=job.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=population(job), val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.lr, local_batch_size=job.batch
        ),
        callbacks=[clock],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        note = f"{PROCESSES} process(es), {CORES // PROCESSES} thread(s) each"
        job.report_stamps(clock.stamps, job.accuracy(learner.network), note)
    if PROCESSES > 1:  # pfl leaves its process group open, and a process that ends first aborts
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
