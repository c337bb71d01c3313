"""Any torchvision detector by name, adapted to the images' channels and the classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ModelError, Problem
from fedsight.core.registry import nearest
from fedsight.data.detection.boxes import present
from fedsight.models.base import models
from fedsight.models.detector import MOST, Detector, DetectorModel
from fedsight.models.probe import OutputShape

_OTHER_TARGETS = ("maskrcnn", "keypointrcnn")  # they need outlines or joints
_BY_CLASS = ("fcos", "retinanet")  # a sigmoid for each class, so that one can be left out
_NEVER = -1e4  # a logit so low that loss and gradient vanish


class TorchvisionDetector(Detector):
    """torchvision's detector behind our interface; its class 0 is background."""

    def __init__(self, inner: Any, classes: int, architecture: str) -> None:
        super().__init__()
        self.inner = inner
        self.classes, self.architecture = classes, architecture
        self._labelled: Tensor | None = None  # while a loss is computed
        if architecture.startswith(_BY_CLASS):
            inner.head.register_forward_hook(self._leave_out)

    def _leave_out(self, head: nn.Module, inputs: Any, outputs: dict[str, Tensor]) -> Any:
        """Logits [b, boxes, classes + 1] without those of classes that were not labelled."""
        if self._labelled is None:
            return None
        known = F.pad(self._labelled, (1, 0), value=True)[:, None]
        return {**outputs, "cls_logits": torch.where(known, outputs["cls_logits"], _NEVER)}

    def forward(self, x: Tensor) -> Tensor:
        """The result of `find`; in training mode zeros of its shape."""
        return self.find(x)

    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        """The sum of torchvision's losses.

        Raises ModelError if a class is not labelled and the network cannot leave out a class.
        """
        if not bool(labelled.all()) and not self.architecture.startswith(_BY_CLASS):
            raise ModelError(
                f"'{self.architecture}' cannot learn from images where a class is not labelled: "
                "it classifies everything else as background",
                "use a detector such as small_detector, or torchvision's fcos or retinanet",
            )
        # An object of a class that is not fully labelled has no logit to train, so it is left out.
        known = labelled.gather(1, targets[:, :, 0].long().clamp(0, self.classes - 1))
        boxes = present(targets) & known
        truth = [
            {"boxes": rows[own, 1:], "labels": rows[own, 0].long() + 1}
            for rows, own in zip(targets, boxes, strict=True)
        ]
        training = self.training
        self._labelled = labelled
        try:
            self.inner.train()  # torchvision computes losses in training mode only
            if not training:
                _hold_statistics(self.inner)
            parts = self.inner(list(x.contiguous()), truth)
        finally:
            self._labelled = None
            self.inner.train(training)
        return torch.stack(list(parts.values())).sum()

    def find(self, x: Tensor) -> Tensor:
        """torchvision's own detections, padded to [b, MOST, 6]."""
        rows = x.new_zeros(len(x), MOST, 6)
        if self.training or x.is_meta:  # only the shape is needed, which does not depend on x
            return rows
        for at, one in enumerate(self.inner(list(x.contiguous()))):
            kept = one["labels"] > 0
            boxes, scores = one["boxes"][kept][:MOST], one["scores"][kept][:MOST]
            labels = one["labels"][kept][:MOST] - 1
            rows[at, : len(boxes)] = torch.cat([labels[:, None].float(), scores[:, None], boxes], 1)
        return rows


def _hold_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            part.eval()


@models.add("torchvision_detector", task="detect", source="torchvision.models.detection, BSD-3")
class TorchvisionDetectorModel(DetectorModel):
    """Any box detector of torchvision, such as `architecture = "fcos_resnet50_fpn"`.

    Images keep the size of the data: torchvision's own resizing is turned off. Nothing is
    downloaded; `weights` is a local file for this network. These networks are large: expect hours
    without an accelerator.
    """

    architecture: str  # the detector's name

    def answer(self, height: int, width: int, classes: int) -> OutputShape:
        """Detections."""
        return (MOST, 6)

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes colour images that are large enough for the network's downsampling."""
        import torchvision

        if trouble := self._unknown():
            raise ModelError(*trouble)
        if channels != 3:
            raise ModelError(
                f"'{self.architecture}' cannot take {channels} channels", "set data.channels = 3"
            )
        inner: Any = torchvision.models.get_model(
            self.architecture,
            weights=None,
            weights_backbone=None,
            num_classes=classes + 1,
            trainable_backbone_layers=None,
        )
        transform = inner.transform
        transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3  # images come normalised
        transform.min_size, transform.max_size = (min(height, width),), max(height, width)
        if getattr(transform, "fixed_size", None) is not None:
            transform.fixed_size = (width, height)
        detector = TorchvisionDetector(inner, classes, self.architecture)
        return detector, [f"inner.{name}" for name in _outputs(inner)]

    def _unknown(self) -> tuple[str, str] | None:
        import torchvision

        known = [
            name
            for name in torchvision.models.list_models(module=torchvision.models.detection)
            if not name.startswith(_OTHER_TARGETS)
        ]
        if self.architecture in known:
            return None
        cause = f"torchvision has no box detector '{self.architecture}'"
        return cause, nearest(self.architecture, known)

    def check(self) -> list[Problem]:
        """Problems of every model, and an unknown architecture."""
        trouble = self._unknown()
        found = [Problem("model.architecture", *trouble)] if trouble else []
        return [*found, *super().check()]


def _outputs(inner: Any) -> list[str]:
    """The output layers, for classes and boxes."""
    if hasattr(inner, "roi_heads"):
        return ["roi_heads.box_predictor"]
    return ["head"]
