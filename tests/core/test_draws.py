"""Draws: known answers, the laws they follow, and no help from NumPy's distributions."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsight.core import ziggurat
from fedsight.core.draws import Draws, draws
from fedsight.core.rng import derive

SEEDS = st.integers(0, 2**63 - 1)
ENOUGH = 4000  # draws whose law is compared
# A test of a law fails by chance once in a thousand seeds; these are fixed, so it never does.
CHANCE = 1e-3


def code(values: np.ndarray) -> str:
    """The first digits of the hash of values, as little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def test_the_bits_are_those_of_pcg64() -> None:
    """What NumPy promises not to change: the first words of the seed 0."""
    assert Draws(0).uniforms(3).tolist() == [
        0.6369616873214543,
        0.2697867137638703,
        0.04097352393619469,
    ]


def test_whole_numbers_have_known_answers() -> None:
    assert draws(0, "a").permutation(10).tolist() == [5, 9, 2, 7, 4, 1, 8, 0, 6, 3]
    assert draws(0, "a").sample(1000, 5).tolist() == [736, 757, 792, 871, 932]
    assert [draws(0, "a").below(10**9), draws(1, "a").below(10**9)] == [936599136, 628272100]
    assert code(draws(0, "b").permutation(100_000)) == "aa8db53af2abeb16"
    assert code(draws(0, "b").choose([1.0, 2.0, 4.0], 1000)) == "d520a00b3f61a001"


@pytest.mark.parametrize(
    ("law", "wanted"),
    [
        ("exponential", (0.21443809217941945, 1.2739569306416698, 1.7869665321105455)),
        ("normal", (0.28787529809394763, 0.3342227796983505, -0.5161151552919446)),
        ("gamma", (1.3725173460612517e-05, 0.7692010097050834, 11.075742008843227)),
        ("dirichlet", (0.002571026139954319, 0.5103762349632883, 0.48705273889675726)),
        ("small dirichlet", (0.9999999999999998, 2.879164747112634e-16, 7.282945602191581e-18)),
    ],
)
def test_real_numbers_have_known_answers(law: str, wanted: tuple[float, ...]) -> None:
    """To 12 digits: the last ones are those of the machine's exp, log and power."""
    made = draws(0, law)
    found = {
        "exponential": lambda: [made.exponential() for _ in range(3)],
        "normal": lambda: [made.normal() for _ in range(3)],
        "gamma": lambda: [made.gamma(shape) for shape in (0.3, 1.0, 7.5)],
        "dirichlet": lambda: made.dirichlet(0.3, 3).tolist(),
        "small dirichlet": lambda: made.dirichlet(0.01, 3).tolist(),
    }[law]()
    assert found == pytest.approx(list(wanted), rel=1e-12, abs=1e-300)


@given(seed=SEEDS, count=st.integers(0, 200))
def test_a_permutation_has_everything_once(seed: int, count: int) -> None:
    order = Draws(seed).permutation(count)
    assert sorted(order.tolist()) == list(range(count))
    items = np.arange(count) * 7
    assert np.array_equal(Draws(seed).permutation(items), items[order])


