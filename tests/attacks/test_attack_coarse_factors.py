"""A factor that float32 cannot hold is rounded up, and what it clips is twice as long as the clip.

Below 2^-126 the numbers of float32 are the multiples of 2^-149. The coordinator chooses weights
that make a gradient or an update as long as 10^38, and so small a clip that clip over length is a
little more than half of 2^-149. Rounded, the factor is 2^-149, and the result has nearly two clips,
while the noise is sized for one: epsilon is what half of the noise gives.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_attack_dpsgd_coupling import epsilon
from test_attack_last_digits import made, total
from torch import Tensor, nn

from fedsight.client import per_image
from fedsight.client.per_image import PerImage, Single
from fedsight.core.types import Batch
from fedsight.privacy import clip as clips

SMALLEST = 2.0**-149
HALF = 0.51  # of it, which is rounded up to the whole
PIXELS, HUGE = 64, 1e38


def trap() -> nn.Module:
    """All logits are 0, and the gradient of the first layer is about HUGE times the image."""
    first, last = nn.Linear(PIXELS, 1, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        last.weight.copy_(torch.tensor([[HUGE], [-HUGE]]))
    return nn.Sequential(nn.Flatten(), first, last)


def gradient_in_clips() -> float:
    """The length of an image's clipped gradient over the clip, which is chosen for the image."""
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image = Single(Batch(x, torch.zeros(1, dtype=torch.int64)), 0)
    whole = float(total(made(PerImage, trap()), [image], 1e60).norm())
    clip = HALF * SMALLEST * whole
    return float(total(made(PerImage, trap()), [image], clip).norm()) / clip


def update_in_clips() -> float:
    """The length of a clipped update over the clip, which is chosen for the update."""
    update = torch.full((400,), 3e38)
    most = HALF * SMALLEST * float(update.double().norm())
    most += math.sqrt(len(update)) * 2.0**-30  # what is left for the rounding of exact sums
    found = clips.clip({"delta": update}, most, "ward")["delta"]
    return float(found.double().norm()) / most


def test_the_clip_of_a_gradient_is_exceeded_by_a_factor_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(per_image, "COARSE", 0.0)
    assert gradient_in_clips() > 1.9
    assert epsilon(gradient_in_clips()) > 1.8 * epsilon(1.0)


def test_ours_is_kept() -> None:
    assert 0.99 < gradient_in_clips() <= 1 + 1e-6


def test_the_clip_of_an_update_is_exceeded_by_a_factor_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clips, "COARSE", 0.0)
    assert update_in_clips() > 1.9


def test_that_of_ours_is_kept() -> None:
    assert 0.99 < update_in_clips() <= 1


def test_a_clip_below_all_normal_numbers_is_kept() -> None:
    gradients = [torch.full((1, 10_000), 1.0)]
    found: list[Tensor] = [torch.zeros(10_000, dtype=torch.float64)]
    clip = 100 * HALF * SMALLEST  # each value would be rounded to twice its size
    per_image._add_clipped(found, gradients, clip)
    assert float(found[0].norm()) / clip == pytest.approx(1, abs=1e-6)
