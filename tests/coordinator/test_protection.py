"""Protected runs through the real loop: what they tell, when they stop, and that they resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federations
import pytest
import torch

from fedsight.coordinator.loop import run
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core.errors import ConfigError
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.rounds import Rounds

MECHANISMS: dict[str, dict[str, Any]] = {
    "central": {"name": "central", "noise_multiplier": 1.0},
    "adaptive": {"name": "central", "noise_multiplier": 1.0, "quantile": 0.5, "clip": 0.1},
    "matrix": {"name": "matrix", "noise_multiplier": 1.0, "bands": 3},
    "local": {"name": "local", "noise_multiplier": 1.0},
    "example": {"name": "example", "noise_multiplier": 1.0},
    "distributed": {"name": "distributed", "noise_multiplier": 1.0, "clip": 0.5},
}


def federation(mechanism: str, **sections: Any) -> Federation:
    rounds = {"weighting": "uniform", "rounds": 3, "cohort": 4, **sections.pop("rounds", {})}
    split = sections.pop("split", {"name": "iid", "sites": 6})
    privacy = {**MECHANISMS[mechanism], **sections.pop("privacy", {})}
    if mechanism == "distributed":
        sections["secure"] = {"name": "secagg"}
    return federations.federation(split=split, rounds=rounds, privacy=privacy, **sections)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_protected_runs_have_the_same_bits_whatever_the_workers(mechanism: str) -> None:
    of = federation(mechanism)
    inline = federations.learn(of)
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        spread = federations.learn(of, engine)
    finally:
        engine.close()
    assert torch.equal(inline.vector, spread.vector)
    plain = federations.learn(
        federations.federation(split={"sites": 6}, rounds={"rounds": 3, "cohort": 4})
    )
    assert not torch.equal(inline.vector, plain.vector)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_resumed_from_any_checkpoint_on_disk_the_rest_is_the_same(
    mechanism: str, tmp_path: Path
) -> None:
    of = federation(mechanism)
    diary, again = federations.Diary(), federations.Diary()
    whole = federations.learn(of, diary=diary)
    store = RunStore(tmp_path)
    for stop in (0, 1):
        store.save_checkpoint(diary.checkpoints[stop])
        found = store.load_checkpoint()
        assert isinstance(found, Checkpoint)
        engine = InProcessEngine(of)
        rest = run(Session(of), engine, lambda sums: {}, [again], found)
        engine.close()
        assert torch.equal(rest.vector, whole.vector)
        assert again.lines[-1]["epsilon"] == diary.lines[-1]["epsilon"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_lines_tell_what_was_spent_and_not_what_nobody_paid_for(mechanism: str) -> None:
    diary = federations.Diary()
    of = federation(mechanism)
    federations.learn(of, diary=diary)
    told = [line["epsilon"] for line in diary.lines]
    assert 0 < told[0] <= told[1] <= told[2]
    assert told[2] > told[0]
    assert all(line["train_loss"] is None for line in diary.lines)
    summary = Protection(of).summary(3)
    assert summary is not None
    assert summary["epsilon"] == told[-1]
    assert summary["not_covered"]
    assert not summary["stopped"]
    assert summary["trusts"]
    assert "seed" in summary["noise_from"]


def test_a_run_stops_before_it_would_exceed_its_target() -> None:
    of = federation(
        "local", privacy={"noise_multiplier": 4.0, "epsilon": 4.0}, rounds={"rounds": 9}
    )
    diary = federations.Diary()
    trained = federations.learn(of, diary=diary)
    done = trained.checkpoint.round
    assert 0 < done < 9
    assert diary.lines[-1]["score"] is not None
    assert diary.lines[-1]["epsilon"] <= 4.0
    protection = Protection(of)
    assert protection.epsilon(done + 1) > 4.0
    summary = protection.summary(done)
    assert summary is not None
    assert summary["stopped"]


def test_not_even_one_round_is_a_problem_before_any_image_is_read() -> None:
    of = federation("local", privacy={"noise_multiplier": 1.0, "epsilon": 0.1})
    with pytest.raises(ConfigError, match="not one round"):
        Protection(of)


def test_poisson_rounds_differ_in_size_and_may_be_empty() -> None:
    of = federation("central", rounds={"rounds": 12, "cohort": 1})
    diary = federations.Diary()
    federations.learn(of, diary=diary)
    sizes = [line["cohort"] for line in diary.lines]
    assert 0 in sizes
    assert len(set(sizes)) > 1
    assert all(line["replies"] == line["cohort"] for line in diary.lines)


def test_another_secret_draws_other_cohorts_and_other_noise() -> None:
    of = federation("central")
    assert Protection(of, 1).cohort(1) == Protection(of, 1).cohort(1)
    drawn = [[Protection(of, secret).cohort(r) for r in range(1, 9)] for secret in (1, 2)]
    assert drawn[0] != drawn[1]
    vectors = []
    for secret in (1, 2):
        engine = InProcessEngine(of)
        vectors.append(run(Session(of, secret), engine, lambda sums: {}).vector)
        engine.close()
    assert not torch.equal(*vectors)
    summary = Protection(of, 1).summary(3)
    assert summary is not None
    assert summary["noise_from"] == "a secret"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("algorithm", ["scaffold", "fedrep", "fedbn", "fedprox", "fedavgm"])
def test_mechanisms_go_with_algorithms(mechanism: str, algorithm: str) -> None:
    of = federation(mechanism, algorithm={"name": algorithm}, rounds={"rounds": 2})
    trained = federations.learn(of)
    assert bool(torch.isfinite(trained.vector).all())


def test_the_baselines_are_not_protected() -> None:
    of = federation("central")
    assert not of.alone(0).program.privacy.protects
    assert not of.all_pooled().program.privacy.protects


def test_no_protection_means_nothing_is_said_of_it() -> None:
    of = federations.federation()
    diary = federations.Diary()
    federations.learn(of, diary=diary)
    assert Protection(of).facts() is None
    assert [line["epsilon"] for line in diary.lines] == [None, None]


def test_coins_that_draw_fewer_than_the_quorum_end_no_run() -> None:
    """The cohort of a round is the same at each resume, so the run could not go on."""
    of = federation(
        "central",
        rounds={"rounds": 12, "cohort": 2, "quorum": 2},
        split={"name": "iid", "sites": 4},
    )
    diary = federations.Diary()
    federations.learn(of, diary=diary)
    drawn = [line["cohort"] for line in diary.lines]
    assert len(drawn) == 12
    assert min(drawn) < 2 < max(drawn)
    assert [line["replies"] for line in diary.lines] == drawn


@pytest.mark.parametrize(("quorum", "asked", "needed"), [(None, 5, 5), (3, 5, 3), (3, 2, 2)])
def test_how_many_replies_a_round_needs(quorum: int | None, asked: int, needed: int) -> None:
    assert Rounds(quorum=quorum).needed(asked) == needed


def test_a_delta_that_permits_publishing_a_client_is_refused() -> None:
    """As `fedsight privacy plan` does."""
    split = {"name": "iid", "sites": 8}
    with pytest.raises(ConfigError, match="permits revealing one of 8 clients entirely"):
        Protection(federation("central", privacy={"delta": 0.5}, split=split))
    assert Protection(federation("central", privacy={"delta": 0.1}, split=split)).rounds == 3
