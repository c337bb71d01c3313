"""The boxes of images as one padded tensor, with the classes that were not labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A row is (class, left, top, right, bottom), in pixels of the network's input. A row of class -1
# is padding. One of class -2 - c says that class c was not labelled: what looks like background may
# be one; with a box, only there (a crowd, in COCO's words), else in the whole image. One of class
# -2.5 - c is a single object of class c that is trained on and not counted (difficult, in VOC's).
PADDING = -1
_UNLABELLED = -2
_DIFFICULT = 0.5

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


def crowd(row: Row) -> Row:
    """The box of a group that is not counted one by one."""
    return (_UNLABELLED - row[0], *row[1:])


def difficult(row: Row) -> Row:
    """The box of an object that is trained on and not counted in the evaluation."""
    return (_UNLABELLED - _DIFFICULT - row[0], *row[1:])


def joined(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts' targets, all padded to the rows of the longest."""
    most = max(part.shape[1] for part in parts)
    return [widened(part, most) for part in parts]


def are_boxes(targets: Tensor) -> bool:
    """Whether targets [n, ...] are boxes: [n, most, 5]."""
    return targets.dim() == 3 and targets.shape[2] == 5 and targets.is_floating_point()


def widened(targets: Tensor, most: int) -> Tensor:
    """The targets [b, rows, 5], padded to `most` rows."""
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
    """Which classes were labelled in each image of [b, most, 5]: bool [b, classes].

    A class of which only a region is not labelled counts as labelled.
    """
    return ~_named(targets, ~_has_area(targets), classes)


def crowded(targets: Tensor, classes: int) -> Tensor:
    """Which classes have a crowd in each image of [b, most, 5]: bool [b, classes]."""
    return _named(targets, _has_area(targets) & ~_is_difficult(targets), classes)


def regions(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of [b, most, 5] with a box that is not counted.

    Which rows [b, most], their classes [b, most], and which of them are crowds [b, most].
    """
    labels = _UNLABELLED - targets[:, :, 0].long()
    found = (labels >= 0) & _has_area(targets)
    return found, labels, found & ~_is_difficult(targets)


def trained(targets: Tensor) -> Tensor:
    """The targets [b, most, 5] to learn from: difficult objects are objects like others."""
    labels = (_UNLABELLED - targets[:, :, 0].long()).to(targets.dtype)
    turned = targets.clone()
    turned[:, :, 0] = torch.where(_is_difficult(targets), labels, targets[:, :, 0])
    return turned


def _has_area(targets: Tensor) -> Tensor:
    return ((targets[:, :, 3:] - targets[:, :, 1:3]) > 0).all(2)


def _is_difficult(targets: Tensor) -> Tensor:
    return (targets[:, :, 0] < _UNLABELLED) & (targets[:, :, 0].frac() != 0)


def _boxed(targets: Tensor) -> Tensor:
    """Which rows have a box: objects, and regions that are not counted."""
    return present(targets) | regions(targets)[0]


def _named(targets: Tensor, chosen: Tensor, classes: int) -> Tensor:
    """The classes that the `chosen` rows say are not labelled: bool [b, classes]."""
    missing = _UNLABELLED - targets[:, :, 0].long()  # negative for boxes and padding
    # Rows that name no class are counted in an extra column, which is dropped.
    known = chosen & (missing >= 0) & (missing < classes)
    columns = torch.where(known, missing, classes)
    named = torch.zeros(len(targets), classes + 1, dtype=torch.bool, device=targets.device)
    named.scatter_(1, columns, True)
    return named[:, :classes]


def mirrored(targets: Tensor, width: float) -> Tensor:
    """The boxes [b, most, 5] after mirroring images of `width` pixels left to right."""
    turned = targets.clone()
    boxes = _boxed(targets)
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

    Boxes are clipped to the frame; one that keeps less than `least` of its area is dropped, a
    region that is not counted only if it keeps none.
    """
    edge = torch.tensor([width, height, width, height], device=targets.device)
    whole = targets[:, :, 1:] * scale[:, :, None] + offset.repeat(1, 2)[:, None]
    inside = torch.minimum(whole.clamp(min=0), edge)
    area, left = (box[..., 2:] - box[..., :2] for box in (whole, inside))
    found = _boxed(targets)
    enough = (left.prod(2) >= least * area.prod(2)) | ~present(targets)
    kept = found & (left > 0).all(2) & enough
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
