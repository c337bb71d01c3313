"""Detectors in a file of their own: boxes, scores and classes as `predict` gives them."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw

from fedsight.core.errors import ModelError
from fedsight.data.base import Preprocess
from fedsight.inference.export import export
from fedsight.inference.predict import predict
from fedsight.inference.saved import Saved
from fedsight.models.base import models
from fedsight.models.detector import HeatmapDetector
from fedsight.models.heatmap import kept_boxes, kept_unrolled
from fedsight.tasks.detection.task import Detection

CLASSES = ("cat", "dog", "bird")
HEIGHT, WIDTH, SCALE = 32, 48, 2
DETECTORS: list[tuple[str, dict[str, Any]]] = [
    ("small_detector", {"width": 4}),
    ("small_detector", {"width": 4, "views": 4}),
    ("timm_detector", {"architecture": "test_efficientnet", "width": 8, "stride": 8}),
]


def detector(name: str = "small_detector", **settings: Any) -> Saved:
    """An untrained detector: it sees objects everywhere, many of them twice."""
    model = models.get(name)(**settings)
    module = model.build(3, HEIGHT, WIDTH, 3, 0).module.eval()
    if isinstance(module, HeatmapDetector):  # scores so far apart that rounding swaps none
        module.body.heat.weight.data.mul_(8.0)
    size = Preprocess(3, HEIGHT, WIDTH, "stretch", (0.4, 0.5, 0.3), (0.2, 0.3, 0.2))
    return Saved(module, size, CLASSES, Detection(), "pets", "f" * 64, model.table())


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    files = []
    for number in range(3):
        image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), (30 * number, 90, 60))
        draw = ImageDraw.Draw(image)
        for at in range(5):
            left, top = 13 * at + 3 * number, 7 * at
            draw.ellipse((left, top, left + 25, top + 19), fill=(40 * at, 200 - 30 * at, 77))
        files.append(tmp_path / f"{number}.png")
        image.save(files[-1])
    return files


def by_the_recipe(files: list[Path], recipe: dict[str, Any]) -> np.ndarray:
    """The files as the recipe's steps make them, without FedSight."""
    assert recipe["normalised_inside"] is True
    assert (recipe["channel_order"], recipe["layout"], recipe["range"]) == ("RGB", "NCHW", [0, 1])
    assert (recipe["fit"], recipe["interpolation"]) == ("stretch", "bilinear, antialiased")
    _, _, height, width = recipe["input"]["shape"]
    images = [
        Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        for file in files
    ]
    return np.stack([np.asarray(one, np.float32).transpose(2, 0, 1) / 255 for one in images])


@pytest.mark.parametrize(("name", "settings"), DETECTORS)
def test_onnx_finds_what_predict_finds(
    tmp_path: Path, photographs: list[Path], name: str, settings: dict[str, Any]
) -> None:
    one = detector(name, **settings)
    path = export(one, "onnx", tmp_path / "d.onnx")
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    recipe, labels = json.loads(facts["recipe"]), json.loads(facts["labels"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [out.name for out in session.get_outputs()] == ["boxes", "scores", "classes"]
    assert list(recipe["outputs"]) == ["boxes", "scores", "classes"]
    x = by_the_recipe(photographs, recipe)
    for group, files in ((x, photographs), (x[1:2], photographs[1:2])):  # any number of images
        boxes, scores, classes = session.run(None, {"pixels": group})
        for at, found in enumerate(predict(one, files, confidence=0.0)):
            count = int((scores[at] > 0).sum())
            assert found.answer is not None
            assert 5 < count == len(found.answer.marks) < 100
            ours = found.answer.details["boxes"]
            assert [labels[number] for number in classes[at, :count]] == [b["label"] for b in ours]
            np.testing.assert_allclose(scores[at, :count], [b["score"] for b in ours], atol=1e-4)
            marks = np.asarray([mark.box for mark in found.answer.marks])
            np.testing.assert_allclose(boxes[at, :count] * SCALE, marks, atol=1e-3)


def test_torchscript_finds_the_same(tmp_path: Path) -> None:
    one = detector(width=4)
    path = export(one, "torchscript", tmp_path / "d.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
        loaded = torch.jit.load(io.BytesIO(path.read_bytes()))
    x = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        boxes, scores, classes = loaded(x)
        found = one.module.find(one.preprocess.normalise(x))
    seen = scores > 0
    torch.testing.assert_close(scores, found[:, :, 1])
    torch.testing.assert_close(boxes[seen], found[:, :, 2:][seen], atol=1e-4, rtol=1e-4)
    assert torch.equal(classes[seen], found[:, :, 0].long()[seen])


def test_both_ways_to_remove_duplicates_agree() -> None:
    draws = torch.Generator().manual_seed(3)
    corner = torch.rand(4, 60, 2, generator=draws) * 30
    boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(4, 60, 2, generator=draws)], 2)
    sure = torch.rand(4, 60, generator=draws).sort(1, descending=True).values
    labels = torch.randint(3, (4, 60), generator=draws)
    kept = kept_boxes(boxes, sure, labels, 3, 0.5)
    assert torch.equal(kept_unrolled(boxes, sure, labels, 3, 0.5), kept)
    assert 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_detector_that_cannot_be_recorded_says_what_can(tmp_path: Path, format: Any) -> None:
    one = detector("torchvision_detector", architecture="ssdlite320_mobilenet_v3_large")
    with pytest.raises(ModelError, match="cannot be recorded") as caught:
        export(one, format, tmp_path / "d")
    assert "small_detector" in caught.value.cure
    assert list(tmp_path.iterdir()) == []
