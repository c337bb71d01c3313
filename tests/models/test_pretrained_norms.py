"""Pretrained BatchNorm: the default of `norm` follows the weights, and nothing is lost unsaid."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fedsight.core.errors import ModelError
from fedsight.data.fetch.cache import fetched, is_here
from fedsight.models.base import Model, Network, models
from fedsight.models.norms import FrozenNorm, freeze_norms, is_batch_norm, thawed_state
from fedsight.models.weights import found_norms
from fedsight.models.zoo.mobilenet_detector import FETCHED, FILE

# Plain BatchNorm, norms fused with an activation, BatchNorm1d on tokens, and dense connections.
NETWORKS = [
    ("torchvision", "resnet18", 64),
    ("torchvision", "mobilenet_v3_small", 64),
    ("timm", "resnet10t", 64),
    ("timm", "mobilenetv3_small_050", 64),
    ("timm", "levit_128s", 224),
    ("timm", "densenet121", 64),
    ("timm", "resnetv2_50", 64),
    ("timm", "test_efficientnet", 64),
]


def lived_in(module: nn.Module) -> nn.Module:
    """`module` as after some training: no statistic is 0 or 1."""
    draws = torch.Generator().manual_seed(1)
    for part in module.modules():
        if is_batch_norm(part) and part.weight is not None:
            part.running_mean.normal_(0, 0.3, generator=draws)
            part.running_var.uniform_(0.5, 2, generator=draws)
            part.weight.data.uniform_(0.7, 1.3, generator=draws)
            part.bias.data.normal_(0, 0.2, generator=draws)
    return module.eval()


def kept(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The settings that load `state` from `path`."""
    if path.suffix == ".safetensors":
        save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return {"weights": path, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def outside(source: str, architecture: str, classes: int = 3) -> nn.Module:
    """The network as another program makes it."""
    torch.manual_seed(0)
    if source == "timm":
        return lived_in(timm.create_model(architecture, num_classes=classes))
    return lived_in(torchvision.models.get_model(architecture, num_classes=classes))


@pytest.mark.parametrize(("source", "architecture", "side"), NETWORKS)
def test_a_pretrained_network_starts_with_its_own_answers(
    tmp_path: Path, source: str, architecture: str, side: int
) -> None:
    theirs = outside(source, architecture)
    given = kept(theirs.state_dict(), tmp_path / "w.safetensors")
    network = models.get(source)(architecture=architecture, **given).build(3, side, side, 3, 7)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        # Frozen norms answer alike in training mode; dropout does not, so evaluation is compared.
        torch.testing.assert_close(network.module.eval()(x), theirs(x), atol=1e-4, rtol=1e-4)
    assert not any(is_batch_norm(part) for part in network.module.modules())
    assert not network.statistics
    assert len(network.notes) == 1
    assert "keep their pretrained statistics and do not learn" in network.notes[0]


def test_an_activation_fused_into_a_norm_stays() -> None:
    layer = lived_in(timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU))
    x = torch.randn(2, 4, 5, 5)
    wanted = layer(x)
    frozen = freeze_norms(layer)
    assert isinstance(frozen, FrozenNorm)
    torch.testing.assert_close(frozen(x), wanted)


