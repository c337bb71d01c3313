"""On an accelerator the same programs give the same models, up to how its kernels round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import federations
import pytest
import torch
from federations import learn, sha
from torch import Tensor

from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Make = Callable[..., Federation]

# Everything that computes on the device in its own way.
PROGRAMS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "momentum and clip": {"train": {"momentum": 0.9, "clip": 1.0, "weight_decay": 1e-3}},
    "batch norm": {"model": {"norm": "batch"}},
    "personal norms": {"algorithm": {"name": "fedbn"}, "model": {"norm": "batch"}},
    "scaffold": {"algorithm": {"name": "scaffold"}},
    "fedprox": {"algorithm": {"name": "fedprox"}},
    "recipe": federations.RECIPE,
    "dp-sgd": {"privacy": {"name": "example", "clip": 1.0, "noise_multiplier": 1.0}},
    "masks": {"secure": {"name": "secagg"}},
}


def trained(federation: Federation, speed: Speed) -> Tensor:
    """The model after the run, in this process or on `speed.workers`."""
    if speed.workers is None:
        engine: Any = InProcessEngine(federation, speed=speed)
    else:
        engine = WorkerEngine(federation, speed)
    try:
        return learn(federation, engine).vector
    finally:
        engine.close()


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_model_is_that_of_the_cpu_up_to_rounding(
    name: str, device: str, tiny_federation: Make
) -> None:
    """2 % of how far training moved: six steps of float32 arithmetic in another order."""
    sections = PROGRAMS[name]
    federation = tiny_federation(**sections)
    here = trained(federation, Speed(device="cpu"))
    start = federation.initial[: len(here)]
    there = trained(tiny_federation(**sections), Speed(device=device))
    assert there.device.type == "cpu"
    assert (here - there).norm() <= 0.02 * (here - start).norm()


def test_runs_repeat_bit_for_bit_with_any_number_of_workers(
    device: str, tiny_federation: Make
) -> None:
    sections = {"model": {"norm": "batch"}, "train": {"momentum": 0.9}}
    federation = tiny_federation(**sections)
    hashes = {
        sha(trained(federation, Speed(device=device, workers=workers)))
        for workers in (None, None, 1, 2)
    }
    assert len(hashes) == 1


def test_bfloat16_learns_what_float32_learns(device: str, tiny_federation: Make) -> None:
    federation = tiny_federation()
    start = federation.initial[federation.layout.travelling]
    speed = Speed(device=device)
    exact = trained(federation, speed) - start
    rough = trained(federation, speed.model_copy(update={"precision": "bfloat16"})) - start
    assert float(torch.nn.functional.cosine_similarity(exact, rough, dim=0)) > 0.98


def test_sites_trained_side_by_side_end_where_they_would_alone(
    device: str, tiny_federation: Make
) -> None:
    federation = tiny_federation()
    start = federation.initial[federation.layout.travelling]
    speed = Speed(device=device, workers=1)
    alone = trained(federation, speed)
    together = trained(federation, speed.model_copy(update={"together": 3}))
    assert (alone - together).norm() <= 0.02 * (alone - start).norm()


def test_masks_change_no_bit_of_a_sum(device: str, tiny_federation: Make) -> None:
    names = ("quantised", "secagg")
    models = [trained(tiny_federation(secure={"name": n}), Speed(device=device)) for n in names]
    assert torch.equal(*models)
