"""AUC one-vs-rest: pairs of images counted one by one, batches, impossible counts, the interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.types import Sum
from fedsight.tasks.classification import Classification
from fedsight.tasks.metrics.auc import Auc
from fedsight.tasks.roc import auc_slack

CLASSES = 4
Floats = npt.NDArray[np.float64]


def answers(count: int, seed: int, sure: float = 2.0) -> tuple[Floats, Any]:
    """Probabilities [n, classes] that favour the true class, with ties, and class numbers [n]."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    logits = rng.normal(0, 1, (count, CLASSES)).round(1) + sure * np.eye(CLASSES)[y]
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def measured(p: Floats, y: Any) -> Sum:
    return Auc().measure(torch.from_numpy(p), torch.from_numpy(y), CLASSES)


def naive(p: Floats, y: Any) -> float:
    """The share of pairs (of the class, not of it) in the right order, ties counting half."""
    areas = []
    for label in range(CLASSES):
        own, others = p[y == label, label], p[y != label, label]
        if len(own) and len(others):
            above = (own[:, None] > others).mean() + (own[:, None] == others).mean() / 2
            areas.append(above)
    return float(np.mean(areas)) if areas else float("nan")


@given(count=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_the_figure_is_that_of_all_pairs_but_for_its_bins(count: int, seed: int) -> None:
    p, y = answers(count, seed)
    total = measured(p, y).total
    slacks = [auc_slack(*pair) for pair in total]
    slack = max((one for one in slacks if not np.isnan(one)), default=0.0)
    found = Auc().value(measured(p, y), None)
    assert found == pytest.approx(naive(p, y), abs=slack + 1e-12, nan_ok=True)
    assert slack < 0.05 or count < 20


@given(cut=st.integers(0, 30), seed=st.integers(0, 10**6))
def test_sums_of_batches_are_those_of_the_whole(cut: int, seed: int) -> None:
    p, y = answers(30, seed)
    added = measured(p[:cut], y[:cut]) + measured(p[cut:], y[cut:])
    assert np.array_equal(added.total, measured(p, y).total)


def test_a_mix_chooses_classes_and_nothing_else() -> None:
    p, y = answers(200, 1)
    each = [Auc().value(measured(p, y), np.eye(CLASSES)[label]) for label in range(CLASSES)]
    assert Auc().value(measured(p, y), None) == pytest.approx(np.mean(each))
    some = Auc().value(measured(p, y), np.array([0.9, 0.1, 0, 0]))
    assert some == pytest.approx((each[0] + each[1]) / 2)


def changed(total: Floats, kind: str) -> Floats:
    total = total.copy()
    if kind == "negative":
        total[0, 0, 5], total[0, 0, 6] = -1.0, total[0, 0, 6] + 1
    elif kind == "one image more":
        total[1, 1, 7] += 1
    elif kind == "halves":
        total[2, 0, :2] += (0.5, -0.5)
    else:  # an image of the class counts as one of the others
        at = int(np.argmax(total[3, 0]))
        total[3, 0, at], total[3, 1, at] = total[3, 0, at] - 1, total[3, 1, at] + 1
    return total


@pytest.mark.parametrize("kind", ["negative", "one image more", "halves", "another class"])
def test_counts_that_no_model_has_are_refused(kind: str) -> None:
    """Also through the task, which a site's figures are checked by."""
    p, y = answers(60, 2)
    task = Classification(metrics=["auc"])
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (y, p.argmax(1)), 1)
    sums = {"confusion": Sum(confusion, 60), "loss": Sum(np.ones(CLASSES), 60)}
    right = measured(p, y)
    assert task.is_possible({**sums, "metric:auc": right}, 0)
    wrong = Sum(changed(right.total, kind), 60)
    assert not task.is_possible({**sums, "metric:auc": wrong}, 0)


def test_its_figures_cannot_be_noised() -> None:
    """What an image adds to it has no stated bound, so no noise could be sized for it."""
    assert Classification(metrics=["auc"]).bounds(CLASSES, 100) is None
    assert Classification(metrics=["top_5"]).bounds(CLASSES, 100) is not None


def test_of_a_hundred_intervals_at_least_95_hold_the_area_of_endless_images() -> None:
    """400 test sets of 150 images; the interval is wide, as it does not know what goes together."""
    true = Auc().value(measured(*answers(60_000, 99, 1.5)), None)
    held = []
    for seed in range(400):
        found = Auc().interval(measured(*answers(150, seed, 1.5)))
        assert found is not None
        held.append(found[0] <= true <= found[1])
    assert np.mean(held) >= 0.94
