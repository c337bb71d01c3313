"""Degraded images: the same whoever asks, and as each degradation is defined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.data import degraded
from fedsight.data.degraded import DEGRADATIONS


def pictures(height: int = 24, width: int = 20, channels: int = 1) -> torch.Tensor:
    """Three images [3, channels, height, width] in [0, 1] with detail at every scale."""
    draws = torch.Generator().manual_seed(height * width)
    return torch.rand(3, channels, height, width, generator=draws) * 0.9 + 0.1


@pytest.mark.parametrize("kind", DEGRADATIONS)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_pixels_stay_pixels_and_depend_on_nothing_but_themselves(
    kind: str, height: int, width: int, channels: int
) -> None:
    pixels = pictures(height, width, channels)
    before = pixels.clone()
    found = DEGRADATIONS[kind](pixels)
    assert torch.equal(pixels, before)
    assert found.shape == pixels.shape
    assert found.min() >= 0
    assert found.max() <= 1
    for at in range(3):
        alone = DEGRADATIONS[kind](pixels[at : at + 1])
        torch.testing.assert_close(alone[0], found[at], rtol=0, atol=1e-6)


def test_a_smaller_image_is_what_16_pixels_tell() -> None:
    fine = torch.zeros(1, 1, 64, 64)
    fine[:, :, ::2] = 1.0  # lines that 16 pixels cannot show
    found = DEGRADATIONS["smaller"](fine)
    assert float((found - 0.5).abs()[:, :, 8:-8].max()) < 0.05
    small = pictures(16, 18)
    assert torch.equal(DEGRADATIONS["smaller"](small), small)


def test_a_darker_image_has_a_quarter_of_the_light_and_of_the_steps() -> None:
    found = DEGRADATIONS["darker"](torch.linspace(0, 1, 256).view(1, 1, 16, 16))
    assert float(found.max()) == pytest.approx(64 / 255)
    assert len(found.unique()) == 65


def test_images_are_turned_to_either_side_and_back_again() -> None:
    dots = torch.zeros(40, 1, 41, 41)
    dots[..., 20, 36] = torch.linspace(0.5, 1, 40).view(-1, 1)  # to the right of the centre
    found = DEGRADATIONS["turned"](dots)
    rows = found[:, 0].sum(2).argmax(1)
    rise = round(16 * torch.tensor(degraded.TURN).deg2rad().sin().item())
    assert set(rows.tolist()) == {20 - rise, 20 + rise}


def test_a_quarter_of_an_image_is_covered_and_not_always_the_same() -> None:
    white = torch.linspace(0.5, 1, 600).view(-1, 1, 1, 1).expand(-1, 1, 20, 12)
    found = DEGRADATIONS["covered"](white)
    hidden = found[:, 0] == 0
    for one in hidden:
        assert int(one.any(1).sum()) == 10
        assert int(one.any(0).sum()) == 6
    assert len(hidden.unique(dim=0)) > 20
    assert bool(hidden.any(0).all())  # every place is covered now and then


@pytest.mark.parametrize("kind", ["turned", "covered"])
def test_what_is_drawn_for_an_image_cannot_be_told_without_its_pixels(kind: str) -> None:
    one = torch.full((1, 1, 40, 40), 0.5)
    one[..., 20, 36] = 1.0
    many = one.repeat(30, 1, 1, 1)
    many[:, 0, 0, 0] = torch.linspace(0.4, 0.6, 30)  # a corner that hardly differs
    found = DEGRADATIONS[kind](many).gt(0.05)[:, :, 8:, 8:]
    assert len(found.unique(dim=0)) > 1
    again = DEGRADATIONS[kind](torch.cat([many.flip(0), one]))[:30].flip(0)
    assert torch.equal(again, DEGRADATIONS[kind](many))  # wherever it stands
