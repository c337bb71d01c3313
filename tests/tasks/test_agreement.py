"""Weighted kappa is that of its definition, and its interval covers as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsight.tasks.agreement import kappa_interval, weighted_kappa


def truth(grades: int, right: float, marginal: list[float]) -> np.ndarray:
    """Shares [true, answered] in which mistakes are mostly by one grade."""
    found = np.zeros((grades, grades))
    for grade in range(grades):
        far = np.abs(np.arange(grades) - grade)
        each = np.where(far > 0, 0.3**far, 0.0)
        found[grade] = each / each.sum() * (1 - right)
        found[grade, grade] = right
    return found * np.array(marginal)[:, None]


def test_kappa_of_two_grades_is_cohens() -> None:
    shares = np.array([[0.4, 0.1], [0.2, 0.3]])
    assert weighted_kappa(shares) == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert math.isnan(weighted_kappa(np.array([[1.0, 0], [0, 0]])))
    assert math.isnan(kappa_interval(np.array([[9.0, 0], [0, 0]]))[0])


@pytest.mark.parametrize(
    ("grades", "right", "marginal"),
    [
        (4, 0.98, [0.25] * 4),  # hardly a mistake
        (4, 0.7, [0.25] * 4),
        (5, 0.4, [0.2] * 5),
        (4, 0.9, [0.7, 0.15, 0.1, 0.05]),
    ],
)
@pytest.mark.parametrize("images", [30, 60, 200])
def test_the_interval_covers(grades: int, right: float, marginal: list[float], images: int) -> None:
    shares, draws = truth(grades, right, marginal), np.random.default_rng(1)
    kappa, held, tried = weighted_kappa(shares), 0, 0
    for _ in range(400):
        drawn = draws.multinomial(images, shares.ravel()).reshape(grades, grades).astype(float)
        low, high = kappa_interval(drawn)
        if not math.isnan(low):
            assert -1 <= low <= 1e-9 + weighted_kappa(drawn / images) <= high + 1e-9
            assert high <= 1
            held, tried = held + (low <= kappa <= high), tried + 1
    assert held / tried >= 0.925


def test_without_a_mistake_the_interval_is_not_empty() -> None:
    low, high = kappa_interval(np.diag([10.0, 10.0, 10.0]))
    assert low < 0.95
    assert high == pytest.approx(1)
