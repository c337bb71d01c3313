"""Poisson numbers have their distribution at all sizes, beside SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsight.privacy.noise import Noise
from fedsight.privacy.poisson import _log_probability, offsets

COUNT = 200_000


def drawn(mean: float, count: int = COUNT) -> np.ndarray:  # type: ignore[type-arg]
    return offsets(mean, count, Noise(7, "poisson", repr(mean)).uniform)


@pytest.mark.parametrize("mean", [0.25, 7.7, 99.5, 999.5, 1000.0, 1234.5])
def test_frequencies_are_those_of_the_distribution(mean: float) -> None:
    found = drawn(mean) + math.floor(mean)
    assert found.min() >= 0
    counts = np.bincount(found)
    expected = stats.poisson.pmf(np.arange(len(counts)), mean) * COUNT
    often = expected > 20
    distance = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    assert stats.chi2.sf(distance, often.sum()) > 1e-4


@pytest.mark.parametrize("mean", [2.0**20 + 0.5, 2.0**40, 2.0**50, 2.0**54])
def test_large_means_keep_their_shape_and_lose_no_precision(mean: float) -> None:
    found = drawn(mean)
    scaled = (found - (mean - math.floor(mean))) / math.sqrt(mean)
    assert stats.kstest(scaled, "norm").pvalue > 1e-4
    assert scaled.var() == pytest.approx(1, abs=0.015)
    assert stats.kurtosis(scaled) == pytest.approx(0, abs=0.05)
    assert set(found % 8) == set(range(8))  # NumPy's have gaps above 2^53


def test_a_mean_of_nothing_is_nothing() -> None:
    assert not drawn(0.0, 10).any()
    assert drawn(5.0, 0).shape == (0,)


def test_the_probability_that_decides_is_exact() -> None:
    mean = 1000.25
    numbers = np.arange(700, 1400)
    assert _log_probability(numbers - mean, mean) == pytest.approx(
        stats.poisson.logpmf(numbers, mean), abs=1e-8
    )


def test_the_same_stream_gives_the_same_numbers() -> None:
    assert np.array_equal(drawn(2e6, 1000), drawn(2e6, 1000))
    assert not np.array_equal(drawn(2e6, 1000), drawn(2e6 + 1, 1000))
