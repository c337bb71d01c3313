"""Whether a site gains: compared on the same images, with what its figure rests on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.client.step import Client
from fedsight.coordinator.store import RunStore
from fedsight.evaluation.evidence import (
    GROUPS,
    Evidence,
    Witness,
    compared,
    difference,
    effective,
    verdict,
    weights,
)
from fedsight.evaluation.figures import Evaluator
from fedsight.program.program import Speed
from fedsight.runs.lifecycle import Start, start

ONE_CLASS = {"name": "labels", "sites": 10, "labels": 1}


def loaded(federation: Any) -> tuple[Evaluator, Client]:
    """The evaluator and a client with the initial model."""
    return Evaluator(federation), Client(federation)


def test_a_one_class_sites_figure_rests_on_the_test_images_of_that_class() -> None:
    federation = federations.federation(data={"test": 200}, split=ONE_CLASS)
    evaluator, client = loaded(federation)
    witness = Witness(evaluator, client)
    sums = [client.measure_all(federation.tested(federation.views[0]))]
    figures = evaluator.figures(sums)
    labels = federation.dataset.test.labels
    for site in range(10):
        mine = witness.of(site)
        assert mine is not None
        assert mine.right is not None
        own = int(federation.dataset.train.labels[federation.partition.indices(site)][0])
        found = compared(evaluator, site, mine, mine)
        assert found["tested"] == (labels == own).sum() < 40
        assert found["verdict"] == "no difference shown"
        weight = weights(labels, evaluator.mix_of(site))
        name = federation.partition.name(site)
        assert weight @ mine.right == pytest.approx(figures.by_site[name]["score"])
        assert effective(weight) == pytest.approx(found["tested"])


@given(st.integers(0, 10**6))
def test_the_difference_is_that_of_the_figures_and_lies_in_its_interval(seed: int) -> None:
    draws = np.random.default_rng(seed)
    labels, mix = draws.integers(0, 4, 80), draws.dirichlet([0.5] * 4)
    weight = weights(labels, mix)
    both = [Evidence(draws.random(80) < share) for share in draws.random(2)]
    low, high = difference(*both, weight)
    gain = weight @ (both[0].right.astype(float) - both[1].right)
    shrunk = gain * effective(weight) / (effective(weight) + 2)
    assert (low + high) / 2 == pytest.approx(shrunk) or high == 1 or low == -1
    other = difference(both[1], both[0], weight)
    assert (low, high) == pytest.approx((-other[1], -other[0]))


def test_four_more_right_of_36_are_chance_and_a_dozen_are_not() -> None:
    weight = np.full(36, 1 / 36)
    none = Evidence(np.zeros(36, bool))

    def more(count: int) -> Evidence:
        return Evidence(np.arange(36) < count)

    assert verdict(difference(more(4), none, weight)) == "no difference shown"
    assert verdict(difference(more(12), none, weight)) == "better"
    assert verdict(difference(none, more(12), weight)) == "worse"
    assert verdict(difference(none, none, weight)) == "no difference shown"
    assert verdict(None) == "no difference shown"


def test_the_jackknife_gives_the_known_error_of_a_mean() -> None:
    draws = np.random.default_rng(1)
    gains = draws.normal(0.1, 1.0, (GROUPS, 30))
    without = [np.delete(gains, at, axis=0).mean() for at in range(GROUPS)]
    first = Evidence(None, tuple(without))
    second = Evidence(None, (0.0,) * GROUPS)
    low, high = difference(first, second, np.ones(0))
    error = gains.mean(axis=1).std(ddof=1) / np.sqrt(GROUPS)
    assert (low + high) / 2 == pytest.approx(gains.mean())
    assert (high - low) / 2 == pytest.approx(2.093024 * error)


@given(st.lists(st.booleans(), max_size=40))
def test_evidence_survives_an_interruption(right: list[bool]) -> None:
    kept = Evidence(np.array(right, bool))
    again = Evidence.of(json.loads(json.dumps(kept.plain())))
    assert again.right is not None
    assert again.right.tolist() == right
    parts = Evidence(None, (0.5, float("nan")), True)
    again = Evidence.of(json.loads(json.dumps(parts.plain())))
    assert again.drawn
    assert again.replicates[0] == 0.5
    assert np.isnan(again.replicates[1])


@pytest.mark.parametrize(
    "plain",
    [
        {"right": "AAAA", "images": 5 * 10**13},  # 24 answers
        {"right": "AAAA", "images": 25},
        {"right": "AAAA", "images": 16},
        {"right": "AAAA", "images": -1},
        {"right": "AAAA", "images": 24.0},
        {"right": "AAAA"},
        {"right": 3, "images": 5},
        {"replicates": ["much"], "drawn": False},
        {"replicates": [0.5]},
    ],
)
def test_what_no_interruption_leaves_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Evidence.of(plain)


def test_a_figure_that_is_no_share_is_compared_group_by_group() -> None:
    federation = federations.federation(task={"name": "ordinal"})
    ordered = replace(federation, dataset=replace(federation.dataset, ordered=True))
    evaluator, client = loaded(ordered)
    mine = Witness(evaluator, client).of(0)
    assert mine is not None
    assert mine.right is None
    assert len(mine.replicates) == GROUPS
    assert compared(evaluator, 0, mine, mine)["verdict"] == "no difference shown"


def test_sites_that_never_trained_have_no_personalised_figures(tmp_path: Path) -> None:
    program = federations.program(
        split={"name": "iid", "sites": 6},
        algorithm={"name": "fedrep"},
        rounds={"rounds": 2, "cohort": 1},
    )
    for workers in (1, 2):
        store = RunStore(tmp_path / str(workers))
        start(Start(program, Speed(workers=workers, device="cpu"), store, "compare"), [])
        trained = {site for line in store.history() for site in line["sites"]}
        assert 1 <= len(trained) <= 2
        summary = store.read_json("summary.json")
        assert set(summary["by_site"]) == trained
        scores = [one["score"] for one in summary["by_site"].values()]
        assert summary["score"] == pytest.approx(np.mean(scores))
        comparison = store.read_json("comparison.json")
        assert set(comparison["sites"]) == trained
        assert len(comparison["alone"]) == 6
        for site, found in comparison["sites"].items():
            gain = comparison["federated"]["by_site"][site]
            gain -= comparison["alone"][site]["own_score"]
            assert found["low"] - 0.04 <= gain <= found["high"] + 0.04
            assert 30 < found["tested"] <= 60  # those of the classes that the site has
