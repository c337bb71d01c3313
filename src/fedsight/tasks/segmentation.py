"""A class for each pixel: cross-entropy and Dice, measured from pixel counts that add."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.masks import Masks
from fedsight.tasks.plausible import are_between, are_counts
from fedsight.tasks.presentation import Answer, Mark, Sample, Table
from fedsight.tasks.repair import projected
from fedsight.tasks.unlabelled import into_background

IGNORED = 255  # a pixel without a label: neither trained on nor measured
# In noised figures: the part of an image that its share is scaled down to, and the weight of the
# background in it.
_PART, _BACKGROUND = 0.25, 0.125
_RIGHT = 0.9  # mean Dice from which an answer counts as right in the report


@tasks.add("segment", source="Dice loss: Milletari et al. 2016, arXiv:1606.04797")
class Segmentation(Task):
    """A class for each pixel, 0 being background: cross-entropy and soft Dice, Dice and IoU.

    Targets are [n, h, w], 255 where a pixel is not labelled. Figures are computed over all test
    pixels together, not per image, and leave out the background.
    """

    headline: ClassVar[str] = "dice"
    headline_title: ClassVar[str] = "Mean Dice"
    figures: ClassVar[tuple[str, ...]] = ("dice", "iou", "accuracy", "loss")
    mixes: ClassVar[bool] = False
    takes: ClassVar[str] = "masks"
    placed: ClassVar[bool] = True
    covering: ClassVar[Covering | None] = Masks()
    heeds_unlabelled: ClassVar[bool] = True
    dice: float = Field(0.5, ge=0, le=1)  # share of the Dice loss; the rest is cross-entropy

    def check(self, dataset: Dataset) -> list[Problem]:
        """Targets of the images' size, with class numbers or 255."""
        size = (dataset.preprocess.height, dataset.preprocess.width)
        for part in (dataset.train, dataset.test):
            found = part.targets
            if found is None or found.shape[1:] != size or not _known(found, dataset.classes):
                cause = "the data do not give a class for each pixel"
                cure = "use a source of images with masks, such as 'masks'"
                return [Problem("task.name", cause, cure)]
        return []

    def blank(self, classes: int) -> Tensor:
        """One unlabelled pixel, which is broadcast to the whole image."""
        return torch.full((1, 1, 1), IGNORED, dtype=torch.uint8)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy and one minus soft Dice, each the mean over the images of the batch.

        Where a class is not labelled, background is whatever may be that class or background.
        """
        logits, y, labelled = into_background(model(batch.x), batch.y, batch.unlabelled)
        loss = (1 - self.dice) * _entropy(logits, y).mean()
        if self.dice:
            loss = loss + self.dice * (1 - _soft_dice(logits, y, labelled)).mean()
        return loss

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """`pixels` [true, predicted] counts and the cross-entropy's `loss`, a sum over images."""
        logits = model(batch.x).float()
        y = batch.y.long().expand(len(logits), *logits.shape[2:])
        logits, y, _ = into_background(logits, y, batch.unlabelled)
        losses = _entropy(logits, y).cpu().double()
        known = y != IGNORED
        pairs = y[known] * classes + logits.argmax(1)[known]
        pixels = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        return {
            "pixels": Sum(pixels.cpu().double().numpy(), len(logits)),
            "loss": Sum(losses.sum().numpy(), len(logits)),
        }

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float]:
        """The pixels of a part of the image, and at most twice the loss of guessing.

        An image with more than that of other classes than the background counts less.
        """
        return {"pixels": _PART * pixels, "loss": 2 * math.log(max(classes, 2))}

    def condensed(self, sums: Mapping[str, Sum]) -> dict[str, Sum]:
        """`pixels` with a small part of the background that is found, of which no class's figure
        is made, so that it does not use up the bound; `loss`."""
        pixels = sums["pixels"].total.copy()
        pixels[0, 0] *= _BACKGROUND
        return {"pixels": Sum(pixels, sums["pixels"].count), "loss": sums["loss"]}

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """No more pixels than images have, and a loss that is not negative."""
        counted = sums["pixels"]
        few = counted.total.sum() <= counted.count * pixels
        return bool(few) and are_counts(counted.total) and are_between(sums["loss"].total)

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """No negative numbers; a class that noise hides does not occur."""
        noised = sums["pixels"].total
        background = max(float(noised[0, 0]), 0.0) / _BACKGROUND
        cells, classes = noised.copy(), len(noised)
        cells[0, 0] = 0.0
        each = cells.sum(axis=0) + cells.sum(axis=1)
        hidden = each < 2 * deviation["pixels"] * math.sqrt(2 * classes + 1)  # standard errors
        hidden[0] = False
        cells[hidden], cells[:, hidden] = 0.0, 0.0
        left = ~(hidden[:, None] | hidden[None, :])
        left[0, 0] = False
        cells[left] = projected(cells[left], float(cells[left].sum()))
        cells[0, 0] = background
        loss = np.maximum(sums["loss"].total, 0.0)
        return {
            "pixels": Sum(cells, sums["pixels"].count),
            "loss": Sum(loss, sums["loss"].count),
        }

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """`dice` and `iou`, means over the classes that are present or predicted; `accuracy` over
        pixels; `loss`. `mix` is ignored: an image does not have a single class.
        """
        pixels = sums["pixels"].total
        overlap = [value for value in _dice(pixels)[1:] if not np.isnan(value)]
        joint = [value / (2 - value) for value in overlap]  # IoU = Dice / (2 - Dice)
        nan, count = float("nan"), pixels.sum()
        return {
            "dice": float(np.mean(overlap)) if overlap else nan,
            "iou": float(np.mean(joint)) if joint else nan,
            "accuracy": float(np.trace(pixels) / count) if count else nan,
            "loss": sums["loss"].mean,
        }

    def occurring(self, sums: Mapping[str, Sum]) -> npt.NDArray[np.bool_]:
        """The classes other than the background that pixels have, or are taken for."""
        pixels = sums["pixels"].total
        return np.asarray((pixels.sum(axis=0) + pixels.sum(axis=1) > 0)[1:])

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Probabilities of the classes at each pixel [b, classes, h, w]."""
        return torch.softmax(model(x).float(), dim=1)

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """The classes that are present, the share of the image that each covers, and boxes."""
        found = []
        for row in self.predict(model, x).cpu():
            sure, predicted = row.max(0)
            shares = torch.bincount(predicted.flatten(), minlength=len(classes)) / predicted.numel()
            details = {"shares": dict(zip(classes, shares.tolist(), strict=True))}
            marks = _marks(predicted, classes)
            found.append(Answer(_words(predicted, classes), float(sure.mean()), details, marks))
        return found

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """The worst images first, with their areas; right means a mean Dice of 0.9."""
        sure, predicted = self.predict(model, batch.x).cpu().max(1)
        found = []
        for at, (answer, truth) in enumerate(zip(predicted, batch.y.cpu().long(), strict=True)):
            known = truth != IGNORED
            pairs = truth[known] * len(classes) + answer[known]
            pixels = torch.bincount(pairs, minlength=len(classes) ** 2).double().numpy()
            overlap = _dice(pixels.reshape(len(classes), len(classes)))[1:]
            score = 1.0 if np.isnan(overlap).all() else float(np.nanmean(overlap))
            words = (_words(truth, classes), _words(answer, classes))
            sample = Sample(
                (at,), *words, float(sure[at].mean()), score >= _RIGHT,
                areas=_areas(truth, answer), overlap=score,
            )  # fmt: skip
            found.append((score, sample))
        return [sample for _, sample in sorted(found, key=lambda pair: pair[0])]

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """For each class: pixels, precision, recall, Dice (which is F1 over pixels) and IoU."""
        pixels = sums["pixels"].total
        rows: list[tuple[str | float | None, ...]] = []
        for number, (name, value) in enumerate(zip(classes, _dice(pixels), strict=True)):
            right, there = pixels[number, number], pixels[number].sum()
            answered = pixels[:, number].sum()
            figures = (
                float(right / answered) if answered else None,
                float(right / there) if there else None,
                None if np.isnan(value) else float(value),
                None if np.isnan(value) else float(value / (2 - value)),
            )
            rows.append((name, float(there), *figures))
        columns = ("Class", "Pixels", "Precision", "Recall", "Dice", "IoU")
        return [Table("By class, over all test pixels", columns, rows)]


def _known(targets: Tensor, classes: tuple[str, ...]) -> bool:
    return bool(torch.all((targets < len(classes)) | (targets == IGNORED)))


def _entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels of each image [b]; 0 if there are none."""
    losses = F.cross_entropy(logits, y.long(), ignore_index=IGNORED, reduction="none")
    return losses.sum((1, 2)) / (y != IGNORED).sum((1, 2)).clamp(min=1)


