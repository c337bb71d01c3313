"""A detector's grid as the mean over mirrored and turned views of the image.

A network that is asked about an image and about its mirror image makes errors that differ in part;
their mean is smaller. The grids are turned back and averaged before boxes are read from them (the
flip test of Zhou et al., Objects as Points, 2019, for all eight symmetries of a square), so nothing
has to be matched, and what is found turns with the image, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Views = Literal[1, 2, 4, 8]


class _Move(NamedTuple):
    """One that undoes itself: of images, and where the distances to a box's sides go."""

    image: Callable[[Tensor], Tensor]
    sides: list[int]  # of (left, top, right, bottom)


# Two views: mirrored left to right; four: and top to bottom; eight: and across the diagonal.
_MOVES = (
    _Move(lambda x: x.flip(3), [2, 1, 0, 3]),
    _Move(lambda x: x.flip(2), [0, 3, 2, 1]),
    _Move(lambda x: x.transpose(2, 3), [1, 0, 3, 2]),
)


def averaged(body: Callable[[Tensor], Tensor], x: Tensor, views: Views) -> Tensor:
    """The mean grid [b, classes + 4, h', w'], float32, of `body` over so many views of x
    [b, c, h, w].

    The last four channels are logarithms of the distances to a box's sides. Sides of x must be
    multiples of the grid's cells, and equal for eight views.
    """
    moves = _MOVES[: views.bit_length() - 1]
    grids = []
    for chosen in product((False, True), repeat=len(moves)):
        taken = list(compress(moves, chosen))
        seen = x
        for move in taken:
            seen = move.image(seen)
        grids.append(_undone(body(seen).float(), taken))  # bfloat16 would round the mean, too
    return torch.stack(grids).mean(0)


def _undone(grid: Tensor, moves: list[_Move]) -> Tensor:
    for move in reversed(moves):
        turned = move.image(grid)
        grid = torch.cat([turned[:, :-4], turned[:, -4:][:, move.sides]], 1)
    return grid
