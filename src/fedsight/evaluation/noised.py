"""Figures from sums with noise: repaired once they are added, with the error that noise makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedsight.core.rng import numpy_generator
from fedsight.core.types import Metrics, Sum, add_metrics
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.tasks.base import Task

DRAWS = 30  # the standard deviation of so many draws is right to about 13 %

Summary = Callable[[Mapping[str, Sum]], Mapping[str, float]]


def usable(sums: Metrics, task: Task) -> Metrics:
    """Sums for `summary`: exact ones as they are, noised ones repaired."""
    if isinstance(sums, NoisedSums):
        return task.repaired(sums, sums.deviation)
    return sums


def total(sums: Sequence[Metrics], task: Task) -> Metrics:
    """The sum of exact and noised sums: a `NoisedSums`, not repaired yet, if any is noised.

    Noise is cut off only after adding, because what is cut off from each part adds up.
    """
    parts = [one for one in sums if one]
    if not any(isinstance(one, NoisedSums) for one in parts):
        return add_metrics(parts)
    forms: list[Metrics] = [
        one if isinstance(one, NoisedSums) else task.condensed(one) for one in parts
    ]
    squares: dict[str, float] = {}
    for one in parts:
        for name, wide in one.deviation.items() if isinstance(one, NoisedSums) else ():
            squares[name] = squares.get(name, 0.0) + wide**2
    return NoisedSums(
        add_metrics(forms), {name: math.sqrt(value) for name, value in squares.items()}
    )


def errors(sums: Metrics, task: Task, summary: Summary) -> dict[str, float]:
    """The root mean square error that noise gives each figure of `summary`, an estimate.

    Noise like that of the sums is drawn again and again, around the sums as they were repaired
    (a parametric bootstrap: Efron and Tibshirani 1993, section 6.5). What repairing shifts is
    included. A figure that was not always measured is left out; without noise all are.
    """
    if not isinstance(sums, NoisedSums):
        return {}
    repaired = usable(sums, task)
    middle, known = task.condensed(repaired), summary(repaired)
    draws = numpy_generator(0, "errors of figures")  # no secret: it protects nothing
    found: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        again = {
            name: Sum(one.total + draws.normal(0, sums.deviation[name], one.total.shape), one.count)
            for name, one in middle.items()
        }
        for key, value in summary(task.repaired(again, sums.deviation)).items():
            found.setdefault(key, []).append(value)
    return {
        key: float(np.sqrt(np.square(np.subtract(values, known[key])).mean()))
        for key, values in found.items()
        if np.isfinite([*values, known[key]]).all()
    }


def rounded(figures: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """Figures with the digits that they carry: to the place of the first digit of their errors."""
    return {key: _rounded(value, errors.get(key, 0.0)) for key, value in figures.items()}


def _rounded(value: float, error: float) -> float:
    if error <= 0 or not math.isfinite(value):
        return value
    return round(value, max(0, -math.floor(math.log10(error))))
