"""What a model builder gives: a network and the names of its classification head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from fedsight.core.errors import Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings


@dataclass(frozen=True)
class Network:
    """A built network: `module(x [b, c, h, w]) -> logits [b, classes]`.

    `head` are the names of the last layer's parameters (FedRep keeps them at the site); `norms`
    those of every normalisation layer's tensors (FedBN does); `statistics` pairs the names of
    BatchNorm's running mean and running variance.
    """

    module: nn.Module
    head: frozenset[str]
    norms: frozenset[str]
    statistics: tuple[tuple[str, str], ...]


class Model(Settings, ABC):
    """A network by name: `[model]` in the config. A new one costs one file in `zoo/`."""

    norm: Literal["group", "batch"] = "group"  # GroupNorm everywhere, or the model's own BatchNorm
    weights: str | None = None  # a local file of pretrained weights (safetensors or .pth)
    sha256: str | None = None  # of that file, or its first 8 or more hex digits; required with it

    @abstractmethod
    def build(self, channels: int, height: int, width: int, classes: int, seed: int) -> Network:
        """A freshly initialised network (same seed, same weights), pretrained if asked for.

        Raises ModelError when the name is unknown, the image too small, or the weights unfit.
        """

    def check(self) -> list[Problem]:
        """What can be told wrong without building."""
        problems = []
        if self.weights is not None and not Path(self.weights).is_file():
            problems.append(
                Problem("model.weights", f"there is no file '{self.weights}'", "give a local file")
            )
        if self.weights is not None and self.sha256 is None:
            problems.append(
                Problem(
                    "model.sha256",
                    "pretrained weights are used only when their hash is stated",
                    f"run `sha256sum {self.weights}` and write the result here",
                )
            )
        return problems


models: Registry[Model] = Registry("model", "fedsight.models.zoo")
