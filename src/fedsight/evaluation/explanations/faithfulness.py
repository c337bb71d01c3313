"""Whether an explanation is true of the model: the score falls when the regions that it names are
taken away (deletion), and rises when only they are shown (insertion).

Petsiuk et al. 2018, arXiv:1806.07421, section 4.1. All orders take away the same cells of a grid,
so that what is left differs in place only.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from fedsight.core.rng import generator
from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.scores import Scored, together

CELLS = 14  # across and down
STEPS = 14  # of a curve: as many cells are taken away at each, up to rounding
TOGETHER = 256  # images that go through the network at once, if they are small
_ACROSS = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))  # Sobel's


def gridded(heat: Tensor) -> Tensor:
    """The mean heat [n, rows, columns] of each cell of images with heat [n, h, w]."""
    return F.adaptive_avg_pool2d(heat[:, None], grid_of(heat))[:, 0]


def grid_of(x: Tensor) -> tuple[int, int]:
    """Rows and columns of cells of images [..., h, w]."""
    return min(CELLS, x.shape[-2]), min(CELLS, x.shape[-1])


def ranked(heat: Tensor, draws: Generator | None = None) -> Tensor:
    """The cells [n, cells] of heat [n, h, w], the hottest first.

    Equally hot ones are in an order that is drawn (None: always the same draws): in that of
    reading, heat that says nothing would follow the rows of the image.
    """
    cells = gridded(heat).flatten(1)
    draws = generator(0, "explanations", "ties") if draws is None else draws
    order = torch.rand(cells.shape, generator=draws).argsort(1).to(cells.device)
    hottest = cells.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, hottest)


def at_random(x: Tensor, draws: Generator) -> Tensor:
    """Heat [n, h, w] without any reason: each cell's is drawn."""
    rows, columns = grid_of(x)
    drawn = torch.rand(len(x), 1, rows, columns, generator=draws)
    return F.interpolate(drawn, size=x.shape[2:], mode="nearest")[:, 0]


def edges(x: Tensor) -> Tensor:
    """Heat [n, h, w] that asks no model: how strong the edges are (Sobel) of images."""
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor(_ACROSS, dtype=x.dtype, device=x.device)
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(grey, kernels).square().sum(1).sqrt()


def curves(scored: Scored, x: Tensor, about: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """What the shown score is [n, STEPS + 1] as more and more cells, in their `order` [n, cells],
    are taken away from the image, and as they are put into the image without detail."""
    start, rank = absent(x), order.argsort(dim=1)
    size = x.shape[2:]
    places = rank.reshape(len(x), 1, *grid_of(x)).float()
    place = F.interpolate(places, size=size, mode="nearest-exact")
    steps = [math.ceil(order.shape[1] * step / STEPS) for step in range(STEPS + 1)]
    rows = torch.arange(len(x)).repeat_interleave(len(steps))
    turns = torch.tensor(steps).repeat(len(x)).view(-1, 1, 1, 1)
    down, up = list[Tensor](), list[Tensor]()
    for some in torch.arange(len(rows)).split(together(x, TOGETHER)):
        row = rows[some]
        frame = place[row] < turns[some]  # [m, 1, h, w]: the cells that have had their turn
        with torch.no_grad():
            for found, (within, beyond) in ((down, (start, x)), (up, (x, start))):
                shown = torch.where(frame, within[row], beyond[row])
                found.append(scored.shown(shown, about[row]).float().cpu())
    return torch.cat(down).unflatten(0, (len(x), -1)), torch.cat(up).unflatten(0, (len(x), -1))


def area(curve: Tensor) -> Tensor:
    """The mean height [n] of curves [n, points]: the area below, by trapezia."""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
