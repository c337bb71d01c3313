"""Runs that keep their best round or end early: interrupted, extended, compared, protected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
from command_line import same, write_config
from federations import Stop
from safetensors.torch import load_file

from fedsight.coordinator import loop
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import Interrupted
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.conclusion import Command
from fedsight.program.budget import Budget
from fedsight.program.config import load
from fedsight.program.program import Program, Speed
from fedsight.runs import extension, lifecycle
from fedsight.runs.extension import Extension

ROUNDS: dict[str, Any] = {"rounds": 8, "validation": 0.3, "keep": "best", "patience": 2}
SPEED = Speed(workers=1, device="cpu", checkpoint_every=3)


def program(folder: Path, rounds: dict[str, Any] | None = None, **sections: Any) -> Program:
    """Trained so fast that later rounds are often worse."""
    train = {"lr": 1.2, "batch": 4}
    wanted = {**ROUNDS, **(rounds or {})}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    return load(write_config(folder, rounds=wanted, train=train, **sections))[0]


def run(folder: Path, of: Program, command: Command = "run", calls: Any = ()) -> RunStore:
    store = RunStore(folder)
    lifecycle.start(lifecycle.Start(of, SPEED, store, command), list(calls))
    return store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the images."""
    return tmp_path_factory.mktemp("best")


@pytest.fixture(scope="module")
def whole(home: Path) -> RunStore:
    """A run that ends early and keeps an earlier round, with its baselines."""
    return run(home / "whole", program(home), "compare")


def test_the_files_say_which_round_was_kept_and_why(whole: RunStore) -> None:
    history, summary = whole.history(), whole.read_json("summary.json")
    scores = [line["accuracy"] for line in history]
    best = scores.index(max(scores)) + 1
    assert best + 2 == len(history) == summary["rounds"] < 8
    assert summary["kept"] == {
        "round": best, "keep": "best", "by": "accuracy", "best": best, "value": max(scores),
        "stopped": "patience",
    }  # fmt: skip
    assert [line["best"] for line in history][-3:] == [best] * 3
    assert {line["measured_on"] for line in history} == {"validation part"}
    assert whole.load_checkpoint().round == len(history)  # saved, whatever checkpoint_every is


@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(
    whole: RunStore, home: Path, tmp_path: Path, stop: int
) -> None:
    """Checkpoints are written every third round: what is best is rewound with the rest."""
    assert len(whole.history()) == 6
    store = RunStore(tmp_path / "run")
    with pytest.raises(Interrupted):
        run(store.folder, program(home), "compare", [Stop(stop)])
    lifecycle.resume(store, 1, [])
    same(store.folder, whole.folder)
    one, other = (load_file(one.folder / "model.safetensors") for one in (store, whole))
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_each_arm_of_a_comparison_keeps_its_best_round(
    whole: RunStore, home: Path, tmp_path: Path
) -> None:
    """By its own validation images; without the rule they have more rounds and other models."""
    found = whole.read_json("comparison.json")
    arms = [*found["alone"].values(), found["pooled"]]
    assert all(1 <= arm["kept"] <= len(whole.history()) for arm in arms)
    assert any(arm["kept"] < len(whole.history()) for arm in arms)
    plain = run(tmp_path / "plain", program(home, {"keep": "last", "patience": None}), "compare")
    without = plain.read_json("comparison.json")
    assert "kept" not in without["pooled"]
    alone = {name: arm["loss"] for name, arm in without["alone"].items()}
    assert alone != {name: arm["loss"] for name, arm in found["alone"].items()}
    assert "kept" not in plain.read_json("summary.json")


def test_a_run_that_ended_early_can_be_trained_on(home: Path, tmp_path: Path) -> None:
    """It waits for a better round once more, and what is best so far is not forgotten."""
    store = run(tmp_path / "run", program(home))
    before = store.read_json("summary.json")["kept"]
    lifecycle.resume(store, 1, [], Extension(12))
    summary, history = store.read_json("summary.json"), store.history()
    earlier = RunStore(store.folder / "rounds-8").history()
    assert history[: len(earlier)] == earlier
    assert len(earlier) + 2 <= len(history) <= 12
    assert summary["kept"]["value"] >= before["value"]
    scores = [line["accuracy"] for line in history]
    assert summary["kept"]["round"] == scores.index(max(scores)) + 1


def test_a_run_that_was_not_stopped_is_extended_as_if_planned_so(
    home: Path, tmp_path: Path
) -> None:
    rounds = {"rounds": 3, "patience": None}
    store = run(tmp_path / "run", program(home, rounds))
    lifecycle.resume(store, 1, [], Extension(6))
    planned = run(tmp_path / "planned", program(home, {**rounds, "rounds": 6}))
    assert [line["accuracy"] for line in store.history()] == [
        line["accuracy"] for line in planned.history()
    ]
    one, other = (each.read_json("summary.json") for each in (store, planned))
    assert (one["kept"], one["model_sha256"]) == (other["kept"], other["model_sha256"])


def test_an_extension_interrupted_halfway_still_waits_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run(tmp_path / "run", program(home))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    facts = store.read_json("run.json")
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_program", killed)
        with pytest.raises(KeyboardInterrupt):
            extension.extend(store, Extension(12), facts)
    extension.settle(store)
    assert store.program()[0].rounds.rounds == 12
    assert store.load_checkpoint().best.since == 0


def test_epsilon_is_that_of_all_trained_rounds_and_does_not_cover_the_choice(
    home: Path,
    tmp_path: Path,
) -> None:
    """What is not trained is not spent; what is not kept was released all the same."""
    privacy = {"name": "local", "epsilon": 50.0, "clip": 1.0}
    of = program(home, {"weighting": "uniform", "patience": 1}, privacy=privacy)
    store = run(tmp_path / "run", of)
    summary, history = store.read_json("summary.json"), store.history()
    assert len(history) < 8
    assert summary["kept"]["round"] < len(history)
    told = summary["privacy"]
    assert told["epsilon"] == history[-1]["epsilon"] < 50
    assert told["stopped"]
    assert "which round was kept or ended training" in " ".join(told["not_covered"])
    silent = run(tmp_path / "silent", replace(of, rounds=of.rounds.model_copy(
        update={"keep": "last", "patience": None})))  # fmt: skip
    assert silent.read_json("summary.json")["privacy"]["epsilon"] > told["epsilon"]
    assert "which round" not in " ".join(silent.read_json("summary.json")["privacy"]["not_covered"])


def test_a_site_alone_without_validation_images_keeps_its_last_round() -> None:
    """Never one that the test part chose: its rounds are not compared at all."""
    of = federations.federation(
        rounds={**ROUNDS, "validation": 0.1}, train={"lr": 0.8, "batch": 4},
        split={"name": "quantity", "sites": 6, "min_samples": 3, "alpha": 0.2},
    )  # fmt: skip
    assert of.aside is not None
    (poor, *_) = [site for site, held in enumerate(of.aside) if not len(held)]
    alone = of.alone(poor, Budget(4, 4.0))
    assert alone.validating is None
    diary, engine = federations.Diary(), InProcessEngine(alone)
    trained = loop.run(Session(alone), engine, federations.overall(alone), [diary])
    engine.close()
    assert trained.round == 4
    assert all(one.best is None for one in diary.checkpoints)
    rich = next(site for site, held in enumerate(of.aside) if len(held))
    checked = of.alone(rich, Budget(4, 4.0)).validating
    assert checked is not None
    assert [view.site for view in checked.views] == [rich]
