"""Several labels per image: figures come from histograms that add, and are those of the scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.types import Batch, add_metrics
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess
from fedsight.tasks.multilabel import MultiLabel
from fedsight.tasks.roc import auc_slack

CLASSES = ("edema", "mass", "hernia")
TASK = MultiLabel()


class Given(nn.Module):
    """Answers with what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


MODEL = Given()


def batch(count: int = 300, seed: int = 0) -> Batch:
    """Logits that know something; the last label is rare and has small probabilities."""
    draws = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, 3, generator=draws) < torch.tensor([0.5, 0.3, 0.03])).float()
    logits = y * 1.5 + torch.randn(count, 3, generator=draws) * torch.tensor([1.0, 2.0, 0.5])
    return Batch(logits - torch.tensor([0.0, 0.0, 6.0]), y)


def exact(scores: Tensor, y: Tensor) -> float:
    pos, neg = scores[y > 0.5][:, None], scores[y < 0.5][None, :]
    return float(((pos > neg).double() + (pos == neg).double() / 2).mean())


@pytest.mark.parametrize(("middle", "spread"), [(-3.0, 0.02), (0.0, 0.01), (-6.0, 0.1)])
def test_scores_that_bunch_keep_their_order(middle: float, spread: float) -> None:
    """As before training. With bins of 1/500 the area was off by 0.016."""
    given = batch(400, seed=2)
    bunched = Batch(middle + spread * given.x, given.y)
    sums = TASK.measure(MODEL, bunched, 3)
    areas = [exact(bunched.x[:, label], bunched.y[:, label]) for label in range(3)]
    figures = TASK.summary(sums)
    assert abs(figures["auc"] - np.mean(areas)) <= figures["auc_slack"] + 1e-12
    assert abs(figures["auc"] - np.mean(areas)) < 0.004


def test_the_area_is_that_of_the_scores() -> None:
    given = batch()
    sums = TASK.measure(MODEL, given, 3)
    areas = [exact(given.x[:, label], given.y[:, label]) for label in range(3)]
    table = TASK.tables(sums, CLASSES)[0]
    for label, row in enumerate(table.rows):
        slack = auc_slack(sums["positives"].total[label], sums["negatives"].total[label])
        assert slack < 0.004  # for the rare label, too
        assert row[0] == CLASSES[label]
        assert row[1] == float(given.y[:, label].sum())
        assert abs(float(row[2] or 0) - areas[label]) <= slack + 1e-12
        assert float(row[3] or 0) < areas[label] < float(row[4] or 0)
        answered, there = given.x[:, label] >= 0, given.y[:, label] > 0.5
        both = float((answered & there).sum())
        assert row[6:] == pytest.approx(
            (
                both / float(answered.sum()) if answered.any() else None,
                both / float(there.sum()),
                2 * both / float(answered.sum() + there.sum()),
                float((~answered & ~there).sum()) / float((~there).sum()),
            )
        )
    figures = TASK.summary(sums)
    assert abs(figures["auc"] - np.mean(areas)) < 0.004
    assert figures["accuracy"] == pytest.approx(
        float(((given.x >= 0) == (given.y > 0.5)).double().mean())
    )
    assert figures["loss"] == pytest.approx(
        float(F.binary_cross_entropy_with_logits(given.x, given.y))
    )
    assert TASK.summary(sums, np.array([1.0, 0.0, 0.0])) == figures  # no mix of labels changes it


def test_sums_of_parts_are_the_sums_of_all() -> None:
    given = batch()
    parts = [
        Batch(given.x[at], given.y[at]) for at in (slice(0, 7), slice(7, 120), slice(120, 300))
    ]
    added = add_metrics([TASK.measure(MODEL, part, 3) for part in parts])
    whole = TASK.measure(MODEL, given, 3)
    assert added["positives"].count == 300
    for name in ("positives", "negatives"):
        assert np.array_equal(added[name].total, whole[name].total)
    assert added["positives"].total.sum() == given.y.sum()


