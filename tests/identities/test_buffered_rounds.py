"""Buffered rounds: equal to plain torch, on every engine, and after every interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from federations import Diary

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.coordinator.turns import Buffered
from fedsight.core.errors import StoreError
from fedsight.core.rng import generator
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

LONG_TAILED = {
    "images_per_second": 10.0,
    "spread": 0.5,
    "delay": "lognormal",
    "delay_seconds": 2.0,
    "delay_sigma": 1.5,
}
BUFFERED = {"rounds": 7, "mode": "buffered", "buffer": 2}


def made(**sections: Any) -> Federation:
    given = {
        "split": {"name": "dirichlet", "alpha": 1.0, "sites": 6, "min_samples": 4},
        "rounds": BUFFERED,
        "timing": LONG_TAILED,
    }
    return federations.federation(**{**given, **sections})


def test_a_buffer_of_all_sites_equals_synchronous_rounds_bit_for_bit() -> None:
    same = {
        "images_per_second": 10.0
    }  # no spread and no delay: all take as long as they have images
    rounds = {"rounds": 4, "mode": "buffered", "buffer": 6}
    for timing in (same, LONG_TAILED):
        diary = Diary()
        found = federations.learn(made(rounds=rounds, timing=timing), diary=diary)
        plain = federations.learn(made(rounds={"rounds": 4}, timing={}))
        assert federations.sha(found.vector) == federations.sha(plain.vector)
        assert all(line["staleness"] == {} for line in diary.lines)


def test_a_buffer_of_all_takes_as_long_as_synchronous_rounds() -> None:
    one, other = Diary(), Diary()
    federations.learn(made(rounds={"rounds": 3, "mode": "buffered", "buffer": 6}), diary=one)
    federations.learn(made(rounds={"rounds": 3, "deadline": 1e6}), diary=other)
    for line, again in zip(one.lines, other.lines, strict=True):
        assert line["virtual_seconds"] == pytest.approx(again["virtual_seconds"])


def plainly(of: Federation) -> torch.Tensor:
    """FedBuff in plain torch, with the course of the queue: w + sum(s(tau) n delta) / sum(n)."""
    program, network = of.program, of.build().module
    queue, models = Buffered(of)._queue, [of.initial[of.layout.shared].double()]
    entries = of.layout.entries
    for round in range(1, program.rounds.rounds + 1):
        total, weight = torch.zeros_like(models[0]), 0
        for job in queue.flush().jobs:
            start = models[job.version].float()
            state = {e.name: e.view(start).clone() for e in entries}
            network.load_state_dict(state)
            optimiser = torch.optim.SGD(network.parameters(), lr=program.train.lr)
            data, name = of.client(job.client), of.name(job.client)
            draws = generator(program.train_seed, "round", job.version + 1, "site", name, "batches")
            order = torch.randperm(len(data), generator=draws)
            for positions in torch.split(order, program.train.batch):
                batch = of.batch(data, positions)
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(batch.x), batch.y).backward()
                optimiser.step()
            trained = of.layout.vector(dict(network.named_parameters()))
            stale = round - 1 - job.version
            delta = (trained.detach() - start).double()
            total += len(data) * delta / (1 + stale) ** 0.5
            weight += len(data)
        models.append(models[-1] + total / weight)
    return models[-1]


def test_it_equals_fedbuff_in_plain_torch() -> None:
    of, diary = made(train={"batch": 100}), Diary()
    found = federations.learn(of, diary=diary)
    assert max(max(line["staleness"].values(), default=0) for line in diary.lines) >= 3
    assert torch.allclose(found.vector.double(), plainly(of), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": {**BUFFERED, "cohort": 4, "max_staleness": 1}, "seed": 3},
        {"timing": {**LONG_TAILED, "dropout": 0.3}, "algorithm": {"name": "fedadam"}},
        {"algorithm": {"name": "ditto"}, "rounds": {**BUFFERED, "ema": 0.5}},
        {"aggregation": {"name": "median"}},
        {"codec": {"up": {"steps": ["float16"]}}},
        {"codec": {"up": {"steps": ["sign"], "feedback": True}}},
    ],
)
def test_worker_processes_make_the_same_model(sections: dict[str, Any]) -> None:
    of, lines = made(**sections), []
    found = []
    for workers in (None, 2):
        diary = Diary()
        engine = InProcessEngine(of) if workers is None else WorkerEngine(of, Speed(workers=2))
        try:
            found.append(federations.sha(federations.learn(of, engine, diary).vector))
        finally:
            engine.close()
        lines.append([{**line, "seconds": 0.0} for line in diary.lines])
    assert found[0] == found[1]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"algorithm": {"name": "ditto"}},
        {"algorithm": {"name": "fedadam"}, "timing": {**LONG_TAILED, "dropout": 0.2}},
    ],
)
def test_it_goes_on_after_every_round_as_if_nothing_had_happened(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    of, diary, store = made(**sections), Diary(), RunStore(tmp_path)
    memory = store.memory
    engine = InProcessEngine(of, memory, Speed(device="cpu", checkpoint_every=9))
    whole = federations.learn(of, engine, diary)
    engine.close()
    for checkpoint in reversed(diary.checkpoints[:-1]):
        store.save_checkpoint(checkpoint)
        start, again = store.load_checkpoint(), Diary()
        MemoryStore(memory).rewind(checkpoint.round)
        engine = InProcessEngine(of, memory, Speed(device="cpu", checkpoint_every=9))
        found = run(Session(of), engine, federations.overall(of), [again], start)
        engine.close()
        assert federations.sha(found.vector) == federations.sha(whole.vector)
        lines = [{**line, "seconds": 0.0} for line in diary.lines[checkpoint.round :]]
        assert [{**line, "seconds": 0.0} for line in again.lines] == lines


def test_a_checkpoint_keeps_the_models_that_are_still_trained_from_and_no_others() -> None:
    diary = Diary()
    federations.learn(made(rounds={**BUFFERED, "max_staleness": 2}), diary=diary)
    assert any(checkpoint.earlier for checkpoint in diary.checkpoints)
    for checkpoint in diary.checkpoints:
        assert all(0 < checkpoint.round - version <= 2 for version in checkpoint.earlier)
        for version, model in checkpoint.earlier.items():
            if version:
                assert torch.equal(model, diary.checkpoints[version - 1].vector)


def test_a_reply_that_came_too_late_is_named_and_its_bytes_are_counted() -> None:
    diary = Diary()
    of = made(rounds={**BUFFERED, "buffer": 1, "max_staleness": 0})
    federations.learn(of, diary=diary)
    late = [line for line in diary.lines if line["rejected"]]
    assert late
    for line in late:
        (cause, *_) = line["rejected"].values()
        assert "rounds old, and rounds.max_staleness is 0" in cause
        assert line["bytes_up"] > line["replies"] * 4 * of.layout.travelling.stop


def test_a_run_that_is_extended_is_the_longer_one() -> None:
    diary, of = Diary(), made(rounds={**BUFFERED, "rounds": 4})
    federations.learn(of, diary=diary)
    longer, engine = made(), InProcessEngine(of)
    found = run(Session(longer), engine, federations.overall(longer), [], diary.checkpoints[-1])
    engine.close()
    assert federations.sha(found.vector) == federations.sha(federations.learn(made()).vector)


def test_a_checkpoint_without_a_model_that_is_needed_is_refused() -> None:
    diary, of = Diary(), made()
    federations.learn(of, diary=diary)
    broken = replace(diary.checkpoints[2], earlier={})
    engine = InProcessEngine(of)
    with pytest.raises(StoreError, match="checkpoint of round 3 lacks the model after round"):
        run(Session(of), engine, federations.overall(of), [], broken)
    engine.close()


def test_sites_hold_at_most_one_order_and_bytes_are_counted_when_they_are_sent() -> None:
    diary, of = Diary(), made()
    federations.learn(of, diary=diary)
    one = 4 * of.layout.travelling.stop
    assert diary.lines[0]["bytes_down"] == 0  # six orders of the model that sites build
    for line in diary.lines[1:]:
        assert line["bytes_down"] == 2 * one  # those that replied before
        assert line["bytes_up"] == 2 * one
