"""One image of 16 bits changes the last digits of all others, and a coordinator blows them up.

Images are kept in 16 bits as soon as one of them has 16. A value of 8 bits then became the same
number but for the last digit, because 1/255 and 1/65535 are rounded each in its own way. Under
weights that cancel (see `test_attack_last_digits.py`) the last digit decides which way a gradient
goes: whether one image was saved with 8 or 16 bits, or was there at all, turned the gradients of
many others around, and moved the sum by more than the clip.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attacked_site import CLASSES, noise_images
from PIL import Image
from test_attack_last_digits import FAR, TRAPS, made, total, trap
from test_attack_moved_parts import drawn, site
from torch import Tensor

from fedsight.client.per_image import PerImage, Single
from fedsight.core.types import Batch
from fedsight.data import base
from fedsight.data.base import Part

COUNT = 40


def alone(pixels: Tensor) -> Tensor:
    """The weakened build: 8 and 16 bits are scaled each in its own way."""
    full = {torch.uint8: 255.0, torch.uint16: 65535.0}[pixels.dtype]
    return pixels.to(torch.float32).mul_(1.0 / full)


def parts(root: Path) -> tuple[Part, Part]:
    """The training parts of a site, before and after one of the images is saved with 16 bits."""
    images = site(root / "images", noise_images(COUNT))
    before = drawn(images).train
    target = Path(before.images.name(0))
    deep = np.asarray(Image.open(target)).astype(np.uint16) * np.uint16(257)
    Image.fromarray(deep).save(target)
    after = drawn(images).train
    names = [[one.images.name(at) for at in range(len(one))] for one in (before, after)]
    assert names[0] == names[1]
    return before, after


def clipped_sum(part: Part, seed: int) -> Tensor:
    """Of all images but the one that is changed."""
    x, y = part.images.read(torch.arange(1, len(part))), torch.from_numpy(part.labels[1:])
    images = [Single(Batch(x[[at]], y[[at]]), at) for at in range(len(y))]
    return total(made(PerImage, trap(seed)), images)


def moved(before: Part, after: Part) -> float:
    """How far the sum of the others moves, in clips, in the first trap in which that is far."""
    farthest = 0.0
    for seed in range(TRAPS):
        apart = float((clipped_sum(before, seed) - clipped_sum(after, seed)).norm())
        farthest = max(farthest, apart)
        if farthest > FAR:
            break
    return farthest


def test_one_deep_image_turns_the_gradients_of_others_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "scaled", alone)
    before, after = parts(tmp_path)
    assert len(before.counts(len(CLASSES)).nonzero()[0]) == len(CLASSES)
    assert moved(before, after) > FAR


def test_in_ours_it_changes_no_digit_of_theirs(tmp_path: Path) -> None:
    before, after = parts(tmp_path)
    every = torch.arange(len(before))
    assert torch.equal(before.images.read(every), after.images.read(every))
    assert moved(before, after) == 0