def test_a_label_that_cannot_be_measured_is_left_out_of_the_mean() -> None:
    given = batch()
    given.y[:, 2] = 0
    sums = TASK.measure(MODEL, given, 3)
    areas = [exact(given.x[:, label], given.y[:, label]) for label in range(2)]
    assert abs(TASK.summary(sums)["auc"] - np.mean(areas)) < 0.004
    assert TASK.tables(sums, CLASSES)[0].rows[2][2:6] == (None, None, None, None)
    assert len(TASK.curves(sums, CLASSES)[0].lines) == 2
    nothing = TASK.measure(MODEL, Batch(given.x[:0], given.y[:0]), 3)
    assert all(np.isnan(value) for value in TASK.summary(nothing).values())
    assert TASK.curves(nothing, CLASSES) == []


def test_a_weight_counts_positive_images_so_many_times() -> None:
    given = batch()
    plain = F.binary_cross_entropy_with_logits(given.x, given.y, reduction="none")
    for weight in (3.0, (1.0, 2.0, 5.0)):
        expected = (plain * torch.where(given.y > 0.5, torch.tensor(weight), 1.0)).mean()
        found = MultiLabel(positive_weight=weight).loss(MODEL, given)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_answers_name_all_labels_that_are_likely() -> None:
    found = TASK.answers(MODEL, torch.tensor([[2.0, 1.0, -3.0], [-1.0, -2.0, -3.0]]), CLASSES)
    assert [answer.label for answer in found] == ["edema, mass", "none"]
    assert found[0].details["labels"] == ["edema", "mass"]
    sure = torch.sigmoid(torch.tensor([2.0, 1.0, 3.0])).prod()
    assert found[0].probability == pytest.approx(float(sure))
    assert list(found[1].details["probabilities"]) == ["edema", "mass", "hernia"]


def test_samples_are_the_surest_first() -> None:
    found = TASK.samples(MODEL, batch(40), CLASSES)
    assert sorted(sample.positions[0] for sample in found) == list(range(40))
    sure = [sample.probability for sample in found]
    assert sure == sorted(sure, reverse=True)
    assert {sample.right for sample in found} == {True, False}
    for sample in found:
        assert sample.right == (sample.truth == sample.predicted)


def test_of_many_labels_the_extremes_are_drawn() -> None:
    draws = torch.Generator().manual_seed(1)
    y = (torch.rand(200, 14, generator=draws) < 0.4).float()
    x = y * torch.linspace(0, 3, 14) + torch.randn(200, 14, generator=draws)
    classes = tuple(f"label {number}" for number in range(14))
    curve = TASK.curves(TASK.measure(MODEL, Batch(x, y), 14), classes)[0]
    assert len(curve.lines) == 8
    assert "4 lowest" in curve.title
    assert all(line[0] == (0, 0) and line[-1] == (1, 1) for line in curve.lines.values())


def data(targets: Any) -> Dataset:
    count = 4 if targets is None else len(targets)
    part = Part(
        ArrayImages(torch.zeros(count, 1, 2, 2), "t"), np.zeros(count, np.int64), None, targets
    )
    return Dataset(part, part, CLASSES, Preprocess(1, 2, 2))


def test_data_that_do_not_suit_are_refused() -> None:
    good = data(batch(8).y)
    assert TASK.check(good) == []
    assert MultiLabel(positive_weight=(1.0, 2.0, 3.0)).check(good) == []
    for bad in (None, torch.zeros(4, 2), torch.zeros(4), torch.full((4, 3), 0.5)):
        problem = TASK.check(data(bad))[0]
        assert problem.where == "task.name"
        assert problem.cure
    assert TASK.check(replace(good, test=data(None).test))
    problem = MultiLabel(positive_weight=(1.0, 2.0)).check(good)[0]
    assert "2 weights" in problem.cause
    assert TASK.blank(3).shape == (1, 3)
