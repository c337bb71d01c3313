"""Balanced accuracy and macro F1 against naive ones, and how often their intervals cover."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.tasks.averages import (
    balanced_accuracy,
    balanced_accuracy_interval,
    macro_f1,
    macro_f1_interval,
)

Floats = npt.NDArray[np.float64]
SIDES = (balanced_accuracy, balanced_accuracy_interval), (macro_f1, macro_f1_interval)


@st.composite
def confusions(draw: st.DrawFn) -> Floats:
    """Counts [true, predicted], some classes without images or answers."""
    classes = draw(st.integers(1, 6))
    rows = st.lists(st.integers(0, 9), min_size=classes, max_size=classes)
    return np.array(draw(st.lists(rows, min_size=classes, max_size=classes)), np.float64)


def pairs(counts: Floats) -> tuple[list[int], list[int]]:
    """The truth and the answer of each image."""
    cells = [(i, j) for (i, j), n in np.ndenumerate(counts) for _ in range(int(n))]
    return [i for i, _ in cells], [j for _, j in cells]


def naive_macro_f1(truth: list[int], answers: list[int]) -> float:
    """From precision and recall of each class, image by image."""
    found = []
    for label in sorted(set(truth)):
        hits = sum(t == a == label for t, a in zip(truth, answers, strict=True))
        answered, images = answers.count(label), truth.count(label)
        precision, recall = hits / answered if answered else 0.0, hits / images
        both = precision + recall
        found.append(2 * precision * recall / both if both else 0.0)
    return sum(found) / len(found) if found else math.nan


def naive_balanced_accuracy(truth: list[int], answers: list[int]) -> float:
    recalls = [
        np.mean([a == label for t, a in zip(truth, answers, strict=True) if t == label])
        for label in sorted(set(truth))
    ]
    return float(np.mean(recalls)) if recalls else math.nan


@given(counts=confusions())
def test_figures_are_those_of_single_images(counts: Floats) -> None:
    truth, answers = pairs(counts)
    same = {"rel": 1e-12, "nan_ok": True}
    assert macro_f1(counts) == pytest.approx(naive_macro_f1(truth, answers), **same)
    naive = naive_balanced_accuracy(truth, answers)
    assert balanced_accuracy(counts) == pytest.approx(naive, **same)


def test_a_worked_example() -> None:
    """Three classes, by hand: recalls 3/4, 1/2 and 1; F1 6/8, 2/4 and 6/6."""
    counts = np.array([[3.0, 1, 0], [1, 1, 0], [0, 0, 3]])
    assert balanced_accuracy(counts) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert macro_f1(counts) == pytest.approx((6 / 8 + 2 / 4 + 6 / 6) / 3)


@given(counts=confusions(), times=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_a_mix_is_as_if_classes_were_tested_that_often(counts: Floats, times: list[int]) -> None:
    """Images counted several times, or weighted by the proportions that this gives them."""
    copies = np.array(times[: len(counts)], np.float64)
    often = counts * copies[:, None]
    images = often.sum(axis=1)
    mix = images / images.sum() if images.sum() else images
    same = {"rel": 1e-9, "nan_ok": True}
    assert macro_f1(counts, mix) == pytest.approx(macro_f1(often), **same)
    assert balanced_accuracy(counts, mix) == pytest.approx(balanced_accuracy(often), **same)


@given(counts=confusions())
def test_an_interval_holds_its_figure_and_stays_within_bounds(counts: Floats) -> None:
    for figure, interval in SIDES:
        value, (low, high) = figure(counts), interval(counts)
        if math.isnan(value) or len(counts) == 1:  # no answer can be wrong
            assert math.isnan(low)
            assert math.isnan(high)
        else:
            assert 0 <= low <= value <= high <= 1
            assert low < high


def test_without_a_mistake_an_interval_is_that_of_so_many_images() -> None:
    """Not of width 0: none of 40 images was wrong, which leaves some 9 % plausible (Wilson)."""
    for _, interval in SIDES:
        low, high = interval(np.diag([10.0, 10, 10, 10]))
        assert high == 1
        assert low == pytest.approx(0.912, abs=0.003)


def law(accuracies: list[float], frequent: list[float], seed: int) -> Floats:
    """Probabilities [true, predicted] of classes with these recalls; mistakes prefer some."""
    rng, classes = np.random.default_rng(seed), len(accuracies)
    found = np.zeros((classes, classes))
    for at, right in enumerate(accuracies):
        found[at] = np.insert(rng.dirichlet(np.ones(classes - 1)) * (1 - right), at, right)
    return found * (np.array(frequent) / sum(frequent))[:, None]


LAWS: dict[str, tuple[Floats, int]] = {
    "ten classes, 200 images": (law([0.78 + 0.02 * k for k in range(10)], [1] * 10, 1), 200),
    "nearly perfect": (law([0.97 + 0.003 * k for k in range(10)], [1] * 10, 2), 200),
    "a rare class": (law([0.95, 0.9, 0.85, 0.7], [50, 30, 15, 5], 3), 300),
    "two classes, one in ten": (law([0.95, 0.8], [9, 1], 4), 200),
    "six images a class": (law([0.4 + 0.06 * k for k in range(8)], [1] * 8, 5), 48),
}


@pytest.mark.parametrize("name", LAWS)
def test_of_a_hundred_intervals_about_95_hold_the_true_figure(name: str) -> None:
    """600 test sets of each law; 3.5 points of 95 % are four standard errors of their share."""
    chance, images = LAWS[name]
    rng, classes = np.random.default_rng(7), len(chance)
    held: dict[Any, list[bool]] = {side: [] for side in SIDES}
    truth = {side: side[0](chance * 1e6) for side in SIDES}
    while len(held[SIDES[0]]) < 600:
        counts = rng.multinomial(images, chance.ravel()).reshape(classes, classes).astype(float)
        if not counts.sum(axis=1).all():
            continue  # the figure of a test set without some class is another one
        for side in SIDES:
            low, high = side[1](counts)
            held[side].append(low <= truth[side] <= high)
    for side, found in held.items():
        assert 0.915 <= np.mean(found) <= 1, (side, np.mean(found))


def test_symmetric_intervals_would_not_hold_it() -> None:
    """The attack on the claim: an interval with the figure in its middle misses too often."""
    chance, images = LAWS["nearly perfect"]
    rng, true = np.random.default_rng(7), balanced_accuracy(LAWS["nearly perfect"][0] * 1e6)
    missed = 0
    for _ in range(600):
        counts = rng.multinomial(images, chance.ravel()).reshape(10, 10).astype(float)
        recalls, count = np.diag(counts) / counts.sum(axis=1), counts.sum(axis=1)
        half = 1.96 * math.sqrt(float((recalls * (1 - recalls) / count).sum())) / 10
        missed += abs(recalls.mean() - true) > half
    assert missed / 600 > 0.1
