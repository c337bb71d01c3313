"""Detectors: what they are taught is what they find, and pretrained parts arrive as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fedsight.core.errors import ModelError
from fedsight.core.layout import Kind, Layout
from fedsight.data.detection.boxes import labelled, pack
from fedsight.models import heatmap
from fedsight.models.base import models
from fedsight.models.detector import MOST, Detector
from fedsight.models.norms import FrozenNorm, freeze_norms
from fedsight.models.zoo.torchvision_detector import TorchvisionDetector

BOX = (0.0, 8.0, 8.0, 24.0, 20.0)


def test_a_perfect_grid_is_found_as_it_was_taught() -> None:
    targets = pack([[BOX, (1.0, 40.0, 40.0, 60.0, 64.0)], []], [[], []])
    dense = torch.full((2, 6, 16, 16), -9.0)
    for label, left, top, right, bottom in targets[0].tolist():
        column, row = int((left + right) / 8), int((top + bottom) / 8)
        x, y = (column + 0.5) * 4, (row + 0.5) * 4
        dense[0, int(label), row, column] = 9.0
        sides = torch.tensor([x - left, y - top, right - x, bottom - y])
        dense[0, 2:, row, column] = (sides / 4).log()
    found = heatmap.find(dense, 2, 4, 10)
    assert found.shape == (2, 10, 6)
    rows = sorted(row[:1] + row[2:] for row in found[0, :2].tolist())
    assert torch.tensor(rows).allclose(targets[0], atol=1e-3)
    assert found[:, 2:, 1].max() < 0.01
    perfect = heatmap.loss(dense, targets, labelled(targets, 2), 4)
    wrong = heatmap.loss(dense.roll(2, 3), targets, labelled(targets, 2), 4)
    assert perfect < wrong


def test_the_surest_of_boxes_upon_one_another_stays() -> None:
    dense = torch.full((1, 5, 8, 8), -9.0)
    dense[0, 1:] = torch.tensor(2.0)
    dense[0, 0, 3, 2], dense[0, 0, 3, 4] = 2.0, 3.0
    found = heatmap.find(dense, 1, 4, 5)[0]
    assert (found[:, 1] > 0.5).sum() == 1
    assert found[0, 1] == pytest.approx(torch.sigmoid(torch.tensor(3.0)))


def test_no_object_and_no_label_leave_the_loss_finite() -> None:
    targets = pack([[], []], [[0, 1], []])
    dense = torch.zeros(2, 6, 4, 4, requires_grad=True)
    loss = heatmap.loss(dense, targets, labelled(targets, 2), 4)
    (gradient,) = torch.autograd.grad(loss, dense)
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().sum() == 0
    assert gradient[1, :2].abs().sum() > 0


@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
@pytest.mark.parametrize("stride", [4, 8])
def test_any_size_fits_and_boxes_stay_inside(size: tuple[int, int], stride: int) -> None:
    module = models.get("small_detector")(width=4, stride=stride).build(1, *size, 2, 0).module
    assert isinstance(module, Detector)
    found = module.eval().find(torch.randn(2, 1, *size))
    assert found.shape == (2, MOST, 6)
    assert found[:, :, 2:].min() >= 0
    assert (found[:, :, 4].max(), found[:, :, 5].max()) <= (size[1], size[0])


def test_an_image_too_small_is_refused() -> None:
    with pytest.raises(ModelError, match="8 x 8"):
        models.get("small_detector")().build(1, 8, 8, 2, 0)


def test_frozen_norms_answer_as_in_evaluation_and_neither_learn_nor_move() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    for _ in range(3):
        module(torch.randn(4, 1, 8, 8) + 2)
    x = torch.randn(2, 1, 8, 8)
    wanted = module.eval()(x)
    frozen = freeze_norms(module).train()
    torch.testing.assert_close(frozen(x), wanted)
    assert isinstance(frozen[1], FrozenNorm)  # type: ignore[index]
    layout = Layout.of(frozen)
    assert [e.name for e in layout.entries if e.kind == Kind.BUFFER] == ["1.scale", "1.shift"]
    assert not dict(frozen.named_parameters()).keys() & {"1.weight", "1.bias"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A classifier's file; its weights are random, its names torchvision's."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_blocks_of_a_classifier_begin_a_detector(imagenet: tuple[Path, str]) -> None:
    path, sha256 = imagenet
    kind = models.get("mobilenet_detector")
    built = kind(norm="batch", weights=path, sha256=sha256).build(3, 64, 64, 1, 0)
    theirs = torch.load(path, weights_only=True)
    ours = built.module.state_dict()
    assert torch.equal(ours["body.stages.0.0.0.weight"], theirs["features.0.0.weight"])
    assert torch.equal(ours["body.stages.2.6.conv.2.weight"], theirs["features.13.conv.2.weight"])
    assert any("newly initialised" in note for note in built.notes)
    frozen = kind(norm="frozen", weights=path, sha256=sha256).build(3, 64, 64, 1, 0)
    assert built.statistics
    assert not frozen.statistics
    assert any(isinstance(part, nn.GroupNorm) for part in frozen.module.modules())
    assert kind(norm="frozen", pretrained=True).check() == []
    assert kind(norm="frozen", pretrained=True).needs() == ("mobilenet-weights",)
    assert kind(pretrained=True).fresh().needs() == ()


class Stand(nn.Module):
    """As much of a torchvision detector as its wrapper touches, with one logit for all."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, x: list[torch.Tensor], truth: object = None) -> object:
        self.truth = truth
        logits = self.head(torch.stack(x))["cls_logits"]
        if self.training:
            return {"classes": nn.functional.softplus(logits).sum()}
        found = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "scores": torch.tensor([0.5])}
        return [{**found, "labels": torch.tensor([2])} for _ in x]


