"""The area from histograms is the Mann-Whitney statistic, and adds over sites."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.tasks.roc import auc, auc_interval, auc_slack, histogram, roc, thin

scores = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40)


def mann_whitney(positives: list[float], negatives: list[float]) -> float:
    pos, neg = np.array(positives)[:, None], np.array(negatives)[None, :]
    return float(((pos > neg) + (pos == neg) / 2).mean())


def binned(values: list[float], bins: int = 1000) -> np.ndarray:
    return histogram(torch.tensor(values, dtype=torch.float64), bins).numpy()


@given(scores, scores)
@settings(max_examples=100, deadline=None)
def test_the_area_is_the_mann_whitney_statistic_up_to_ties_within_a_bin(
    positives: list[float], negatives: list[float]
) -> None:
    pos, neg = binned(positives), binned(negatives)
    exact = mann_whitney(positives, negatives)
    assert abs(auc(pos, neg) - exact) <= auc_slack(pos, neg) + 1e-12


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
@settings(max_examples=100, deadline=None)
def test_scores_that_are_bins_lose_nothing(positives: list[int], negatives: list[int]) -> None:
    pos = np.bincount(positives, minlength=10)
    neg = np.bincount(negatives, minlength=10)
    assert auc(pos, neg) == pytest.approx(mann_whitney(list(positives), list(negatives)))
    x, y = roc(pos, neg)
    assert np.trapezoid(y, x) == pytest.approx(auc(pos, neg))  # the area under the curve drawn
    assert auc(pos, neg) + auc(neg, pos) == pytest.approx(1)


@given(scores, scores, st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_histograms_of_sites_add_to_that_of_all(
    first: list[float], second: list[float], cut: int
) -> None:
    assert (binned(first) + binned(second) == binned([*first, *second])).all()
    assert binned(first).sum() == len(first)


def test_known_answers() -> None:
    assert auc([0, 0, 5], [7, 0, 0]) == 1
    assert auc([7, 0, 0], [0, 0, 5]) == 0
    assert auc([0, 3, 0], [0, 9, 0]) == 0.5
    assert math.isnan(auc([0, 0], [1, 2]))
    assert math.isnan(auc([1, 2], [0, 0]))


def test_scores_on_the_edges_and_outside_are_counted() -> None:
    counts = histogram(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), bins=2)
    assert counts.tolist() == [2, 3]
    assert histogram(torch.tensor([-1.0, 0.99]), bins=4, low=-1).tolist() == [1, 0, 0, 1]


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a number"):
        histogram(torch.tensor([0.5, float("nan")]))


def test_histograms_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="both must be"):
        auc([1, 2], [1, 2, 3])


def test_a_drawn_curve_keeps_its_ends_and_corners() -> None:
    x, y = roc([0, 0, 4, 4], [4, 4, 0, 0])
    assert thin(x, y) == [(0, 0), (0, 1), (1, 1)]
    rng = np.random.default_rng(0)
    x, y = roc(rng.integers(0, 5, 1000), rng.integers(0, 5, 1000))
    points = thin(x, y)
    assert len(points) == 200
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)


@pytest.mark.parametrize(("images", "share"), [(40, 0.3), (40, 0.1), (200, 0.1)])
@pytest.mark.parametrize("apart", [0.5, 1.5, 3.0])
def test_the_interval_of_an_area_covers_close_to_one_too(
    images: int, share: float, apart: float
) -> None:
    """With the spread at the measured area it covered 0.50 of 0.95 at 40 images and 3.0."""
    draws, held, tried = np.random.default_rng(2), 0, 0
    whole = 0.5 * (1 + math.erf(apart / 2))
    for _ in range(300):
        own = draws.random(images) < share
        if 0 < own.sum() < images:
            scores = np.clip((draws.normal(size=images) + apart * own) / 20 + 0.5, 0, 1)
            low, high = auc_interval(binned(list(scores[own])), binned(list(scores[~own])))
            assert 0 <= low <= high <= 1
            held, tried = held + (low <= whole <= high), tried + 1
    assert held / tried >= 0.92


def test_a_perfect_area_of_few_images_is_not_sure() -> None:
    low, high = auc_interval([0, 0, 5], [7, 0, 0])
    assert low < 0.8
    assert high == 1
    assert math.isnan(auc_interval([0, 0], [1, 0])[0])
