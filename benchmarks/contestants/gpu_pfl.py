"""pfl-research's simulation of a federation, for `gpu_shapes.py`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import get_default_device
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from gpu_shapes import Shape


class Learner(nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean over the batch."""
        return F.cross_entropy(self.network(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """pfl asks for them before and after local training of the very first round."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.stamps = [time.perf_counter()]

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Never stops the training."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())
        return False, Metrics()


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
