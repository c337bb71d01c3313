"""Outlines and run-length encoded masks as pixels: the classes of an image, from its objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.data.detection.objects import Object
from fedsight.data.detection.outlines import pixels_of, polygons_of, runs_of
from fedsight.data.images.mask_values import Numbers

Outside = Literal["error", "clip"]
Points = npt.NDArray[np.float64]  # [n, 2], x and y
_SLACK = 1e-3  # of the longer side: what rounding to three digits may add
_BACKGROUND = ("background", "bg")  # which some draw as an object
_FARTHEST = 10  # times the longer side: no outline of this image
# pixels of an object's outlines, each of which takes 50 bytes while they are painted
MAX_OUTLINE = 10_000_000


@dataclass
class Canvas:
    """Paints the objects of images, and counts what must be said about it."""

    classes: tuple[str, ...]  # the background first
    outside: Outside = "error"
    # of each image (threads may add at the same time): pixels in objects of two classes, and
    # objects without a pixel
    counts: list[tuple[int, int]] = field(default_factory=list)

    def painted(self, objects: Sequence[Object], size: tuple[int, int]) -> Numbers:
        """The class numbers of an image of `size` (width, height), [h, w] uint8.

        A pixel belongs to an outline as in COCO (pycocotools). Where objects of two classes
        overlap, the smaller one counts. Raises DataError naming the object for an unknown class,
        one without an outline, and one that reaches outside of its image, unless that is clipped.
        """
        from pycocotools import mask

        width, height = size
        drawn = []
        for one in objects:
            number = self._number(one)
            runs = self._runs(one, size)
            drawn.append((int(mask.area(runs)), number, runs))
        numbers = np.zeros((height, width), np.uint8)
        painted, shared = np.zeros((2, height, width), bool)
        for _, number, runs in sorted(drawn, key=lambda each: -each[0]):
            inside = pixels_of(runs)
            shared |= painted & inside & (numbers != number)
            numbers[inside] = number
            painted |= inside
        self.counts.append((int(shared.sum()), sum(area == 0 for area, _, _ in drawn)))
        return numbers

    def notes(self, objects: Sequence[Object]) -> tuple[str, ...]:
        """What to say about all objects that were painted."""
        crowds = sum(one.crowd for one in objects)
        shared, empty = np.array(self.counts or [(0, 0)]).sum(0).tolist()
        said = (
            (shared, "pixels lie in objects of two classes: the smaller object counts"),
            (empty, "objects are too small to cover a pixel"),
            (crowds, "objects are crowds: all of their pixels count as their class"),
        )
        return tuple(f"{count:,} {what}" for count, what in said if count)

    def _number(self, one: Object) -> int:
        if one.label == self.classes[0] and one.label.casefold().strip("_") not in _BACKGROUND:
            raise DataError(
                f"{one.where}: its class '{one.label}' is the first of data.classes, which is the "
                "background, that nobody draws",
                f"put a name for the rest of the image first: data.classes = ['background', "
                f"'{one.label}', ...]",
            )
        if one.label not in self.classes:
            raise DataError(
                f"{one.where}: unknown class '{one.label}'",
                f"{nearest(one.label, self.classes)}; correct it or add it to data.classes",
            )
        return self.classes.index(one.label)

    def _runs(self, one: Object, size: tuple[int, int]) -> Mapping[str, Any]:
        """The pixels of an object, run-length encoded."""
        from pycocotools import mask

        if one.shape is None:
            raise DataError(
                f"{one.where}: it is a box without an outline",
                "export outlines (segmentation), or use data.name = 'boxes' and task.name = "
                "'detect'",
            )
        width, height = size
        if isinstance(one.shape, Mapping):
            return runs_of(one.shape, (height, width), one.where)
        polygons = polygons_of(one.shape, one.where)
        points = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
        self._check_inside(one, np.concatenate(points), size)
        _check_length(one, points)
        found: Mapping[str, Any] = mask.merge(mask.frPyObjects(polygons, height, width))
        return found

    def _check_inside(self, one: Object, points: Points, size: tuple[int, int]) -> None:
        beyond = max(0.0, float((-points).max()), float((points - size).max()))
        if beyond <= _SLACK * max(size):
            return
        far = beyond > _FARTHEST * max(size)
        if far or self.outside == "error":
            cure = "correct the outline"
            raise DataError(
                f"{one.where}: its outline reaches {beyond:.1f} pixels outside of its image of "
                f"{size[0]} x {size[1]}",
                cure if far else f"{cure}, or set data.outside = 'clip'",
            )


def _check_length(one: Object, polygons: Sequence[Points]) -> None:
    """Raise DataError for an outline that takes more memory than any image: its points may go to
    and fro across a wide one."""
    length = sum(np.abs(each - np.roll(each, 1, 0)).max(1).sum() for each in polygons)
    if length > MAX_OUTLINE:
        raise DataError(
            f"{one.where}: its outline is {length:,.0f} pixels long, and {MAX_OUTLINE:,} can be "
            "painted safely",
            "correct the outline",
        )
