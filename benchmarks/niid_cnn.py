"""The network of NIID-Bench for Fashion-MNIST, as a plug-in of the benchmark's configs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fedsight.models.base import Model, models

PAPER = "Li et al. 2022, Federated Learning on Non-IID Data Silos, arXiv:2102.02079, section V"


@models.add("niid_cnn", source=PAPER)
class NIIDCNN(Model):
    """Two 5x5 convolutions (6, 16 channels) with 2x2 max-pooling, then 120 and 84 units with ReLU.

    44,426 parameters for 28 x 28 grey images and 10 classes. It has no normalisation layer.
    """

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of at least 16 pixels a side."""
        features = 16 * ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
        module = nn.Sequential()
        module.add_module("conv0", nn.Conv2d(channels, 6, 5))
        module.add_module("pool0", nn.MaxPool2d(2))
        module.add_module("relu0", nn.ReLU(inplace=True))  # commutes with max, at a quarter's cost
        module.add_module("conv1", nn.Conv2d(6, 16, 5))
        module.add_module("pool1", nn.MaxPool2d(2))
        module.add_module("relu1", nn.ReLU(inplace=True))
        module.add_module("flatten", nn.Flatten())
        module.add_module("hidden0", nn.Linear(features, 120))
        module.add_module("relu2", nn.ReLU(inplace=True))
        module.add_module("hidden1", nn.Linear(120, 84))
        module.add_module("relu3", nn.ReLU(inplace=True))
        module.add_module("head", nn.Linear(84, classes))
        return module, ["head"]
