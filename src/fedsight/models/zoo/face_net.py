"""Networks that return vectors: a small one for faces, and an adapter for any other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.models.base import Model, models
from fedsight.models.embedding import Embedding
from fedsight.models.gabor import Gabor, Whiten
from fedsight.models.weights import load_weights


@models.add("face_net", source="Daugman 1985; Liu and Wechsler 2002")
class FaceNet(Model):
    """Fixed Gabor filters, averaged over a grid, and one trained linear layer.

    The linear layer starts as the identity, so the network is useful before training. It is shallow
    with fixed filters on purpose: filters trained on a few hundred images memorise the people
    instead of learning what distinguishes people. Positions in the face matter, so faces should be
    cropped alike. The head has one vector per person.
    """

    # of the filters' waves, in pixels; these are for faces about 50 pixels wide
    wavelengths: Annotated[
        tuple[Annotated[float, Field(ge=3)], ...], Field(strict=False, min_length=1)
    ] = (4.0, 8.0, 16.0)
    orientations: int = Field(8, ge=1)  # directions of the filters' waves, over half a turn
    cell: int = Field(8, ge=2, multiple_of=2)  # pixels a side
    # of the vectors, at most: as many as features where these are fewer
    dimension: int = Field(1024, ge=2)
    # subtract the mean over faces and equalise the covariance, by running statistics that travel as
    # BatchNorm's do
    whiten: bool = True
    ridge: float = Field(3.0, gt=0)  # added to the covariance, in mean variances of a feature

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of at least one cell."""
        if min(height, width) < self.cell:
            raise ModelError(
                f"the network 'face_net' with cells of {self.cell} pixels cannot take images of "
                f"{height} x {width} pixels",
                f"set data.size = {self.cell} or more, or lower model.cell",
            )
        gabor = Gabor(self.wavelengths, self.orientations, self.cell)
        features = gabor.features(height, width)
        dimension = min(self.dimension, features)
        body = nn.Sequential()
        body.add_module("gabor", gabor)
        body.add_module("flatten", nn.Flatten())
        if self.whiten:
            body.add_module("whiten", Whiten(features, self.ridge))
        vector = nn.Linear(features, dimension, bias=False)
        if dimension == features:
            nn.init.eye_(vector.weight)
        else:
            nn.init.orthogonal_(vector.weight)  # roughly preserves angles
        body.add_module("vector", vector)
        return Embedding(body, classes, dimension), ["head"]


@models.add("embedding", source="the backbone's: timm, torchvision or FedSight")
class EmbeddingModel(Model):
    """Any network by name, with its last layer returning a vector: `backbone`, `architecture`.

    For example `backbone = "timm"` and `architecture = "mobilenetv3_small_050"`. Pretrained
    `weights` are those of the backbone; its last layer is newly initialised.
    """

    # where the architecture comes from
    backbone: Literal["timm", "torchvision", "small_cnn"] = "timm"
    architecture: str | None = None  # for timm and torchvision
    dimension: int = Field(128, ge=2)  # of the vectors

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes the same images as the backbone."""
        body, last = self._backbone().make(channels, height, width, self.dimension)
        return Embedding(body, classes, self.dimension, tuple(last)), ["head"]

    def _pretrain(self, module: nn.Module, head: frozenset[str]) -> tuple[str, ...]:
        """The weights are the backbone's."""
        if self.weights is None:
            return ()
        assert isinstance(module, Embedding)
        prefixes = tuple(f"{name}." for name in module.last)
        names = [name for name, _ in module.body.named_parameters()]
        last = frozenset(name for name in names if name.startswith(prefixes))
        return load_weights(module.body, self.weights, self.sha256 or "", last)

    def check(self) -> list[Problem]:
        """Problems of every model, and an architecture that is missing or unknown."""
        if self.backbone == "small_cnn" and self.architecture is not None:
            cause = "small_cnn has only one architecture"
            return [Problem("model.architecture", cause, "leave it out"), *super().check()]
        if self.backbone != "small_cnn" and self.architecture is None:
            cause = f"{self.backbone} needs the name of an architecture"
            return [Problem("model.architecture", cause, "name one"), *super().check()]
        return [*self._backbone().check(), *super().check()]

    def _backbone(self) -> Model:
        named: dict[str, Any] = {"architecture": self.architecture} if self.architecture else {}
        return models.get(self.backbone)(**named, norm=self.norm)
