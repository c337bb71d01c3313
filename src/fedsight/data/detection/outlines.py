"""Boxes around COCO's segmentations: polygons, and run-length encoded masks."""

from __future__ import annotations

import math
from typing import Any

from fedsight.core.errors import DataError

Sides = tuple[float, float, float, float]  # left, top, width, height
_CURE = "correct the file, or export it again from the labelling tool"


def around(segmentation: Any, size: tuple[int | None, int | None], where: str) -> Sides:
    """The box around a segmentation, in pixels.

    It is a list of polygons [x, y, x, y, ...], one such polygon, or a run-length encoded mask of
    `size` (height, width), compressed or not. Raises DataError at `where` for anything else, and a
    mask without a pixel.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation, size, where)
    polygons: list[Any] = segmentation if isinstance(segmentation, list) else [None]
    if all(isinstance(value, int | float) for value in polygons):
        polygons = [polygons]
    for one in polygons:
        sound = isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0
        if not sound or not all(isinstance(v, int | float) and math.isfinite(v) for v in one):
            raise DataError(
                f"{where}: 'segmentation' has a polygon that is not the x and y of three points or "
                "more",
                _CURE,
            )
    across = [float(value) for one in polygons for value in one[0::2]]
    down = [float(value) for one in polygons for value in one[1::2]]
    left, top = min(across), min(down)
    return (left, top, max(across) - left, max(down) - top)


def _of_runs(segmentation: Any, image: tuple[int | None, int | None], where: str) -> Sides:
    from pycocotools import mask

    counts, size = segmentation.get("counts"), segmentation.get("size")
    try:
        height, width = (int(side) for side in size or ())
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError("the runs do not fill the mask")
            runs = mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
        else:
            runs = {"counts": str(counts).encode("ascii"), "size": [height, width]}
        box = [float(value) for value in mask.toBbox(runs)]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: 'segmentation' is not a mask of runs: {error}", _CURE) from error
    if None not in image and (height, width) != image:
        cause = f"{where}: 'segmentation' has the size {[height, width]}, its image {list(image)}"
        raise DataError(cause, _CURE)
    if box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where}: 'segmentation' is a mask without a pixel", _CURE)
    return (box[0], box[1], box[2], box[3])
