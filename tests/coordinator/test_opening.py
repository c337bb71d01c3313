"""A program's start: one round of a closed form before the first, in runs and baselines alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import pytest
import torch

import fedsight as fs
from fedsight.coordinator.loop import run
from fedsight.coordinator.opening import opened
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.layout import Kind
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.federation import Federation

Make = Callable[..., Federation]
RIDGE = {"name": "ridge", "high": 4.0}


def begun(federation: Federation) -> Checkpoint | None:
    return opened(Session(federation), InProcessEngine, lambda sums: {})


def test_the_start_is_the_model_of_the_ridge_run(tiny_federation: Make) -> None:
    ridge = tiny_federation(algorithm=RIDGE, rounds={"rounds": 1})
    known = ridge.layout.state_dict(federations.learn(ridge).vector)
    started = tiny_federation(start=RIDGE)
    found = begun(started)
    assert found is not None
    assert found.round == 0
    whole = torch.cat([found.vector, started.initial[started.layout.kept]])
    for name, value in started.layout.state_dict(whole).items():
        assert torch.equal(value, known[name]), name
    head = {name for name in known if name in started.network.head}
    initial = started.layout.state_dict(started.initial)
    assert head
    assert all(not torch.equal(initial[name], known[name]) for name in head)


def test_a_recipe_for_the_rounds_does_not_change_the_start(tiny_federation: Make) -> None:
    recipe = {
        "train": {
            "schedule": "cosine",
            "schedule_by": "step",
            "sampling": "balanced",
            "augment": ["mixup"],
        },
        "task": {"class_weights": "site"},
        "rounds": {"rounds": 2, "ema": 0.5},
    }
    plain, other = (tiny_federation(start=RIDGE, **sections) for sections in ({}, recipe))
    assert other.program.check() == []
    one, two = begun(plain), begun(other)
    assert one is not None
    assert two is not None
    assert torch.equal(one.vector, two.vector)
    assert two.average is None
    engine = InProcessEngine(other)
    trained = run(Session(other), engine, lambda sums: {}, start=two)
    engine.close()
    assert trained.checkpoint.average is not None


def test_one_step_a_round_from_a_start_is_that_of_all_images_whatever_the_split(
    tiny_federation: Make,
) -> None:
    """What fine-tuning from a closed-form head relies on: no drift, and a head that stays."""

    def tuned(split: dict[str, Any]) -> dict[str, torch.Tensor]:
        of = tiny_federation(
            start=RIDGE,
            split=split,
            algorithm={"name": "fedadam", "server_lr": 0.01, "tau": 1e-3},
            train={"batch": 120, "lr": 1.0, "groups": [{"params": ["head"], "lr": 1e-9}]},
            rounds={"rounds": 3},
        )
        engine = InProcessEngine(of)
        trained = run(Session(of), engine, lambda sums: {}, start=begun(of))
        engine.close()
        return of.layout.state_dict(trained.vector)

    one = tuned({"name": "iid", "sites": 1})
    two = tuned({"name": "labels", "sites": 3, "labels": 4})
    started = tiny_federation(start=RIDGE, split={"name": "iid", "sites": 1})
    found = begun(started)
    assert found is not None
    before = started.layout.state_dict(found.vector)
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
        moved = float((value - before[name]).abs().max())
        assert moved < 1e-6 if name in started.network.head else moved > 1e-3, name


def test_without_a_start_there_is_no_opening(tiny_federation: Make) -> None:
    assert begun(tiny_federation()) is None


def test_sites_alone_begin_with_their_own_start(tiny_federation: Make) -> None:
    started = tiny_federation(start=RIDGE)
    shared, own = begun(started), begun(started.alone(0))
    pooled = begun(started.all_pooled())
    assert shared is not None
    assert own is not None
    assert pooled is not None
    assert torch.equal(shared.vector, pooled.vector), "the head is that of all images"
    assert not torch.equal(shared.vector, own.vector)


def tables(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "small_cnn", "width": 8},
        "rounds": {"rounds": 2},
        "train": {"batch": 512, "lr": 0.001},
        "start": RIDGE,
        **sections,
    }


def test_a_run_says_round_0_and_resumes_after_it(tmp_path: Path) -> None:
    run = fs.run(tables(), out=tmp_path / "whole", workers=1)
    first, *rest = run.history
    assert first["round"] == 0
    assert first["score"] > 0.8, "untrained features with the best linear head"
    assert first["bytes_up"] > rest[0]["bytes_up"], "sums of products are large"
    assert [line["round"] for line in rest] == [1, 2]
    assert run.summary["bytes_up"] == sum(line["bytes_up"] for line in run.history)
    assert run.summary["rounds"] == 2

    again = fs.run(tables(), out=tmp_path / "killed", workers=1)
    folder = tmp_path / "killed"
    (folder / "summary.json").unlink()
    (folder / "checkpoint.safetensors").unlink()
    resumed = fs.resume(folder, workers=1)
    assert resumed.summary["model_sha256"] == run.summary["model_sha256"]
    assert [line["round"] for line in resumed.history] == [0, 1, 2]
    assert again.summary["model_sha256"] == run.summary["model_sha256"]


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"start": {"name": "scaffold"}}, "start.name", "no closed form"),
        ({"start": {**RIDGE, "low": 5.0}}, "start.high", "range"),
        ({"algorithm": {"name": "fedrep"}}, "start.name", "keeps at the sites"),
        ({"train": {"only": ["conv1"]}}, "start.name", "freezes"),
        ({"privacy": {"name": "local", "noise_multiplier": 1.0, "clip": 1.0}}, "start", "noise"),
    ],
)
def test_what_a_start_does_not_go_with_is_refused(
    sections: dict[str, Any], where: str, words: str
) -> None:
    found = fs.check(tables(**sections))
    assert any(one.where == where and words in one.cause for one in found), found


def test_the_opening_sees_all_images_and_trains_the_head_only(tiny_federation: Make) -> None:
    started = tiny_federation(
        start=RIDGE,
        train={"only": ["head"], "augment": ["flip"]},
        rounds={"rounds": 3, "cohort": 2},
    )
    program = started.program.opening()
    assert program is not None
    opening = started.under(program)
    kinds = {entry.name for entry in opening.layout.entries if entry.kind == Kind.SHARED}
    assert kinds == set(started.network.head)
    assert (program.rounds.rounds, program.rounds.cohort) == (1, None)
    assert program.train.augment == ()


def test_the_start_is_a_candidate_where_the_best_round_is_kept(tiny_federation: Make) -> None:
    """Training that only makes it worse ends with the model of the opening."""
    rounds = {"rounds": 4, "validation": 0.3, "keep": "best", "patience": 2}
    of = tiny_federation(start=RIDGE, rounds=rounds, train={"lr": 5.0, "batch": 4})
    assert of.validating is not None
    evaluator, engine, session = Evaluator(of.validating), InProcessEngine(of), Session(of)
    overall = lambda sums: evaluator.figures(sums).overall  # noqa: E731
    found, diary = opened(session, InProcessEngine, overall), federations.Diary()
    assert found is not None
    assert found.best is not None
    assert found.best.vector is not None
    assert (found.best.round, torch.equal(found.best.vector, found.vector)) == (0, True)
    trained = run(session, engine, overall, [diary], found)
    engine.close()
    assert all(line["accuracy"] < found.best.value for line in diary.lines)  # it gets worse
    assert (trained.round, trained.checkpoint.round) == (0, 2)
    assert torch.equal(trained.travelling, found.vector)
