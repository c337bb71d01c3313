"""A reply's payload is added whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aggregators import exact_mean
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.aggregation.mean import ExactMean
from fedsight.core.errors import SiteError

SIZES = {"delta": 3, "control": 2}


def payload(delta: float = 1.0, control: float = 2.0) -> dict[str, Tensor]:
    return {"delta": torch.full((3,), delta), "control": torch.full((2,), control)}


def contents(total: ExactMean) -> tuple[object, ...]:
    parts = {part: one.total.tolist() for part, one in total.sums.items()}
    return parts, total.count, total.weight, [one.count for one in total.sums.values()]


def test_each_part_has_its_own_weighted_mean() -> None:
    total = exact_mean(SIZES, 2)
    total.add(payload(1.0, -2.0), 1, "a")
    total.add(payload(5.0, 2.0), 3, "b")
    mean = total.mean()
    assert mean["delta"].tolist() == [4.0] * 3
    assert mean["control"].tolist() == [1.0] * 2
    assert mean["delta"].dtype == torch.float64
    assert (total.count, total.weight) == (2, 4)


@pytest.mark.parametrize("part", ["delta", "control"])
@pytest.mark.parametrize(
    "spoilt", [torch.full((3,), float("nan")), torch.full((3,), 3e38), torch.zeros(7)]
)
def test_one_bad_part_keeps_all_parts_out(part: str, spoilt: Tensor) -> None:
    total = exact_mean(SIZES, 2)
    total.add(payload(), 1, "good")
    before = contents(total)
    spoilt = spoilt[: SIZES[part]] if len(spoilt) == 3 else spoilt
    with pytest.raises(SiteError, match="'bad'"):
        total.add({**payload(), part: spoilt}, 1, "bad")
    assert contents(total) == before


@pytest.mark.parametrize(
    ("reply", "weight", "message"),
    [
        ({"delta": torch.ones(3)}, 1, r"sent the parts \['delta'\], not \['control', 'delta'\]"),
        ({**payload(), "more": torch.ones(3)}, 1, r"\['control', 'delta', 'more'\], not \['co"),
        ({}, 1, r"sent the parts \[\], not"),
        ({**payload(), "control": torch.ones(2).double()}, 1, "torch.float64, not .*torch.float32"),
        ({**payload(), "control": torch.ones(2, 1)}, 1, r"\(2, 1\) values, not \(2,\)"),
        ({**payload(), "control": [1.0, 2.0]}, 1, "type list, not"),
        (payload(), 1.5, "weight 1.5, not a whole number"),
        (payload(), 2**41, "from 1 to 1099511627776"),
    ],
)
def test_a_reply_of_another_form_is_refused_by_name_and_whole(
    reply: Any, weight: Any, message: str
) -> None:
    total = exact_mean(SIZES, 2)
    total.add(payload(), 1, "good")
    before = contents(total)
    with pytest.raises(SiteError, match=f"site 'bad'.*{message}") as caught:
        total.add(reply, weight, "bad")
    assert caught.value.cure
    assert contents(total) == before


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6))
def test_merged_partial_sums_equal_the_whole(replies: list[tuple[int, bool]]) -> None:
    whole, left, right = (exact_mean(SIZES, len(replies)) for _ in range(3))
    for number, (weight, goes_left) in enumerate(replies):
        for total in (whole, left if goes_left else right):
            total.add(payload(0.1 * number, -0.3 * number), weight, str(number))
    left.merge(right)
    assert contents(left) == contents(whole)


def test_cleared_sum_is_as_new() -> None:
    total = exact_mean(SIZES, 1)
    total.add(payload(), 5, "a")
    total.clear(2)
    assert contents(total) == contents(exact_mean(SIZES, 2))
    total.add(payload(), 5, "a")
    total.add(payload(), 5, "b")
    assert total.count == 2
