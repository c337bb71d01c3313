"""Networks that give vectors: a small one for faces, and any other network made into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.models.base import Model, Network, models
from fedsight.models.embedding import Embedding
from fedsight.models.weights import load_weights

GROUPS = 4
WIDEST = 8  # times the first block's channels


@models.add("face_net")
class FaceNet(Model):
    """Blocks of 3x3 convolution, max-pool, GroupNorm and ReLU, then a linear layer to a vector.

    Block i has `width` * 2^i channels, at most eight times `width`. The last map is flattened:
    where a feature lies in a face matters, so faces should be cut out alike. The head has one
    vector per person. With `norm = "batch"`, BatchNorm takes GroupNorm's place.
    """

    width: int = Field(16, ge=GROUPS, multiple_of=GROUPS)
    blocks: int = Field(4, ge=1, le=8)
    dimension: int = Field(64, ge=2)  # of the vectors
    dropout: float = Field(0.0, ge=0, lt=1)  # before the linear layer

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Any size from 2^blocks pixels a side."""
        least = 2**self.blocks
        if min(height, width) < least:
            raise ModelError(
                f"the network 'face_net' with {self.blocks} blocks cannot take images of {height} "
                f"x {width} pixels",
                f"set data.size = {least} or more, or lower model.blocks",
            )
        body = nn.Sequential()
        inputs = channels
        for block in range(self.blocks):
            outputs = self.width * min(WIDEST, 2**block)
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)  # the norm has a shift
            norm = nn.GroupNorm(GROUPS, outputs) if self.norm == "group" else None
            body.add_module(f"conv{block}", conv)
            body.add_module(f"pool{block}", nn.MaxPool2d(2))
            body.add_module(f"norm{block}", norm or nn.BatchNorm2d(outputs))
            body.add_module(f"relu{block}", nn.ReLU(inplace=True))
            inputs = outputs
        body.add_module("flatten", nn.Flatten())
        if self.dropout:
            body.add_module("dropout", nn.Dropout(self.dropout))
        features = inputs * (height >> self.blocks) * (width >> self.blocks)
        body.add_module("vector", nn.Linear(features, self.dimension))
        return Embedding(body, classes, self.dimension), ["head"]


@models.add("embedding", source="the backbone's: timm, torchvision or FedSight")
class EmbeddingModel(Model):
    """Any network by name, its last layer made for a vector: `backbone` and `architecture`.

    `backbone = "timm"` and `architecture = "mobilenetv3_small_050"`, say. Pretrained `weights` are
    the backbone's own; its last layer keeps its fresh start.
    """

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
