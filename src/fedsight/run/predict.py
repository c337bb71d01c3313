"""What a trained network sees in image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data import dicom
from fedsight.data.base import Preprocess
from fedsight.data.decode import decode, whole
from fedsight.data.objects import returned
from fedsight.data.pixels import SUFFIXES
from fedsight.run.saved import Saved
from fedsight.tasks.shown import Answer

ENDINGS = SUFFIXES | dicom.SUFFIXES  # of the files that are looked for in a folder


@dataclass(frozen=True)
class Prediction:
    """The task's answer for one image file, or why it could not be read."""

    path: Path
    answer: Answer | None = None
    error: str | None = None

    def table(self) -> dict[str, Any]:
        """As plain values, for JSON; an image that could not be read has only path and error."""
        if self.answer is None:
            return {"path": str(self.path), "error": self.error}
        return {
            "path": str(self.path),
            "label": self.answer.label,
            "probability": self.answer.probability,
            **self.answer.details,
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
        else Prediction(path, _in_file(next(answers), path, saved.preprocess))
        for number, path in enumerate(files)
    ]


def _ask(saved: Saved, pixels: list[Tensor]) -> list[Answer]:
    if not pixels:
        return []
    with torch.inference_mode():
        x = saved.preprocess.normalise(torch.stack(pixels))
        return saved.task.answers(saved.module, x, saved.classes)


def _in_file(answer: Answer, path: Path, goal: Preprocess) -> Answer:
    """The answer with boxes in pixels of the file, not of the network's input."""
    if not answer.marks:
        return answer
    height, width = whole(path, goal).shape[:2]
    size = (width, height)
    marks = tuple(replace(mark, box=returned(mark.box, size, goal)) for mark in answer.marks)
    boxes = [
        {**one, "box": [round(value, 2) for value in returned(tuple(one["box"]), size, goal)]}
        for one in answer.details.get("boxes", ())
    ]
    return replace(answer, marks=marks, details={**answer.details, "boxes": boxes})
