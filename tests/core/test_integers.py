"""Integers are summed as they are, and what could leave 64 bits is refused whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.aggregation.mean import ExactMean, Mean
from fedsight.compression.half import Float16
from fedsight.core import sums
from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.integers import IntegerSum, peak, share_of
from fedsight.core.sums import LIMIT
from fedsight.core.types import Order, PartSpec

SPECS = {
    "delta": PartSpec((2,)),
    "gram": PartSpec((2, 2), torch.int64, bound=1000),
    "counts": PartSpec((3,), torch.int64),
}


def payload(**changes: Any) -> dict[str, Tensor]:
    """A reply that may be added, but for what is changed."""
    gram = torch.tensor([1000, -1000, 7, 0])
    parts = {"delta": torch.tensor([0.5, -0.25]), "gram": gram, "counts": torch.tensor([1, 2, 3])}
    return {**parts, **changes}


def mean(terms: int) -> ExactMean:
    return Mean().aggregator(SPECS, terms)


def contents(total: ExactMean) -> tuple[object, ...]:
    found = {part: tensor.tolist() for part, tensor in total.tensors.items()}
    return found, total.count, total.weight


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Vectors of several sites, extremes included, and the number of sites that may come."""
    sites = draw(st.integers(1, 6))
    terms = draw(st.integers(sites, 9))
    share = LIMIT // terms
    values = st.one_of(st.integers(-share, share), st.sampled_from([-share, share, 0, -1]))
    size = draw(st.integers(1, 5))
    vector = st.lists(values, min_size=size, max_size=size)
    return draw(st.lists(vector, min_size=sites, max_size=sites)), terms


@given(cohorts(), st.randoms(use_true_random=False))
def test_a_sum_is_that_of_pythons_integers_in_any_order_and_grouping(
    cohort: tuple[list[list[int]], int], random: Any
) -> None:
    vectors, terms = cohort
    due = [sum(column) for column in zip(*vectors, strict=True)]
    order = random.sample(vectors, len(vectors))
    cut = random.randrange(len(order) + 1)
    totals = IntegerSum(len(due), None, terms), IntegerSum(len(due), None, terms)
    for total, some in zip(totals, (order[:cut], order[cut:]), strict=True):
        for number, vector in enumerate(some):
            total.add(torch.tensor(vector), random.randrange(1, 9), f"s{number}")
    totals[0].merge(totals[1])
    assert totals[0].total.tolist() == due
    assert totals[0].count == len(vectors)


@pytest.mark.parametrize("terms", [1, 2, 3, 1000])
@pytest.mark.parametrize("bound", [None, 0, 12, LIMIT])
def test_the_largest_integer_is_admitted_and_the_next_refused_untouched(
    terms: int, bound: int | None
) -> None:
    share = share_of(bound, terms)
    assert share == min(LIMIT if bound is None else bound, LIMIT // terms)
    assert share * terms <= LIMIT
    for sign in (1, -1):
        total = IntegerSum(2, bound, terms)
        total.add(torch.tensor([sign * share, 0]), 7, "a")
        assert total.total.tolist() == [sign * share, 0], "the weight changes nothing"
        total.clear(terms)
        if share < LIMIT or sign < 0:
            with pytest.raises(SiteError, match=r"site 'b' sent the integer .* at most"):
                total.add(torch.tensor([0, sign * share + sign]), 7, "b")
            assert total.total.tolist() == [0, 0]


def test_the_least_integer_of_all_is_not_taken_for_a_small_one() -> None:
    """In int64 the absolute value of -2^63 is -2^63 again."""
    assert peak(torch.tensor([-(2**63), 5])) == 2**63
    assert peak(torch.empty(0, dtype=torch.int64)) == 0
    with pytest.raises(SiteError, match="-9,223,372,036,854,775,808"):
        IntegerSum(1, None, 1).add(torch.tensor([-(2**63)]), 1, "a")


def test_a_value_refused_in_a_later_block_takes_the_earlier_ones_back() -> None:
    size = 2 * sums.BLOCK + 5
    total = IntegerSum(size, 10, 2)
    total.add(torch.full((size,), 3), 1, "a")
    spoilt = torch.full((size,), -4)
    spoilt[-1] = 11
    with pytest.raises(SiteError, match="'b' sent the integer 11"):
        total.add(spoilt, 1, "b")
    assert bool((total.total == 3).all())
    assert total.count == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": torch.tensor([1, 2, LIMIT // 2 + 1])}, "the integer 4,611,686,018,427,387,904"),
        ({"gram": torch.tensor([0, 0, 0, 1001])}, "the integer 1,001, .* at most 1,000"),
        ({"gram": torch.tensor([0, 0, 0, -1001])}, "the integer -1,001"),
        ({"counts": torch.tensor([1, 2])}, r"\(2,\) values, not \(3,\)"),
        ({"gram": torch.zeros(2, 2, dtype=torch.int64)}, r"\(2, 2\) values, not \(4,\)"),
        ({"counts": torch.zeros(3)}, "float32, not a tensor of torch.int64"),
        ({"counts": torch.zeros(3, dtype=torch.int32)}, "int32, not a tensor of torch.int64"),
        ({"counts": [1, 2, 3]}, "type list"),
        ({"delta": torch.tensor([1, 2])}, "int64, not a tensor of torch.float32"),
        ({"delta": torch.tensor([1.0, float("nan")])}, "not finite"),
    ],
)
def test_a_reply_is_added_whole_or_not_at_all(changes: dict[str, Any], message: str) -> None:
    total = mean(2)
    total.add(payload(), 5, "good")
    before = contents(total)
    with pytest.raises(SiteError, match=f"site 'bad'.*{message}") as caught:
        total.add(payload(**changes), 5, "bad")
    assert caught.value.cure
    assert contents(total) == before


def test_floats_are_averaged_by_weight_and_integers_summed_without() -> None:
    total = mean(2)
    total.add(payload(), 1, "a")
    total.add(payload(delta=torch.tensor([4.5, 3.75])), 3, "b")
    assert total.integers()["gram"].tolist() == [[2000, -2000], [14, 0]]
    assert total.integers()["counts"].tolist() == [2, 4, 6]
    assert total.mean().keys() == {"delta"}
    assert total.mean()["delta"].tolist() == [3.5, 2.75]


@pytest.mark.parametrize(
    "described",
    [
        {"dtype": torch.float64},
        {"dtype": torch.int32},
        {"dtype": torch.int64, "codec": Float16()},
        {"dtype": torch.int64, "bound": -1},
        {"dtype": torch.int64, "bound": 1.5},
        {"dtype": torch.int64, "bound": True},
        {"bound": 5},
    ],
)
def test_a_part_that_cannot_be_sent_is_not_described(described: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"float32 or int64|codec|bound"):
        PartSpec((3,), **described)


def test_sizes_are_those_of_the_type() -> None:
    assert [spec.bytes for spec in SPECS.values()] == [8, 32, 24]


def test_an_order_of_integers_is_refused_by_the_name_of_the_vector() -> None:
    with pytest.raises(FedSightError, match=r"the sums of the order of round 3 is torch.int64"):
        Order(3, torch.zeros(2), {"sums": torch.zeros(2, dtype=torch.int64)})
