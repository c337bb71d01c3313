"""Mean and spread over seeds: paired within each seed, and nothing shown that was not measured."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from fedsight.core.intervals import of_mean
from fedsight.evaluation.spread import Repeat, together

SITES = [{"name": "lyon", "samples": 10}, {"name": "oslo", "samples": 20}]


def repeat(
    score: float | None, alone: float, own: tuple[float | None, float], **more: Any
) -> Repeat:
    """A finished comparison of two sites, whose federated figures are `own`."""
    summary = {
        "score": score,
        "alone_mean": alone,
        "pooled": more.pop("pooled", 0.9),
        "by_site": {"lyon": {"score": own[0]}, "oslo": {"score": own[1]}},
    }
    arms = {"lyon": {"own_score": 0.5}, "oslo": {"own_score": alone}}
    return Repeat({"sites": more.pop("sites", SITES)}, summary, {"alone": arms})


THREE = [
    repeat(0.80, 0.60, (0.70, 0.72)),
    repeat(0.84, 0.66, (0.74, 0.70)),
    repeat(0.88, 0.69, (0.81, 0.77)),
]


def test_figures_have_mean_deviation_and_interval() -> None:
    found = together(THREE)["figures"]["federated"]
    values = [0.80, 0.84, 0.88]
    assert found["values"] == values
    assert found["mean"] == pytest.approx(0.84)
    assert found["deviation"] == pytest.approx(statistics.stdev(values))
    assert (found["low"], found["high"]) == pytest.approx(of_mean(values))


def test_differences_are_taken_within_each_seed() -> None:
    """What a seed does to both arms cancels: the difference spreads less than either."""
    found = together(THREE)
    gain = found["differences"]["federated_minus_alone"]
    assert gain["values"] == pytest.approx([0.20, 0.18, 0.19])
    assert gain["deviation"] < found["figures"]["federated"]["deviation"] / 3
    own = found["differences"]["own_federated_minus_alone"]
    assert own["values"] == pytest.approx([0.71 - 0.55, 0.72 - 0.58, 0.79 - 0.595])


def test_sites_are_shown_only_where_they_have_the_same_images_with_every_seed() -> None:
    sites = together(THREE)["sites"]
    assert sites["oslo"]["federated_minus_alone"]["values"] == pytest.approx([0.12, 0.04, 0.08])
    other = repeat(0.8, 0.6, (0.7, 0.7), sites=[{"name": "lyon", "samples": 11}, SITES[1]])
    assert together([*THREE, other])["sites"] is None


def test_a_figure_that_one_seed_lacks_is_left_out() -> None:
    found = together([*THREE, repeat(None, 0.6, (None, 0.7))])
    assert "federated" not in found["figures"]
    assert "federated_minus_alone" not in found["differences"]
    assert "lyon" not in found["sites"]
    assert found["figures"]["alone"]["mean"] == pytest.approx((0.60 + 0.66 + 0.69 + 0.60) / 4)


def test_means_over_sites_are_of_sites_that_have_both_figures() -> None:
    found = together([repeat(0.8, 0.6, (None, 0.7)), repeat(0.8, 0.64, (0.9, 0.7))])
    assert found["figures"]["own_federated"]["values"] == pytest.approx([0.7, 0.8])
    assert found["figures"]["own_alone"]["values"] == pytest.approx([0.6, (0.5 + 0.64) / 2])


def test_an_arm_that_was_trained_once_has_no_spread() -> None:
    found = together(THREE, once=["pooled"])
    pooled = found["figures"]["pooled"]
    assert (pooled["mean"], pooled["deviation"], pooled["low"]) == (pytest.approx(0.9), None, None)
    assert found["differences"]["federated_minus_pooled"]["deviation"] > 0


def test_runs_without_a_comparison_have_the_federated_figures_alone() -> None:
    runs = [Repeat(one.facts, {**one.summary, "pooled": None}) for one in THREE]
    runs = [
        Repeat(one.facts, {k: v for k, v in one.summary.items() if k != "alone_mean"})
        for one in runs
    ]
    found = together(runs)
    assert list(found["figures"]) == ["federated"]
    assert found["differences"] == {}
    assert list(found["sites"]["oslo"]) == ["federated"]
