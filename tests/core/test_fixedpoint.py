"""Sums are exact: they equal Python's integers, in any order and any grouping."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.core import sums
from fedsight.core.errors import SiteError
from fedsight.core.fixedpoint import FRACTION_BITS, ExactSum, encode
from fedsight.core.sums import LIMIT

ONE = 1 << FRACTION_BITS
floats = st.floats(-64.0, 64.0, width=32)
wild = st.floats(-(2.0**32), 2.0**32, width=32)  # subnormals included


def integer(value: float) -> int:
    """round(value * 2^30), half to even, by Python's own exact arithmetic."""
    return round(Fraction(value) * ONE)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    size, terms = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    vector = st.lists(floats, min_size=size, max_size=size)
    vectors = draw(st.lists(vector, min_size=terms, max_size=terms))
    weights = draw(st.lists(st.integers(1, 10**6), min_size=terms, max_size=terms))
    return vectors, weights


@given(st.lists(wild, min_size=1, max_size=20))
def test_encoding_rounds_half_to_even_like_exact_fractions(values: list[float]) -> None:
    assert encode(tensor(values)).tolist() == [integer(value) for value in values]


@pytest.mark.parametrize(
    ("halves", "rounded"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2), (2**23 + 1, 2**22)]
)
def test_exact_halves_go_to_the_even_integer(halves: int, rounded: int) -> None:
    assert encode(tensor([halves / 2 / ONE])).tolist() == [rounded]


@given(cohorts(), st.randoms(use_true_random=False))
def test_sum_equals_python_integers_in_any_order_and_grouping(cohort, random) -> None:
    vectors, weights = cohort
    size, terms = len(vectors[0]), len(vectors)
    expected = [
        sum(w * integer(v[i]) for v, w in zip(vectors, weights, strict=True)) for i in range(size)
    ]
    order = list(range(terms))
    random.shuffle(order)
    groups = [ExactSum(size, terms) for _ in range(random.randint(1, 4))]
    for term in order:
        random.choice(groups).add(tensor(vectors[term]), weights[term], f"site {term}")
    random.shuffle(groups)
    whole, *rest = groups
    for other in rest:
        whole.merge(other)
    assert whole.total.dtype == torch.int64
    assert whole.total.tolist() == expected
    assert (whole.weight, whole.count) == (sum(weights), terms)
    exact = [Fraction(e, ONE * sum(weights)) for e in expected]
    assert whole.mean().dtype == torch.float64
    np.testing.assert_allclose(whole.mean().numpy(), [float(x) for x in exact], rtol=1e-15)


def test_long_vectors_are_added_block_by_block_to_the_same_integers() -> None:
    size = 2 * sums.BLOCK + 7
    values = torch.randn(size, generator=torch.Generator().manual_seed(1))
    total = ExactSum(size, 2)
    total.add(values, 3, "a")
    total.add(-values, 2, "b")
    assert torch.equal(total.total, encode(values))


