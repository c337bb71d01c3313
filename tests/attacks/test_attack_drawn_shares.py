"""A network that draws while it is measured: one test image changes what is drawn for all others.

The loss of torchvision's Faster R-CNN is that of 256 boxes, drawn from all. Each image is measured
alone, and its share is clipped; but where the draws of one image begin where those of the image
before it ended, an image with other objects gives all those after it other draws. A coordinator
makes some of the boxes count for much, and then the share of every other image moves, too: that of
all together by a multiple of one share that grows with their number. What the generator of a
process that was just started draws is known, so it can look for a network that moves them all one
way.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from fedsight.client import bound_model
from fedsight.client.bound_model import BoundModel
from fedsight.data.base import ArrayImages, Dataset, Part, Source, sources
from fedsight.data.detection import boxes
from fedsight.models.base import models
from fedsight.models.detector import MOST, DetectorModel
from fedsight.models.probe import OutputShape
from fedsight.models.zoo.torchvision_detector import TorchvisionDetector
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.site_data import SiteData

SIDE, TESTED = 128, 8
NONE: list[list[tuple[float, ...]]] = [[]] * (TESTED - 1)
NEW = 67280421310721  # what PyTorch seeds the generator of a new process with


class Small(DetectorModel):
    """Faster R-CNN of torchvision, on one convolution."""

    __module__ = "fedsight.models.zoo.attack_boxes"  # as if it were installed everywhere

    def answer(self, height: int, width: int, classes: int) -> OutputShape:
        """Detections."""
        return (MOST, 6)

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """With 2,048 boxes in an image."""
        body: Any = nn.Conv2d(channels, 4, 3, stride=8, padding=1)
        body.out_channels = 4
        inner: Any = FasterRCNN(
            body,
            classes + 1,
            rpn_anchor_generator=AnchorGenerator((tuple(range(8, 40, 4)),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 2, 2),
            rpn_pre_nms_top_n_train=50,
            rpn_pre_nms_top_n_test=50,
        )
        inner.transform.min_size, inner.transform.max_size = (height,), width
        return TorchvisionDetector(inner, classes, "fasterrcnn"), ["inner.roi_heads.box_predictor"]


class Empty(Source):
    """Images [3, 128, 128] of noise, without any object."""

    def open(self) -> Dataset:
        """Eight to train on, which are those to test on."""
        draws = np.random.default_rng(0)
        pixels = torch.from_numpy(draws.random((TESTED, 3, SIDE, SIDE), dtype=np.float32))
        rows = boxes.pack([[]] * TESTED, [[]] * TESTED)
        part = Part(ArrayImages(pixels, "empty"), np.zeros(TESTED, np.int64), None, rows)
        return Dataset(part, part, ("ship",), self.preprocess(3, SIDE, SIDE))


@pytest.fixture(scope="module")
def of() -> Federation:
    sections = {
        "data": {"name": "attack_empty"},
        "split": {"name": "iid", "sites": 1},
        "model": {"name": "attack_boxes"},
        "task": {"name": "detect"},
        "rounds": {"rounds": 1},
    }
    sources.add("attack_empty")(Empty)
    models.add("attack_boxes", task="detect")(Small)
    try:
        return federate(parse(sections, base=Path.cwd())[0])
    finally:
        sources.remove("attack_empty")
        models.remove("attack_boxes")


def moved(of: Federation) -> float:
    """By how much the loss of all other images changes with the objects in the first one."""
    client, vector = BoundModel(of), of.initial.clone()
    part = {entry.name: entry.view(vector) for entry in of.layout.entries}
    for name, value in part.items():
        if "rpn.head" in name or "box_predictor" in name:
            value.zero_()
    part["inner.rpn.head.cls_logits.bias"].fill_(-1000.0)[0] = 56.0  # an eighth of the boxes count
    client.load(vector[of.layout.travelling], {})
    bounds = of.program.task.bounds(1, SIDE * SIDE)
    assert bounds is not None

    def others(objects: int) -> float:
        rows = [[(0.0, 9.0 * at, 9.0, 9.0 * at + 20, 29.0) for at in range(objects)], *NONE]
        seen = replace(of.dataset.test, targets=boxes.pack(rows, [[]] * TESTED))
        found = []
        for count in (TESTED, 1):
            torch.default_generator.manual_seed(NEW)
            indices = torch.arange(count)
            some = SiteData(seen, indices, torch.zeros_like(indices), lambda x, origin, of: x)
            found.append(float(client.measure_each(some, bounds)["loss"].total))
        return found[0] - found[1]

    return abs(others(0) - others(8))


def test_an_image_moves_the_shares_of_all_others_where_their_draws_follow_its_own(
    of: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound_model, "drawing", lambda *_: nullcontext())
    assert moved(of) > 0.5  # of at most 10 that one image may add


def test_ours_draws_for_each_image_anew(of: Federation) -> None:
    assert moved(of) == 0
