"""A declared number of images has the coordinator compute for days what one site's reply is worth.

The length of a FedNova site's path follows from its number of images, and where the rate changes at
every step the coordinator added the rates of all the steps. 2^24 images, each of them a step, times
100,000 epochs are more than 10^12.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import CLASSES, program

from fedsight.client.pace import Pace
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.data.base import Preprocess
from fedsight.deploy.declaration import Declaration, gather
from fedsight.engines.base import Accepted
from fedsight.engines.protected import aggregator_of
from fedsight.engines.remote import messages, replies
from fedsight.program.federation import Federation
from fedsight.program.train import Train

SIZE = Preprocess(1, 8, 8, "stretch", (0.0,), (0.25,))
IMAGES, EPOCHS = 1 << 20, 100_000
TRAIN = {"epochs": EPOCHS, "batch": 1, "lr": 1e-6, "schedule": "cosine", "schedule_by": "step"}
PATIENCE = 100_000  # rates


class Endless(Exception):  # noqa: N818 - stands for the days
    """More rates were computed than anybody waits for."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rates were computed."""
    rate, seen = Train.rate, [0]

    def counted(*given: Any, **words: Any) -> float:
        seen[0] += 1
        if seen[0] > PATIENCE:
            raise Endless
        return rate(*given, **words)

    monkeypatch.setattr(Train, "rate", counted)
    return seen


def added(pace: Pace) -> float:
    """As the first version computed it."""
    return pace.start * sum(map(pace.at, range(pace.steps))) / pace.steps


def boasting(root: Path) -> Federation:
    few = Declaration((3, 3), 4, False, CLASSES, SIZE)
    many = Declaration((IMAGES, 0), 0, False, CLASSES, SIZE)
    of = program(root, algorithm={"name": "fednova"}, train=TRAIN, rounds={"rounds": 2})
    return gather(of, {"evil": many, "oslo": few, "rome": few})


def answer(of: Federation, length: float) -> None:
    """The coordinator takes the reply of the site with so many images to the first round."""
    payload = {
        part: torch.full((spec.values,), 1e-3 if part == "delta" else length)
        for part, spec in of.parts.items()
    }
    spool = io.BytesIO(messages.pack(list(payload.values())))
    spool.seek(0, io.SEEK_END)
    order = Order(1, of.initial[of.layout.travelling].clone())
    replies.add(of, aggregator_of(of, 3), spool, Accepted(0, "evil", 1, 0.0), order)


def test_the_coordinator_is_still_adding_where_it_adds_all_rates(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "mean", property(added))
    with pytest.raises(Endless):
        answer(boasting(tmp_path), 1.0)


def test_ours_knows_the_length_at_once(tmp_path: Path, computed: list[int]) -> None:
    of = boasting(tmp_path)
    # The mean of lr (1 + cos t) / 2 for t from 0 to pi / 2, as so many steps come close to it.
    answer(of, IMAGES * EPOCHS * 1e-6 * (0.5 + 1 / torch.pi))
    assert computed[0] < 10
    with pytest.raises(SiteError, match="site 'evil' sent the length 1 with its update"):
        answer(of, 1.0)