@pytest.mark.parametrize("block", [1, 1000, 1 << 40], ids=["by values", "by blocks", "as a GPU"])
def test_the_integers_are_those_of_numpy(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In doubles the product is exact and numpy rounds half to even, like PyTorch on any device."""
    monkeypatch.setattr(sums, "BLOCK", block)
    draws = np.random.default_rng(5)
    size = 50 if block == 1 else 3210
    vectors = (draws.normal(size=(4, size)) * 10.0 ** draws.uniform(-9, 3, (4, size))).astype("f4")
    total = ExactSum(size, terms=4)
    for weight, vector in enumerate(vectors, 1):
        total.add(torch.from_numpy(vector), weight, "a")
    scaled = np.rint(vectors.astype(np.float64) * 2**FRACTION_BITS).astype(np.int64)
    assert np.array_equal(total.total.numpy(), (scaled * np.arange(1, 5)[:, None]).sum(0))


def test_sum_can_live_in_given_memory_and_is_zeroed() -> None:
    memory = torch.full((3,), 5, dtype=torch.int64)
    total = ExactSum(3, 1, memory)
    assert memory.tolist() == [0, 0, 0]
    total.add(torch.ones(3), 2, "a")
    assert memory.tolist() == [2 * ONE] * 3
    total.clear(4)
    assert (memory.tolist(), total.weight, total.count, total.terms) == ([0, 0, 0], 0, 0, 4)


def test_mean_of_nothing_is_zero() -> None:
    assert ExactSum(2, 1).mean().tolist() == [0.0, 0.0]


def test_the_mean_takes_the_place_of_the_sum_which_is_closed_then() -> None:
    size = sums.BLOCK + 3
    values = torch.randn(size, generator=torch.Generator().manual_seed(1))
    total = ExactSum(size, 3)
    total.add(values, 4, "a")
    expected = encode(values).double() / ONE
    mean = total.mean()
    assert torch.equal(mean, expected)
    assert mean.data_ptr() == total.total.data_ptr()
    assert total.mean() is mean
    with pytest.raises(SiteError, match="term 2 of a sum of 1"):
        total.add(values, 1, "late")
    with pytest.raises(SiteError, match="in a sum of 1"):
        total.merge(_of(values))
    assert torch.equal(mean, expected)
    total.clear(1)
    total.add(values, 2, "a")
    assert torch.equal(total.total, 2 * encode(values))


def _of(values: torch.Tensor) -> ExactSum:
    total = ExactSum(len(values), 1)
    total.add(values, 1, "other")
    return total


def test_empty_vectors_add_to_an_empty_sum() -> None:
    total = ExactSum(0, 1)
    total.add(torch.empty(0), 2, "a")
    assert (total.total.shape, total.weight) == ((0,), 2)


def before(value: float) -> float:
    """The next float32 towards zero."""
    return float(np.nextafter(np.float32(value), np.float32(0)))


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_largest_admitted_value_is_exact_and_the_next_is_refused_untouched(
    weight: int, terms: int
) -> None:
    """Just inside the share of the range all is well; just outside nothing is added."""
    share = LIMIT // terms
    assume(share // weight >= 2)
    edge = float(np.float32(share // weight / ONE))
    while weight * (integer(edge) + 1) > share:
        edge = before(edge)
    beyond = float(np.nextafter(np.float32(edge), np.float32(np.inf)))
    while weight * (int(Fraction(beyond) * ONE) + 1) <= share:
        beyond = float(np.nextafter(np.float32(beyond), np.float32(np.inf)))
    total = ExactSum(2, terms)
    for _ in range(min(terms, 3)):
        total.add(tensor([edge, -edge]), weight, "in")
    taken = min(terms, 3) * weight * integer(edge)
    assert total.total.tolist() == [taken, -taken]
    assert abs(taken) <= LIMIT
    fresh = ExactSum(2, terms)
    for bad in ([beyond, 0.0], [0.0, -beyond]):
        with pytest.raises(SiteError, match=r"site 'out'.*64-bit range"):
            fresh.add(tensor(bad), weight, "out")
        assert (fresh.total.tolist(), fresh.weight, fresh.count) == ([0, 0], 0, 0)


def test_as_many_largest_terms_as_agreed_do_not_wrap() -> None:
    terms = 7
    edge = before(LIMIT // terms / ONE)
    while integer(edge) + 1 > LIMIT // terms:
        edge = before(edge)
    total = ExactSum(1, terms)
    for term in range(terms):
        total.add(tensor([edge]), 1, str(term))
    assert total.total.tolist() == [terms * integer(edge)]


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        ([float("nan"), 0.0], 1, "not finite"),
        ([0.0, float("inf")], 1, "not finite"),
        ([0.0, -float("inf")], 1, "not finite"),
        ([0.0, 0.0], 0, "has weight 0"),
        ([0.0, 0.0], -3, "has weight -3"),
        ([0.0], 1, r"sent \(1,\) values, not \(2,\)"),
        ([3.4e38, 0.0], 1, "64-bit range"),
    ],
)
def test_what_may_not_be_added_names_the_site_and_leaves_the_sum(
    values: list[float], weight: int, message: str
) -> None:
    total = ExactSum(2, 3)
    total.add(tensor([1.0, 2.0]), 1, "good")
    with pytest.raises(SiteError, match=f"site 'north'.*{message}|'north'.*{message}") as caught:
        total.add(tensor(values), weight, "north")
    assert caught.value.cure
    assert (total.total.tolist(), total.weight, total.count) == ([ONE, 2 * ONE], 1, 1)


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), 1, "type torch.float64, not a tensor of torch.float"),
        (torch.zeros(2, dtype=torch.int64), 1, "type torch.int64, not a tensor of torch.float32"),
        ([0.0, 0.0], 1, "type list, not a tensor of torch.float32"),
        (None, 1, "type NoneType, not a tensor"),
        (torch.zeros(2, 1), 1, r"sent \(2, 1\) values, not \(2,\)"),
        (torch.zeros(2), 1.0, "has weight 1.0, not a whole number"),
        (torch.zeros(2), True, "has weight True, not a whole number"),
        (torch.zeros(2), "7", "has weight '7', not a whole number"),
        (torch.zeros(2), 2**40 + 1, "not a whole number from 1 to 1099511627776"),
        (torch.zeros(2), 10**400, "not a whole number from 1 to 1099511627776"),
    ],
)
def test_what_is_no_weighted_vector_at_all_is_refused_by_name(
    values: Any, weight: Any, message: str
) -> None:
    total = ExactSum(2, 3)
    with pytest.raises(SiteError, match=f"site 'north'.*{message}") as caught:
        total.add(values, weight, "north")
    assert caught.value.cure
    assert (total.total.tolist(), total.weight, total.count) == ([0, 0], 0, 0)


def test_the_heaviest_weight_is_added() -> None:
    total = ExactSum(1, 1)
    total.add(torch.tensor([2.0**-30]), 2**40, "a")
    assert (total.total.tolist(), total.weight) == ([2**40], 2**40)


def test_more_terms_than_agreed_are_refused() -> None:
    total = ExactSum(1, 1)
    total.add(torch.ones(1), 1, "first")
    with pytest.raises(SiteError, match="site 'second' would be term 2 of a sum of 1"):
        total.add(torch.ones(1), 1, "second")
    other = ExactSum(1, 1)
    other.add(torch.ones(1), 1, "third")
    with pytest.raises(SiteError, match="2 replies in a sum of 1"):
        total.merge(other)
    assert (total.total.tolist(), total.weight, total.count) == ([ONE], 1, 1)
