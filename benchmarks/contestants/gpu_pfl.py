"""pfl-research's simulation of a federation, for `gpu_shapes.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import get_default_device
from pfl.model.pytorch import PyTorchModel
from pfl_parts import Clock, Learner
from torch import Tensor, nn

if TYPE_CHECKING:
    from gpu_shapes import Shape


def rounds(
    network: nn.Module, clients: Sequence[tuple[Tensor, Tensor]], shape: Shape, number: int
) -> list[float]:
    """Train so many rounds; the moments at which they began and ended.

    The clients' images are on the device from the beginning, which is the fastest that pfl can do.
    """
    device = get_default_device()
    datasets: list[Dataset] = [
        PyTorchTensorDataset((x.to(device), y.to(device)), user_id=str(i))
        for i, (x, y) in enumerate(clients)
    ]
    order = itertools.cycle(np.random.default_rng(1).permutation(len(datasets)).tolist())
    learner = Learner(network).to(device).train()
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=number,
            evaluation_frequency=number + 1,
            train_cohort_size=shape.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=FederatedDataset(datasets.__getitem__, lambda: next(order)), val_data=None
        ),
        model=PyTorchModel(
            learner,
            local_optimizer_create=lambda *args, **more: torch.optim.SGD(*args, fused=True, **more),
            central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0, fused=True),
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=shape.lr, local_batch_size=shape.batch
        ),
        callbacks=[clock],
    )
    return clock.stamps
