"""Spots: what is taken away is gone, what is pasted is there, and a mark fits into one of them."""

from __future__ import annotations

import pytest
import torch

from fedsight.evaluation.shortcuts.spots import GRID, PLACES, SMALLEST, Spots, at_border

SIZES = [(28, 28), (14, 14), (33, 50), (224, 180)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_spot_without_its_mark_is_as_the_pixels_around_it(height: int, width: int) -> None:
    spots = Spots.of(height, width)
    for number, (top, left, bottom, right) in enumerate(spots.boxes):
        x = torch.full((1, 3, height, width), 0.25)
        x[:, :, top:bottom, left:right] = 9.0
        gone = spots.removed(x, torch.tensor([number]))
        # The mean of up to 40,000 pixels is that of float32.
        assert torch.allclose(gone, torch.full_like(x, 0.25), rtol=1e-4)


def test_nothing_outside_a_spot_changes() -> None:
    spots, x = Spots.of(28, 28), torch.rand(4, 1, 28, 28)
    number = torch.tensor([0, 7, 20, 35])
    outside = ~spots.masks[number].expand_as(x)
    assert torch.equal(spots.removed(x, number)[outside], x[outside])
    other = torch.rand(4, 1, 28, 28)
    pasted, within = spots.pasted(x, other, 7), spots.masks[7].expand_as(x)
    assert torch.equal(pasted[within], other[within])
    assert torch.equal(pasted[~within], x[~within])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mark_of_the_size_of_a_cell_fits_into_a_spot_wherever_it_is(
    height: int, width: int
) -> None:
    spots = Spots.of(height, width)
    down, across = height // GRID, width // GRID
    for top in range(height - down + 1):
        for left in range(0, width - across + 1, 3):
            assert any(
                box[0] <= top <= box[2] - down and box[1] <= left <= box[3] - across
                for box in spots.boxes
            )


def test_the_border_is_the_outermost_spots() -> None:
    assert len(PLACES) == 36
    assert sum(at_border(spot) for spot in range(36)) == 20
    assert not at_border(7)
    assert at_border(5)
    assert SMALLEST == 14
