"""Networks answer on the device of their weights and inputs."""

from __future__ import annotations

from typing import Any

import devices
import pytest
import torch
from torch import nn

from fedsight.models.base import models
from fedsight.models.detector import Detector

SIDE, CLASSES = 32, 3
# the settings and the channels of each network by name
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "embedding": ({"backbone": "small_cnn", "dimension": 8}, 1),
    "face_net": ({"wavelengths": [4.0]}, 1),
    "fedavg_cnn": ({}, 1),
    "mlp": ({}, 1),
    "mobilenet_detector": ({}, 3),
    "small_cnn": ({}, 1),
    "small_detector": ({"width": 4}, 1),
    "text_bag": ({"near": 2, "buckets": 50}, 1),
    "timm": ({"architecture": "test_resnet"}, 3),
    "timm_detector": ({"architecture": "test_efficientnet", "width": 8}, 3),
    "torchvision": ({"architecture": "squeezenet1_1"}, 3),
    "torchvision_detector": ({"architecture": "ssdlite320_mobilenet_v3_large"}, 3),
    "unet": ({}, 1),
}


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    settings, channels = SMALL[name]
    height, width = (1, 12) if name == "text_bag" else (SIDE, SIDE)
    module = models.get(name)(**settings).build(channels, height, width, CLASSES, seed=0).module
    return module, torch.rand(2, channels, height, width)


def test_every_network_is_tried() -> None:
    assert sorted(SMALL) == models.names()


# The shapes of torchvision's detections depend on values: the last test covers them.
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in SMALL if name != "torchvision_detector"])
def test_a_network_answers_on_another_device(name: str, training: bool) -> None:
    module, x = built(name)
    fake = devices.Fake()
    there = fake.module(module.train(training))
    with fake.mode, torch.no_grad():
        assert there(fake.tensor(x)).device.type == devices.FAKE


@pytest.mark.parametrize("name", [name for name in SMALL if "detector" in name])
def test_objects_are_found_where_the_images_are(name: str) -> None:
    module, x = built(name)
    assert isinstance(module.eval(), Detector)
    with torch.inference_mode():
        expected = module.find(x)
        with devices.Marked() as mode:
            mode.mark(module)
            found = module.find(mode.mark(x))
            assert mode.marked(found)
    assert torch.equal(found, expected)
