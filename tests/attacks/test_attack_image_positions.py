"""Augmentation and dropout from an image's position: one image more gives all others new draws.

The draws of an image were those of its position among the site's images, under the program's seed,
which is public. A new file moves the positions of all later ones, so their gradients change, too:
whoever knows the other images can compute both sums, which are many clips apart, and the noise is
sized for one. Each image's draws are now drawn for it afresh, as the coin that decides whether it
is in the batch. Then for each draw of the whole there is an equally likely one without the image
that leaves everything else as it was, and the sum moves by its clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fedsight.client import dpsgd
from fedsight.client.dpsgd import PrivateSteps
from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import Single
from fedsight.client.training import Lesson
from fedsight.core.rng import derive
from fedsight.core.types import Batch
from fedsight.data.augment.base import augment, read
from fedsight.models.base import Network
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example
from fedsight.program.train import Train
from fedsight.tasks.classification import Classification

SIDE, CLASSES, OTHERS, CLIP = 8, 4, 16, 1.0
RATE, SEED = 0.1, 3  # SEED is the program's, which everybody knows
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(SIDE**2, CLASSES)),
    "augmentation": lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, CLASSES)),
}


def by_position(
    lesson: Lesson, chosen: Iterable[tuple[int, int]], failed: object
) -> Iterator[Single]:
    """The weakened build."""
    for position, _ in chosen:
        its = derive(lesson.draws.initial_seed(), "step", 0, "image", position)
        draws = torch.Generator().manual_seed(its)
        yield Single(lesson.read(torch.tensor([position]), draws), derive(its, "loss"))


@dataclass
class Draws:
    """The draws of one step: coins and seeds [images] in turn, and no noise."""

    arrays: Iterator[npt.NDArray[np.float64]] = field(default_factory=lambda: iter(()))

    def uniform(self, size: int) -> npt.NDArray[np.float64]:
        """The next array."""
        return next(self.arrays)

    def normal(self, size: int, deviation: float) -> Tensor:
        """Nothing."""
        return torch.zeros(size, dtype=torch.float64)


def step(network: str, first: int, coins: Any, seeds: Any) -> Tensor:
    """The sum [d] of a step on the images from number `first` on, of which number 0 is the target.

    `coins` and `seeds` [images] are what is drawn for each of all images.
    """
    torch.manual_seed(0)
    module = NETWORKS[network]().train()
    x = torch.randn(OTHERS + 1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    y = torch.arange(OTHERS + 1) % CLASSES
    chosen = read(["flip", "shift", "erase"] if network == "augmentation" else [])
    images = OTHERS + 1 - first
    seen: list[Tensor] = []

    def images_at(positions: Tensor, draws: torch.Generator) -> Batch:
        at = positions + first
        return Batch(augment(x[at].sigmoid(), chosen, draws)[0], y[at])

    def correct(gradients: list[Tensor]) -> list[Tensor]:
        seen.append(torch.cat([one.flatten() for one in gradients]))
        return gradients

    def noise(kind: str, *rest: Any, values: Any = ()) -> Any:
        return Draws(iter([coins[first:], seeds[first:]]) if kind == "examples" else iter(()))

    learning = dict(module.named_parameters())
    optimizer = make_optimizer(
        learning, Train(), RATE, Network(module, frozenset(), frozenset(), ())
    )
    plan = Plan(1, None, 1, batch=images, sizes=(images,))
    PrivateSteps(Example(noise_multiplier=4.0, clip=CLIP), plan).train(
        Lesson(
            model=module,
            task=Classification(),
            read=images_at,
            samples=images,
            epochs=1,
            batch=images,
            optimizer=optimizer,
            correct=correct,
            done=0,
            draws=torch.Generator().manual_seed(SEED),
            noise=noise,
        )
    )
    return seen[0] * images  # it is divided by the size of the batch


def moved(network: str) -> list[float]:
    """How far the target moves the sum, in clips, while nothing else is drawn otherwise."""
    found = []
    for turn in range(2):
        draw = partial(np.random.default_rng(turn).random, OTHERS + 1)
        coins, seeds = draw(), draw()
        there, gone = (step(network, first, coins, seeds) for first in (0, 1))
        found.append(float((there - gone).norm()) / CLIP)
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_positions_and_a_public_seed_move_the_sum_by_many_clips(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpsgd, "read", by_position)
    found = moved(network)
    assert min(found) > 3
    assert found[0] == found[1], "it does not hang on any secret: it can be computed"


@pytest.mark.parametrize("network", NETWORKS)
def test_fresh_draws_for_each_image_leave_the_others_alone(network: str) -> None:
    assert max(moved(network)) <= 1 + 1e-4
