"""Clients that are trained side by side end where they would have ended one after the other."""

from __future__ import annotations

from typing import Any

import federations
import pytest
import torch
from torch import Tensor

from fedsight.client.company import Company
from fedsight.core.types import Order, Reply
from fedsight.engines.workers import WorkerEngine, grouped
from fedsight.program.program import Speed

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum, decay, two epochs, rates by step": {
        "train": {
            "momentum": 0.9,
            "weight_decay": 1e-3,
            "epochs": 2,
            "schedule": "cosine",
            "schedule_by": "step",
            "sampling": "balanced",
        }
    },
    "rates by group, a frozen part": {
        "train": {"groups": [{"params": ["head*"], "lr": 0.01}], "only": ["head", "conv0"]}
    },
    "fedavg's cnn": {"model": {"name": "fedavg_cnn"}},
    "weights that the coordinator moves": {
        "adapter": {"name": "lora", "rank": 2},
        "algorithm": {"name": "fedex-lora"},
    },
    "bounded updates": {
        "privacy": {"name": "central", "clip": 0.1, "noise_multiplier": 1.0},
        "rounds": {"weighting": "uniform"},
    },
}


def company(**sections: Any) -> tuple[Company, Order]:
    of = federations.federation(**sections)
    client = Company(of)
    start = of.initial[of.layout.travelling]
    return client, Order(2, start, of.program.shared(of.program.init(start[of.layout.shared])))


@pytest.mark.parametrize("case", list(CASES))
def test_side_by_side_is_one_after_the_other_up_to_rounding(case: str) -> None:
    """A ten-thousandth of how far they moved: float32 sums in another order."""
    client, order = company(**CASES[case])
    together = client.together(order, [0, 1, 2])
    assert together is not None
    for number, reply in enumerate(together):
        alone = client.step(order, number, {})
        assert isinstance(reply, Reply)
        assert (reply.site, reply.weight) == (alone.site, alone.weight)
        delta, known = reply.payload["delta"], alone.payload["delta"]
        assert (delta - known).norm() <= 1e-4 * known.norm()
        if alone.metrics:
            loss = reply.metrics["train_loss"]
            assert loss.count == alone.metrics["train_loss"].count
            assert loss.total == pytest.approx(float(alone.metrics["train_loss"].total), rel=1e-5)


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "fedbn"}},
        {"algorithm": {"name": "qfedavg"}},
        {"model": {"norm": "batch"}},
        {"train": {"augment": ["flip"]}},
        {"train": {"optimiser": "adamw"}},
        {"train": {"clip": 1.0}},
        {"privacy": {"name": "example", "clip": 1.0, "noise_multiplier": 1.0}},
        {"task": {"class_weights": "site"}},
        {"split": {"name": "quantity", "sites": 3}},
    ],
    ids=str,
)
def test_what_cannot_be_stacked_is_trained_one_after_the_other(sections: dict[str, Any]) -> None:
    client, order = company(**sections)
    assert client.together(order, [0, 1, 2]) is None


def test_a_site_that_diverges_does_not_spoil_the_others() -> None:
    partition = federations.federation().partition
    client, order = company(data={"broken": int(partition.indices(1)[7])})
    replies = client.together(order, [0, 1, 2])
    assert replies is not None
    good = [isinstance(reply, Reply) for reply in replies]
    assert good == [True, False, True]
    assert f"site '{partition.name(1)}' is not finite in round 2" in str(replies[1])


def test_groups_are_of_sites_of_one_size_and_no_worker_changes_a_bit() -> None:
    sizes = [9, 9, 9, 8, 8, 7]
    assert grouped(range(6), sizes.__getitem__, 2) == [[0, 1], [2], [3, 4], [5]]
    assert grouped(range(3), sizes.__getitem__, 1) == [[0], [1], [2]]
    of = {"split": {"name": "iid", "sites": 4}, "model": {"dropout": 0.3}}
    models: list[Tensor] = []
    for workers in (1, 2):
        federation = federations.federation(**of)
        engine = WorkerEngine(federation, Speed(device="cpu", workers=workers, together=2))
        try:
            models.append(federations.learn(federation, engine).vector)
        finally:
            engine.close()
    assert torch.equal(*models)
