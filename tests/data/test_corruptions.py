"""Corruptions: the same pixels whoever asks, stronger at each severity, and as each is defined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.data.corruptions import CORRUPTIONS, SEVERITIES


def pictures(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    """Smooth images [count, channels, side, side] in [0, 1], each another one."""
    rows = torch.linspace(0, 3, side)
    waves = [torch.sin(rows * (1 + number)) for number in range(count * channels)]
    plain = torch.stack([0.5 + 0.3 * wave[:, None] * wave[None, :] for wave in waves])
    return plain.view(count, channels, side, side)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@given(channels=st.sampled_from([1, 2, 3, 4]), severity=st.integers(1, SEVERITIES))
def test_pixels_stay_pixels_and_depend_on_no_batch(kind: str, channels: int, severity: int) -> None:
    pixels, numbers = pictures(3, channels, 12), torch.tensor([7, 3, 1000])
    before = pixels.clone()
    found = CORRUPTIONS[kind].apply(pixels, severity, numbers)
    assert torch.equal(pixels, before)
    assert found.shape == pixels.shape
    assert found.min() >= 0
    assert found.max() <= 1
    for at in range(3):
        alone = CORRUPTIONS[kind].apply(pixels[at : at + 1], severity, numbers[at : at + 1])
        torch.testing.assert_close(alone[0], found[at], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_is_farther_from_the_image(kind: str) -> None:
    pixels, numbers = pictures(8), torch.arange(8)
    off = [
        float((CORRUPTIONS[kind].apply(pixels, one, numbers) - pixels).abs().mean())
        for one in range(1, SEVERITIES + 1)
    ]
    assert off[0] > 0
    assert off == sorted(off)


def test_noise_has_the_deviation_that_it_says() -> None:
    grey = torch.full((20, 1, 40, 40), 0.5)
    for severity, level in enumerate(CORRUPTIONS["noise"].levels[:3], start=1):
        found = CORRUPTIONS["noise"].apply(grey, severity, torch.arange(20))
        assert float(found.std()) == pytest.approx(level, rel=0.03)


def test_contrast_keeps_the_mean_and_shrinks_the_deviation() -> None:
    pixels = pictures(4, 3)
    found = CORRUPTIONS["contrast"].apply(pixels, 3, torch.arange(4))
    torch.testing.assert_close(found.mean((2, 3)), pixels.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), 0.2 * pixels.std((2, 3)))


def test_a_move_is_by_whole_pixels_and_black_comes_in() -> None:
    white = torch.ones(50, 1, 20, 20)
    found = CORRUPTIONS["shift"].apply(white, 3, torch.arange(50))  # 0.12 of 20 pixels: 2
    assert set(found.unique().tolist()) == {0.0, 1.0}
    left = {float(one) for one in found.sum((1, 2, 3))}
    assert left == {20.0 * 18, 18.0 * 18}  # along one side, or along both


def test_no_image_is_fine() -> None:
    for corruption in CORRUPTIONS.values():
        assert corruption.apply(torch.zeros(0, 1, 8, 8), 1, torch.zeros(0, dtype=torch.int64)).shape
