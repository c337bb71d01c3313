"""Detection by heat maps: targets for each cell of a grid, the loss, and the decoded boxes.

After Liu et al., Training-Time-Friendly Network for Real-Time Object Detection, AAAI 2020: a class
is a heat map with a Gaussian at each object, and all cells near an object's middle learn its box,
which needs far fewer steps than learning from the middle cell alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.data.detection.boxes import present

CORE = 0.54  # alpha = beta of the paper: the part of a box's side that learns from it
BOX_WEIGHT = 5.0  # of the paper, equation 7
_LARGEST = 8.0  # exponent of a distance in cells; e^8 cells are more than any image
_SMALLEST = 1e-4  # lower bound of probabilities, for their logarithms


# (boxes [b, m, 4], scores [b, m], labels [b, m], classes, overlap) -> which boxes stay [b, m]
Suppression = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


def loss(dense: Tensor, targets: Tensor, labelled: Tensor, stride: int) -> Tensor:
    """The training loss of `dense` [b, classes + 4, h, w]: heat map logits, then box distances.

    `targets` [b, most, 5] are as in `fedsight.data.detection.boxes`. Classes that are not
    `labelled` [b, classes] in an image are not trained as background there. Focal loss with
    Gaussian penalty (Law and Deng, CornerNet, 2018, equation 1) over the number of objects, plus
    GIoU (Rezatofighi et al. 2019).
    """
    classes = labelled.shape[1]
    dense = dense.float()
    targets = _trimmed(targets)
    kernels, boxes = _kernels(targets, dense.shape[2:], stride)
    objects = present(targets).sum().clamp(min=1)
    heat = _heat(kernels, targets, classes)
    return _focal(dense[:, :classes], heat, labelled) / objects + BOX_WEIGHT * _box_loss(
        dense[:, classes:], kernels, boxes, stride
    )


def find(
    dense: Tensor,
    classes: int,
    stride: int,
    most: int,
    overlap: float = 0.6,
    suppress: Suppression | None = None,
) -> Tensor:
    """The `most` objects with the highest scores in each image: [b, most, 6], highest first.

    A row is (class, score, left, top, right, bottom) in pixels; rows of score 0 are padding. An
    object is a peak among its eight neighbours; of boxes of one class that overlap by more than
    `overlap` (IoU) the one with the highest score is kept, as `suppress` (`kept_boxes` or a slower
    equivalent that an exporter can record) decides.
    """
    dense = dense.float()
    scores = dense[:, :classes].sigmoid()
    peaks = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
    height, width = dense.shape[2:]
    most_here = min(most, classes * height * width)
    sure, places = peaks.flatten(1).topk(most_here)
    labels, cells = places // (height * width), places % (height * width)
    boxes = _decoded(dense[:, classes:], stride).flatten(2).transpose(1, 2)  # [b, h w, 4]
    boxes = boxes.gather(1, cells[:, :, None].expand(-1, -1, 4))
    edge = torch.tensor([width, height, width, height], device=dense.device) * float(stride)
    boxes = torch.minimum(boxes.clamp(min=0), edge)
    kept = (suppress or kept_boxes)(boxes, sure, labels, classes, overlap)
    sure = torch.where(kept, sure, 0.0)
    # The scores descend already, so those that are kept come first, in their order.
    behind = torch.arange(most_here, device=dense.device) + most_here * ~kept
    order = behind.topk(most_here, largest=False).indices
    rows = torch.cat([labels[:, :, None].float(), sure[:, :, None], boxes], 2)
    rows = rows.gather(1, order[:, :, None].expand(-1, -1, 6))
    return F.pad(rows, (0, 0, 0, most - most_here))


def kept_boxes(boxes: Tensor, sure: Tensor, labels: Tensor, classes: int, overlap: float) -> Tensor:
    """Which of the boxes [b, m, 4] non-maximum suppression within each class keeps: [b, m]."""
    from torchvision.ops import batched_nms

    count, most = sure.shape
    image = torch.arange(count, device=boxes.device)[:, None]
    groups = (image * classes + labels).flatten()
    kept = torch.zeros(count * most, dtype=torch.bool, device=boxes.device)
    kept[batched_nms(boxes.view(-1, 4), sure.flatten(), groups, overlap)] = True
    return kept.view(count, -1)


def kept_unrolled(
    boxes: Tensor, sure: Tensor, labels: Tensor, classes: int, overlap: float
) -> Tensor:
    """As `kept_boxes`, by plain operations: one step for each of the m boxes, highest first."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, :, 2:] - boxes[:, :, :2]).prod(-1)
    whole = area[:, :, None] + area[:, None] - shared
    same = labels[:, :, None] == labels[:, None]
    hides = ((shared > overlap * whole) & same).triu(1)  # [b, m, m]: the first hides the second
    alive = torch.ones_like(labels, dtype=torch.bool)
    for at in range(labels.shape[1] - 1):
        alive = alive & ~(alive[:, at : at + 1] & hides[:, at])
    return alive


