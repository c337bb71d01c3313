"""Networks that give vectors: a small one for faces, and any other network made into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.models.base import Model, Network, models
from fedsight.models.embedding import Centre, Embedding, Signs, UnitCells
from fedsight.models.weights import load_weights


@models.add("face_net")
class FaceNet(Model):
    """One 5x5 convolution, its two signs apart, averaged over a grid; then one linear layer.

    Each cell of the grid is scaled to unit length over the channels, so that light matters little,
    and the mean over faces is taken off. Shallow on purpose: with a few hundred images deeper
    networks learn the people and not what tells people apart. Where a feature lies in a face
    matters, so faces should be cut out alike. The head has one vector per person.
    """

    width: int = Field(32, ge=1)  # filters
    cell: int = Field(8, ge=2, multiple_of=2)  # pixels a side; cells overlap by half
    dimension: int = Field(256, ge=2)  # of the vectors
    # take the mean over faces off: a running statistic that travels, as BatchNorm's do
    centre: bool = True

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Any size from one cell."""
        if min(height, width) < self.cell:
            raise ModelError(
                f"the network 'face_net' with cells of {self.cell} pixels cannot take images of "
                f"{height} x {width} pixels",
                f"set data.size = {self.cell} or more, or lower model.cell",
            )
        body = nn.Sequential()
        conv = nn.Conv2d(channels, self.width, 5, padding=2, bias=False)
        with torch.no_grad():  # edges to begin with: even light has no answer
            conv.weight -= conv.weight.mean((1, 2, 3), keepdim=True)
        body.add_module("conv", conv)
        body.add_module("signs", Signs())
        body.add_module("grid", nn.AvgPool2d(self.cell, self.cell // 2))
        body.add_module("unit", UnitCells())
        body.add_module("flatten", nn.Flatten())
        cells = [(side - self.cell) // (self.cell // 2) + 1 for side in (height, width)]
        features = 2 * self.width * cells[0] * cells[1]
        if self.centre:
            body.add_module("centre", Centre(features))
        vector = nn.Linear(features, self.dimension, bias=False)
        nn.init.normal_(vector.weight, std=features**-0.5)  # keeps angles, more or less
        body.add_module("vector", vector)
        return Embedding(body, classes, self.dimension), ["head"]


@models.add("embedding", source="the backbone's: timm, torchvision or FedSight")
class EmbeddingModel(Model):
    """Any network by name, its last layer made for a vector: `backbone` and `architecture`.

    `backbone = "timm"` and `architecture = "mobilenetv3_small_050"`, say. Pretrained `weights` are
    the backbone's own; its last layer keeps its fresh start.
    """

    # where the architecture comes from
    backbone: Literal["timm", "torchvision", "small_cnn"] = "timm"
    architecture: str | None = None  # for timm and torchvision
    dimension: int = Field(128, ge=2)  # of the vectors

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """What the backbone takes."""
        body, _ = self._backbone().make(channels, height, width, self.dimension)
        return Embedding(body, classes, self.dimension), ["head"]

    def build(self, channels: int, height: int, width: int, classes: int, seed: int) -> Network:
        """As every model; the weights go into the backbone."""
        fresh = self.model_copy(update={"weights": None, "sha256": None})
        network = Model.build(fresh, channels, height, width, classes, seed)
        if self.weights is None:
            return network
        assert isinstance(network.module, Embedding)
        body = network.module.body
        _, heads = self._backbone().make(channels, height, width, self.dimension)
        prefixes = tuple(f"{name}." for name in heads)
        last = frozenset(name for name, _ in body.named_parameters() if name.startswith(prefixes))
        return replace(network, notes=load_weights(body, self.weights, self.sha256 or "", last))

    def check(self) -> list[Problem]:
        """An architecture that is missing or unknown, besides what concerns the weights."""
        if self.backbone == "small_cnn" and self.architecture is not None:
            cause = "small_cnn has one architecture only"
            return [Problem("model.architecture", cause, "leave it out"), *super().check()]
        if self.backbone != "small_cnn" and self.architecture is None:
            cause = f"{self.backbone} needs the name of an architecture"
            return [Problem("model.architecture", cause, "name one"), *super().check()]
        return [*self._backbone().check(), *super().check()]

    def _backbone(self) -> Model:
        named: dict[str, Any] = {"architecture": self.architecture} if self.architecture else {}
        return models.get(self.backbone)(**named, norm=self.norm)
