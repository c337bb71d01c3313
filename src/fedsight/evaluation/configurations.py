"""What a sweep shows: each configuration's figure over its seeds, and paired differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedsight.core.intervals import holm, p_value
from fedsight.evaluation.spread import Repeat, difference_of, spread_of

COSTS = ("bytes_up", "bytes_down", "seconds")


@dataclass(frozen=True)
class Arm:
    """A configuration with its finished runs by seed."""

    label: str
    repeats: Mapping[int, Repeat]

    @property
    def headline(self) -> str | None:
        """The name of the task's figure; None while no run is finished."""
        return next((one.summary["headline"] for one in self.repeats.values()), None)

    @property
    def scores(self) -> dict[int, float]:
        """The task's figure by seed, where it was measured."""
        found = {seed: one.summary["score"] for seed, one in self.repeats.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def plain(self) -> dict[str, Any]:
        """Mean, standard deviation and 95 % interval of the figure over the seeds, with its values;
        None if none was measured. Bytes and seconds are means over the finished runs."""
        scores = self.scores
        summaries = [one.summary for one in self.repeats.values()]
        costs = {key: fmean(one[key] for one in summaries) if summaries else None for key in COSTS}
        return {
            "label": self.label,
            "headline": self.headline,
            "seeds": list(scores),
            "figure": spread_of(list(scores.values())),
            **costs,
        }


def differences(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each two configurations the mean difference of their figures, first minus second, with
    its standard deviation, 95 % interval and p value, and that adjusted for the number of pairs.

    A difference is taken within each seed that both have, so what a seed does to both cancels. Two
    configurations with figures of other kinds, or without a seed in common, are left out.
    """
    found: list[dict[str, Any]] = []
    for one, other in itertools.combinations(arms, 2):
        common = [seed for seed in one.scores if seed in other.scores]
        if not common or one.headline != other.headline:
            continue
        values = {arm.label: {"values": [arm.scores[s] for s in common]} for arm in (one, other)}
        spread = difference_of(values, one.label, other.label)
        tested = p_value(spread.pop("values"))
        found.append(
            {"first": one.label, "second": other.label, "seeds": common, **spread, "p": tested}
        )
    adjusted = holm([one["p"] for one in found])
    return [one | {"p_adjusted": p} for one, p in zip(found, adjusted, strict=True)]


def best_of(arms: Sequence[Arm]) -> Arm | None:
    """The configuration with the highest mean; None without one, or with figures of other kinds.

    A higher figure is better for every task.
    """
    measured = [arm for arm in arms if arm.scores]
    if not measured or len({arm.headline for arm in measured}) > 1:
        return None
    return max(measured, key=lambda arm: fmean(arm.scores.values()))