def test_a_norm_without_statistics_cannot_be_frozen() -> None:
    with pytest.raises(ModelError, match="without running statistics cannot be frozen"):
        freeze_norms(nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_default_follows_the_weights(tmp_path: Path, suffix: str) -> None:
    cnn = models.get("small_cnn")
    assert cnn().norm == "group"
    for norm, wanted in (("batch", "frozen"), ("group", "group")):
        network = cnn(norm=norm).build(1, 8, 8, 3, 0)
        given = kept(network.module.state_dict(), tmp_path / f"{norm}{suffix}")
        assert cnn(**given).norm == "auto"
        assert cnn(**given).settled().norm == wanted
        assert cnn(**given).fresh() == cnn(norm=wanted)
        assert cnn(**given, norm="batch").settled().norm == "batch"
    assert cnn(weights=tmp_path / f"none{suffix}", sha256="0" * 8).settled().norm == "auto"
    detector = models.get("mobilenet_detector")
    assert detector().norm == "group"
    assert detector(pretrained=True).settled().norm == "frozen"
    assert detector(pretrained=True).fresh() == detector(norm="frozen")


def test_group_norm_is_allowed_and_said(tmp_path: Path) -> None:
    given = kept(outside("timm", "resnet10t").state_dict(), tmp_path / "w.safetensors")
    network = models.get("timm")(architecture="resnet10t", norm="group", **given).build(
        3, 32, 32, 3, 0
    )
    assert "BatchNorm statistics were left out" in network.notes[0]
    assert "norm = 'frozen' keeps them" in network.notes[0]
    assert str(tmp_path) not in network.notes[0]  # the report is given to others


@pytest.mark.parametrize("norm", ["auto", "batch", "group"])
def test_frozen_weights_start_another_network(tmp_path: Path, norm: str) -> None:
    first = frozen_resnet(tmp_path)
    given = kept(first.module.state_dict(), tmp_path / "first.safetensors")
    assert found_norms(**{"path": given["weights"], "sha256": given["sha256"]}) == "frozen"
    again = models.get("timm")(architecture="resnet10t", norm=norm, **given).build(3, 32, 32, 3, 1)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same = torch.allclose(again.module.eval()(x), first.module.eval()(x), atol=1e-5)
    assert same == (norm != "group")
    assert any("statistics" in note for note in again.notes) == (norm != "batch")


def frozen_resnet(tmp_path: Path) -> Network:
    given = kept(outside("timm", "resnet10t").state_dict(), tmp_path / "w.pth")
    return models.get("timm")(architecture="resnet10t", **given).build(3, 32, 32, 3, 0)


def test_the_state_of_frozen_norms_loads_elsewhere(tmp_path: Path) -> None:
    network = frozen_resnet(tmp_path)
    elsewhere = timm.create_model("resnet10t", num_classes=3)
    elsewhere.load_state_dict(thawed_state(network.module))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = network.module.eval()(x), elsewhere.eval()(x)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_weights_without_statistics_name_the_setting(tmp_path: Path) -> None:
    cnn = models.get("small_cnn")
    given = kept(cnn().build(1, 8, 8, 3, 0).module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        cnn(norm="frozen", **given).build(1, 8, 8, 3, 0)
    assert "model.norm = 'group'" in caught.value.cure


def test_another_number_of_classes_is_said(tmp_path: Path) -> None:
    given = kept(outside("torchvision", "resnet18", 10).state_dict(), tmp_path / "w.safetensors")
    network = models.get("torchvision")(architecture="resnet18", **given).build(3, 32, 32, 4, 0)
    assert "head is newly initialised" in network.notes[0]
    assert "10 outputs, this network 4" in network.notes[0]


def test_an_embedding_keeps_the_norms_of_its_backbone(tmp_path: Path) -> None:
    theirs = outside("timm", "resnet10t", 10)
    given = kept(theirs.state_dict(), tmp_path / "w.safetensors")
    model: Model = models.get("embedding")(
        backbone="timm", architecture="resnet10t", dimension=6, **given
    )
    network = model.build(3, 32, 32, 4, 0)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = network.module.eval().body.forward_features(x)
        torch.testing.assert_close(ours, theirs.forward_features(x), atol=1e-4, rtol=1e-4)
    assert any("head is newly initialised" in note for note in network.notes)


def test_fetched_weights_give_the_maps_of_imagenet(tmp_path: Path) -> None:
    """On the fetched file where it is here, else on a file of the same form."""
    theirs = lived_in(torchvision.models.mobilenet_v2(weights=None))
    given = kept(theirs.state_dict(), tmp_path / "w.pth")
    if is_here(FETCHED):
        theirs.load_state_dict(torch.load(fetched(FETCHED) / FILE, weights_only=True))
        given = {"pretrained": True}
    network = models.get("mobilenet_detector")(**given).build(3, 64, 64, 2, 0)
    x = torch.randn(1, 3, 64, 64)
    ours = wanted = x
    with torch.no_grad():
        for stage in network.module.eval().body.stages:
            ours = stage(ours)
        for block in theirs.features[:14]:
            wanted = block(wanted)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
