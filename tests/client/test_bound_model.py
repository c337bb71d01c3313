"""A network bound to one vector: which model it holds, and the figures of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import federations
import torch

from fedsight.client.bound_model import BoundModel
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

Make = Callable[..., Federation]


def test_personal_model_is_measured_with_its_sites_memory(
    tiny_federation: Make, tmp_path: Path
) -> None:
    federation = tiny_federation(algorithm={"name": "fedrep"}, rounds={"rounds": 1})
    engine = InProcessEngine(federation, tmp_path)
    trained = federations.learn(federation, engine)
    by_site = [sums["loss"].mean for sums in trained.sums]
    assert len(set(by_site)) == len(federation.partition) == 3
    # Nobody had trained yet: a slice at its initial values is nobody's model.
    assert engine.measure(trained.checkpoint.vector, 0) == [{}] * 3


def test_two_of_one_network_each_measure_the_model_that_they_loaded(tiny_federation: Make) -> None:
    federation = tiny_federation()
    first, second = BoundModel(federation), BoundModel(federation)
    tested = federation.tested(federation.views[0])
    start = first.initial[first.layout.travelling]
    first.load(start, {})
    before = first.measure_all(tested)["loss"].mean
    second.load(torch.zeros_like(start), {})
    flat = second.measure_all(tested)["loss"].mean
    first.load(start, {})
    assert first.measure_all(tested)["loss"].mean == before != flat
    assert first.measure(tested, 0)["loss"].mean == before  # one chunk holds them all
