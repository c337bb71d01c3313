"""A detector on timm's blocks: its maps are the classifier's, and all of it learns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ModelError
from fedsight.core.layout import Kind, Layout
from fedsight.core.types import Batch
from fedsight.data.detection.boxes import labelled, pack
from fedsight.data.fetch.cache import is_here
from fedsight.models.base import Network, models
from fedsight.models.detector import MOST, HeatmapDetector
from fedsight.models.norms import FrozenNorm, is_batch_norm
from fedsight.models.published import PUBLISHED
from fedsight.program.config import parse
from fedsight.tasks.detection.task import Detection

TINY = "test_efficientnet"  # timm's own, for tests
BOX = (0.0, 8.0, 8.0, 24.0, 20.0)


def built(side: int | tuple[int, int] = 64, classes: int = 2, **settings: Any) -> Network:
    given = {"architecture": TINY, "width": 8, **settings}
    height, width = (side, side) if isinstance(side, int) else side
    return models.get("timm_detector")(**given).build(3, height, width, classes, 0)


def module(**settings: Any) -> HeatmapDetector:
    found = built(**settings).module
    assert isinstance(found, HeatmapDetector)
    return found


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stride", "enlarge"), [(4, 1), (8, 1), (4, 2), (8, 2)])
def test_a_cell_is_as_many_pixels_as_asked_for(stride: int, enlarge: int) -> None:
    network = built(stride=stride, enlarge=enlarge)
    found = network.module.eval()
    assert found(images(2, 3, 64, 96)).shape == (2, 2 + 4, 64 // stride, 96 // stride)
    assert network.head == {
        f"body.{one}.{t}" for one in ("heat", "box") for t in ("weight", "bias")
    }
    odd = module(side=(50, 33), stride=stride, enlarge=enlarge).eval()
    rows = odd.find(images(1, 3, 50, 33))
    assert rows.shape == (1, MOST, 6)
    assert rows[:, :, 2:].min() >= 0
    assert (rows[:, :, 4].max(), rows[:, :, 5].max()) <= (33, 50)


def test_enlarging_is_to_show_the_network_a_larger_image() -> None:
    """The same weights, whose grid is twice as fine on an image of twice the size."""
    twice = module(side=(48, 64), stride=4, enlarge=2).eval()
    once = module(side=(96, 128), stride=8).eval()
    assert list(twice.state_dict()) == list(once.state_dict())
    x = images(2, 3, 48, 64)
    larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(twice(x), once(larger))
        boxes, larger_boxes = twice.find(x), once.find(larger)
    torch.testing.assert_close(boxes[:, :, :2], larger_boxes[:, :, :2])
    torch.testing.assert_close(boxes[:, :, 2:] * 2, larger_boxes[:, :, 2:], atol=1e-3, rtol=1e-4)


def test_every_part_learns() -> None:
    one = module().train()
    targets = pack([[BOX], [(1.0, 30.0, 30.0, 60.0, 60.0)]], [[], []])
    one.loss(images(2, 3, 64, 64), targets, labelled(targets, 2)).backward()
    silent = [
        name
        for name, value in one.named_parameters()
        if value.grad is None or not torch.isfinite(value.grad).all() or not value.grad.any()
    ]
    assert silent == []


def classifier(seed: int = 1) -> nn.Module:
    """timm's network with statistics of its own, as after a training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = timm.create_model(TINY, num_classes=5).train()
        for _ in range(3):
            network(torch.randn(4, 3, 64, 64) + 0.5)
    return network.eval()


