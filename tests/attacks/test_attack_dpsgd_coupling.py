"""A crowded image rescales all others where a loss is divided by the objects of the whole batch.

The detector's loss is over the number of objects in the batch. With per-image gradients of the
batch's loss, as DP-SGD libraries compute them and as ours once did, an image with very many objects
shrinks every other image's gradient before it is clipped. The clipped sum then moves by many
times the clip, and whoever sees it with the accounted noise knows whether the image was there.

A detector that takes a mean over the rows of its targets is rescaled by their padding, which is
that of the fullest image of the data set, even if it is only tested on.

The same happens through random numbers: with one stream of augmentation or dropout for the batch,
from a public seed, an image more gives all images after it other draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import federations
import numpy as np
import pytest
import torch
from task_cases import CLASSES, SIDE
from torch import Tensor, nn
from torch.nn import functional

from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import PerImage, Single
from fedsight.core.types import Batch
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess
from fedsight.data.detection import boxes
from fedsight.data.detection.boxes import Row, pack
from fedsight.models.base import Network
from fedsight.models.detector import Detector, HeatmapDetector
from fedsight.privacy.accounting import spent
from fedsight.privacy.event import gaussian
from fedsight.program import isolation
from fedsight.program.train import Train
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.classification import Classification
from fedsight.tasks.detection.task import Detection

OTHERS = 14
NOISE, DELTA = 4.0, 1e-5  # one step with all images: epsilon 0.93
CROWD = [(float(n % CLASSES), n % 14, n // 14, n % 14 + 2.0, n // 14 + 2.0) for n in range(196)]


class BatchLoss(PerImage):
    """The weakened build: an image's share of the gradient of the batch's loss."""

    def _gradients(self, images: Sequence[Single]) -> Iterable[list[Tensor]]:
        model = self._loss.model
        assert isinstance(model, HeatmapDetector)
        x, y = (torch.cat([getattr(one.batch, of) for one in images]) for of in "xy")
        grids = [model.body(one) for one in x.split(1)]
        model.body, body = _Given(torch.cat(grids)), model.body
        try:
            slopes = torch.autograd.grad(self._loss(x, y), grids)
        finally:
            model.body = body
        for grid, slope in zip(grids, slopes, strict=True):
            found = torch.autograd.grad(grid, self._optimizer.parameters, slope * len(images))
            yield [one[None] for one in found]


class _Given(nn.Module):
    def __init__(self, grid: Tensor) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return self.grid


@cache
def detector() -> tuple[Task, nn.Module]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, CLASSES + 4, 1))
    return tasks.get("detect")(), HeatmapDetector(body, CLASSES, 4, (SIDE, SIDE)).train()


def made(build: type[PerImage], task: Task, module: nn.Module) -> PerImage:
    network = Network(module, frozenset(), frozenset(), ())
    learning = dict(module.named_parameters())
    return build(task, module, make_optimizer(learning, Train(), 0.1, network))


def site(with_target: bool) -> list[Single]:
    """Images of a fixed camera with one object each, and perhaps the crowded one."""
    draws = np.random.default_rng(0)
    rows: list[list[Row]] = [[(0.0, n % 3, 2.0, n % 3 + 8.0, 12.0)] for n in range(OTHERS)]
    y = pack([*rows, CROWD], [[]] * (OTHERS + 1))
    x = draws.random((1, 1, SIDE, SIDE)) + 0.1 * draws.random((OTHERS + 1, 1, SIDE, SIDE))
    x = torch.from_numpy(x.astype(np.float32))
    chosen = range(OTHERS + with_target)
    return [Single(Batch(x[[n]], y[[n]]), n) for n in chosen]


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@cache
def median_norm() -> float:
    """A clip as it is usually chosen: the median norm of a gradient."""
    found = made(BatchLoss, *detector())
    norms = [flat(found.clipped_sum([one], 1e9)).norm() for one in site(False)]
    return float(torch.stack(norms).median())


@cache
def moved(build: type[PerImage]) -> float:
    """How far the target moves the clipped sum, in clips; what is accounted is 1."""
    clip, found = median_norm(), made(build, *detector())
    there, gone = (flat(found.clipped_sum(site(target), clip)) for target in (True, False))
    return float((there - gone).norm()) / clip


def epsilon(ratio: float) -> float:
    """Of one step whose noise is accounted for a sum that moves by one clip."""
    return spent([(gaussian(NOISE / ratio), 1)], DELTA)


def right_guesses(ratio: float) -> float:
    """The share of right guesses whether the image is there, from many noised sums.

    The attacker projects a sum on the line between the two sums that it expects, and takes the
    nearer one.
    """
    draws = np.random.default_rng(1)
    there = draws.random(20_000) < 0.5
    seen = there * ratio + NOISE * draws.normal(size=20_000)
    return float(((seen > ratio / 2) == there).mean())


def test_a_crowded_image_is_found_out_where_the_loss_is_that_of_the_batch() -> None:
    assert epsilon(1.0) == pytest.approx(0.93, abs=0.01)
    assert moved(BatchLoss) > 9
    assert epsilon(moved(BatchLoss)) > 12
    assert right_guesses(moved(BatchLoss)) > 0.85


def test_it_moves_our_sum_by_the_clip_at_most() -> None:
    assert moved(PerImage) <= 1 + 1e-4
    assert epsilon(moved(PerImage)) <= epsilon(1.0) * (1 + 1e-3)
    assert right_guesses(moved(PerImage)) < 0.56


# -- padding ---------------------------------------------------------------------------------------


class Rows(Detector):
    """One box for each image, with the mean over the rows of its targets, like any reduced loss."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = CLASSES
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4))

    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        found = self.body(x)[:, None].expand(-1, targets.shape[1], -1)
        wrong = functional.smooth_l1_loss(found, targets[:, :, 1:] / SIDE, reduction="none")
        return (wrong.mean(2) * boxes.present(targets)).mean()

    def find(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 100, 6)


