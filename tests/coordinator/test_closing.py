"""A program's finish: one round of a closed form after the last, on what training has made."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import federations
import pytest
import torch

import fedsight as fs
from fedsight.coordinator.closing import closed
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.budget import spent
from fedsight.program.config import load
from fedsight.program.federation import Federation, federate

Make = Callable[..., Federation]
RIDGE = {"name": "ridge", "high": 4.0}


def tables(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"name": "fashion-mnist-12k", "size": 14},
        "split": {"name": "virtual", "sites": 3, "samples": 300},
        "model": {"name": "small_cnn", "width": 4, "blocks": 2},
        "rounds": {"rounds": 2},
        "train": {"batch": 32, "lr": 0.05},
        "finish": RIDGE,
        **sections,
    }


@pytest.mark.parametrize("form", [RIDGE, {**RIDGE, "name": "ncm"}], ids=["ridge", "ncm"])
def test_the_end_is_the_closed_form_of_the_trained_network(
    form: dict[str, Any], tmp_path: Path
) -> None:
    """The same bits as a run of it alone on the weights: so the head is that of all images pooled,
    and what was trained is untouched."""
    found = fs.run(tables(finish=form), out=tmp_path / "run", workers=2)
    plain = fs.run(tables(finish={}), out=tmp_path / "plain", workers=1)
    assert found.summary["model_sha256"] != plain.summary["model_sha256"]
    path = tmp_path / "plain" / "model.safetensors"
    weights = {"weights": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}
    again = tables(algorithm=form, rounds={"rounds": 1}, finish={})
    again["model"] = {**again["model"], **weights}
    alone = fs.run(again, out=tmp_path / "alone", workers=1)
    assert found.summary["model_sha256"] == alone.summary["model_sha256"]

    assert [line["round"] for line in found.history] == [1, 2, 3]
    assert [line.get("finish") for line in found.history] == [None, None, form["name"]]
    assert found.summary["rounds"] == 2
    assert found.summary["bytes_up"] == sum(line["bytes_up"] for line in found.history)
    federation = federate(load(tmp_path / "run" / "run.toml")[0])
    assert spent(federation, found.history).passes == pytest.approx(2), "it takes no pass"


def test_a_run_that_was_killed_in_the_closing_closes_again(tmp_path: Path) -> None:
    whole = fs.run(tables(), out=tmp_path, workers=1)
    (tmp_path / "summary.json").unlink()
    resumed = fs.resume(tmp_path, workers=1)
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert resumed.summary["bytes_up"] == whole.summary["bytes_up"]
    assert [line["round"] for line in resumed.history] == [1, 2, 3]


@pytest.mark.parametrize("useless", [True, False])
def test_the_best_of_the_rounds_and_the_closing_is_kept(
    tiny_federation: Make, useless: bool
) -> None:
    finish = {**RIDGE, "strengths": [1e12]} if useless else RIDGE
    rate = 0.05 if useless else 1e-6
    rounds = {"rounds": 3, "validation": 0.3, "keep": "best"}
    of = tiny_federation(finish=finish, rounds=rounds, train={"lr": rate, "batch": 4, "epochs": 4})
    assert of.validating is not None
    evaluator, engine, session = Evaluator(of.validating), InProcessEngine(of), Session(of)
    overall = lambda sums: evaluator.figures(sums).overall  # noqa: E731
    trained, diary = run(session, engine, overall), federations.Diary()
    engine.close()
    ended = closed(session, InProcessEngine, overall, trained, [diary])
    assert (ended.round == 4) == (not useless)
    assert torch.equal(ended.vector, trained.vector) == useless
    assert [line["round"] for line in diary.lines] == [4]


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"finish": {"name": "scaffold"}}, "finish.name", "no closed form"),
        ({"finish": {**RIDGE, "low": 5.0}}, "finish.high", "range"),
        ({"algorithm": {"name": "fedrep"}}, "finish.name", "keeps at the sites"),
        ({"algorithm": {"name": "fedbn"}}, "finish.name", "at each site"),
        ({"train": {"only": ["conv1"]}}, "finish.name", "freezes"),
        ({"algorithm": RIDGE, "rounds": {"rounds": 1}}, "finish", "trains nothing"),
        ({"privacy": {"name": "local", "noise_multiplier": 1.0, "clip": 1.0}}, "finish", "noise"),
    ],
)
def test_what_a_finish_does_not_go_with_is_refused(
    sections: dict[str, Any], where: str, words: str
) -> None:
    found = fs.check(tables(**sections))
    assert any(one.where == where and words in one.cause for one in found), found
