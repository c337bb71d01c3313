"""What is done to images is done where they are, and draws do not depend on the device."""

from __future__ import annotations

from collections.abc import Callable

import devices
import pytest
import torch
from torch import Tensor

from fedsight.data.augment.base import augment, augmentations, read
from fedsight.data.base import Preprocess
from fedsight.data.detection import boxes
from fedsight.data.shift import Shift

TARGETS = boxes.pack([[(0.0, 1.0, 2.0, 8.0, 9.0)], []], [[], [1]])


def augmented(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: augment(x, read([name]), torch.Generator().manual_seed(5))[0]


def shifted(kind: str, strength: float) -> Callable[[Tensor], Tensor]:
    shift = Shift(kind=kind, strength=strength)
    return lambda x: shift.apply(x, 2, 4, 7, torch.arange(len(x)))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: augmented(name) for name in augmentations.names()},
    "noise": shifted("noise", 0.1),
    "blur": shifted("blur", 1.0),
    "contrast": shifted("contrast", 0.3),
    "rotate": shifted("rotate", 20.0),
    "invert": shifted("invert", 0.2),
    "normalise": Preprocess(3, 12, 16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).normalise,
}


# What takes numbers from tensors, which a device without memory does not have.
NEEDS_VALUES = {
    "augmix", "rotate", "colour", "crop", "cutmix", "erase", "mixup", "randaugment", "shrink",
    "turn",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in NEEDS_VALUES])
def test_images_are_changed_on_another_device(name: str) -> None:
    fake = devices.Fake()
    x = fake.tensor(torch.rand(2, 3, 12, 16))
    with fake.mode:
        assert CHANGES[name](x).device.type == devices.FAKE


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_the_same_on_every_device(name: str) -> None:
    x = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    expected = CHANGES[name](x)
    with devices.Marked() as mode:
        found = CHANGES[name](mode.mark(x))
        assert mode.marked(found)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: boxes.labelled(y, 2),
        lambda y: boxes.present(y),
        lambda y: boxes.mirrored(y, 16.0),
        lambda y: boxes.flipped(y, 12.0),
        lambda y: boxes.majority(y),
        lambda y: boxes.joined([y, y[:, :1]])[1],
    ],
)
def test_boxes_are_changed_where_they_are(change: Callable[[Tensor], Tensor]) -> None:
    expected = change(TARGETS)
    with devices.Marked() as mode:
        found = change(mode.mark(TARGETS.clone()))
        assert mode.marked(found)
    assert torch.equal(found, expected)
