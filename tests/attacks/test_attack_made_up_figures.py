"""A malicious site makes up figures that no model can have, and the report shows them as measured.

Sums were only checked for names, shapes and being finite: a negative count of wrong answers made
the accuracy of all sites 10^100, in the history, on the screen and in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

import federations
import numpy as np
import pytest
import torch
from task_cases import CASES, CLASSES, SIDE

from fedsight.core.errors import SiteError
from fedsight.core.types import Metrics, Sum, add_metrics
from fedsight.engines.remote import figures, messages, replies
from fedsight.engines.remote.figures import FigureReader
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification

OF = federations.federation()
BLANK = replies.blank(OF)
TASKS = ("classify", "ordinal", "multilabel", "segment", "cosface", "one person", "detect")
Change = Callable[[np.ndarray], np.ndarray]
CHANGES: Mapping[str, Change] = {
    "1e100": lambda values: np.full_like(values, 1e100),
    "negative": lambda values: values - 1.0,
    "halves": lambda values: values + 0.5,
    "a million more": lambda values: values + 1e6,
    "one huge": lambda values: np.concatenate([[1e30], values.ravel()[1:]]).reshape(values.shape),
}
# Sums that can be anything, and in which a large number can be true.
LOSSES = {"loss"}


def measured(name: str) -> tuple[Task, Metrics]:
    task, module, batch = CASES[name]()
    with torch.inference_mode():
        return task, task.measure(module.eval(), batch, CLASSES)


@pytest.mark.parametrize("name", TASKS)
def test_what_a_model_measures_is_possible(name: str) -> None:
    task, sums = measured(name)
    assert task.is_possible(sums, SIDE * SIDE)
    if not task.whole:
        assert task.is_possible(add_metrics([sums, sums]), SIDE * SIDE)


@pytest.mark.parametrize("name", TASKS)
def test_what_a_constant_or_diverged_model_measures_is_possible(name: str) -> None:
    task, module, batch = CASES[name]()
    for scale in (0.0, 1e4):
        with torch.no_grad():
            for value in module.parameters():
                value.mul_(scale)
        with torch.inference_mode():
            sums = task.measure(module.eval(), batch, CLASSES)
        if all(np.isfinite(one.total).all() for one in sums.values()):
            assert task.is_possible(sums, SIDE * SIDE)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("name", TASKS)
def test_counts_that_no_model_has_are_impossible(name: str, change: Change) -> None:
    task, sums = measured(name)
    for key in sums.keys() - LOSSES:
        made_up = {**sums, key: Sum(change(sums[key].total), sums[key].count)}
        assert not task.is_possible(made_up, SIDE * SIDE), key


def test_a_score_beyond_all_bounds_is_believed_where_counts_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Classification, "is_possible", Task.is_possible)
    found = FigureReader(OF).read({"metrics": made_up()}, "mallory")
    assert abs(Classification().summary(add_metrics([BLANK, found]))["accuracy"]) > 1e9


def made_up() -> dict[str, object]:
    """One right answer, and 10^20 times as many that were taken off the wrong ones."""
    cells = np.zeros_like(BLANK["confusion"].total)
    cells[0, 0], cells[0, 1] = 1e20, -1e20
    return messages.metrics_table({**BLANK, "confusion": Sum(cells, 1)})


def test_ours_rejects_them_in_the_name_of_the_site() -> None:
    with pytest.raises(SiteError, match="site 'mallory' sent figures that no model can have"):
        FigureReader(OF).read({"metrics": made_up()}, "mallory")
    assert FigureReader(OF).read({"metrics": messages.metrics_table(BLANK)}, "oslo")


@pytest.mark.parametrize("value", [1e100, -1e100, 1e6, -1e6])
def test_figures_farther_off_than_any_noise_are_rejected_too(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = np.full_like(BLANK["confusion"].total, value)
    table = messages.metrics_table({**BLANK, "confusion": Sum(cells, 1)})
    with pytest.raises(SiteError, match="site 'mallory' sent figures that no model can have"):
        FigureReader(OF).read({"metrics": table, "noise": 5.0}, "mallory")
    monkeypatch.setattr(figures, "FARTHEST", float("inf"))
    found = FigureReader(OF).read({"metrics": table, "noise": 5.0}, "mallory")
    assert all(isfinite(number) for number in found["confusion"].total.ravel())
