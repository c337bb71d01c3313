"""The loss of heat maps is what the papers write, cell by cell."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fedsight.data.detection.boxes import labelled, pack
from fedsight.models import heatmap

STRIDE, ROWS, COLUMNS, CLASSES = 4, 12, 16, 3
Box = tuple[float, float, float, float]


def scene(seed: int) -> tuple[Tensor, Tensor]:
    """A grid [3, classes + 4, rows, columns] and objects, some of which overlap; an image has none,
    and one has a class that is not labelled."""
    draws = torch.Generator().manual_seed(seed)
    dense = torch.randn(3, CLASSES + 4, ROWS, COLUMNS, generator=draws)
    rows = []
    for count in (4, 0, 3):
        sides = 4 + 24 * torch.rand(count, 2, generator=draws)
        corner = torch.rand(count, 2, generator=draws) * (torch.tensor([64.0, 48.0]) - sides)
        label = torch.randint(2, (count, 1), generator=draws)
        rows.append([tuple(one) for one in torch.cat([label, corner, corner + sides], 1).tolist()])
    return dense, pack(rows, [[], [], [2]])


def kernel(box: Box) -> dict[tuple[int, int], float]:
    """The Gaussian of an object over the cells of its core (TTFNet, equation 3)."""
    left, top, right, bottom = box
    axes = []
    for low, high, cells in ((top, bottom, ROWS), (left, right, COLUMNS)):
        middle = min(max(math.floor((low + high) / 2 / STRIDE), 0), cells - 1)
        reach = max(0.5, heatmap.CORE / 2 * (high - low) / STRIDE)
        near = [cell for cell in range(cells) if abs(cell - middle) <= reach]
        axes.append(
            {cell: math.exp(-((cell - middle) ** 2) / 2 / (reach / 3) ** 2) for cell in near}
        )
    down, across = axes
    return {(i, j): down[i] * across[j] for i, j in itertools.product(down, across)}


def giou(one: Box, other: Box) -> float:
    """Rezatofighi et al. 2019, Algorithm 1."""
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = sum(areas) - across * down
    width = max(one[2], other[2]) - min(one[0], other[0])
    hull = width * (max(one[3], other[3]) - min(one[1], other[1]))
    return across * down / union - (hull - union) / hull


def expected(dense: Tensor, targets: Tensor, known: Tensor) -> float:
    """The loss, written with loops."""
    focal, apart, weights, objects = 0.0, 0.0, 0.0, 0
    for image in range(len(dense)):
        rows = [row for row in targets[image].tolist() if row[0] >= 0]
        objects += len(rows)
        kernels = [(int(row[0]), tuple(row[1:]), kernel(tuple(row[1:]))) for row in rows]
        for i, j in itertools.product(range(ROWS), range(COLUMNS)):
            for label in range(CLASSES):
                heat = max((k.get((i, j), 0.0) for c, _, k in kernels if c == label), default=0.0)
                sure = 1 / (1 + math.exp(-float(dense[image, label, i, j])))
                if heat == 1:
                    focal -= (1 - sure) ** 2 * math.log(sure)
                elif known[image, label]:
                    focal -= (1 - heat) ** 4 * sure**2 * math.log(1 - sure)
            here = [(box, k) for _, box, k in kernels if (i, j) in k]
            if here:
                box, k = min(
                    here, key=lambda one: (one[0][2] - one[0][0]) * (one[0][3] - one[0][1])
                )
                to = [STRIDE * math.exp(float(v)) for v in dense[image, CLASSES:, i, j]]
                x, y = (j + 0.5) * STRIDE, (i + 0.5) * STRIDE
                found = (x - to[0], y - to[1], x + to[2], y + to[3])
                weight = k[i, j]
                apart += weight * (1 - giou(found, box))
                weights += weight
    return focal / max(1, objects) + heatmap.BOX_WEIGHT * apart / max(weights, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_the_papers(seed: int) -> None:
    dense, targets = scene(seed)
    known = labelled(targets, CLASSES)
    found = heatmap.loss(dense.double(), targets, known, STRIDE)
    assert float(found) == pytest.approx(expected(dense, targets, known), rel=1e-4)
