"""The moving average over rounds: its weights, and that it is what is measured and delivered."""

from __future__ import annotations

from pathlib import Path

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.coordinator.loop import AVERAGE, run
from fedsight.coordinator.moving_average import averaged
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.engines.in_process import InProcessEngine

DECAYS = st.floats(0.01, 0.99)


@given(decay=DECAYS, rounds=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_average_of_one_model_is_that_model_bit_for_bit(
    decay: float, rounds: int, seed: int
) -> None:
    model = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    average = None
    for round in range(1, rounds + 1):
        average = averaged(average, model, round, decay)
    assert average is not None
    assert torch.equal(average, model)


@given(decay=DECAYS, rounds=st.integers(1, 12))
def test_weights_fall_by_the_decay_and_sum_to_1(decay: float, rounds: int) -> None:
    models = torch.eye(rounds)  # the average shows the weights
    average = None
    for round, model in enumerate(models, start=1):
        average = averaged(average, model, round, decay)
    assert average is not None
    weights = torch.tensor([decay ** (rounds - i) for i in range(1, rounds + 1)])
    torch.testing.assert_close(average, weights / weights.sum(), rtol=1e-4, atol=1e-6)


def test_the_first_average_is_a_copy_and_the_model_is_not_changed() -> None:
    model = torch.ones(3)
    first = averaged(None, model, 1, 0.5)
    assert first is not None
    assert first.data_ptr() != model.data_ptr()
    averaged(first, torch.zeros(3), 2, 0.5)
    assert torch.equal(first, model)
    assert averaged(None, model, 1, None) is None


def test_training_is_that_without_an_average_which_is_measured_and_delivered() -> None:
    plain, kept = federations.Diary(), federations.Diary()
    without = federations.learn(federations.federation(rounds={"rounds": 4}), diary=plain)
    of = federations.federation(rounds={"rounds": 4, "ema": 0.6})
    found = federations.learn(of, diary=kept)
    assert torch.equal(found.checkpoint.vector, without.checkpoint.vector)
    average = None
    for round, one in enumerate(plain.checkpoints, start=1):
        average = averaged(average, one.vector, round, 0.6)
        assert torch.equal(kept.checkpoints[round - 1].model, average)
    assert average is not None
    assert torch.equal(found.vector, average)
    engine = InProcessEngine(of)
    assert federations.same_sums(engine.measure(average, 4), found.sums)
    engine.close()
    assert {line["model"] for line in kept.lines} == {AVERAGE}
    assert all("model" not in line for line in plain.lines)
    assert plain.lines[0]["score"] == kept.lines[0]["score"]  # of one model
    assert plain.lines[3]["loss"] != kept.lines[3]["loss"]


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, norm: str) -> None:
    of = federations.federation(model={"norm": norm}, rounds={"rounds": 4, "ema": 0.6})
    whole = federations.Diary()
    expected = federations.learn(of, diary=whole)
    store = RunStore(tmp_path)
    store.save_checkpoint(whole.checkpoints[1])
    start = store.load_checkpoint()
    assert start is not None
    assert start.state.keys() == whole.checkpoints[1].state.keys()
    engine = InProcessEngine(of)
    found = run(Session(of), engine, federations.overall(of), start=start)
    engine.close()
    assert torch.equal(found.vector, expected.vector)
    assert torch.equal(found.checkpoint.vector, expected.checkpoint.vector)


def test_an_average_costs_no_privacy() -> None:
    lines = []
    for ema in (None, 0.5):
        diary = federations.Diary()
        protected = {"name": "central", "noise_multiplier": 1.0}
        rounds = {"rounds": 2, "weighting": "uniform", "ema": ema}
        of = federations.federation(privacy=protected, rounds=rounds)
        federations.learn(of, diary=diary)
        lines.append([line["epsilon"] for line in diary.lines])
    assert lines[0] == lines[1]
