"""Noised figures: what one image can change is bounded by construction, and the noise is fresh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import fedsight as fs
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.privacy import noised_sums
from fedsight.privacy.noised_sums import GRID, bounded, deviation, noised
from fedsight.program.objective import OwnTask
from fedsight.tasks.base import tasks
from fedsight.tasks.classification import Classification

BOUNDS = {"counts": 1.0, "loss": 3.0}
anything = arrays(np.float64, 4, elements=st.floats(allow_nan=True, allow_infinity=True))
shares = st.tuples(anything, anything).map(
    lambda pair: {name: Sum(one, 1) for name, one in zip(BOUNDS, pair, strict=True)}
)


def scaled(sums: Metrics) -> Any:
    """All sums divided by their bounds, as one vector."""
    return np.concatenate([sums[name].total / bound for name, bound in BOUNDS.items()])


@given(shares, shares)
def test_no_image_adds_more_than_its_bound_whatever_the_model_makes_of_it(
    one: Metrics, other: Metrics
) -> None:
    first, second = scaled(bounded(one, BOUNDS)), scaled(bounded(other, BOUNDS))
    added, replaced = np.linalg.norm(first), np.linalg.norm(first - second)
    assert added <= math.sqrt(len(BOUNDS)) * (1 + 1e-12)
    assert replaced <= math.sqrt(2 * len(BOUNDS)) * (1 + 1e-12)
    assert np.array_equal(first / GRID, np.rint(first / GRID))
    assert (first >= 0).all()


def test_the_noise_is_fresh_on_the_grid_and_as_large_as_stated() -> None:
    sums = {name: Sum(np.full((100, 200), 7.0 * bound), 7) for name, bound in BOUNDS.items()}
    first, second = (noised(sums, BOUNDS, 5.0) for _ in range(2))
    for name, bound in BOUNDS.items():
        assert not np.array_equal(first[name].total, second[name].total)
        left = (first[name].total - sums[name].total) / bound
        assert np.array_equal(left / GRID, np.rint(left / GRID))
        deviation = 5.0 * math.sqrt(2 * len(BOUNDS))
        assert left.std() == pytest.approx(deviation, rel=0.04)  # eight standard errors
        assert abs(left.mean()) < deviation * 8 / math.sqrt(left.size)
        assert first[name].count == 7


@pytest.mark.parametrize("shared", [False, True])
def test_the_event_costs_at_least_what_the_noise_does(shared: bool) -> None:
    found, sums = noised_sums.event(5.0), len(BOUNDS)
    added, replaced = math.sqrt(sums), math.sqrt(2 * sums)  # in units of the bounds
    if shared:  # one share becomes another, or two of them do
        added, replaced = math.sqrt(2 * sums), 2 * math.sqrt(2 * sums)
    (wide,) = {one / BOUNDS[name] for name, one in deviation(BOUNDS, 5.0, shared=shared).items()}
    assert found.under("add_remove") == pytest.approx(wide / added)
    assert found.under("replace_one") <= wide / replaced * (1 + 1e-12)


@pytest.mark.parametrize("name", ["classify", "ordinal"])
@pytest.mark.parametrize("metrics", [(), ("brier", "top_5")])
def test_one_image_is_within_the_bounds_that_a_task_states(name: str, metrics: Any) -> None:
    """So that clipping changes no count or metric, only large losses."""
    task, classes = tasks.get(name)(metrics=metrics), 6
    bounds = task.bounds(classes, 64)
    assert bounds is not None
    torch.manual_seed(0)
    model = nn.Flatten()
    for label in range(classes):
        batch = Batch(torch.randn(1, classes), torch.tensor([label]))
        share = task.measure(model, batch, classes)
        assert set(share) == set(bounds)
        kept = [key for key in bounds if key != "loss"]
        assert all(np.linalg.norm(share[key].total) <= bounds[key] for key in kept)


@given(st.integers(0, 2**32), st.sampled_from([1, 30, 3000]))
def test_noised_sums_give_figures_within_their_range(seed: int, images: int) -> None:
    rng, task = np.random.default_rng(seed), Classification(metrics=("brier",))
    truth, answers = (torch.from_numpy(rng.integers(0, 4, images)) for _ in range(2))
    logits = nn.functional.one_hot(answers, 4).float()
    sums = task.measure(nn.Identity(), Batch(logits, truth), 4)
    bounds = task.bounds(4, 64)
    assert bounds is not None
    found = task.repaired(noised(sums, bounds, 5.0), deviation(bounds, 5.0))
    figures = task.summary(found)
    assert {key: one.count for key, one in found.items()} == dict.fromkeys(found, images)
    assert all((one.total >= 0).all() for one in found.values())
    for key, high in (("accuracy", 1), ("brier", 2), ("balanced_accuracy", 1), ("macro_f1", 1)):
        assert math.isnan(figures[key]) or 0 <= figures[key] <= high + 1e-9
    if images == 3000:
        right = float((truth == answers).float().mean())
        assert figures["accuracy"] == pytest.approx(right, abs=0.1)


def test_a_users_own_measure_is_noised_with_the_rest() -> None:
    own = fs.task(measure=lambda logits, labels: (logits.argmax(1) == labels).float())
    assert isinstance(own, OwnTask)
    bounds = own.bounds(4, 64)
    assert bounds is not None
    sums = own.measure(nn.Identity(), Batch(torch.eye(4), torch.tensor([0, 1, 2, 0])), 4)
    assert set(bounds) == set(sums)
    found = own.repaired(noised(sums, bounds, 5.0), deviation(bounds, 5.0))
    assert 0 <= own.summary(found)[own.headline] <= 1
