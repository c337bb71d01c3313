"""The two networks of the paper that introduced federated averaging."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fedsight.core.errors import ModelError
from fedsight.models.base import Model, models

PAPER = "McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017, section 3"


@models.add("fedavg_cnn", source=PAPER)
class FedAvgCNN(Model):
    """Two 5x5 convolutions (32, 64 channels) with 2x2 max-pooling, 512 units, one linear layer.

    1,663,370 parameters for 28 x 28 grey images and 10 classes. It has no normalisation layer,
    so `norm` changes nothing.
    """

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of at least 4 pixels a side; the weights grow with the image's area."""
        if min(height, width) < 4:
            raise ModelError(
                f"the network 'fedavg_cnn' cannot take images of {height} x {width} pixels",
                "set data.size = 4 or more",
            )
        module = nn.Sequential()
        module.add_module("conv0", nn.Conv2d(channels, 32, 5, padding=2))
        module.add_module("pool0", nn.MaxPool2d(2))
        module.add_module("relu0", nn.ReLU(inplace=True))  # commutes with max, at a quarter's cost
        module.add_module("conv1", nn.Conv2d(32, 64, 5, padding=2))
        module.add_module("pool1", nn.MaxPool2d(2))
        module.add_module("relu1", nn.ReLU(inplace=True))
        module.add_module("flatten", nn.Flatten())
        features = 64 * (height >> 2) * (width >> 2)
        module.add_module("hidden", nn.Linear(features, 512))
        module.add_module("relu2", nn.ReLU(inplace=True))
        module.add_module("head", nn.Linear(512, classes))
        return module, ["head"]


@models.add("mlp", source=PAPER)
class MLP(Model):
    """The paper's "2NN": two hidden layers of 200 units with ReLU.

    199,210 parameters for 28 x 28 grey images and 10 classes. It has no normalisation layer,
    so `norm` changes nothing.
    """

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of any size."""
        module = nn.Sequential()
        module.add_module("flatten", nn.Flatten())
        module.add_module("hidden0", nn.Linear(channels * height * width, 200))
        module.add_module("relu0", nn.ReLU(inplace=True))
        module.add_module("hidden1", nn.Linear(200, 200))
        module.add_module("relu1", nn.ReLU(inplace=True))
        module.add_module("head", nn.Linear(200, classes))
        return module, ["head"]
