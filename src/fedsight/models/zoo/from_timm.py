"""Any timm classifier by name; timm adapts channels and classes, and is an extra of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.core.extras import install, missing
from fedsight.core.registry import nearest
from fedsight.models.base import Model, models


@models.add("timm", source="timm (PyTorch Image Models), Apache-2.0")
class TimmModel(Model):
    """Any classifier of timm, such as `architecture = "mobilenetv3_small_050"`.

    timm, the extra `fedsight[timm]`, adapts the first layer to the channels and the last to the
    classes. Nothing is downloaded: pretrained weights come from `weights`.
    """

    architecture: str

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Architectures with a fixed input size (most transformers) are built for the images'."""
        if trouble := self._trouble():
            raise ModelError(*trouble[1:])
        import timm

        config = timm.get_pretrained_cfg(self.architecture)
        options: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
        if config is not None and config.fixed_input_size:
            options["img_size"] = (height, width)
        try:
            module = timm.create_model(self.architecture, pretrained=False, **options)
        except (ValueError, AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
            raise ModelError(
                f"'{self.architecture}' cannot be built for images of {channels} x {height} x "
                f"{width}: {error}",
                "set data.size to a size that it supports, usually 224",
            ) from error
        return module, _heads(module)

    def _trouble(self) -> tuple[str, str, str] | None:
        """The setting that keeps it from being built, with cause and cure."""
        if missing("timm"):
            cause = "networks of timm need the package 'timm', which is not installed"
            return "model.name", cause, install("timm")
        import timm

        if timm.is_model(self.architecture):
            return None
        cure = nearest(self.architecture, timm.list_models())
        if cure.startswith("known"):  # more than a thousand
            cure = "timm.list_models('*resnet*') lists names"
        return "model.architecture", f"timm has no classifier '{self.architecture}'", cure

    def check(self) -> list[Problem]:
        """Problems of every model, timm missing, and an unknown architecture."""
        trouble = self._trouble()
        found = [Problem(*trouble)] if trouble else []
        return [*found, *super().check()]


def _heads(module: Any) -> list[str]:
    """The names of the layers that output the logits (two in distilled transformers)."""
    layers = module.get_classifier()
    wanted = layers if isinstance(layers, tuple | list) else [layers]
    return [name for name, part in module.named_modules() if any(part is w for w in wanted)]
