"""An image changes the last digits of other images' gradients, and a coordinator blows them up.

How a product of matrices is rounded depends on how many rows it has, and a vectorised gradient has
a row for each image of the group. The coordinator chooses weights under which huge numbers cancel:
of a logit only the rounding is left, and its sign decides which way the gradient goes. One image
more or less then turns the gradients of the whole group around, and the clipped sum moves by more
than the clip. The same is done by a sum in float32 that others go on adding to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsight.client.optimizers import Optimizer, make_optimizer
from fedsight.client.per_image import PerImage, Single, _add_clipped
from fedsight.core.types import Batch
from fedsight.models.base import Network
from fedsight.program.train import Train
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification

PIXELS, HIDDEN, MOST = 64, 64, 4
TRAPS, FAR = 16, 1.5  # so many the coordinator tries on its own machine


class Vectorised(PerImage):
    """The weakened build: as many images at once as fit."""

    def __init__(
        self, task: Task, model: nn.Module, optimizer: Optimizer, hides: bool = False
    ) -> None:
        super().__init__(task, model, optimizer, hides)
        self._vectorised = True


def made(build: type[PerImage], module: nn.Module) -> PerImage:
    network = Network(module, frozenset(), frozenset(), ())
    optimizer = make_optimizer(dict(module.named_parameters()), Train(), 0.1, network)
    return build(Classification(), module, optimizer, hides=True)


def total(made: PerImage, images: Iterable[Single], clip: float = 1.0) -> Tensor:
    return torch.cat([part.flatten() for part in made.clipped_sum(images, clip)])


@cache
def trap(seed: int) -> nn.Module:
    """Hidden units come in pairs that are equal, with weights that are huge and opposite."""
    draws = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, 2)
    half, order = HIDDEN // 2, torch.randperm(HIDDEN, generator=draws)
    units = torch.randn(half, PIXELS, generator=draws)
    huge = torch.randn(half, generator=draws) * 1e12
    with torch.no_grad():
        first.weight.copy_(torch.cat([units, units])[order])
        last.weight.zero_()
        last.weight[0] = torch.cat([huge, -huge])[order]
        first.bias.zero_()
        last.bias.zero_()
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)


def moved(build: type[PerImage]) -> float:
    """How far the last image moves the sum, in clips, in the first trap in which that is far."""
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(MOST, 1, 1, 8, 8, generator=draws)
    y = torch.randint(0, 2, (MOST, 1), generator=draws)
    images = [Single(Batch(x[n], y[n]), n) for n in range(MOST)]
    farthest = 0.0
    for seed in range(TRAPS):
        # For which numbers of images it matters hangs on the processor.
        sums = [total(made(build, trap(seed)), images[:n]) for n in range(1, MOST + 1)]
        steps = (float((there - gone).norm()) for gone, there in pairwise(sums))
        farthest = max(farthest, *steps)
        if farthest > FAR:
            break
    return farthest


def test_an_image_turns_vectorised_gradients_of_others_around() -> None:
    assert moved(Vectorised) > FAR


def test_it_moves_ours_by_the_clip_at_most() -> None:
    assert moved(PerImage) <= 1 + 1e-6


# -- the sum ---------------------------------------------------------------------------------------

EDGE, TINY = 1 << 16, 2.0**-8  # from EDGE on, a float32 does not change when TINY is subtracted


class Given(PerImage):
    """The gradients are given; some stand for many images."""

    def _gradients(self, images: Sequence[Single]) -> Iterable[list[Tensor]]:
        return ([image.batch.x] for image in images)


class InSingle(Given):
    """The weakened build: the sum is as wide as the gradients."""

    def clipped_sum(self, images: Iterable[Single], clip: float) -> list[Tensor]:
        found = [torch.zeros_like(value.detach()) for value in self._optimizer.parameters]
        for gradients in self._gradients(list(images)):
            _add_clipped(found, gradients, clip)
        return found


def added(build: type[PerImage]) -> float:
    """How far an image moves the sum, in clips, that is just at an edge without it."""
    y = torch.zeros(1, dtype=torch.int64)
    values = [(1.0, 1), (1.0, EDGE - 1), (0.5, 1), *[(-TINY, 1)] * 512]
    images = [Single(Batch(torch.full((many, 1, 1), value), y), 0) for value, many in values]
    found = made(build, nn.Linear(1, 1, bias=False))
    return float((total(found, images) - total(found, images[1:])).norm())


def test_a_sum_in_float32_is_rounded_otherwise_for_an_image_more() -> None:
    assert added(InSingle) > 2


def test_ours_moves_by_the_clip() -> None:
    assert added(Given) == 1.0
