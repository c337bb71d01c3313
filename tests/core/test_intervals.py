"""Intervals: values from the literature, and how often they hold what they are of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsight.core.intervals import deviation, holm, of_mean, p_value, paired, student, wilson


def chances(samples: int, share: float) -> list[float]:
    """The binomial distribution of the number of successes."""
    return [
        math.comb(samples, right) * share**right * (1 - share) ** (samples - right)
        for right in range(samples + 1)
    ]


def coverage(samples: int, share: float) -> float:
    """How often the interval holds the true share."""
    return sum(
        chance
        for right, chance in enumerate(chances(samples, share))
        if wilson(right / samples, samples)[0] <= share <= wilson(right / samples, samples)[1]
    )


@pytest.mark.parametrize(
    ("right", "samples", "wanted"),
    [  # Newcombe 1998, table I
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (1 - 0.1611, 1.0)),
    ],
)
def test_the_wilson_interval_has_its_own_two_bounds(right, samples, wanted):
    assert wilson(right / samples, samples) == pytest.approx(wanted, abs=1e-4)


def test_it_covers_95_percent_on_average_also_near_the_end():
    """A half-width around the observed share covered only 0.927 at a share of 0.99."""
    shares = [0.985 + 0.0002 * step for step in range(51)]
    assert sum(coverage(200, share) for share in shares) / len(shares) == pytest.approx(
        0.95, abs=0.012
    )
    assert coverage(200, 0.99) > 0.94
    assert all(coverage(50, share / 100) > 0.91 for share in range(5, 96))


@given(right=st.integers(0, 500), more=st.integers(0, 500))
def test_it_holds_the_share_and_stays_within_0_and_1(right, more):
    samples = max(1, right + more)
    low, high = wilson(right / samples, samples)
    assert 0 <= low <= right / samples <= high <= 1
    other = wilson(1 - right / samples, samples)
    assert (low, high) == pytest.approx((1 - other[1], 1 - other[0]), abs=1e-12)


def test_nothing_is_known_without_samples():
    assert all(map(math.isnan, (*wilson(0.5, 0), *paired(0.0, 0.0, 0), *wilson(math.nan, 9))))


def test_few_disagreements_show_nothing_and_many_do():
    """McNemar's exact test at 5 % needs six disagreements of one kind and none of the other."""
    assert paired(4 / 36, 0, 36)[0] < 0 < paired(6 / 36, 0, 36)[0]
    assert paired(0, 6 / 36, 36)[1] < 0
    low, high = paired(0.1, 0.1, 500)
    assert low == pytest.approx(-high)


@given(first=st.integers(0, 60), second=st.integers(0, 60), rest=st.integers(0, 200))
def test_the_difference_is_turned_round_with_the_order(first, second, rest):
    samples = max(1, first + second + rest)
    low, high = paired(first / samples, second / samples, samples)
    other = paired(second / samples, first / samples, samples)
    assert -1 <= low < high <= 1
    assert (low, high) == pytest.approx((-other[1], -other[0]), abs=1e-12)


@pytest.mark.parametrize(("samples", "only"), [(36, 0.1), (200, 0.03), (200, 0.2)])
def test_without_a_difference_one_is_shown_at_most_once_in_twenty(samples, only):
    """Exact: both models are right alone with the same chance `only`."""
    wrong = 0.0
    for apart, chance in enumerate(chances(samples, 2 * only)):
        for first, half in enumerate(chances(apart, 0.5)):
            low, high = paired(first / samples, (apart - first) / samples, samples)
            wrong += chance * half * (low > 0 or high < 0)
    assert wrong < 0.056


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 30, 99])
def test_students_t_agrees_with_scipy(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_the_interval_of_a_mean_is_students() -> None:
    """Student 1908, section IX: additional hours of sleep with one of two drugs, ten patients."""
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    low, high = of_mean(hours)
    assert (low, high) == pytest.approx((0.7001, 2.4599), abs=1e-4)
    assert deviation(hours) == pytest.approx(1.2300, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_of_a_mean_holds_it_as_often_as_it_says(count: int) -> None:
    """1.96 standard errors, which need more values, would hold the mean of 3 in 81 % only."""
    values = np.random.RandomState(0).standard_normal((4000, count))
    bounds = [of_mean(row) for row in values.tolist()]
    share = sum(low <= 0 <= high for low, high in bounds) / len(bounds)
    assert abs(share - 0.95) < 0.012


def test_divisions_of_the_same_samples_tell_less_of_a_mean_than_independent_values() -> None:
    """Values with the correlation test / (test + training) that Nadeau and Bengio (2003) assume."""
    tested, trained, count = 10, 30, 5
    common = math.sqrt(tested / (tested + trained))
    draws = np.random.RandomState(0)
    own = draws.standard_normal((4000, count)) * math.sqrt(1 - common**2)
    values = own + common * draws.standard_normal((4000, 1))
    bounds = [of_mean(row, tested / trained) for row in values.tolist()]
    share = sum(low <= 0 <= high for low, high in bounds) / len(bounds)
    assert abs(share - 0.95) < 0.012
    plain = [of_mean(row) for row in values.tolist()]
    assert sum(low <= 0 <= high for low, high in plain) / len(plain) < 0.85


def test_one_value_has_no_spread() -> None:
    assert math.isnan(deviation([0.5]))
    assert all(math.isnan(bound) for bound in of_mean([0.5]))


@pytest.mark.parametrize("values", [[0.01, 0.03, -0.01, 0.02], [0.4, 0.5], [-1.0, -2.0, -1.5, 0.2]])
def test_the_paired_t_test_agrees_with_scipy(values: list[float]) -> None:
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9)


def test_a_test_needs_two_values_and_equal_ones_are_certain() -> None:
    assert np.isnan(p_value([0.3]))
    assert p_value([0.0, 0.0, 0.0]) == 1.0
    assert p_value([0.25, 0.25]) == 0.0


def test_holm_multiplies_the_smallest_by_all_and_never_turns_the_order_round() -> None:
    # Worked out by hand: 3 * 0.01, max(0.03, 2 * 0.02), max(0.04, 1 * 0.03).
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.02, float("nan"), 0.02])  # one that could not be made counts for nothing
    assert np.isnan(found[1])
    assert [found[0], found[2]] == pytest.approx([0.04, 0.04])


def test_holm_keeps_the_family_wise_error_of_the_widest_difference() -> None:
    """Six equal configurations over five seeds: looking only at the best and the worst of them, a
    difference is claimed in 5 % of cases at most, where unadjusted it would be in far more."""
    rng = np.random.default_rng(3)
    claimed = unadjusted = 0
    for _ in range(400):
        figures = rng.normal(size=(6, 5))
        tests = [p_value(list(figures[i] - figures[j])) for i in range(6) for j in range(i)]
        unadjusted += min(tests) <= 0.05
        claimed += min(holm(tests)) <= 0.05
    assert claimed / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert unadjusted / 400 > 0.2
