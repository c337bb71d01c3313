"""A finished run's model, ready to be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedsight.data.base import Preprocess
from fedsight.tasks.base import Task


@dataclass(frozen=True)
class Saved:
    """A trained network in evaluation mode, and all that is needed to ask it."""

    module: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    task: Task
    name: str
    fingerprint: str
    model: Mapping[str, Any] = field(default_factory=dict)  # the `[model]` table of the program
