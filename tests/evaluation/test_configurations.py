"""What a sweep shows: configurations over their seeds, and differences within seeds."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from fedsight.evaluation.configurations import Arm, best_of, differences
from fedsight.evaluation.spread import Repeat


def arm(label: str, scores: dict[int, float | None], headline: str = "Accuracy") -> Arm:
    def repeat(seed: int, score: float | None) -> Repeat:
        cost = {"bytes_up": 100 + seed, "bytes_down": 200, "seconds": 2.0 * seed}
        return Repeat({}, {"headline": headline, "score": score, **cost})

    return Arm(label, {seed: repeat(seed, score) for seed, score in scores.items()})


ONE = arm("one", {0: 0.80, 1: 0.70, 2: 0.90})
OTHER = arm("other", {0: 0.82, 1: 0.75, 2: 0.91})


def test_a_configuration_has_the_spread_of_its_seeds_and_its_mean_cost() -> None:
    found = ONE.plain()
    assert found["figure"]["mean"] == pytest.approx(0.8)
    assert found["figure"]["deviation"] == pytest.approx(0.1)
    assert found["figure"]["values"] == [0.80, 0.70, 0.90]
    assert found["seeds"] == [0, 1, 2]
    assert (found["bytes_up"], found["bytes_down"], found["seconds"]) == (101, 200, 2.0)


def test_differences_are_paired_over_the_seeds() -> None:
    (found,) = differences([ONE, OTHER])
    assert (found["first"], found["second"], found["seeds"]) == ("one", "other", [0, 1, 2])
    assert found["mean"] == pytest.approx(-0.08 / 3)
    # The seeds differ far more than the configurations do: unpaired, nothing would show.
    wanted = stats.ttest_rel([0.80, 0.70, 0.90], [0.82, 0.75, 0.91])
    assert found["p"] == pytest.approx(wanted.pvalue)
    low, high = wanted.confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["p_adjusted"] == found["p"]  # of one pair


def test_only_seeds_that_both_have_are_paired() -> None:
    part = arm("part", {1: 0.6, 2: None, 5: 0.9})
    (found,) = differences([ONE, part])
    assert found["seeds"] == [1]
    assert found["mean"] == pytest.approx(0.1)
    assert math.isnan(found["p"])
    assert part.plain()["seeds"] == [1, 5]
    assert differences([ONE, arm("none", {7: 0.5})]) == []


def test_figures_of_other_kinds_are_not_compared() -> None:
    boxes = arm("boxes", {0: 0.3, 1: 0.4}, "mAP")
    assert differences([ONE, boxes]) == []
    assert best_of([ONE, boxes]) is None


def test_the_best_has_the_highest_mean_of_what_was_measured() -> None:
    assert best_of([ONE, OTHER]) is OTHER
    nothing = arm("nothing", {})
    assert best_of([ONE, nothing]) is ONE
    assert best_of([nothing]) is None
    assert nothing.plain()["figure"] is None
    assert nothing.plain()["seconds"] is None


def test_p_values_are_adjusted_for_all_pairs() -> None:
    found = differences([ONE, OTHER, arm("third", {0: 0.1, 1: 0.2, 2: 0.3})])
    assert len(found) == 3
    assert all(one["p_adjusted"] >= one["p"] for one in found)
    assert min(one["p_adjusted"] for one in found) == pytest.approx(3 * min(o["p"] for o in found))
