"""The coordinate-wise median: any order, any engine, and a minority that cannot move it."""

from __future__ import annotations

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.aggregation.median import Median
from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.types import PartSpec, Payload
from fedsight.engines.workers import WorkerEngine
from fedsight.program.program import Speed

SPECS = {"delta": PartSpec((3,)), "control": PartSpec((2,))}
NUMBERS = st.floats(-100, 100, width=32)


def payload(values: list[float]) -> Payload:
    return {"delta": torch.tensor(values[:3]), "control": torch.tensor(values[3:])}


@given(
    rows=st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=7),
    cut=st.integers(0, 7),
    random=st.randoms(use_true_random=False),
)
def test_it_is_numpys_median_in_any_order_and_grouping(rows, cut, random) -> None:
    expected = np.median(np.asarray(rows, np.float32).astype(np.float64), axis=0)
    random.shuffle(rows)
    left, right = (Median().aggregator(SPECS, len(rows)) for _ in range(2))
    for number, row in enumerate(rows):
        (left if number < cut else right).add(payload(row), 1 + number, f"site-{number}")
    left.merge(right)
    found = left.mean()
    assert np.array_equal(torch.cat([found["delta"], found["control"]]).numpy(), expected)
    assert left.count == len(rows)
    assert left.weight == sum(range(1, len(rows) + 1))


def test_of_nothing_it_is_zero_and_a_cleared_one_is_as_new() -> None:
    rows = Median().aggregator(SPECS, 2)
    rows.add(payload([1.0] * 5), 1, "a")
    rows.clear(2)
    assert not rows.mean()["delta"].any()
    assert (rows.count, rows.weight) == (0, 0)


def test_what_may_not_be_added_names_the_site_and_adds_nothing() -> None:
    rows = Median().aggregator(SPECS, 1)
    for bad in (payload([float("nan")] * 5), payload([1.0] * 4), {"delta": torch.ones(3)}):
        with pytest.raises(SiteError, match="site 'ward'"):
            rows.add(bad, 1, "ward")
    assert rows.count == 0
    rows.add(payload([1.0] * 5), 1, "a")
    with pytest.raises(SiteError, match="site 'ward' would be reply 2"):
        rows.add(payload([1.0] * 5), 1, "ward")


def test_a_median_is_not_a_sum_that_noise_could_be_added_to() -> None:
    with pytest.raises(FedSightError, match="noise cannot be added"):
        Median().aggregator(SPECS, 1).plain()


def test_engines_agree_on_it() -> None:
    of = federations.federation(aggregation={"name": "median"})
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        together = federations.learn(of, engine)
    finally:
        engine.close()
    assert federations.sha(federations.learn(of).vector) == federations.sha(together.vector)


@pytest.mark.parametrize(("name", "moves"), [("mean", True), ("median", False)])
def test_one_site_in_three_moves_the_mean_at_will_and_not_the_median(
    name: str, moves: bool
) -> None:
    rule = federations.program(aggregation={"name": name}).aggregation
    honest = [torch.linspace(0, 1, 8) + number for number in range(3)]
    results = []
    for factor in (1.0, -1000.0):
        total = rule.aggregator({"delta": PartSpec((8,))}, 3)
        for number, update in enumerate(honest):
            total.add({"delta": update * factor if number == 1 else update}, 1, f"site-{number}")
        results.append(total.mean()["delta"])
    assert (float((results[0] - results[1]).abs().max()) > 100) == moves
