"""The round loop: who is drawn, what is judged, and when it stops."""

from __future__ import annotations

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.coordinator.loop import run
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.session import Session
from fedsight.core.errors import SiteError
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation


def draw_cohort(federation: Federation, round: int) -> list[int]:
    return Protection(federation).cohort(round)


FEDERATION = {
    size: federations.federation(split={"sites": 9}, rounds={"cohort": size})
    for size in range(1, 10)
}


@given(cohort=st.integers(1, 9), round=st.integers(1, 10**6))
def test_a_cohort_is_drawn_without_replacement_and_alike_everywhere(
    cohort: int, round: int
) -> None:
    federation = FEDERATION[cohort]
    drawn = draw_cohort(federation, round)
    assert drawn == sorted(set(drawn)) == draw_cohort(federation, round)
    assert len(drawn) == cohort
    assert set(drawn) <= set(range(9))


def test_in_time_every_site_is_drawn_equally_often() -> None:
    counts = [0] * 9
    for round in range(1, 601):
        for client in draw_cohort(FEDERATION[3], round):
            counts[client] += 1
    assert sum(counts) == 1800
    assert all(150 < count < 250 for count in counts)  # 200, deviation 11.5


def test_a_cohort_of_all_is_everybody() -> None:
    assert draw_cohort(FEDERATION[9], 1) == list(range(9))
    assert draw_cohort(federations.federation(), 5) == [0, 1, 2]


def test_a_global_model_that_is_not_finite_stops_the_run() -> None:
    federation = federations.federation(algorithm={"server_lr": 1e308})
    diary = federations.Diary()
    with pytest.raises(SiteError, match="no longer finite after round 1") as caught:
        federations.learn(federation, diary=diary)
    assert "algorithm.server_lr" in caught.value.cure
    assert diary.lines == []


def test_lines_tell_of_every_round() -> None:
    federation = federations.federation(
        rounds={"rounds": 5, "evaluate_every": 2, "cohort": 2}, train={"schedule": "linear"}
    )
    diary = federations.Diary()
    trained = federations.learn(federation, diary=diary)
    assert [line["round"] for line in diary.lines] == [1, 2, 3, 4, 5]
    assert [line["round"] for line in diary.lines if line["score"] is not None] == [2, 4, 5]
    assert [line["lr"] for line in diary.lines] == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01])
    assert all(line["cohort"] == line["replies"] == 2 for line in diary.lines)
    assert all(line["weight"] == 80 for line in diary.lines)
    drawn = [draw_cohort(federation, round) for round in (1, 2, 3, 4, 5)]
    named = [[federation.name(client) for client in cohort] for cohort in drawn]
    assert [line["sites"] for line in diary.lines] == named
    size = len(trained.checkpoint.vector)
    assert all(line["bytes_up"] == 2 * 4 * size for line in diary.lines)
    # The first model follows from the seed, and sites build it.
    assert [line["bytes_down"] for line in diary.lines] == [0, *4 * [2 * 4 * size]]
    assert trained.checkpoint.bytes_up == 5 * 8 * size
    assert diary.replies == 10


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_from_any_checkpoint_the_rest_is_the_same(stop: int) -> None:
    federation = federations.federation(algorithm={"name": "fedadam"}, rounds={"rounds": 3})
    diary = federations.Diary()
    whole = federations.learn(federation, diary=diary)
    engine = InProcessEngine(federation)
    again = run(Session(federation), engine, lambda sums: {}, [], diary.checkpoints[stop])
    engine.close()
    assert torch.equal(again.vector, whole.vector)
    assert federations.same_sums(again.sums, whole.sums)
