"""Boxes around outlines and masks: those that pycocotools finds, and every fault is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from fedsight.core.errors import DataError
from fedsight.data.detection.outlines import around

corner = st.integers(0, 60)


@given(corner, corner, st.integers(1, 30), st.integers(1, 20))
def test_a_mask_of_runs_has_the_box_of_its_pixels(
    left: int, top: int, width: int, height: int
) -> None:
    pixels = np.zeros((90, 100), np.uint8, order="F")
    pixels[top : top + height, left : left + width] = 1
    runs = mask.encode(pixels)
    flat = pixels.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    expected = (left, top, width, height)
    compressed = {"counts": runs["counts"].decode(), "size": [90, 100]}
    for one in (compressed, {"counts": counts, "size": [90, 100]}):
        assert around(one, (90, 100), "here") == expected
        assert around(one, (None, None), "here") == expected


@given(st.lists(st.tuples(corner, corner), min_size=3, max_size=9))
def test_polygons_have_the_box_of_their_corners(points: list[tuple[int, int]]) -> None:
    flat = [float(value) for point in points for value in point]
    across, down = flat[0::2], flat[1::2]
    box = (min(across), min(down), max(across) - min(across), max(down) - min(down))
    assert around([flat], (None, None), "here") == box
    assert around(flat, (None, None), "here") == box  # one polygon without its list
    far = [90.0, 90.0, 95.0, 90.0, 95.0, 97.0]
    left, top = box[:2]
    assert around([flat, far], (None, None), "here") == (left, top, 95 - left, 97 - top)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5]], "three points"),
        ([[1, 2, 3, 4, 5, "6"]], "three points"),
        ("outline", "three points"),
        ({"counts": [4], "size": [2, 2]}, "without a pixel"),
        ({"counts": [3, 2], "size": [2, 2]}, "do not fill"),
        ({"counts": [1, 3]}, "not a mask of runs"),
        ({"counts": [1, 3], "size": [2, 2], "more": 1}, "its image"),
    ],
)
def test_what_is_neither_is_refused_by_entry(segmentation: Any, said: str) -> None:
    size = (9, 9) if "more" in segmentation else (2, 2)
    with pytest.raises(DataError, match=r"x\.json, annotations\[3\]") as caught:
        around(segmentation, size, "x.json, annotations[3]")
    assert said in caught.value.cause
