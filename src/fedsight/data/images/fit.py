"""The placement of an image in the network's input, shared by pixels and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedsight.data.base import Preprocess

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Placement:
    """The part `source` of an image is scaled to the part `target` of the network's input.

    `source` is in pixels of the upright image and may have fractions; `target` is in whole pixels
    of the input. What `target` leaves free is black.
    """

    source: Box
    target: tuple[int, int, int, int]

    @classmethod
    def of(cls, size: tuple[int, int], goal: Preprocess) -> Self:
        """The placement of an image of `size` (width, height) by the rule `goal.fit`."""
        width, height = size
        whole, full = (0.0, 0.0, float(width), float(height)), (0, 0, goal.width, goal.height)
        if goal.fit == "stretch":
            return cls(whole, full)
        if goal.fit == "crop":
            across = min(width, height * goal.width / goal.height)
            down = min(height, width * goal.height / goal.width)
            left, top = (width - across) / 2, (height - down) / 2
            return cls((left, top, left + across, top + down), full)
        scale = min(goal.width / width, goal.height / height)
        inner_w = min(goal.width, max(1, round(width * scale)))
        inner_h = min(goal.height, max(1, round(height * scale)))
        x, y = (goal.width - inner_w) // 2, (goal.height - inner_h) // 2
        return cls(whole, (x, y, x + inner_w, y + inner_h))

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input for each pixel of the image, across and down."""
        across, down = _sides(self.target)
        width, height = _sides(self.source)
        return across / width, down / height

    def forward(self, box: Box) -> Box:
        """A box in the image as a box in the input; it may reach outside of the input."""
        (across, down), (left, top) = self.scale, self.source[:2]
        x, y = self.target[:2]
        return (
            (box[0] - left) * across + x,
            (box[1] - top) * down + y,
            (box[2] - left) * across + x,
            (box[3] - top) * down + y,
        )

    def backward(self, box: Box) -> Box:
        """A box in the input as a box in the image; the inverse of `forward`."""
        (across, down), (left, top) = self.scale, self.source[:2]
        x, y = self.target[:2]
        return (
            (box[0] - x) / across + left,
            (box[1] - y) / down + top,
            (box[2] - x) / across + left,
            (box[3] - y) / down + top,
        )


def _sides(box: Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]
