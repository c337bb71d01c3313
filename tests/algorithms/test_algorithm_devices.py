"""Where training ends on a GPU, so does the algorithm's part of it, and so do exact sums."""

from __future__ import annotations

import federations
import pytest
import torch
from devices import Marked

from fedsight.algorithms.base import Local, algorithms
from fedsight.client.step import Client
from fedsight.core.fixedpoint import ExactSum
from fedsight.core.types import Order

NAMES = [name for name in algorithms.names() if algorithms.get(name)().parts]  # no closed forms


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_made_where_the_vectors_are(name: str) -> None:
    public = {"public": {"images": 8}} if algorithms.get(name).on_public else {}
    of = federations.federation(algorithm={"name": name}, **public)
    client, layout, algorithm = Client(of), of.layout, of.program.algorithm
    start = of.initial[layout.shared]
    shared = algorithm.shared(algorithm.init(start))
    order = Order(1, of.initial[layout.travelling], shared)
    memory = client.step(order, 0, {}).memory  # as it is from the second round on
    with Marked() as gpu:
        here = gpu.mark({**shared, "start": start.clone(), "vector": client.vector})
        known = gpu.mark(dict(memory))
        local = Local(here["start"], {key: here[key] for key in shared}, known, 0.1, 3)
        payload, _ = algorithm.finish(here["vector"][layout.shared], local)
        assert payload
        assert all(gpu.marked(value) for value in payload.values())


def test_a_sum_on_the_device_takes_vectors_from_anywhere_in_one_piece() -> None:
    values = torch.randn(70_000, generator=torch.Generator().manual_seed(2))
    known = ExactSum(len(values), 2)
    for vector in (values, -0.5 * values):
        known.add(vector, 3, "a")
    with Marked() as gpu:
        total = ExactSum(len(values), 2, gpu.mark(torch.empty(len(values), dtype=torch.int64)))
        total.add(gpu.mark(values.clone()), 3, "a")
        total.add(-0.5 * values, 3, "b")
        assert gpu.marked(total.total)
    assert torch.equal(total.total, known.total)
    assert len(list(known._blocks())) == 2
