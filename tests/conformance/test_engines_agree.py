"""Switching the engine, or the number of workers, changes no bit of a result."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import federations
import pytest
import torch

from fedsight.core.types import Order
from fedsight.engines.base import Engine, collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Make = Callable[..., Federation]

CASES = {
    "fedavg": {"train": {"augment": ("flip", "shift"), "clip": 1.0, "momentum": 0.9}},
    "scaffold": {"algorithm": {"name": "scaffold"}, "rounds": {"rounds": 3, "cohort": 2}},
    "feddyn": {"algorithm": {"name": "feddyn"}, "rounds": {"rounds": 3, "cohort": 2}},
    "fednova, unequal": {
        "algorithm": {"name": "fednova"},
        "split": {"name": "quantity", "sites": 3, "min_samples": 8},
    },
    "fednova, as many steps at unequal sites": {
        "algorithm": {"name": "fednova"},
        "split": {"name": "quantity", "sites": 3, "min_samples": 8},
        "train": {"steps": 5, "sampling": "independent"},
    },
    "fedexp": {"algorithm": {"name": "fedexp"}, "codec": {"up": {"steps": ["float16"]}}},
    "codecs, feedback": {
        "codec": {
            "up": {
                "steps": [
                    {"name": "top-k", "share": 0.1},
                    {"name": "quantise", "bits": 4, "block": 128},
                ],
                "feedback": True,
            }
        },
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "qfedavg": {"algorithm": {"name": "qfedavg"}, "rounds": {"rounds": 3, "cohort": 2}},
    "afl": {"algorithm": {"name": "afl"}, "rounds": {"rounds": 3, "cohort": 2}},
    "moon": {"algorithm": {"name": "moon"}, "rounds": {"rounds": 3, "cohort": 2}},
    "fedsam": {"algorithm": {"name": "fedsam"}, "model": {"norm": "batch", "dropout": 0.3}},
    "fedrep": {"algorithm": {"name": "fedrep"}, "rounds": {"rounds": 3, "cohort": 2}},
    "ditto": {"algorithm": {"name": "ditto"}, "rounds": {"rounds": 3, "cohort": 2}},
    "apfl": {"algorithm": {"name": "apfl"}, "rounds": {"rounds": 3, "cohort": 2}},
    "fedbn, shifted, BatchNorm, dropout": {
        "algorithm": {"name": "fedbn"},
        "shift": {"kind": "noise", "strength": 0.3},
        "model": {"norm": "batch", "dropout": 0.3},
    },
    "narrower networks": {
        "model": {"width": 8, "norm": "batch", "groups": [{"sites": ["site-01"], "width": 4}]},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "narrower networks, personal norms": {
        "algorithm": {"name": "fedbn"},
        "model": {"width": 8, "groups": [{"sites": ["site-01"], "width": 4}]},
    },
    "fedproto, three networks": {
        "algorithm": {"name": "fedproto"},
        "model": {
            "bottleneck": 8,
            "groups": [
                {"sites": ["site-01"], "name": "mlp", "bottleneck": 8},
                {"sites": ["site-02"], "blocks": 1},
            ],
        },
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "fedmd, two networks": {
        "algorithm": {"name": "fedmd"},
        "public": {"images": 20},
        "model": {"groups": [{"sites": ["site-01"], "name": "mlp"}]},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "feddf, BatchNorm, dropout": {
        "algorithm": {"name": "feddf"},
        "public": {"images": 20},
        "model": {"norm": "batch", "dropout": 0.3},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "LoRA, a personal head": {"adapter": {"name": "lora"}, "algorithm": {"name": "fedrep"}},
    "FedEx-LoRA": {
        "adapter": {"name": "lora", "rank": 2},
        "algorithm": {"name": "fedex-lora"},
        "rounds": {"rounds": 3, "cohort": 2},
    },
    "fine-tuning recipe": federations.RECIPE,
    "unequal sites, test images of their own": {
        "split": {"name": "quantity", "sites": 4},
        "data": {"owners": 5, "train": 200, "test": 300},
        "model": {"norm": "batch"},
    },
}


def engine_of(kind: int, federation: Federation, memory: Path) -> Engine:
    """Inline for 0, else embedded with so many workers."""
    if kind == 0:
        return InProcessEngine(federation, memory)
    return WorkerEngine(federation, Speed(workers=kind), memory)


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def runs(
    request: pytest.FixtureRequest, tiny_federation: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list]:
    """The same run inline, in a process that would compute with two threads, with one worker and
    with two."""
    found: dict[str, list] = {name: [] for name in ("sha", "state", "lines", "sums", "memory")}
    for kind in (0, 1, 2):
        federation = tiny_federation(**request.param)
        memory = tmp_path_factory.mktemp("memory")
        engine, diary = engine_of(kind, federation, memory), federations.Diary()
        torch.set_num_threads(2 if kind == 0 else 1)
        try:
            trained = federations.learn(federation, engine, diary)
            again = engine.measure(trained.checkpoint.model, trained.checkpoint.round)
        finally:
            torch.set_num_threads(1)
            engine.close()
        assert federations.same_sums(again, trained.sums), "measuring twice must give the same sums"
        found["sha"].append(federations.sha(trained.vector))
        found["state"].append({k: federations.sha(v) for k, v in trained.checkpoint.state.items()})
        found["lines"].append([{k: v for k, v in x.items() if k != "seconds"} for x in diary.lines])
        found["sums"].append(trained.sums)
        files = sorted(path for path in memory.rglob("*") if path.is_file())
        found["memory"].append({str(p.relative_to(memory)): p.read_bytes() for p in files})
        assert diary.replies == sum(line["cohort"] for line in diary.lines)
    return found


def test_models_and_server_states_are_the_same_bits(runs: dict[str, list]) -> None:
    assert len(set(runs["sha"])) == 1
    assert runs["state"][0] == runs["state"][1] == runs["state"][2]


def test_history_is_the_same_but_for_the_time(runs: dict[str, list]) -> None:
    assert runs["lines"][0] == runs["lines"][1] == runs["lines"][2]


def test_measured_sums_are_the_same_bits(runs: dict[str, list]) -> None:
    inline, *embedded = runs["sums"]
    assert all(federations.same_sums(inline, sums) for sums in embedded)


def test_sites_remember_the_same_bytes(runs: dict[str, list]) -> None:
    assert runs["memory"][0] == runs["memory"][1] == runs["memory"][2]


@pytest.mark.parametrize("kind", [0, 2], ids=["inline", "two workers"])
def test_running_twice_gives_the_same_and_another_seed_another_model(
    tiny_federation: Make, tmp_path: Path, kind: int
) -> None:
    shas = []
    for number, seed in enumerate((0, 0, 1)):
        federation = tiny_federation(seed=seed, model={"dropout": 0.5})
        engine = engine_of(kind, federation, tmp_path / str(number))
        shas.append(federations.sha(federations.learn(federation, engine).vector))
        engine.close()
    assert shas[0] == shas[1] != shas[2]


def test_reduced_precision_trains_and_repeats_exactly(tiny_federation: Make) -> None:
    federation = tiny_federation()
    shas = []
    for _ in range(2):
        engine = WorkerEngine(federation, Speed(workers=2, precision="bfloat16"))
        trained = federations.learn(federation, engine)
        engine.close()
        assert torch.isfinite(trained.vector).all()
        shas.append(federations.sha(trained.vector))
    inline = InProcessEngine(federation, speed=Speed(precision="bfloat16", device="cpu"))
    shas.append(federations.sha(federations.learn(federation, inline).vector))
    inline.close()
    assert len(set(shas)) == 1
    assert shas[0] != federations.sha(federations.learn(federation).vector)


def test_no_more_workers_are_started_than_there_are_sites(tiny_federation: Make) -> None:
    before = set(multiprocessing.active_children())
    engine = WorkerEngine(tiny_federation(split={"sites": 2}), Speed(workers=9))
    started = set(multiprocessing.active_children()) - before
    engine.close()
    assert len(started) == 2


def test_notes_come_in_the_order_of_sites_whatever_the_order_of_work(tiny_federation: Make) -> None:
    federation = tiny_federation(split={"name": "quantity", "sites": 4, "min_samples": 5})
    sizes = [federation.size(site) for site in range(4)]
    assert sizes != sorted(sizes, reverse=True), "the largest is trained first"
    engine = WorkerEngine(federation, Speed(workers=1))
    vector = torch.zeros(federation.layout.travelling.stop)
    everyone = collect(engine, Order(1, vector), [0, 1, 2, 3])
    some = collect(engine, Order(2, vector), [1, 3])
    engine.close()
    assert [note.client for note in everyone.accepted] == [0, 1, 2, 3]
    assert [note.weight for note in everyone.accepted] == sizes
    assert [note.client for note in some.accepted] == [1, 3]
    assert some.total.weight == sizes[1] + sizes[3]
