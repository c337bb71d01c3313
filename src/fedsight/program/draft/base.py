"""What a draft is made of: the settings of a data source that reads a folder, and why they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset

TASKS = ("classify", "multilabel", "ordinal", "detect", "segment", "faces")
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Asked:
    """What the user has said: the task, and the classes in their order; None: guess."""

    task: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Guess:
    """A task, and the settings of `[data]` that read the images for it.

    `reasons` says what the guess rests on.
    """

    task: str
    data: Mapping[str, Any]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A guess that was tried: the data set, opened without decoding the images."""

    guess: Guess
    opened: Dataset


def no_images(path: Path, why: str) -> DataError:
    """The error for a folder in which nothing can be guessed."""
    return DataError(
        f"'{path}': {why}",
        "give a folder with one folder per class (or site/class), images beside a folder of masks, "
        "YOLO, COCO or Pascal VOC files, or a CSV with columns path and label; "
        "docs/how-to/own-data.md shows them",
    )
