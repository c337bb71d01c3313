"""Updates that are multiplied by a factor before they are added."""

from __future__ import annotations

import pytest
import torch

from fedsight.aggregation.mean import Mean
from fedsight.aggregation.median import Median
from fedsight.core.types import PartSpec

SPECS = {"delta": PartSpec((3,)), "count": PartSpec((2,), torch.int64)}


def test_vectors_are_multiplied_and_counts_are_not() -> None:
    total = Mean().aggregator(SPECS, 2)
    counts = torch.tensor([5, -7])
    total.add({"delta": torch.tensor([1.0, 2.0, -4.0]), "count": counts}, 3, "a", 0.5)
    total.add({"delta": torch.tensor([1.0, 0.0, 0.0]), "count": counts}, 1, "b")
    assert total.mean()["delta"].tolist() == [0.625, 0.75, -1.5]
    assert total.integers()["count"].tolist() == [10, -14]


@pytest.mark.parametrize("rule", [Mean(), Median()])
def test_a_factor_of_one_changes_no_bit(rule: Mean | Median) -> None:
    specs = {"delta": SPECS["delta"]}
    plain, other = rule.aggregator(specs, 1), rule.aggregator(specs, 1)
    values = torch.tensor([0.1, -1e-12, 3e-9])
    plain.add({"delta": values}, 7, "a")
    other.add({"delta": values}, 7, "a", 1.0)
    assert torch.equal(plain.mean()["delta"], other.mean()["delta"])


def test_a_median_is_that_of_the_discounted_updates() -> None:
    rows = Median().aggregator({"delta": SPECS["delta"]}, 3)
    for factor in (1.0, 0.5, 0.25):
        rows.add({"delta": torch.tensor([4.0, 8.0, -8.0])}, 1, f"{factor}", factor)
    assert rows.mean()["delta"].tolist() == [2.0, 4.0, -4.0]