def _soft_dice(logits: Tensor, y: Tensor, labelled: Tensor | None = None) -> Tensor:
    """Soft Dice of each image [b], mean over the `labelled` [b, classes, 1, 1], smoothed by one
    pixel."""
    known = (y != IGNORED)[:, None]
    probabilities = torch.softmax(logits, dim=1) * known
    classes = torch.arange(logits.shape[1], device=y.device)[:, None, None]
    truth = (y[:, None] == classes) & known  # not F.one_hot, which cannot be vectorised
    both = (probabilities * truth).sum((2, 3))
    each = probabilities.sum((2, 3)) + truth.sum((2, 3))
    overlap = (2 * both + 1) / (each + 1)
    if labelled is None:
        return overlap.mean(1)
    counted = labelled[:, :, 0, 0].to(overlap.dtype)
    return (overlap * counted).sum(1) / counted.sum(1)


def _dice(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Dice [classes] from counts [true, predicted]; NaN for a class that occurs in neither."""
    each = pixels.sum(axis=0) + pixels.sum(axis=1)
    return np.where(each > 0, 2 * np.diag(pixels) / np.maximum(each, 1), np.nan)


def _words(mask: Tensor, classes: tuple[str, ...]) -> str:
    present = [int(number) for number in mask.unique() if 0 < number < len(classes)]
    return ", ".join(classes[number] for number in present) or classes[0]


def _areas(truth: Tensor, answer: Tensor) -> Tensor:
    """Of each pixel [h, w]: 1 found, 2 missed (nothing, or another class), 3 false, else 0."""
    known, there = truth != IGNORED, truth > 0
    found = torch.zeros_like(truth)
    found[known & there & (answer == truth)] = 1
    found[known & there & (answer != truth)] = 2
    found[known & ~there & (answer > 0)] = 3
    return found


def _marks(mask: Tensor, classes: tuple[str, ...]) -> tuple[Mark, ...]:
    """A box around all pixels of each class except the background."""
    found = []
    for number in range(1, len(classes)):
        rows, columns = torch.nonzero(mask == number, as_tuple=True)
        if len(rows):
            low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
            box = tuple(float(value) for value in (*low, *high))
            found.append(Mark(box, classes[number]))  # type: ignore[arg-type]
    return tuple(found)
