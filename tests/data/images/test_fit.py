"""Pixels and boxes go to the same place in the network's input, and come back from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsight.data.base import Preprocess
from fedsight.data.detection.boxes import pack
from fedsight.data.detection.objects import placed, returned
from fedsight.data.images.decode import raster
from fedsight.data.images.fit import Placement

sides = st.integers(1, 60)
fits = st.sampled_from(["stretch", "crop", "pad"])


@given(sides, sides, sides, sides)
def test_the_box_around_a_padded_image_is_where_its_pixels_are(
    width: int, height: int, goal_w: int, goal_h: int
) -> None:
    """Exactly, as training sees it: padding rounds to whole pixels, and so must boxes."""
    goal = Preprocess(1, goal_h, goal_w, "pad")
    shown = raster(Image.fromarray(np.full((height, width), 255, np.uint8)), goal)[0]
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    row = placed((0.0, 0.0, 0.0, float(width), float(height)), (width, height), goal)
    assert row is not None
    assert pack([[row]], [[]])[0, 0].tolist() == [0, *box]
    assert returned(box, (width, height), goal) == pytest.approx((0, 0, width, height))


def test_rounding_moved_boxes_off_the_pixels_before() -> None:
    """100 x 33 pixels at 32 x 32 are 11 pixels high, from 10 to 21, not 10.56 from 10.72."""
    row = placed((0.0, 0.0, 0.0, 100.0, 33.0), (100, 33), Preprocess(1, 32, 32, "pad"))
    assert row == pytest.approx((0.0, 0.0, 10.0, 32.0, 21.0))


@given(sides, sides, st.integers(1, 4), fits)
def test_a_bright_rectangle_lies_in_its_box(width: int, height: int, times: int, fit: str) -> None:
    """Enlarged by a whole number, edges stay edges: what is bright fills the box exactly."""
    image = np.zeros((height, width), np.uint8)
    left, top, right, bottom = width // 3, height // 4, width // 3 + 1, height // 4 + 1
    image[top:bottom, left:right] = 255
    goal = Preprocess(1, height * times, width * times, fit)  # type: ignore[arg-type]
    shown = raster(Image.fromarray(image), goal)[0].astype(float)
    row = placed((0.0, left, top, right, bottom), (width, height), goal)
    assert row is not None
    assert row == pytest.approx((0, left * times, top * times, right * times, bottom * times))
    down, across = np.indices(shown.shape) + 0.5
    middle = [(shown * axis).sum() / shown.sum() for axis in (across, down)]
    inner = left > 0 and top > 0 and right < width and bottom < height
    if inner or times == 1:  # at an edge, interpolation has neighbours on one side only
        assert middle == pytest.approx([(row[1] + row[3]) / 2, (row[2] + row[4]) / 2], abs=0.02)


@given(sides, sides, sides, sides, fits)
def test_there_and_back(width: int, height: int, goal_w: int, goal_h: int, fit: str) -> None:
    goal = Preprocess(1, goal_h, goal_w, fit)  # type: ignore[arg-type]
    placement = Placement.of((width, height), goal)
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height)
    assert placement.backward(placement.forward(box)) == pytest.approx(box, abs=1e-9)
    assert placement.forward(placement.source) == pytest.approx(placement.target, abs=1e-9)
    assert placement.target[0] >= 0 <= placement.target[1]
    assert placement.target[2] <= goal_w
    assert placement.target[3] <= goal_h


@given(sides, sides, sides, sides)
def test_cropping_keeps_the_aspect_ratio_and_fills_the_input(
    width: int, height: int, goal_w: int, goal_h: int
) -> None:
    placement = Placement.of((width, height), Preprocess(1, goal_h, goal_w, "crop"))
    across, down = placement.scale
    assert across == pytest.approx(down)
    assert placement.target == (0, 0, goal_w, goal_h)
    left, top, right, bottom = placement.source
    assert (left + right, top + bottom) == pytest.approx((width, height))
