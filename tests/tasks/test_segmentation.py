"""Segmentation: figures are those of the pixels, and what is not labelled does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsight.core.types import Batch, add_metrics
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess
from fedsight.models.zoo.unet import UNet
from fedsight.tasks.segmentation import IGNORED, Segmentation

CLASSES = ("background", "disc", "square")
TASK = Segmentation()


class Given(nn.Module):
    """Answers with what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x


MODEL = Given()


def batch(count: int = 6) -> Batch:
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count, 5, 4), generator=draws).to(torch.uint8)
    y[:, 0] = IGNORED
    return Batch(torch.randn(count, 3, 5, 4, generator=draws), y)


def test_figures_are_those_of_the_labelled_pixels() -> None:
    given = batch()
    sums = TASK.measure(MODEL, given, 3)
    said, truth = given.x.argmax(1)[:, 1:], given.y[:, 1:].long()
    dice, iou = [], []
    for number in (1, 2):
        one, other = said == number, truth == number
        dice.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
        iou.append(float((one & other).sum()) / float((one | other).sum()))
    figures = TASK.summary(sums)
    assert figures["dice"] == pytest.approx(np.mean(dice))
    assert figures["iou"] == pytest.approx(np.mean(iou))
    assert figures["accuracy"] == pytest.approx(float((said == truth).double().mean()))
    rows = TASK.tables(sums, CLASSES)[0].rows
    for number, row in enumerate(rows):
        both = float(((said == number) & (truth == number)).sum())
        assert row[1:4] == pytest.approx(
            (
                float((truth == number).sum()),
                both / float((said == number).sum()),
                both / float((truth == number).sum()),
            )
        )
    assert [row[4] for row in rows[1:]] == pytest.approx(dice)
    assert [row[5] for row in rows[1:]] == pytest.approx(iou)
    parts = [
        TASK.measure(MODEL, Batch(given.x[at], given.y[at]), 3) for at in ([0], [1, 2, 3, 4, 5])
    ]
    assert np.array_equal(add_metrics(parts)["pixels"].total, sums["pixels"].total)


def test_unlabelled_pixels_neither_teach_nor_count() -> None:
    given = batch()
    changed = given.x.clone()
    changed[:, :, 0] = 99 * torch.randn(6, 3, 4)
    for task in (Segmentation(dice=0.0), Segmentation(dice=1.0), TASK):
        one = task.loss(MODEL, given)
        assert float(one) == pytest.approx(float(task.loss(MODEL, Batch(changed, given.y))))
    nothing = Batch(given.x.requires_grad_(), torch.full_like(given.y, IGNORED))
    TASK.loss(MODEL, nothing).backward()
    assert given.x.grad is not None
    assert not given.x.grad.any()
    with torch.no_grad():
        blank = TASK.measure(MODEL, Batch(given.x[:1], TASK.blank(3)), 3)
    assert blank["pixels"].total.shape == (3, 3)
    assert np.isnan(TASK.summary(blank)["dice"])


def test_perfect_answers_have_no_loss_and_full_marks() -> None:
    y = batch().y
    perfect = 50.0 * nn.functional.one_hot(torch.where(y == IGNORED, 0, y).long(), 3)
    given = Batch(perfect.movedim(-1, 1).float(), y)
    assert float(TASK.loss(MODEL, given)) == pytest.approx(0, abs=1e-6)
    figures = TASK.summary(TASK.measure(MODEL, given, 3))
    assert figures["dice"] == figures["iou"] == figures["accuracy"] == 1
    assert all(sample.right for sample in TASK.samples(MODEL, given, CLASSES))


def test_answers_and_samples_mark_where_classes_are() -> None:
    x = torch.zeros(1, 3, 6, 8)
    x[:, 0] = 1
    x[:, 2, 1:3, 4:8] = 9
    answer = TASK.answers(MODEL, x, CLASSES)[0]
    assert answer.label == "square"
    assert answer.details["shares"]["square"] == pytest.approx(8 / 48)
    assert [mark.box for mark in answer.marks] == [(4, 1, 8, 3)]
    y = torch.zeros(1, 6, 8, dtype=torch.uint8)
    sample = TASK.samples(MODEL, Batch(x, y), CLASSES)[0]
    assert (sample.truth, sample.predicted, sample.right) == ("background", "square", False)
    y[0, 0:2, 4:8] = CLASSES.index("square")
    y[0, 5] = 255  # without a label
    sample = TASK.samples(MODEL, Batch(x, y), CLASSES)[0]
    assert sample.areas is not None
    assert sample.areas.tolist() == [
        [0, 0, 0, 0, 2, 2, 2, 2],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 3, 3, 3, 3],
        *[[0] * 8] * 3,
    ]
    assert sample.overlap == pytest.approx(0.5)


def test_data_that_do_not_suit_are_refused() -> None:
    def data(targets: Tensor | None) -> Dataset:
        part = Part(ArrayImages(torch.zeros(2, 1, 5, 4), "t"), np.zeros(2, np.int64), None, targets)
        return Dataset(part, part, CLASSES, Preprocess(1, 5, 4))

    assert TASK.check(data(batch(2).y)) == []
    for bad in (None, torch.zeros(2), torch.zeros(2, 4, 5), torch.full((2, 5, 4), 3)):
        assert TASK.check(data(bad))[0].where == "task.name"


@pytest.mark.parametrize("side", [(8, 8), (13, 9), (32, 20)])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_network_answers_for_every_pixel(side: tuple[int, int], norm: str) -> None:
    settings = UNet(norm=norm, width=4)
    module, heads = settings.make(1, *side, 3)
    assert module(torch.zeros(2, 1, *side)).shape == (2, *settings.answer(*side, 3))
    assert list(heads) == ["head"]
