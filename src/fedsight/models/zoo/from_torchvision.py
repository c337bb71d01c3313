"""Any torchvision classifier by name, adapted to the images' channels and the classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.core.registry import nearest
from fedsight.models.base import Model, models

_SIDE_HEADS = ("googlenet", "inception_v3")


@models.add("torchvision", source="torchvision.models, BSD-3-Clause")
class TorchvisionModel(Model):
    """Any classifier of torchvision.models, such as `architecture = "resnet18"`.

    The last layer is adapted to the classes. If there are not three channels, the first convolution
    is replaced, with weights scaled to keep the variance of its output. Nothing is downloaded.
    """

    architecture: str

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Transformers are built for the images' size; Inception's auxiliary heads are left out."""
        import torchvision

        if trouble := self._unknown():
            raise ModelError(*trouble)
        options: dict[str, Any] = {"num_classes": classes}
        if self.architecture.startswith("vit_"):
            if height != width:
                raise ModelError(
                    f"'{self.architecture}' needs square images, not {height} x {width}",
                    f"set data.size = {max(height, width)}",
                )
            options["image_size"] = height
        if self.architecture.startswith("maxvit"):
            options["input_size"] = (height, width)
        if self.architecture in _SIDE_HEADS:
            options |= {"aux_logits": False, "init_weights": True}
        try:
            module = torchvision.models.get_model(self.architecture, weights=None, **options)
        except (ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(
                f"'{self.architecture}' cannot be built for {height} x {width} pixels: {error}",
                "set data.size to a size that it supports, usually 224",
            ) from error
        if channels != 3:
            _replace_stem(module, channels, self.architecture)
        return module, [_head(module)]

    def _unknown(self) -> tuple[str, str] | None:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if self.architecture in known:
            return None
        cause = f"torchvision has no classifier '{self.architecture}'"
        return cause, nearest(self.architecture, known)

    def check(self) -> list[Problem]:
        """Problems of every model, and an unknown architecture."""
        trouble = self._unknown()
        found = [Problem("model.architecture", *trouble)] if trouble else []
        return [*found, *super().check()]


def _replace_stem(module: nn.Module, channels: int, title: str) -> None:
    name, old = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    if old.groups != 1:
        raise ModelError(
            f"the first layer of '{title}' cannot take {channels} channels", "set data.channels = 3"
        )
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    with torch.no_grad():
        spread = float(old.weight.std()) * math.sqrt(old.in_channels / channels)
        nn.init.normal_(new.weight, std=spread)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _head(module: nn.Module) -> str:
    """The layer that outputs the logits: the last linear one, or SqueezeNet's last convolution."""
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    convs = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    return str((linear or convs)[-1])
