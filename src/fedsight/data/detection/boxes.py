"""The boxes of images as one padded tensor, with the classes that were not labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A row is (class, left, top, right, bottom), in pixels of the network's input. A row of class -1
# is padding; one of class -2 - c says that class c was not labelled in this image: what looks like
# background may be one.
PADDING = -1
_UNLABELLED = -2

Row = tuple[float, float, float, float, float]


def pack(objects: Sequence[Sequence[Row]], unlabelled: Sequence[Sequence[int]]) -> Tensor:
    """Targets [n, most, 5] float32 of n images: their boxes, and the classes not labelled there.

    `most` is what the fullest image needs, and at least 1.
    """
    rows = [
        [*boxes, *((float(_UNLABELLED - label), 0.0, 0.0, 0.0, 0.0) for label in missing)]
        for boxes, missing in zip(objects, unlabelled, strict=True)
    ]
    most = max([1, *(len(found) for found in rows)])
    targets = torch.zeros(len(rows), most, 5)
    targets[:, :, 0] = PADDING
    for image, found in enumerate(rows):
        if found:
            targets[image, : len(found)] = torch.tensor(found)
    return targets


def joined(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts' targets, all padded to the rows of the longest."""
    most = max(part.shape[1] for part in parts)
    return [_widened(part, most) for part in parts]


def _widened(targets: Tensor, most: int) -> Tensor:
    wide = torch.zeros(len(targets), most, 5, device=targets.device)
    wide[:, :, 0] = PADDING
    wide[:, : targets.shape[1]] = targets
    return wide


def trimmed(targets: Tensor) -> Tensor:
    """The targets [b, most, 5] without the rows at the end that are padding in every image."""
    used = (targets[:, :, 0] != PADDING).any(0).nonzero()
    return targets[:, : max(1, int(used.max()) + 1 if len(used) else 1)]


def present(targets: Tensor) -> Tensor:
    """Which rows of [b, most, 5] are boxes: bool [b, most]."""
    return targets[:, :, 0] >= 0


def labelled(targets: Tensor, classes: int) -> Tensor:
    """Which classes were labelled in each image of [b, most, 5]: bool [b, classes]."""
    missing = _UNLABELLED - targets[:, :, 0].long()  # negative for boxes and padding
    # Rows that name no class are counted in an extra column, which is dropped.
    columns = torch.where((missing >= 0) & (missing < classes), missing, classes)
    named = torch.zeros(len(targets), classes + 1, dtype=torch.bool, device=targets.device)
    named.scatter_(1, columns, True)
    return ~named[:, :classes]


def mirrored(targets: Tensor, width: float) -> Tensor:
    """The boxes [b, most, 5] after mirroring images of `width` pixels left to right."""
    turned = targets.clone()
    boxes = present(targets)
    turned[:, :, 1] = torch.where(boxes, width - targets[:, :, 3], targets[:, :, 1])
    turned[:, :, 3] = torch.where(boxes, width - targets[:, :, 1], targets[:, :, 3])
    return turned


def flipped(targets: Tensor, height: float) -> Tensor:
    """The boxes [b, most, 5] after flipping images of `height` pixels top to bottom."""
    return transposed(mirrored(transposed(targets), height))


def transposed(targets: Tensor) -> Tensor:
    """The boxes [b, most, 5] after transposing the images."""
    return targets[:, :, [0, 2, 1, 4, 3]]


def placed(
    targets: Tensor, scale: Tensor, offset: Tensor, width: float, height: float, least: float
) -> Tensor:
    """The boxes [b, most, 5] after each image was scaled by `scale` [b, 1], and its corner put at
    `offset` [b, 2] (across, down), in a frame of `width` x `height`.

    Boxes are clipped to the frame; one that keeps less than `least` of its area is dropped.
    """
    edge = torch.tensor([width, height, width, height], device=targets.device)
    whole = targets[:, :, 1:] * scale[:, :, None] + offset.repeat(1, 2)[:, None]
    inside = torch.minimum(whole.clamp(min=0), edge)
    area, left = (box[..., 2:] - box[..., :2] for box in (whole, inside))
    found = present(targets)
    kept = found & (left > 0).all(2) & (left.prod(2) >= least * area.prod(2))
    moved = targets.clone()
    moved[:, :, 0] = torch.where(found & ~kept, float(PADDING), targets[:, :, 0])
    moved[:, :, 1:] = torch.where(kept[:, :, None], inside, 0.0)
    return moved


def majority(targets: Tensor) -> Tensor:
    """The most frequent class of each image, 0 where there is none: int64 [n]."""
    numbers = targets[:, :, 0].long()
    classes = max(1, int(numbers.max()) + 1) if len(targets) else 1
    counts = torch.zeros(len(targets), classes + 1, dtype=torch.int64, device=targets.device)
    columns = torch.where(numbers >= 0, numbers, classes)
    counts.scatter_add_(1, columns, torch.ones_like(columns))
    return counts[:, :classes].argmax(1)
