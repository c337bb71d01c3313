"""COCO's segmentations: polygons and run-length encoded masks, and the boxes around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

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
    polygons = polygons_of(segmentation, where)
    across = [value for one in polygons for value in one[0::2]]
    down = [value for one in polygons for value in one[1::2]]
    left, top = min(across), min(down)
    return (left, top, max(across) - left, max(down) - top)


def polygons_of(segmentation: Any, where: str) -> list[list[float]]:
    """The polygons [x, y, x, y, ...] of a segmentation that is one of them, or a list of some.

    Raises DataError at `where` for one with fewer than three points.
    """
    polygons: list[Any] = list(segmentation) if isinstance(segmentation, list | tuple) else []
    if polygons and all(isinstance(value, int | float) for value in polygons):
        polygons = [polygons]
    for one in polygons or [None]:
        sound = isinstance(one, list | tuple) and len(one) >= 6 and len(one) % 2 == 0
        if not sound or not all(isinstance(v, int | float) and math.isfinite(v) for v in one):
            raise DataError(
                f"{where}: 'segmentation' has a polygon that is not the x and y of three points or "
                "more",
                _CURE,
            )
    return [[float(value) for value in one] for one in polygons]


def runs_of(
    segmentation: Mapping[str, Any], image: tuple[int | None, int | None], where: str
) -> dict[str, Any]:
    """A run-length encoded mask as pycocotools takes it.

    Raises DataError at `where` for runs that do not fill the mask, and for another size than that
    of the `image` (height, width).
    """
    from pycocotools import mask

    try:
        height, width = (int(side) for side in segmentation.get("size") or ())
        counts = segmentation.get("counts")
        runs = [int(one) for one in counts] if isinstance(counts, list) else _runs(str(counts))
        if sum(runs) != height * width or min(runs) < 0:
            raise ValueError("the runs do not fill the mask")
        found: dict[str, Any] = mask.frPyObjects(
            {"counts": runs, "size": [height, width]}, height, width
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: 'segmentation' is not a mask of runs: {error}", _CURE) from error
    if None not in image and (height, width) != image:
        cause = f"{where}: 'segmentation' has the size {[height, width]}, its image {list(image)}"
        raise DataError(cause, _CURE)
    return found


def pixels_of(runs: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """The pixels [h, w] of a mask as pycocotools has it, whose counts fill its size."""
    counts = _runs(runs["counts"].decode("ascii"))
    height, width = runs["size"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def _runs(text: str) -> list[int]:
    """The lengths in COCO's compressed form: five bits a character, differences from the third on.

    (Lin et al., cocoapi, `rleFrString`, which trusts its input.)
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"'{text[:20]}' is not in COCO's compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"'{text[:20]}' ends too early")
    return runs


def _of_runs(
    segmentation: Mapping[str, Any], image: tuple[int | None, int | None], where: str
) -> Sides:
    from pycocotools import mask

    box = [float(value) for value in mask.toBbox(runs_of(segmentation, image, where))]
    if box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where}: 'segmentation' is a mask without a pixel", _CURE)
    return (box[0], box[1], box[2], box[3])