def rescaled(task: Task, trained_on: int) -> float:
    """How far the crowded image moves the sum over the first `trained_on` images, in clips."""
    torch.manual_seed(0)
    found = made(PerImage, task, Rows().train())
    there = site(True)
    gone = [Single(Batch(one.batch.x, one.batch.y[:, :1]), one.seed) for one in there[:OTHERS]]
    clip = float(torch.stack([flat(found.clipped_sum([one], 1e9)).norm() for one in gone]).median())
    sums = (flat(found.clipped_sum(some, clip)) for some in (there[:trained_on], gone))
    first, second = sums
    return float((first - second).norm()) / clip


@pytest.mark.parametrize(("trained_on", "accounted"), [(OTHERS + 1, 1), (OTHERS, 0)])
def test_padding_of_the_fullest_image_moves_no_other(
    monkeypatch: pytest.MonkeyPatch, trained_on: int, accounted: int
) -> None:
    """The crowded image is the last, and is trained on or only tested on."""
    detect = tasks.get("detect")()
    assert rescaled(detect, trained_on) <= accounted + 1e-4
    monkeypatch.setattr(boxes, "trimmed", lambda targets: targets)
    assert rescaled(detect, trained_on) > 9


class Untrimmed(Detection):
    """An own task that shows its detector the padding."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model, batch.x, batch.y)  # type: ignore[arg-type]


def test_an_own_task_whose_loss_depends_on_the_padding_is_refused() -> None:
    y = pack([[], CROWD], [[], []])
    images = ArrayImages(torch.zeros(2, 1, SIDE, SIDE), "x")
    part = Part(images, np.zeros(2, np.int64), targets=y)
    data = Dataset(part, part, tuple("ab"), Preprocess(1, SIDE, SIDE, mean=(0.5,), std=(0.25,)))
    example = federations.program(
        privacy={"name": "example", "noise_multiplier": 1.0}, rounds={"weighting": "uniform"}
    )
    network = Network(Rows(), frozenset(), frozenset(), ())
    for task, causes in ((Untrimmed(), ["padded"]), (Detection(), [])):
        found = isolation.problems(replace(example, task=task), data, network)
        assert [word for problem in found for word in ["padded"] if word in problem.cause] == causes
        assert len(found) == len(causes), found


# -- one stream of random numbers ------------------------------------------------------------------


class OneStream(PerImage):
    """The weakened build: the draws of all images come one after the other from a public seed."""

    def clipped_sum(self, images: Iterable[Single], clip: float) -> list[Tensor]:
        draws = np.random.default_rng(7)
        seeds = (Single(one.batch, int(draws.integers(1 << 60))) for one in images)
        return super().clipped_sum(seeds, clip)


def dropped(build: type[PerImage]) -> float:
    """How far an image at the beginning moves the sum, in clips."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Dropout(0.5), nn.Linear(SIDE * SIDE, CLASSES)
    found = made(build, Classification(), nn.Sequential(*layers).train())
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(OTHERS + 1, 1, SIDE, SIDE, generator=draws)
    y = torch.arange(OTHERS + 1) % CLASSES
    images = [Single(Batch(x[[n]], y[[n]]), n) for n in range(OTHERS + 1)]
    there, gone = (flat(found.clipped_sum(some, 1.0)) for some in (images, images[1:]))
    return float((there - gone).norm())


def test_an_image_that_moves_all_others_draws_moves_the_sum_far() -> None:
    assert dropped(OneStream) > 3


def test_ours_draws_for_each_image_by_itself() -> None:
    assert dropped(PerImage) <= 1 + 1e-4