class Head(nn.Module):
    """Logits [b, 1, classes + 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"cls_logits": self.bias.expand(len(x), 1, 3)}


def test_a_wrapped_detector_leaves_out_what_was_not_labelled() -> None:
    wrapped = TorchvisionDetector(Stand(), 2, "fcos_resnet50_fpn")
    targets, x = pack([[BOX], []], [[1], [1]]), torch.zeros(2, 3, 8, 8)
    wrapped.loss(x, targets, labelled(targets, 2)).backward()
    gradient = wrapped.inner.head.bias.grad
    assert gradient[2] == 0
    assert (gradient[:2] > 0).all()
    found = wrapped.eval().find(x)
    assert found[0, 0].tolist() == [1, 0.5, 1, 2, 3, 4]
    assert found.shape == (2, MOST, 6)
    with pytest.raises(ModelError, match="cannot learn from images where a class"):
        TorchvisionDetector(Stand(), 2, "ssd").loss(x, targets, labelled(targets, 2))


def test_a_wrapped_detector_is_not_taught_an_object_whose_class_it_leaves_out() -> None:
    wrapped = TorchvisionDetector(Stand(), 2, "fcos_resnet50_fpn")
    beside_a_crowd = pack([[BOX]], [[int(BOX[0])]])
    wrapped.loss(torch.zeros(1, 3, 8, 8), beside_a_crowd, labelled(beside_a_crowd, 2))
    assert [len(one["boxes"]) for one in wrapped.inner.truth] == [0]


def test_a_real_one_of_torchvision_learns_and_finds() -> None:
    kind = models.get("torchvision_detector")
    built = kind(architecture="ssdlite320_mobilenet_v3_large").build(3, 64, 64, 1, 0)
    module = built.module
    assert isinstance(module, Detector)
    assert built.head
    targets = pack([[BOX], [BOX]], [[], []])
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = module.loss(x, targets, labelled(targets, 1))
    assert torch.isfinite(loss)
    assert module.eval().find(x).shape == (2, MOST, 6)
    with pytest.raises(ModelError, match="1 channels"):
        kind(architecture="fcos_resnet50_fpn").build(1, 64, 64, 1, 0)
