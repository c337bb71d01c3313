"""The three ways of the comparison see as many images: counted where they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.client.training import spanned
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.budget import Budget, planned, spent
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.runs.lifecycle import Start, start


def images_seen(federation: Federation) -> int:
    """How many training images are counted while the real loop runs."""
    engine = InProcessEngine(federation)
    try:
        run(Session(federation), engine, lambda sums: {})
        return engine.seen
    finally:
        engine.close()


def compared(folder: Path, **sections: Any) -> dict[str, Any]:
    """`comparison.json` of a whole run."""
    program = federations.program(**sections)
    store = RunStore(folder)
    start(Start(program, Speed(workers=2, device="cpu"), store, "compare"), [])
    return dict(json.loads((folder / "comparison.json").read_text()))


SIX = {"name": "quantity", "sites": 6, "min_samples": 9}
PRIVATE = {"name": "example", "clip": 1.0, "epsilon": 4.0, "noise_multiplier": 0.8, "delta": 1e-2}


@pytest.mark.parametrize(
    ("sections", "passes"),
    [
        ({"train": {"epochs": 2}, "rounds": {"rounds": 3}}, 6),
        ({"train": {"epochs": 2}, "rounds": {"rounds": 3}, "algorithm": {"name": "fedrep"}}, 9),
        (
            {
                "train": {"epochs": 2},
                "rounds": {"rounds": 3},
                "algorithm": {"name": "fedrep", "head_epochs": 10},
            },
            36,
        ),
        ({"split": SIX, "train": {"epochs": 2}, "rounds": {"rounds": 4, "cohort": 2}}, None),
        ({"train": {"steps": 7, "batch": 20}, "rounds": {"rounds": 2}}, 7),
        ({"split": SIX, "train": {"steps": 5}, "rounds": {"rounds": 4, "cohort": 2}}, None),
    ],
)
def test_every_arm_sees_as_many_images_as_the_federation(sections: Any, passes: Any) -> None:
    federation = federations.federation(**sections)
    diary = federations.Diary()
    engine = InProcessEngine(federation)
    try:
        run(Session(federation), engine, lambda sums: {}, [diary])
        seen = engine.seen
    finally:
        engine.close()
    budget = spent(federation, diary.lines)
    images = len(federation.dataset.train)
    assert budget.passes == pytest.approx(seen / images)
    rounds = federation.program.rounds.rounds
    if passes is not None:
        assert budget == planned(federation) == Budget(rounds, passes)
    # Where a single image is left over in a round, it is left out.
    assert images_seen(federation.all_pooled(budget)) == pytest.approx(seen, abs=2 * rounds)
    for site in range(federation.population):
        alone = federation.alone(site, budget)
        wanted = budget.passes * alone.size(0)
        assert images_seen(alone) == pytest.approx(wanted, abs=2 * rounds)


def test_a_comparison_says_how_often_each_arm_saw_its_images(tmp_path: Path) -> None:
    rounds = {"rounds": 4, "cohort": 2, "evaluate_every": 4}
    found = compared(tmp_path / "cohort", split=SIX, train={"epochs": 2}, rounds=rounds)
    seen, by_site = found["federated"]["passes"], found["federated"]["passes_by_site"]
    assert sum(by_site.values()) == 4 * 2 * 2
    assert 0 < seen < 8
    assert found["pooled"]["passes"] == pytest.approx(seen, abs=0.03)
    for alone in found["alone"].values():
        assert alone["passes"] == pytest.approx(seen, abs=0.9)  # an image of nine is a ninth
    lines = RunStore(tmp_path / "cohort").history()
    assert sum(len(line["sites"]) for line in lines) == 8


def test_privacy_that_stops_early_stops_the_baselines_too(tmp_path: Path) -> None:
    found = compared(tmp_path / "private", privacy=PRIVATE, rounds={"rounds": 40})
    facts = RunStore(tmp_path / "private").read_json("summary.json")
    assert facts["privacy"]["stopped"]
    assert 1 <= facts["rounds"] < 40
    assert found["federated"]["passes"] == facts["rounds"]
    assert found["pooled"]["passes"] == facts["rounds"]
    assert {one["passes"] for one in found["alone"].values()} == {facts["rounds"]}


def test_a_baseline_of_whole_passes_has_the_bits_that_it_had() -> None:
    federation = federations.federation()
    plain, budget = federation.alone(1), planned(federation)
    assert federation.alone(1, budget).span(1, 40) is None
    vectors = []
    for one in (plain, federation.alone(1, budget)):
        engine = InProcessEngine(one)
        vectors.append(run(Session(one), engine, lambda sums: {}).vector)
        engine.close()
    assert torch.equal(*vectors)


@given(
    samples=st.integers(1, 40),
    rounds=st.integers(1, 9),
    passes=st.floats(0, 7),
    size=st.integers(1, 9),
)
def test_the_rounds_share_the_passes_evenly(samples, rounds, passes, size) -> None:
    budget = Budget(rounds, passes)
    seen, count, left_out = torch.zeros(samples), 0, 0
    orders = {n: torch.randperm(samples) for n in range(9)}
    for round in range(1, rounds + 1):
        begin, end = budget.span(round, samples)
        found = list(spanned(samples, (begin, end), size, orders.__getitem__))
        assert all(0 < len(batch) <= size + 1 for batch in found)
        taken = sum(map(len, found))
        assert end - begin - 2 <= taken <= end - begin or size == 1
        left_out += end - begin - taken
        count += end - begin
        for batch in found:
            seen[batch] += 1
    assert count == pytest.approx(passes * samples, abs=0.5 + 1e-6)
    assert seen.sum() == count - left_out
    if not left_out:  # every image as often as any other, or once more
        assert seen.max() - seen.min() <= 1
