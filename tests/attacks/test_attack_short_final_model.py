"""A site that takes a model of another length as the one that its run ended with, for good.

Only a model that came with the question was counted. One that had come before, to be measured or to
be refused, was taken if the coordinator said again that the run had ended with it. A run ends once:
the real model was then refused, and the owner never got a recogniser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from torch import Tensor

from fedsight.core.types import Order
from fedsight.deploy.site.delivery.order import FinalOrder
from fedsight.deploy.site.delivery.received import Received
from fedsight.deploy.site.trainer import OpenData
from fedsight.engines.protected import order_digest

checked = FinalOrder.of


def unchecked(
    fields: Mapping[str, Any], opened: OpenData, vector: Tensor | None, due: int, sent: bool
) -> FinalOrder:
    """The weakened build: any length is due, unless the model came with this question."""
    if vector is not None and not sent:
        due = vector.numel()
    return checked(fields, opened, vector, due, sent)


@pytest.mark.parametrize("weak", [True, False])
def test_a_short_model_that_came_before_is_not_the_final_one(
    attack: Callable[..., AttackedSite],
    tmp_path: Path,
    weak: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weak:
        monkeypatch.setattr(FinalOrder, "of", unchecked)
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    of = program(images)
    site, vector = attack("ward", images), known(of).initial
    assert "declared" in site.join(of)
    short = vector[:-1]
    digest = order_digest(Order(3, short), None)
    header = {"round": 3, "accepted": 0, "counted": 0, "digest": digest}
    sent = {**header, "vector": site.send("vector", [short])}
    assert "values came as the model" in site.ask("deliver", sent)[0]["error"]
    assert site.deliver(short, 3)[0].get("missing", False) != weak
    ended = site.deliver(vector, 3)
    if weak:
        assert "another final model" in ended[-1]["error"]
        return
    assert "error" not in ended[-1]
    received = Received(site.home)
    (key,) = received.orders()
    assert received.vectors(key)["vector"].equal(vector)
