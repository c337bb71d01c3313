"""Boxes drawn on images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsight.evaluation.marks import COLOURS, MIN_SIDE, marked
from fedsight.tasks.presentation import Mark


def test_an_image_without_marks_is_left_as_it_is() -> None:
    image = Image.new("L", (8, 6))
    assert marked(image, ()) is image


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_small_image_is_enlarged_so_that_a_box_leaves_its_inside_free(mode: str) -> None:
    drawn = marked(Image.new(mode, (32, 16), 0), [Mark((4, 4, 12, 12), "")])
    assert drawn.size == (MIN_SIDE, MIN_SIDE // 2)
    pixels = np.asarray(drawn)
    assert tuple(pixels[4 * 8, 8 * 8]) == COLOURS["found"]  # the upper edge
    assert not pixels[6 * 8 : 10 * 8, 6 * 8 : 10 * 8].any()  # the inside
    assert not pixels[:, 16 * 8 :].any()  # what is elsewhere


@given(
    box=st.tuples(*[st.floats(-5, 40)] * 4).map(
        lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
    ),
    kind=st.sampled_from(["found", "missed", "false"]),
)
def test_labels_stay_inside_wherever_the_box_lies(
    box: tuple[float, float, float, float], kind: str
) -> None:
    drawn = np.asarray(marked(Image.new("RGB", (32, 32)), [Mark(box, "a", kind)]))  # type: ignore[arg-type]
    assert (drawn > 200).all(axis=2).any()  # the label's letters can be read
