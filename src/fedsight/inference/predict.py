"""Predictions of a trained network for images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import Preprocess
from fedsight.data.detection.objects import returned
from fedsight.data.images.decode import whole
from fedsight.data.passed_over import Tally
from fedsight.inference.inputs import Question, questions
from fedsight.inference.saved import Saved
from fedsight.inference.trusted import Assessed, Cover, Limits
from fedsight.tasks.presentation import Answer


@dataclass(frozen=True)
class Prediction:
    """The task's answer for one image or text, or why it could not be read."""

    path: Path  # where it came from; `pixels[3]` for one that is in no file
    answer: Answer | None = None
    error: str | None = None
    line: int | None = None  # in a file with several texts
    sure: bool | None = None  # whether it reaches the confidence that was asked for
    # what the run knows of its answers, see `inference/trusted.py`; None: nothing
    calibrated: float | None = None  # the probability of the label after calibration
    unlike: bool | None = None  # whether the image is unlike those of the training
    classes: tuple[str, ...] | None = None  # the set with the coverage that was asked for
    abstained: bool = False  # whether no label is given, as the set is not of one class

    @property
    def label(self) -> str | None:
        """The answer in a word; None if the file could not be read, or there is no answer."""
        return None if self.answer is None or self.abstained else self.answer.label

    @property
    def probability(self) -> float | None:
        """How sure the model is, 0 to 1; None if the file could not be read."""
        return None if self.answer is None else self.answer.probability

    @property
    def where(self) -> str:
        """The file, and the line if it holds several texts."""
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    def table(self) -> dict[str, Any]:
        """As plain values, for JSON; a file that could not be read has only path and error."""
        place: dict[str, Any] = {"path": str(self.path)}
        if self.line is not None:
            place["line"] = self.line
        if self.answer is None:
            return {**place, "error": self.error}
        known = {
            "sure": self.sure, "calibrated": self.calibrated, "unlike": self.unlike,
            "set": None if self.classes is None else list(self.classes),
            "abstained": self.abstained or None,
        }  # fmt: skip
        return {
            **place,
            "label": self.label,
            "probability": self.answer.probability,
            **{name: value for name, value in known.items() if value is not None},
            **self.answer.details,
        }


def predict(
    saved: Saved,
    paths: Sequence[Path],
    batch: int = 64,
    passed_over: Tally | None = None,
    confidence: float | None = None,
    cover: Cover | None = None,
) -> list[Prediction]:
    """One prediction for each image or text, in order; at most `batch` are decoded at once.

    Folders are searched at any depth for images or texts, whichever the run learned from, in the
    order of their names; see `questions` for what a file holds. A file that cannot be read becomes
    a prediction with `error`, and the others are still answered. `passed_over` counts the files of
    folders that are neither. Before anything is decoded, raises
    DataError for a path that does not exist, a folder without such files, and a file of the other
    kind.

    `confidence` (0 to 1) leaves out boxes with a lower score, instead of those below the run's own
    `task.shown`; of other answers, `sure` says whether their probability reaches it. `cover` asks
    for sets of classes; DataError where the run has none of this coverage.
    """
    limits = saved.trust.limits(cover)
    if confidence is not None and not 0 <= confidence <= 1:
        raise DataError(f"the confidence {confidence} is not from 0 to 1", "give for example 0.5")
    if confidence is not None and saved.task.takes == "boxes":
        if cover is not None:
            cause = "--confidence and --coverage both say which boxes are shown"
            raise DataError(cause, "give one of them")
        saved = replace(saved, task=saved.task.showing(confidence))
        confidence = None
    asked = questions(saved, paths, passed_over)
    found: list[Prediction] = []
    while group := list(islice(asked, batch)):
        found += _predict(saved, group, limits)
    found = abstaining(found, cover)
    if confidence is None:
        return found
    return [
        one if one.probability is None else replace(one, sure=bool(one.probability >= confidence))
        for one in found
    ]


