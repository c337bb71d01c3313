"""The learning rate within a round."""

from __future__ import annotations

from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.client.pace import Pace
from fedsight.client.step import Client
from fedsight.client.training import GradientSteps, batches
from fedsight.core.rng import generator
from fedsight.core.types import Order
from fedsight.program.train import Train

TRAINS = st.builds(
    Train,
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 3),
    restarts=st.sampled_from([(), (4,), (3, 6)]),
)
ROUNDS = 9


@given(train=TRAINS, round=st.integers(1, ROUNDS), steps=st.integers(1, 20))
def test_at_a_rounds_start_the_rate_is_that_of_the_round(
    train: Train, round: int, steps: int
) -> None:
    by_step = train.model_copy(update={"schedule_by": "step"})
    pace = Pace(by_step, round, ROUNDS, steps)
    assert pace.start == train.rate(round, ROUNDS)
    assert pace.at(0) == 1.0
    assert pace.mean == pytest.approx(
        sum(pace.start * pace.at(step) for step in range(steps)) / steps
    )
    by_round = Pace(train, round, ROUNDS, steps)
    assert {by_round.at(step) for step in range(steps)} == {1.0}
    assert by_round.mean == by_round.start


@given(train=TRAINS, round=st.integers(1, ROUNDS))
def test_the_mean_over_more_steps_than_can_be_added_is_that_of_the_whole_round(
    train: Train, round: int
) -> None:
    by_step = train.model_copy(update={"schedule_by": "step"})
    fine = [by_step.rate(round, ROUNDS, (place + 0.5) / 1_000) for place in range(1_000)]
    mean = Pace(by_step, round, ROUNDS, 1 << 60).mean
    assert mean == pytest.approx(sum(fine) / len(fine), rel=1e-5)


@given(train=TRAINS, round=st.integers(1, ROUNDS - 1))
def test_a_rounds_end_is_the_next_ones_start(train: Train, round: int) -> None:
    if round in train.restarts or (round - max((0, *train.restarts))) == train.warmup:
        return  # where the schedule begins again, it jumps
    end = train.rate(round, ROUNDS, 1 - 1e-9)
    assert end == pytest.approx(train.rate(round + 1, ROUNDS), abs=1e-6)


def test_cosine_over_all_steps_is_pytorchs_own() -> None:
    train = Train(lr=0.1, schedule="cosine", schedule_by="step")
    rounds, steps = 4, 7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=rounds * steps)
    for round in range(1, rounds + 1):
        pace = Pace(train, round, rounds, steps)
        for step in range(steps):
            assert pace.start * pace.at(step) == pytest.approx(oracle.get_last_lr()[0])
            optimizer.step()
            oracle.step()


@given(samples=st.integers(1, 90), size=st.integers(1, 20))
def test_steps_are_counted_as_batches_are_made(samples: int, size: int) -> None:
    made = list(batches(1, samples, size, generator(0)))
    assert GradientSteps(torch.no_grad).steps(samples, size) == len(made)


def rates(monkeypatch: pytest.MonkeyPatch, **sections: Any) -> list[float]:
    """The learning rates of the steps of the first site in round 2."""
    seen = []
    real = torch._fused_sgd_

    def spy(*given: Any, **words: Any) -> None:
        seen.append(words["lr"])
        real(*given, **words)

    of = federations.federation(**sections)
    client = Client(of)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_fused_sgd_", spy)
        client.step(Order(2, of.initial[of.layout.travelling]), 0, {})
    return seen


STEPPED = {"lr": 0.1, "schedule": "cosine", "schedule_by": "step", "epochs": 2, "batch": 10}


@pytest.mark.parametrize(
    "sections",
    [{}, {"algorithm": {"name": "fedrep"}}, {"privacy": {"name": "example", "epsilon": 50.0}}],
    ids=["fedavg", "two phases", "DP-SGD"],
)
def test_every_step_has_its_own_rate(
    monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    found = rates(monkeypatch, train=STEPPED, rounds={"rounds": 3}, **sections)
    train = Train(**STEPPED)
    assert len(found) >= 8
    expected = [train.rate(2, 3, step / len(found)) for step in range(len(found))]
    assert found == pytest.approx(expected)


def test_with_one_step_a_round_it_is_the_schedule_by_rounds_bit_for_bit() -> None:
    shas = set()
    for by in ("round", "step"):
        train = {"batch": 64, "schedule": "cosine", "warmup": 1, "schedule_by": by}
        of = federations.federation(train=train, rounds={"rounds": 3})
        shas.add(federations.sha(federations.learn(of).vector))
    assert len(shas) == 1


def test_scaffold_divides_by_the_sum_of_the_steps_rates() -> None:
    """Its control variate is then a weighted mean of gradients, whatever the schedule."""
    found = {}
    for by in ("round", "step"):
        train = {"lr": 1e-4, "schedule": "linear", "schedule_by": by, "batch": 10}
        of = federations.federation(
            train=train, algorithm={"name": "scaffold"}, rounds={"rounds": 2}
        )
        reply = Client(of).step(
            Order(
                1, of.initial[of.layout.travelling], {"control": torch.zeros(of.layout.shared.stop)}
            ),
            0,
            {},
        )
        found[by] = reply.payload["control"]
    # The model hardly moves, so both are means of the same gradients.
    assert float((found["round"] - found["step"]).norm() / found["round"].norm()) < 0.2
    assert torch.nn.functional.cosine_similarity(found["round"], found["step"], dim=0) > 0.98
