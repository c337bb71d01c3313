"""What a trained network sees in image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data import dicom
from fedsight.data.decode import decode
from fedsight.data.pixels import SUFFIXES
from fedsight.run.saved import Saved

ENDINGS = SUFFIXES | dicom.SUFFIXES  # of the files that are looked for in a folder


@dataclass(frozen=True)
class Prediction:
    """The answer for one image file: the most probable label, or why it could not be read."""

    path: Path
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)  # most probable first
    error: str | None = None

    def table(self) -> dict[str, Any]:
        """As plain values, for JSON; an image that could not be read has only path and error."""
        if self.error is not None:
            return {"path": str(self.path), "error": self.error}
        return {
            "path": str(self.path),
            "label": self.label,
            "probability": self.probability,
            "probabilities": self.probabilities,
        }


def predict(saved: Saved, paths: Sequence[Path], batch: int = 64) -> list[Prediction]:
    """One prediction for each image, in order; at most `batch` images are in memory at once.

    Folders are searched at any depth for image files, in the order of their names. An image that
    cannot be read becomes a prediction with `error` and does not stop the others. Raises DataError
    for a path that does not exist and for a folder without images, before anything is decoded.
    """
    files = iter(find_images(paths))
    found: list[Prediction] = []
    while group := list(islice(files, batch)):
        found += _predict(saved, group)
    return found


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the image files in the folders among them, sorted in each."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder '{path}'", "correct the path")
        inside = sorted(_images_in(path)) if path.is_dir() else [path]
        if not inside:
            raise DataError(
                f"the folder '{path}' holds no image", f"images end in {' '.join(sorted(ENDINGS))}"
            )
        files += inside
    return files


def _images_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            yield path


def _predict(saved: Saved, files: list[Path]) -> list[Prediction]:
    pixels: list[Tensor] = []
    errors: dict[int, str] = {}
    for number, path in enumerate(files):
        try:
            pixels.append(decode(path, saved.preprocess))
        except DataError as error:
            errors[number] = error.cause
    answers = iter(_ask(saved, pixels))
    return [
        Prediction(path, error=errors[number])
        if number in errors
        else _prediction(path, next(answers), saved.classes)
        for number, path in enumerate(files)
    ]


def _ask(saved: Saved, pixels: list[Tensor]) -> list[list[float]]:
    if not pixels:
        return []
    with torch.inference_mode():
        x = saved.preprocess.normalise(torch.stack(pixels))
        answers: list[list[float]] = saved.task.predict(saved.module, x).tolist()
    return answers


def _prediction(path: Path, answer: list[float], classes: tuple[str, ...]) -> Prediction:
    # Equal probabilities keep the order of the classes, as argmax would have it.
    ranked = sorted(zip(classes, answer, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0]
    return Prediction(path, label, probability, dict(ranked))
