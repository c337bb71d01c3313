"""A detector whose first layers are frozen: boxes and figures are those of the whole images."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.bound_model import BoundModel
from fedsight.client.step import Client
from fedsight.core.types import Metrics
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.evidence import answered
from fedsight.models.detector import HeatmapDetector
from fedsight.models.prefix import NONE
from fedsight.program import kept
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Speed

SIDE = 64
LEARNS = ("body.stages.1", "body.stages.2", "body.stages.3", "body.sides", "body.smooth", "head")
CPU = Speed(device="cpu")


@pytest.fixture(autouse=True)
def nothing_kept_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_latest", [])


def scenes(views: int, **task: Any) -> Federation:
    """Few scenes, and a detector that neither trains nor widens its first stage."""
    program, _ = parse(
        {
            "data": {"name": "scenes", "sites": 2, "train": 6, "test": 3, "size": SIDE},
            "split": {"name": "natural"},
            "model": {"name": "small_detector", "width": 4, "views": views},
            "task": {"name": "detect", **task},
            "algorithm": {"name": "fedavg"},
            "train": {"epochs": 1, "batch": 4, "lr": 0.05, "only": LEARNS},
            "rounds": {"rounds": 1},
        },
        base=None,
    )
    return federate(program)


def bound(of: Federation) -> tuple[Client, HeatmapDetector]:
    """With scores that differ, so that boxes everywhere are found."""
    client = Client(of, CPU)
    model = client.model
    assert isinstance(model, HeatmapDetector)
    client.load(client.initial[client.layout.travelling], {})
    with torch.no_grad():
        model.body.heat.weight.mul_(8.0)
    return client, model.eval()


def whole(client: Client, of: Federation) -> tuple[Tensor, Metrics]:
    """What is found in the images themselves [n, most, 6], and the sums of that."""
    data = of.client(0)
    with torch.inference_mode():
        batch = client.batch(data, torch.arange(len(data)))
        sums = of.program.task.measure(client.model, batch, len(of.dataset.classes))
        return client.model.find(batch.x), sums


@pytest.mark.parametrize("views", [1, 2, 8])
def test_boxes_and_figures_are_those_of_the_images(
    views: int, caplog: pytest.LogCaptureFixture
) -> None:
    of = scenes(views)
    client, _ = bound(of)
    boxes, sums = whole(client, of)
    found = boxes[:, :, 1] > 0
    far = (boxes[:, :, 2:4] > SIDE / 2).any(2) & found
    assert far.sum() > 10, "there is something to lose right of the middle, and below it"

    known = client.activations
    assert known is not None
    assert known.prefix.shape[1:] == (SIDE // 2, SIDE // 2), "activations are smaller than images"
    assert NONE not in caplog.text
    seen = answered(client, of.client(0), lambda model, batch: model.find(batch.x))
    torch.testing.assert_close(seen, boxes, rtol=1e-4, atol=1e-3)
    measured = client.measure_all(of.client(0))
    for name, due in sums.items():
        np.testing.assert_allclose(measured[name].total, due.total, rtol=1e-5)


def test_views_change_nothing_of_a_training_that_starts_from_what_is_kept() -> None:
    sums = []
    for views in (1, 8):
        of = scenes(views)
        with closing(InProcessEngine(of, speed=CPU)) as engine:
            trained = federations.learn(of, engine)
        assert BoundModel(of, CPU).activations is not None
        sums.append(federations.sha(trained.vector))
    assert sums[0] == sums[1]


def test_a_detector_that_takes_activations_for_the_image_is_given_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = HeatmapDetector.find

    def cut(self: HeatmapDetector, x: Tensor) -> Tensor:
        found = find(self, x)
        return torch.cat([found[:, :, :2], found[:, :, 2:].clamp(max=x.shape[3])], 2)

    monkeypatch.setattr(HeatmapDetector, "find", cut)
    assert BoundModel(scenes(1), CPU).activations is None
    assert NONE in caplog.text