def saved(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    return {"weights": path, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def maps_of(detector: nn.Module, x: Tensor) -> list[Tensor]:
    found = []
    for stage in detector.get_submodule("body.stages").children():
        x = stage(x)
        found.append(x)
    return found


def features_of(network: Any, x: Tensor, ends: list[int]) -> list[Tensor]:
    """The maps of timm's classifier after so many blocks."""
    x, found = network.bn1(network.conv_stem(x)), []
    for number, block in enumerate(network.blocks, start=1):
        x = block(x)
        if number in ends:
            found.append(x)
    return found


@pytest.mark.parametrize("norm", ["auto", "batch"])
def test_the_maps_are_those_of_the_classifier(tmp_path: Path, norm: str) -> None:
    theirs = classifier()
    given = saved(theirs.state_dict(), tmp_path / "classifier.pth")
    network = built(norm=norm, **given)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        ours, wanted = maps_of(network.module.eval(), x), features_of(theirs, x, [3, 4, 5])
    assert len(ours) == 3
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert any("newly initialised" in note for note in network.notes)
    stages = network.module.get_submodule("body.stages")
    frozen = norm == "auto"
    assert any(isinstance(part, FrozenNorm) for part in stages.modules()) == frozen
    assert any(is_batch_norm(part) for part in network.module.modules()) != frozen


def test_a_trained_detector_starts_another(tmp_path: Path) -> None:
    first = built(**saved(classifier().state_dict(), tmp_path / "classifier.pth")).module.eval()
    given = saved(first.state_dict(), tmp_path / "detector.pth")
    second = built(**given)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(second.module.eval()(x), first(x))
    assert not any("newly initialised" in note for note in second.notes)


def test_weights_of_a_deeper_variant_are_refused(tmp_path: Path) -> None:
    state = dict(classifier().state_dict())
    state["blocks.5.0.conv_pw.weight"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"blocks\.5\.0\.conv_pw\.weight"):
        built(**saved(state, tmp_path / "deeper.pth"))


def test_published_weights_give_the_maps_of_imagenet() -> None:
    """On the fetched file where it is here, else the names alone: those of the file fit."""
    name = "efficientnet-lite0"
    kind = models.get("timm_detector")
    model = kind(weights=Path(name))
    assert (model.check(), model.needs(), model.settled().norm) == ([], (name,), "frozen")
    assert model.rebuildable
    assert model.fresh() == kind(norm="frozen")
    if not is_here(name):
        return
    whole = models.get("timm")(architecture="tf_efficientnet_lite0", weights=Path(name))
    theirs = whole.build(3, 64, 64, 1000, 0).module.eval()
    network = model.build(3, 64, 64, 2, 0)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        ours, wanted = maps_of(network.module.eval(), x), features_of(theirs, x, [3, 5, 7])
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    moving = [
        entry.name for entry in Layout.of(network.module).entries if entry.kind == Kind.BUFFER
    ]
    assert set(moving) <= network.frozen


def test_images_are_prepared_as_the_weights_expect() -> None:
    tables = {
        "data": {"name": "scenes"},
        "split": {"name": "natural"},
        "model": {"name": "timm_detector", "weights": "efficientnet-lite0"},
        "task": {"name": "detect"},
    }
    program, _ = parse(tables, base=None)
    assert (program.data.mean, program.data.std) == ((0.5,) * 3, (0.5,) * 3)
    assert PUBLISHED["efficientnet-lite0"].sha256 == program.model.sha256


@pytest.mark.parametrize(
    ("architecture", "cause"),
    [("resnet10t", "not built of a stem and blocks"), ("no_such_network", "has no classifier")],
)
def test_other_networks_are_refused(architecture: str, cause: str) -> None:
    with pytest.raises(ModelError, match=cause) as caught:
        built(architecture=architecture)
    assert caught.value.cure


def test_weights_of_another_network_name_the_one_they_fit() -> None:
    model = models.get("timm_detector")(weights=Path("efficientnet-lite1"))
    (problem,) = model.check()
    assert problem.where == "model.weights"
    assert 'name = "timm_detector"' in problem.cure
    assert 'architecture = "tf_efficientnet_lite1"' in problem.cure
    assert models.get("timm_detector")(architecture="no_such").check()[0].where == (
        "model.architecture"
    )


def test_it_learns_what_it_is_shown() -> None:
    """Bright and dark rectangles on grey, after a few dozen steps."""
    x, rows = torch.zeros(8, 3, 64, 64), []
    for number in range(8):
        left, top = 4 + 5 * number, 36 - 4 * number
        light, dark = (left, top, left + 18, top + 14), (60 - left - 12, 2, 60 - left, 12)
        for value, (a, b, c, d) in ((2.0, light), (-2.0, dark)):
            x[number, :, b:d, a:c] = value
        rows.append([(0.0, *map(float, light)), (1.0, *map(float, dark))])
    batch, task = Batch(x, pack(rows, [()] * 8)), Detection()
    one = module(stride=4).train()
    optimiser = torch.optim.AdamW(one.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        task.loss(one, batch).backward()
        optimiser.step()
    with torch.inference_mode():
        figures = task.summary(task.measure(one.eval(), batch, 2))
    assert figures["map_50"] > 0.9