def predict_pixels(
    saved: Saved, pixels: Tensor, batch: int = 64, cover: Cover | None = None
) -> list[Prediction]:
    """One prediction for each image of `pixels` [n, c, h, w], or [c, h, w] for one.

    `cover` is as for `predict`. Pixels are uint8, or floating point from 0 to 1; normalisation is
    done here. Raises DataError if they have another shape, type or range than the run's images, or
    the run learned from texts.
    """
    seen = saved.preprocess
    if seen.modality != "image":
        raise DataError(
            f"the run learned from {seen.modalities}, not from images", "give text files"
        )
    pixels = pixels[None] if pixels.dim() == 3 else pixels
    shape = (seen.channels, seen.height, seen.width)
    if pixels.dim() != 4 or tuple(pixels.shape[1:]) != shape:
        raise DataError(
            f"the images have shape {tuple(pixels.shape)}, and those of the run have shape "
            f"(n, {', '.join(map(str, shape))})",
            "resize them, or give files, which are resized as in training",
        )
    if pixels.dtype == torch.uint8:
        pixels = pixels.to(torch.float32) / 255
    elif not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise DataError(
            "the pixels are not uint8 and not from 0 to 1",
            "give pixels before any normalisation, which happens here as in training",
        )
    limits = saved.trust.limits(cover)
    answers = [
        answer
        for part in pixels.to(torch.float32).split(batch)
        for answer in _ask(saved, [*part], limits)
    ]
    found = [_told(Path(f"pixels[{at}]"), answer) for at, answer in enumerate(answers)]
    return abstaining(found, cover)


def _told(path: Path, known: Assessed, line: int | None = None) -> Prediction:
    return Prediction(
        path, known.answer, None, line,
        calibrated=known.calibrated, unlike=known.unlike, classes=known.classes,
    )  # fmt: skip


def abstaining(found: list[Prediction], cover: Cover | None) -> list[Prediction]:
    """The predictions; where `cover` says so, without a label if their set is not of one class, or
    their image is unlike those of the training."""
    if cover is None or not cover.abstain:
        return found
    return [
        one
        if one.answer is None
        else replace(one, abstained=len(one.classes or ()) != 1 or one.unlike is True)
        for one in found
    ]


def _predict(saved: Saved, group: list[Question], limits: Limits) -> list[Prediction]:
    inputs: list[Tensor] = []
    errors: dict[int, str] = {}
    for number, one in enumerate(group):
        try:
            inputs.append(one.read())
        except DataError as error:
            errors[number] = error.cause
    answers = iter(_ask(saved, inputs, limits))
    found = []
    for number, one in enumerate(group):
        if number in errors:
            found.append(Prediction(one.path, error=errors[number], line=one.line))
            continue
        known = next(answers)
        placed = replace(known, answer=_in_file(known.answer, one.path, saved.preprocess))
        found.append(_told(one.path, placed, one.line))
    return found


def _ask(saved: Saved, inputs: list[Tensor], limits: Limits) -> list[Assessed]:
    if not inputs:
        return []
    with torch.inference_mode():
        x = saved.preprocess.normalise(torch.stack(inputs))
        return saved.trust.answers(saved.task, saved.module, x, saved.classes, limits)


def _in_file(answer: Answer, path: Path, goal: Preprocess) -> Answer:
    """The answer with boxes in pixels of the file instead of the network's input."""
    if not answer.marks:
        return answer
    height, width = whole(path, goal).shape[:2]
    size = (width, height)
    marks = tuple(replace(mark, box=returned(mark.box, size, goal)) for mark in answer.marks)
    boxes = [
        {
            **one,
            **{
                key: [round(value, 2) for value in returned(tuple(one[key]), size, goal)]
                for key in ("box", "outer")
                if key in one
            },
        }
        for one in answer.details.get("boxes", ())
    ]
    return replace(answer, marks=marks, details={**answer.details, "boxes": boxes})
