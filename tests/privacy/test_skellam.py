"""Skellam noise on integers: its distribution, its bound, and its price."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import FedSightError, SiteError
from fedsight.privacy import event, skellam
from fedsight.privacy.accounting import _skellam, spent


@given(st.integers(1, 300), st.integers(0, 1000), st.floats(0.5, 1000))
def test_integers_stay_within_the_bound_whatever_the_rounding(
    size: int, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size)
    values /= max(1.0, float(np.linalg.norm(values)))
    rounded = skellam.quantise(values, 1.0, scale, rng)
    assert rounded.dtype == np.int64
    assert np.linalg.norm(rounded) <= skellam.bound(1.0, scale, size)
    assert np.abs(rounded - values * scale).max() < 1


def test_the_mean_of_the_rounding_is_the_value() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0.123, -0.456, 0.0, 0.25])
    mean = np.mean([skellam.quantise(values, 1.0, 8.0, rng) for _ in range(20000)], axis=0)
    assert skellam.restore(mean, 8.0) == pytest.approx(values, abs=0.003)


def test_what_is_longer_than_the_clip_or_not_finite_is_refused() -> None:
    rng = np.random.default_rng(0)
    for values in ([2.0], [math.nan], [math.inf]):
        with pytest.raises(SiteError):
            skellam.quantise(np.array(values), 1.0, 8.0, rng)


def test_sums_of_noise_have_the_sum_of_variances() -> None:
    rng = np.random.default_rng(0)
    total = np.zeros(50_000)
    for _ in range(8):
        total += skellam.noise(50_000, 6.25, rng)
    assert total.var() == pytest.approx(50, rel=0.03)
    assert abs(total.mean()) < 0.15
    assert np.array_equal(total, total.round())


def test_honest_survivors_alone_reach_the_multiplier() -> None:
    variance = skellam.share(2.0, 1.0, 256.0, 1000, honest=80)
    paid = skellam.release(variance, 1.0, 256.0, 1000, honest=80)
    assert paid.noise == pytest.approx(2.0)
    assert skellam.release(variance, 1.0, 256.0, 1000, honest=100).noise > 2.0
    with pytest.raises(FedSightError, match="honest"):
        skellam.share(2.0, 1.0, 256.0, 1000, honest=0)


def test_finely_scaled_it_costs_what_gaussian_noise_does() -> None:
    costs = []
    for scale in (16.0, 256.0, 65536.0):
        variance = skellam.share(2.0, 1.0, scale, 1000, honest=10)
        costs.append(spent([(skellam.release(variance, 1.0, scale, 1000, 10), 5)], 1e-5))
    gaussian = spent([(event.gaussian(2.0), 5)], 1e-5, "rdp")
    assert costs[0] >= costs[1] >= costs[2]
    assert costs[2] == pytest.approx(gaussian, rel=0.02)
    assert costs[2] >= gaussian * 0.999


@pytest.mark.parametrize("variance", [4.0, 25.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_bound_is_above_the_divergence_itself(variance: float, shift: int) -> None:
    from scipy import stats

    support = np.arange(-400, 401)
    half = variance / 2
    ours = stats.skellam.logpmf(support, half, half)
    theirs = stats.skellam.logpmf(support - shift, half, half)
    orders = np.array([2.0, 4.0, 8.0])
    bound = _skellam(event.skellam(variance, shift, shift), "add_remove", orders)
    good = np.isfinite(ours) & np.isfinite(theirs) & (ours > -600) & (theirs > -600)
    for order, most in zip(orders, bound, strict=True):
        terms = order * theirs[good] + (1 - order) * ours[good]
        divergence = np.logaddexp.reduce(terms) / (order - 1)
        assert divergence <= most
        assert divergence > 0.5 * most or variance == 4.0


def test_it_says_whether_a_sum_fits_the_modulus() -> None:
    assert skellam.fits(1.0, 256.0, 100, 100.0, 2**32)
    assert not skellam.fits(1.0, 256.0, 100, 100.0, 2**15)
