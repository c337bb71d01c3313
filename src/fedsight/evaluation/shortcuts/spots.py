"""The spots of an image that are taken away and pasted: overlapping windows on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 7  # cells across and down
WINDOW = 2  # cells of a spot, each way; spots are one cell apart, so a mark of a cell fits into one
SMALLEST = 2 * GRID  # pixels of a side that such a grid divides
STARTS = range(GRID - WINDOW + 1)
PLACES = tuple((row, column) for row in STARTS for column in STARTS)  # of the spots, in order

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Spots:
    """The spots of images of one size, row by row: `boxes`, in pixels; `masks` [s, 1, h, w], true
    within; `rings` [s, h, w], weights of the pixels around each, which sum to 1."""

    boxes: tuple[Box, ...]
    masks: Tensor
    rings: Tensor

    @classmethod
    def of(cls, height: int, width: int) -> Spots:
        """Those of images of this size; the sides have SMALLEST pixels or more."""
        down, across = _edges(height), _edges(width)
        boxes = [_box(down, across, place, 0) for place in PLACES]
        wide = [_box(down, across, place, 1) for place in PLACES]
        masks = torch.stack([_filled(box, height, width) for box in boxes])
        around = torch.stack([_filled(box, height, width) for box in wide]) & ~masks
        rings = around.float() / around.sum((1, 2), keepdim=True)
        return cls(tuple(boxes), masks[:, None], rings)

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device) -> Spots:
        """The same on another device."""
        return Spots(self.boxes, self.masks.to(device), self.rings.to(device))

    def removed(self, x: Tensor, spots: Tensor) -> Tensor:
        """Images [n, c, h, w], each without one of the `spots` [n].

        In its place is the mean of the pixels around it. A blur would leave the colour of what is
        to be gone, and of a small mark that is enough to see it by.
        """
        fill = torch.einsum("nchw,nhw->nc", x, self.rings[spots])
        return torch.where(self.masks[spots], fill[:, :, None, None], x)

    def pasted(self, x: Tensor, donors: Tensor, spot: int) -> Tensor:
        """Images [n, c, h, w] with one spot of the `donors` [n, c, h, w], at the same place."""
        return torch.where(self.masks[spot], donors, x)


def at_border(spot: int) -> bool:
    """Whether a spot lies at the border of the image."""
    return not {*PLACES[spot]}.isdisjoint((STARTS[0], STARTS[-1]))


def _edges(side: int) -> list[int]:
    return [round(at * side / GRID) for at in range(GRID + 1)]


def _box(down: list[int], across: list[int], place: tuple[int, int], more: int) -> Box:
    """A spot with so many more cells on all sides, as far as the image goes."""
    (top, bottom), (left, right) = (
        (max(0, at - more), min(GRID, at + WINDOW + more)) for at in place
    )
    return down[top], across[left], down[bottom], across[right]


def _filled(box: Box, height: int, width: int) -> Tensor:
    top, left, bottom, right = box
    found = torch.zeros(height, width, dtype=torch.bool)
    found[top:bottom, left:right] = True
    return found