def _trimmed(targets: Tensor) -> Tensor:
    """`targets` without the padding rows that no image of this batch uses."""
    used = present(targets).any(0).nonzero()
    return targets[:, : int(used.max()) + 1 if len(used) else 1]


def _kernels(targets: Tensor, grid: torch.Size, stride: int) -> tuple[Tensor, Tensor]:
    """Each box's Gaussian [b, m, h, w], 0 outside the box's core, and the boxes [b, m, 4]."""
    height, width = grid
    boxes = targets[:, :, 1:]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2 / stride
    sides = (boxes[..., 2:] - boxes[..., :2]) / stride
    axes = []
    for axis, cells in ((0, width), (1, height)):
        # The cell in which the middle lies; its own value is 1.
        at = middle[..., axis].floor().clamp(0, cells - 1)
        away = torch.arange(cells, device=targets.device) - at[..., None]
        reach = (CORE / 2 * sides[..., axis]).clamp(min=0.5)[..., None]
        sigma = reach / 3
        axes.append(torch.exp(-0.5 * (away / sigma) ** 2) * (away.abs() <= reach))
    across, down = axes
    kernels = down[..., :, None] * across[..., None, :]
    return kernels * present(targets)[:, :, None, None], boxes


def _heat(kernels: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The largest Gaussian of each class at each cell: [b, classes, h, w]."""
    count, _, height, width = kernels.shape
    labels = targets[:, :, 0].long().clamp(0, classes - 1)[:, :, None, None].expand_as(kernels)
    heat = torch.zeros(count, classes, height, width, device=kernels.device)
    return heat.scatter_reduce_(1, labels, kernels, "amax")


def _focal(logits: Tensor, heat: Tensor, labelled: Tensor) -> Tensor:
    sure = logits.sigmoid().clamp(_SMALLEST, 1 - _SMALLEST)
    middle = heat == 1
    positive = -((1 - sure) ** 2) * sure.log()
    negative = -((1 - heat) ** 4) * sure**2 * (1 - sure).log()
    negative = negative * labelled[:, :, None, None]
    return torch.where(middle, positive, negative).sum()


def _box_loss(raw: Tensor, kernels: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """Mean GIoU loss over cells, weighted by the Gaussian; a cell belongs to the smallest box."""
    from torchvision.ops import generalized_box_iou_loss

    sides = boxes[..., 2:] - boxes[..., :2]
    area = sides.prod(-1)[:, :, None, None]
    owner = torch.where(kernels > 0, area, torch.inf).argmin(1, keepdim=True)  # [b, 1, h, w]
    weight = kernels.gather(1, owner).squeeze(1)
    chosen = weight > 0
    found = _decoded(raw, stride).permute(0, 2, 3, 1)[chosen]
    image, _, _ = chosen.nonzero(as_tuple=True)
    true = boxes[image, owner.squeeze(1)[chosen]]
    weight = weight[chosen]
    apart = generalized_box_iou_loss(found, true, reduction="none")
    mean: Tensor = (weight * apart).sum() / weight.sum().clamp(min=1)
    return mean


def _decoded(raw: Tensor, stride: int) -> Tensor:
    """[b, 4, h, w] -> boxes (left, top, right, bottom) in pixels, [b, 4, h, w].

    The raw values are logarithms of the distances from the cell's middle to the sides, in cells.
    """
    distance = raw.clamp(max=_LARGEST).exp() * stride
    rows, columns = (torch.arange(side, device=raw.device) for side in raw.shape[2:])
    across = ((columns + 0.5) * stride).view(1, 1, -1)
    down = ((rows + 0.5) * stride).view(1, -1, 1)
    left, top, right, bottom = distance.unbind(1)
    return torch.stack([across - left, down - top, across + right, down + bottom], 1)
