"""Images that are moved take their boxes along, exactly."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.data.detection.boxes import Row, labelled, pack
from fedsight.tasks.detection.augment import MIN_VISIBLE, moved

HEIGHT, WIDTH = 40, 64


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Tensor, list[list[Row]]]:
    """A bright block in each of some images [b, 1, h, w], and its box."""
    count = draw(st.integers(1, 5))
    x, rows = torch.zeros(count, 1, HEIGHT, WIDTH), []
    for image in range(count):
        left, top = draw(st.integers(0, WIDTH - 10)), draw(st.integers(0, HEIGHT - 10))
        right, bottom = draw(st.integers(left + 8, WIDTH)), draw(st.integers(top + 8, HEIGHT))
        x[image, 0, top:bottom, left:right] = 1.0
        box: Row = (image % 2, left, top, right, bottom)
        rows.append([box])
    return x, rows


def seen(image: Tensor) -> Tensor:
    """The box around what is bright in [h, w]; four zeros if nothing is."""
    rows, columns = ((image > 0.5).any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return torch.zeros(4)
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return torch.tensor([float(edge) for edge in edges])


@given(blocks(), st.integers(0, 2**31), st.booleans(), st.booleans(), st.floats(1, 3))
def test_boxes_stay_around_what_they_were_around(
    case: tuple[Tensor, list[list[Row]]], seed: int, mirror: bool, turn: bool, zoom: float
) -> None:
    x, rows = case
    y = pack(rows, [[3]] * len(x))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new_x, new_y = moved(x, y, mirror, turn, zoom)
    assert new_x.shape == x.shape
    assert torch.equal(labelled(new_y, 4), labelled(y, 4))
    for image, before, after in zip(new_x[:, 0], y[:, 0], new_y[:, 0], strict=True):
        found = seen(image)
        if after[0] >= 0:
            assert after[0] == before[0]
            assert bool(((found - after[1:]).abs() <= 1).all())
        else:  # too little of it is left; a pixel each way is the rounding's
            across, down = (found[2:] - found[:2] - 1).clamp(min=0)
            most = zoom**2 * (before[3] - before[1]) * (before[4] - before[2])
            touches = [found[0] == 0, found[1] == 0, found[2] == WIDTH, found[3] == HEIGHT]
            assert zoom > 1
            assert not bool(found.any()) or any(touches)
            assert across * down < MIN_VISIBLE * most


def test_square_images_are_turned_about_the_diagonal_too() -> None:
    torch.manual_seed(0)
    x = torch.zeros(40, 1, 8, 8)
    x[:, :, 1:3, 4:8] = 1.0
    new_x, new_y = moved(x, pack([[(0, 4, 1, 8, 3)]] * 40, [[]] * 40), False, True, 1.0)
    shapes = {tuple((box[2:] - box[:2]).tolist()) for box in new_y[:, 0, 1:]}
    assert shapes == {(4.0, 2.0), (2.0, 4.0)}
    assert len({tuple(box.tolist()) for box in new_y[:, 0, 1:]}) == 8
    assert all(
        torch.equal(seen(i), box) for i, box in zip(new_x[:, 0], new_y[:, 0, 1:], strict=True)
    )


def test_without_a_zoom_images_stay_as_they_are() -> None:
    x, y = torch.rand(3, 1, 16, 16), pack([[(1, 2, 3, 5, 9)]] * 3, [[]] * 3)
    same_x, same_y = moved(x, y, False, False, 1.0)
    assert torch.equal(same_x, x)
    assert torch.equal(same_y, y)
