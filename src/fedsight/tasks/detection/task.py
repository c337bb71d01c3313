"""Object detection: boxes with a class, found in images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.data.detection import boxes
from fedsight.models.detector import MOST, Detector
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.objects import Objects
from fedsight.tasks.detection import noised, precision, presentation
from fedsight.tasks.detection.augment import moved
from fedsight.tasks.plausible import are_counts
from fedsight.tasks.presentation import Answer, Curve, Sample, Table


@tasks.add("detect", source="Lin et al., Microsoft COCO, ECCV 2014")
class Detection(Task):
    """Boxes around objects of each class: mean average precision as COCO counts it.

    Targets are boxes [b, most, 5] (`fedsight.data.detection.boxes`). A class that a site does not
    label is neither trained nor evaluated on its images. Difficult objects are trained on and not
    counted; in a crowd, detections are not counted, and its class is not trained as background in
    that image.
    """

    # what objects of an unlabelled class are trained as; "background" is wrong, for comparison only
    unlabelled: Literal["ignore", "background"] = "ignore"
    mirror: bool = False  # mirror half of the training images left to right, with their boxes
    turn: bool = False  # also top to bottom and across the diagonal: for views from above
    # scale training images randomly, up to this factor larger or smaller, at random positions;
    # objects of which less than half remains become background
    zoom: float = Field(1.0, ge=1, le=4)
    # side, in pixels of the network's input, up to which an object counts as small
    small: float = Field(32.0, gt=0)
    medium: float = Field(96.0, gt=0)  # likewise, as medium
    shown: float = Field(0.3, ge=0, le=1)  # minimum score of objects that are reported and drawn

    headline: ClassVar[str] = "map"
    headline_title: ClassVar[str] = "mAP"
    figures: ClassVar[tuple[str, ...]] = ("map", "map_50", "f1_50", "loss")
    takes: ClassVar[str] = "boxes"
    placed: ClassVar[bool] = True
    covering: ClassVar[Covering | None] = Objects()
    heeds_unlabelled: ClassVar[bool] = True  # as the rows of its targets say

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The detector's own loss, after the augmentation that the settings ask for.

        It draws from torch's default generator, which the client step has seeded.
        """
        # The padding is that of the fullest image of all, which must not rescale other gradients.
        x, y = batch.x, boxes.trimmed(batch.y)
        if self.mirror or self.turn or self.zoom > 1:
            x, y = moved(x, y, self.mirror, self.turn, self.zoom)
        return self._loss(_detector(model), x, y)

    def _loss(self, model: Detector, x: Tensor, y: Tensor) -> Tensor:
        known = boxes.labelled(y, model.classes) & ~boxes.crowded(y, model.classes)
        if self.unlabelled == "background":
            known = torch.ones_like(known)
        return model.loss(x, boxes.trained(y), known)

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """Detections by score and objects (`detection.precision`), and the training loss."""
        detector, images = _detector(model), len(batch.y)
        y = boxes.trimmed(batch.y)  # the padding is that of all images, and must not change a bit
        found = detector.find(batch.x).float()
        ranges = precision.areas(self.small, self.medium)
        counts, objects = precision.histograms(found, y, classes, ranges)
        known = boxes.labelled(y, classes) & ~boxes.crowded(y, classes)
        loss = float(detector.loss(batch.x, boxes.trained(y), known))
        return {
            "detections": Sum(counts, images),
            "objects": Sum(objects, images),
            "loss": Sum(np.asarray(loss * images), images),
        }

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float]:
        """A few objects and detections; an image with more is scaled down as a whole."""
        return {"found": noised.MOST, "loss": noised.MOST_LOSS}

    def condensed(self, sums: Mapping[str, Sum]) -> dict[str, Sum]:
        """`found` [classes, numbers], see `detection.noised`, and `loss`."""
        found = noised.condensed(sums["detections"].total, sums["objects"].total)
        return {"found": Sum(found, sums["objects"].count), "loss": sums["loss"]}

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """At most `MOST` detections and an object a pixel of a class in an image, and no more right
        detections than objects."""
        found, objects = sums["detections"].total, sums["objects"]
        each = found.sum(axis=(3, 4))  # [classes, areas, overlaps]
        right = found[:, :, :, 0].sum(axis=3)
        return (
            are_counts(found)
            and are_counts(objects.total, objects.count * pixels)
            and are_counts(each, MOST * objects.count)
            and are_counts(right, objects.total[:, :, None])
        )

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """Objects of all sizes together; a class whose objects noise hides has none."""
        counts, objects = noised.repaired(sums["found"].total, deviation["found"])
        images = sums["found"].count
        loss = np.maximum(sums["loss"].total, 0.0)
        return {
            "detections": Sum(counts, images),
            "objects": Sum(objects, images),
            "loss": Sum(loss, images),
        }

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """mAP over IoU 0.50 to 0.95 (`map`), at 0.50, and of small, medium and large objects;
        `map_slack`: the largest error that counting scores in bins gives `map`. F1 at
        IoU 0.50 of the detections with a score of at least `shown`.

        Classes have equal weights, or those of `mix`; classes without objects are left out.
        """
        found = precision.average_precision(sums["detections"].total, sums["objects"].total)
        by_class = found.mean(2)  # [classes, areas]
        spare = precision.slack(sums["detections"].total[:, :1], sums["objects"].total[:, :1])
        f1 = precision.f1(sums["detections"].total, sums["objects"].total, self.shown)
        return {
            "map": _weighted(by_class[:, 0], mix),
            "map_slack": _weighted(spare.mean(2)[:, 0], mix),
            "map_50": _weighted(found[:, 0, 0], mix),
            "f1_50": _weighted(f1[:, 0], mix),
            "map_small": _weighted(by_class[:, 1], mix),
            "map_medium": _weighted(by_class[:, 2], mix),
            "map_large": _weighted(by_class[:, 3], mix),
            "loss": sums["loss"].mean,
        }

    def occurring(self, sums: Mapping[str, Sum]) -> npt.NDArray[np.bool_]:
        """The classes of the objects."""
        return np.asarray(sums["objects"].total[:, 0] > 0)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """The highest score of each class [b, classes]."""
        detector = _detector(model)
        return precision.padded_scores(detector.find(x), detector.classes)

    def check(self, dataset: Dataset) -> list[Problem]:
        """The data must have boxes."""
        found = dataset.train.targets
        if found is not None and boxes.are_boxes(found):
            return []
        cause = "the task 'detect' learns from boxes, but these data have none"
        return [
            Problem(
                "data.name",
                cause,
                "use a source with boxes, such as data.name = 'boxes', or another task",
            )
        ]

    def blank(self, classes: int) -> Tensor:
        """No box: [1, 1, 5]."""
        return boxes.pack([[]], [[]])

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """The objects with a score of at least `shown`, as `boxes` in the details and as marks."""
        return [
            presentation.answer(rows, classes)
            for rows in presentation.above_score(_detector(model).find(x), self.shown)
        ]

    def showing(self, least: float) -> Self:
        """With `least` as `shown`."""
        return self.model_copy(update={"shown": least})

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """Images with true and found boxes; right if exactly the true ones are found."""
        found = presentation.above_score(_detector(model).find(batch.x), self.shown)
        truths = batch.y.tolist()
        return [
            presentation.sample(at, rows, truth, classes)
            for at, (rows, truth) in enumerate(zip(found, truths, strict=True))
        ]

    def curves(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Curve]:
        """Precision over recall at IoU 0.50: of each class with objects, up to ten."""
        return presentation.curves(sums["detections"].total, sums["objects"].total, classes)

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """Found, missed and false detections, and average precision, of each class."""
        counts, objects = sums["detections"].total, sums["objects"].total
        return presentation.tables(counts, objects, classes, self.shown)

    def site_tables(
        self, sums: Mapping[str, Mapping[str, Sum]], classes: tuple[str, ...]
    ) -> list[Table]:
        """Average precision of each class at each site."""
        pairs = {
            site: (own["detections"].total, own["objects"].total) for site, own in sums.items()
        }
        return presentation.site_tables(pairs, classes)


def _detector(model: nn.Module) -> Detector:
    if isinstance(model, Detector):
        return model
    cause = f"the task 'detect' needs a detector, but the model is a {type(model).__name__}"
    raise ConfigError(
        [Problem("model.name", cause, "choose a detector, such as model.name = 'small_detector'")]
    )


def _weighted(values: npt.NDArray[np.float64], mix: npt.NDArray[np.float64] | None) -> float:
    seen = ~np.isnan(values)
    weights = seen.astype(float) if mix is None else np.where(seen, mix, 0.0)
    if not weights.sum():
        return float("nan")
    return float((weights[seen] * values[seen]).sum() / weights.sum())
