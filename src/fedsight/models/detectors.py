"""What models that detect objects have in common."""

from __future__ import annotations

from typing import ClassVar

from fedsight.models.base import Model
from fedsight.models.probe import OutputShape


class DetectorModel(Model):
    """A model whose module is a `Detector`: for the task `detect` only."""

    gives: ClassVar[str] = "boxes"

    def answer(self, height: int, width: int, classes: int) -> OutputShape:
        """A grid of heat maps and box distances."""
        return (classes + 4, None, None)
