"""An object detector on MobileNetV2, which can start from ImageNet weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Self

from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.data.fetch.cache import fetched
from fedsight.models.base import models
from fedsight.models.detector import HeatmapModel, Pyramid
from fedsight.models.norms import to_group_norm
from fedsight.models.weights import load_weights

FETCHED, FILE = "mobilenet-weights", "mobilenet_v2-b0353104.pth"
_CUTS = (0, 4, 7, 14)  # of MobileNetV2's blocks: maps at 1/4, 1/8 and 1/16 of the image
_CHANNELS = (24, 32, 96)
_WIDTH = 48


@models.add("mobilenet_detector", task="detect", source="Sandler et al., MobileNetV2, CVPR 2018")
class MobileNetDetector(HeatmapModel):
    """Objects by heat maps on torchvision's MobileNetV2 up to 1/16 of the image.

    With `pretrained`, or torchvision's file for the classifier as `weights`, the blocks start from
    ImageNet and the rest is newly initialised.
    """

    # the weights that `fedsight data get mobilenet-weights` fetches
    pretrained: bool = False

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes colour images of at least 32 pixels a side."""
        import torchvision

        if channels != 3 or min(height, width) < 32:
            raise ModelError(
                f"the network 'mobilenet_detector' cannot take {channels} channels of {height} x "
                f"{width} pixels",
                "set data.channels = 3 and data.size = 32 or more",
            )
        blocks = list(torchvision.models.mobilenet_v2(weights=None).features)
        stages = [nn.Sequential(*blocks[a:b]) for a, b in pairwise(_CUTS)]
        body = Pyramid(stages, _CHANNELS, _WIDTH, classes)
        if self.norm == "frozen":  # new layers have no statistics to freeze
            to_group_norm(body.sides)
            to_group_norm(body.smooth)
        return self.detector(body, classes, 4, (height, width)), ["body.heat", "body.box"]

    def _pretrain(self, module: nn.Module, head: frozenset[str]) -> tuple[str, ...]:
        path, sha256 = self.weights, self.sha256 or ""
        if self.pretrained:
            path, sha256 = fetched(FETCHED) / FILE, FILE[-12:-4]
        if path is None:
            return ()
        own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
        fresh = frozenset(name for name in own if not name.startswith("body.stages."))
        return load_weights(module, path, sha256, fresh, _renamed)

    @property
    def pretrains(self) -> bool:
        """Also with `pretrained`."""
        return self.pretrained or super().pretrains

    @property
    def rebuildable(self) -> bool:
        """Those of `pretrained` are published."""
        return super().rebuildable or (self.pretrained and self.weights is None)

    def settled(self) -> Self:
        """Weights of ImageNet have BatchNorm."""
        if self.norm == "auto" and self.pretrained:
            return self.model_copy(update={"norm": "frozen"})
        return super().settled()

    def needs(self) -> tuple[str, ...]:
        """The weight file, if it is used."""
        return (FETCHED,) if self.pretrained else ()

    def check(self) -> list[Problem]:
        """The problems of every model, and two sources of weights."""
        found = super().check()
        if not self.pretrained:
            return found
        if self.weights is not None:
            cause = "model.pretrained already loads weights"
            found.append(Problem("model.weights", cause, "leave out one of the two"))
        return [problem for problem in found if problem.where != "model.norm"]

    def fresh(self) -> Self:
        """The same model without ImageNet weights."""
        return super().fresh().model_copy(update={"pretrained": False})


def _renamed(name: str) -> str | None:
    """features.5.conv.0.weight -> body.stages.1.1.conv.0.weight; None for later blocks."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
    if match is None:
        return None if name.startswith("classifier.") else name
    block = int(match[1])
    for stage, (first, last) in enumerate(pairwise(_CUTS)):
        if first <= block < last:
            return f"body.stages.{stage}.{block - first}.{match[2]}"
    return None
