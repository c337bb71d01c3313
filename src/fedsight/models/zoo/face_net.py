"""Networks that return vectors: a small one for faces, and an adapter for any other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.core.rng import derive
from fedsight.models.base import Model, Network, models
from fedsight.models.before_head import LINEAR, put_before_head
from fedsight.models.embedding import Embedding
from fedsight.models.gabor import Gabor, Whiten
from fedsight.models.taps import HEAD


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
        body = nn.Sequential()
        body.add_module("gabor", gabor)
        body.add_module("flatten", nn.Flatten())
        if self.whiten:
            body.add_module("whiten", Whiten(features, self.ridge))
        vector = unchanging(features, self.dimension)
        body.add_module("vector", vector)
        return Embedding(body, classes, vector.out_features), ["head"]


@models.add("embedding", source="the backbone's: timm, torchvision or FedSight")
class EmbeddingModel(Model):
    """Any network by name, with its last layer returning a vector: `backbone`, `architecture`.

    For example `backbone = "timm"` and `architecture = "mobilenetv3_small_050"`. Pretrained
    `weights` are those of the backbone; its last layer is newly initialised. With `whiten` it is
    useful before training: the features of the backbone (with `taps`, those of inner layers) are
    whitened, and the last layer begins as the identity, or a rotation into fewer dimensions.
    """

    chosen_by: ClassVar[str] = "backbone"

    # where the architecture comes from
    backbone: Literal["timm", "torchvision", "small_cnn"] = "timm"
    architecture: str | None = None  # for timm and torchvision
    # of the vectors; with `whiten` at most: as many as features where these are fewer
    dimension: int = Field(128, ge=2)
    # subtract the mean of the features over faces and equalise their covariance, by running
    # statistics that travel as BatchNorm's do
    whiten: bool = False
    ridge: float = Field(3.0, gt=0)  # added to the covariance, in mean variances of a feature

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes the same images as the backbone."""
        body, last = self._backbone().make(channels, height, width, self.dimension)
        return Embedding(body, classes, self.dimension, tuple(last)), ["head"]

    def build(self, channels: int, height: int, width: int, classes: int, seed: int) -> Network:
        """With the features whitened, if that is set."""
        network = Model.build(self.settled(), channels, height, width, classes, seed)
        if not self.whiten:
            return network
        assert isinstance(network.module, Embedding)
        body, last = network.module.body, network.module.last
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "whiten"))
            name = put_before_head(
                body, _tensors(body, last), self._whitened, "model.whiten", self.title
            )
            vector = body.get_submodule(name)
            assert isinstance(vector, nn.Linear)
            module = Embedding(body, classes, vector.out_features, (name,))
        return replace(network, module=module)

    def _whitened(self, old: nn.Linear) -> nn.Sequential:
        """What makes the vectors in place of the last layer: a whitening, then a linear layer."""
        made = nn.Sequential()
        made.add_module("whiten", Whiten(old.in_features, self.ridge))
        made.add_module(LINEAR, unchanging(old.in_features, self.dimension))
        return made

    @property
    def family(self) -> str | None:
        """Of the backbone."""
        return self.backbone

    def _pretrain(self, module: nn.Module, head: frozenset[str]) -> tuple[str, ...]:
        """The weights are the backbone's."""
        assert isinstance(module, Embedding)
        return super()._pretrain(module.body, _tensors(module.body, module.last))

    def _tapped(self, module: nn.Module, image: tuple[int, int, int], classes: int) -> nn.Module:
        """The vectors are made of what the taps see."""
        assert isinstance(module, Embedding)
        body = super()._tapped(module.body, image, self.dimension)
        return Embedding(body, classes, self.dimension, (HEAD,))

    def check(self) -> list[Problem]:
        """Problems of every model, and an architecture that is missing or unknown."""
        if self.backbone == "small_cnn" and self.architecture is not None:
            cause = "small_cnn has only one architecture"
            return [Problem("model.architecture", cause, "leave it out"), *super().check()]
        if self.backbone != "small_cnn" and self.architecture is None:
            cause = f"{self.backbone} needs the name of an architecture"
            return [Problem("model.architecture", cause, "name one"), *super().check()]
        # The backbone has no weights of its own, so it cannot know whether norms may be frozen.
        of_backbone = [one for one in self._backbone().check() if one.where != "model.norm"]
        return [*of_backbone, *super().check()]

    def _backbone(self) -> Model:
        named: dict[str, Any] = {"architecture": self.architecture} if self.architecture else {}
        return models.get(self.backbone)(**named, norm=self.norm)


def unchanging(features: int, dimension: int) -> nn.Linear:
    """A linear layer that begins as the identity of so many features, or, if `dimension` is less,
    as a rotation into so many, which roughly preserves angles."""
    dimension = min(dimension, features)
    layer = nn.Linear(features, dimension, bias=False)
    if dimension == features:
        nn.init.eye_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight)
    return layer


def _tensors(body: nn.Module, layers: Iterable[str]) -> frozenset[str]:
    """The names of the parameters in `layers`."""
    prefixes = tuple(f"{name}." for name in layers)
    return frozenset(name for name, _ in body.named_parameters() if name.startswith(prefixes))