def test_every_permutation_is_equally_likely() -> None:
    made, counts = draws(0, "permutations"), dict[tuple[int, ...], int]()
    for _ in range(6000):
        order = tuple(made.permutation(4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > CHANCE


@given(seed=SEEDS, total=st.integers(1, 300), share=st.floats(0, 1))
def test_a_sample_has_different_numbers_of_the_total(seed: int, total: int, share: float) -> None:
    count = round(share * total)
    chosen = Draws(seed).sample(total, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert count == 0 or (chosen[0] >= 0 and chosen[-1] < total)


def test_every_sample_is_equally_likely() -> None:
    made, counts = draws(0, "samples"), dict[tuple[int, ...], int]()
    for _ in range(6000):
        chosen = tuple(made.sample(6, 3).tolist())
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == math.comb(6, 3)
    assert stats.chisquare(list(counts.values())).pvalue > CHANCE


@given(seed=SEEDS, bounds=st.lists(st.integers(1, 40) | st.integers(2**31, 2**32), max_size=60))
def test_whole_numbers_are_below_their_bounds(seed: int, bounds: list[int]) -> None:
    """Bounds just above 2^31 refuse half of all draws."""
    made = Draws(seed)
    assert all(0 <= made.below(bound) < bound for bound in bounds)


def test_a_bound_that_does_not_divide_gives_no_number_more_often() -> None:
    """With the remainder of a division instead, the lower half would come twice as often."""
    made, bound = draws(0, "unbiased"), 3 * 2**30
    found = np.array([made.below(bound) for _ in range(ENOUGH)]) / bound
    assert stats.kstest(found, "uniform").pvalue > CHANCE


@pytest.mark.parametrize("bound", [0, -1, 2**32 + 1])
def test_a_bound_that_cannot_be_is_refused(bound: int) -> None:
    with pytest.raises(ValueError, match="a bound from 1 to 2\\^32"):
        Draws(0).below(bound)


def test_chosen_places_follow_their_weights() -> None:
    weights = np.array([1.0, 0.0, 3.0, 6.0])
    counts = np.bincount(draws(0, "weights").choose(weights, ENOUGH), minlength=4)
    assert counts[1] == 0
    expected = weights[weights > 0] / weights.sum() * ENOUGH
    assert stats.chisquare(counts[weights > 0], expected).pvalue > CHANCE


def test_uniform_numbers_are_uniform_one_by_one_or_together() -> None:
    together = draws(0, "uniform").uniforms(ENOUGH)
    one = draws(0, "uniform")
    assert [one.uniform() for _ in range(5)] == together[:5].tolist()
    assert stats.kstest(together, "uniform").pvalue > CHANCE


def test_exponential_and_normal_draws_follow_their_laws_into_the_tails() -> None:
    made = draws(0, "laws")
    exponential = np.array([made.exponential() for _ in range(20_000)])
    normal = np.array([made.normal() for _ in range(20_000)])
    assert stats.kstest(exponential, "expon").pvalue > CHANCE
    assert stats.kstest(normal, "norm").pvalue > CHANCE
    # The tails beyond the lowest layers are made by another formula.
    assert exponential.max() > ziggurat.exponential().edge
    assert abs(normal).max() > ziggurat.normal().edge


@pytest.mark.parametrize("table", [ziggurat.exponential(), ziggurat.normal()])
def test_all_layers_of_a_ziggurat_have_the_same_area(table: ziggurat.Ziggurat) -> None:
    """Layer n is `width[n]` wide and reaches from `height[n]` to `height[n - 1]`; the table is
    closed: the uppermost layer ends at the height 1, which nothing but the right edge gives."""
    heights, widths = np.array(table.height), np.array(table.width)
    areas = widths[1:] * -np.diff(heights)
    assert np.allclose(areas, areas[0], rtol=1e-9)
    assert widths[0] * heights[-1] == pytest.approx(areas[0], rel=1e-9)


@pytest.mark.parametrize("shape", [0.05, 0.3, 0.99, 1.0, 1.3, 20.0])
def test_gamma_draws_follow_their_law(shape: float) -> None:
    made = draws(0, "gamma", str(shape))
    found = np.array([made.gamma(shape) for _ in range(ENOUGH)])
    assert stats.kstest(found, stats.gamma(shape).cdf).pvalue > CHANCE


@pytest.mark.parametrize("alpha", [0.02, 0.0999, 0.1, 0.5, 3.0])
def test_dirichlet_shares_follow_their_law(alpha: float) -> None:
    """Each share is a beta draw, and so is the sum of two; alike on both sides of 0.1, where
    another formula is used."""
    made = draws(0, "dirichlet", str(alpha))
    found = np.array([made.dirichlet(alpha, 5) for _ in range(ENOUGH)])
    assert np.allclose(found.sum(axis=1), 1)
    # A continuous law: values that round to 0 or 1 are the same in the law's own arithmetic.
    law = stats.beta(alpha, 4 * alpha)
    within = (found[:, 0] > 1e-200) & (found[:, 0] < 1 - 1e-12)
    cut = law.cdf(1e-200), law.cdf(1 - 1e-12)
    shown = (law.cdf(found[within, 0]) - cut[0]) / (cut[1] - cut[0])
    assert stats.kstest(shown, "uniform").pvalue > CHANCE
    assert abs((found[:, :2].sum(axis=1)).mean() - 0.4) < 0.03


@settings(max_examples=25)
@given(seed=SEEDS, alpha=st.floats(1e-6, 1e6), count=st.integers(1, 30))
def test_dirichlet_shares_always_sum_to_one(seed: int, alpha: float, count: int) -> None:
    shares = Draws(seed).dirichlet(alpha, count)
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1)


def test_a_path_has_the_draws_of_its_derived_seed() -> None:
    assert draws(3, "x", 1).uniform() == Draws(derive(3, "x", 1)).uniform()
    assert draws(3, "x", 1).uniform() != draws(3, "x", 2).uniform()
