"""The methods of explanation against what is known of them: by hand, by axioms, by refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import task_cases
import torch
from torch import Tensor, nn

import fedsight.evaluation.explanations.methods as methods
from fedsight.core.errors import DataError, FedSightError, ModelError
from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.integrals import attributed
from fedsight.evaluation.explanations.layers import chosen_layer, map_layers
from fedsight.evaluation.explanations.methods import Network, chosen, heat_of
from fedsight.evaluation.explanations.rollout import rollout
from fedsight.evaluation.explanations.scores import (
    ClassScore,
    OverlapScore,
    PairScore,
    Scored,
    scored,
)
from fedsight.models.base import models
from fedsight.models.detector import Detector
from fedsight.models.embedding import Embedding
from fedsight.tasks.classification import Classification
from fedsight.tasks.detection.task import Detection

BLANK = torch.zeros(1, 1, 16, 16)
GRADIENTS = ("grad-cam", "integrated-gradients")


class ByHand(nn.Module):
    """One convolution of a single weight for each of two channels, then the sum of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[3.0, 1.0], [0.0, 5.0]]))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.maps(x).sum((2, 3)))
        return found


def about(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


def small(seed: int = 0) -> Network:
    built = models.get("small_cnn")(width=4).build(1, 16, 16, 4, seed)
    return Network(ClassScore(built.module.eval(), Classification()), built.head)


def test_grad_cam_is_what_it_is_by_hand() -> None:
    network = Network(ClassScore(ByHand().eval(), Classification()), frozenset({"head.weight"}))
    x = torch.tensor([[[[1.0, 0.0], [2.0, -1.0]]]])
    # The gradient of class 0 by each cell of the maps 2x and -x is 3 and 1: 3 (2x) + 1 (-x) = 5x.
    assert torch.allclose(heat_of(network, "grad-cam", x, about(0)), 5 * x[:, 0])
    assert torch.allclose(heat_of(network, "grad-cam", x, about(1)), -5 * x[:, 0])


def test_integrated_gradients_add_up_to_the_change_of_the_score() -> None:
    network, x = small(), task_cases.images(1, 16, 16)
    numbers = about(*(torch.arange(len(x)) % 4).tolist())
    found, off = attributed(network.scored, x, numbers)
    with torch.no_grad():
        change = network.scored(x, numbers) - network.scored(absent(x), numbers)
    assert float((found.flatten(1).sum(1) - change).abs().max()) <= 1e-3
    assert torch.allclose(off, (found.flatten(1).sum(1) - change).abs(), atol=1e-5)  # changes < 1
    assert float(change.abs().max()) < 1
    _, coarse = attributed(network.scored, x, numbers, exact=False)
    assert float(coarse.max()) > float(off.max())
    assert float(change.abs().max()) > 0.05  # there was something to add up to


def test_rapid_integrals_have_few_steps_and_point_the_same_way() -> None:
    network, x = small(), task_cases.images(1, 16, 16)
    numbers = about(*[1] * len(x))
    exact = heat_of(network, "integrated-gradients", x, numbers)
    rapid = Network(network.scored, network.head, exact=False)
    coarse = heat_of(rapid, "integrated-gradients", x, numbers)
    assert float(torch.corrcoef(torch.stack([exact.flatten(), coarse.flatten()]))[0, 1]) > 0.98


def test_occlusion_finds_the_only_pixel_that_matters() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 3, 10], -x[:, 0, 3, 10]], 1)

    network = Network(ClassScore(Corner(), Classification()))
    x = torch.zeros(1, 1, 14, 14)
    x[0, 0, 3, 10] = 1
    heat = heat_of(network, "occlusion", x, about(0))[0]
    assert divmod(int(heat.argmax()), 14) in {(3, 10), (2, 10), (3, 9), (2, 9)}  # windows of 2 x 2
    assert float(heat.min()) == 0
    assert torch.equal(heat_of(network, "occlusion", x, about(1))[0], -heat)


@pytest.mark.parametrize("case", ["classify", "ordinal", "multilabel", "cosface", "detect"])
def test_every_method_explains_every_task_that_has_a_score(case: str) -> None:
    task, module, batch = task_cases.CASES[case]()
    found = scored(task, module.eval())
    if isinstance(found, PairScore):
        given = found.about(batch.x.flip(0))
    elif case == "detect":
        given = torch.tensor([[1.0, 2.0, 2.0, 9.0, 12.0]]).repeat(len(batch.x), 1)
    else:
        given = about(*[2] * len(batch.x))
    head = frozenset({"body.heat.weight", "body.box.weight", "head.weight", "head.move"})
    network = Network(found, head, exact=False)
    names = chosen(network, None, batch.x[:1])
    assert names == (*GRADIENTS, "occlusion")
    for name in names:
        heat = heat_of(network, name, batch.x, given)
        assert heat.shape == (len(batch.x), *batch.x.shape[2:])
        assert bool(heat.isfinite().all())
        assert float(heat.abs().max()) > 0
    assert found.shown(batch.x, given).shape == (len(batch.x),)


def test_a_task_that_answers_for_each_pixel_has_no_explanation() -> None:
    task, module, _ = task_cases.CASES["segment"]()
    with pytest.raises(ModelError, match="cannot be explained") as raised:
        scored(task, module)
    assert "classifies" in raised.value.cure


def test_faces_are_seen_both_ways_at_once_as_the_network_sees_them_in_use() -> None:
    _, module, batch = task_cases.CASES["cosface"]()
    assert isinstance(module, Embedding)
    pair = PairScore(module.eval())
    vectors = module.embed(batch.x)
    expected = (vectors * vectors.flip(0)).sum(1)
    assert torch.allclose(pair(batch.x, pair.about(batch.x.flip(0))), expected, atol=1e-6)


def test_the_layer_is_the_last_before_the_head_or_the_one_that_is_named() -> None:
    network, x = small(), torch.rand(1, 1, 16, 16)
    known = map_layers(network.scored, x)
    assert known == ["conv0", "pool0", "norm0", "relu0", "conv1", "pool1", "norm1", "relu1"]
    assert chosen_layer(network.scored, x, None, network.head) == "relu1"
    assert chosen_layer(network.scored, x, "conv0", network.head) == "conv0"
    first = Network(network.scored, network.head, layer="conv0")
    numbers = about(0)
    one, other = (heat_of(each, "grad-cam", x, numbers) for each in (network, first))
    assert not torch.allclose(one, other)


def test_of_a_detector_the_layer_is_before_both_heads() -> None:
    built = models.get("small_detector")(width=4).build(1, 32, 32, 3, 0)
    found = scored(Detection(), built.module.eval())
    layer = chosen_layer(found, torch.rand(1, 1, 32, 32), None, built.head)
    assert layer.startswith("body.smooth")


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    network = small()
    with pytest.raises(ModelError, match="no layer 'convx'") as raised:
        chosen_layer(network.scored, torch.rand(1, 1, 16, 16), "convx", network.head)
    assert "conv0" in raised.value.cure
    assert "relu1" in raised.value.cure


def test_a_network_without_maps_has_no_grad_cam() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    found = ClassScore(flat, Classification())
    with pytest.raises(ModelError, match="no layer of the network gives maps"):
        chosen_layer(found, torch.rand(1, 1, 2, 2), None, ())


class Boxes(Detector):
    """Always one box of class 1, as sure of it as the image is bright."""

    classes = 2

    def find(self, x: Tensor) -> Tensor:
        sure = x.mean((1, 2, 3)).clamp(0, 1)
        row = torch.tensor([1.0, 0.0, 2.0, 2.0, 6.0, 6.0]).repeat(len(x), 1)
        row[:, 1] = sure
        return row[:, None]

    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        return x.sum() * 0


def test_a_detector_without_gradients_is_explained_by_occlusion_alone() -> None:
    network = Network(scored(Detection(), Boxes()))
    assert isinstance(network.scored, OverlapScore)
    assert chosen(network, None, torch.zeros(1, 1, 8, 8)) == ("occlusion",)
    with pytest.raises(ModelError, match="gradients"):
        chosen(network, ["grad-cam"], torch.zeros(1, 1, 8, 8))
    x = torch.full((2, 1, 8, 8), 0.5)
    half = torch.tensor([[1.0, 2.0, 2.0, 6.0, 4.0], [0.0, 2.0, 2.0, 6.0, 6.0]])
    # Half of the box overlaps: IoU 0.5 times a score of 0.5; the other is of another class.
    assert network.scored(x, half).tolist() == pytest.approx([0.25, 0.0])


def test_unknown_methods_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no method 'gradcam'") as raised:
        chosen(small(), ["gradcam"], BLANK)
    assert "grad-cam" in raised.value.cure
    monkeypatch.setattr(methods, "missing", lambda extra: ["captum"])
    with pytest.raises(FedSightError, match="captum") as refused:
        chosen(small(), ["occlusion"], BLANK)
    assert "fedsight[explain]" in refused.value.cure


def transformer(backend: str) -> Scored:
    torch.manual_seed(0)
    if backend == "timm":
        import timm

        module = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2,
            num_classes=3, in_chans=1,
        )  # fmt: skip
    else:
        from torchvision.models import VisionTransformer

        module = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
        nn.init.normal_(module.heads.head.weight)
    return ClassScore(module.eval(), Classification())


@pytest.mark.parametrize(("backend", "channels"), [("timm", 1), ("torchvision", 3)])
def test_rollout_follows_the_attention_that_the_network_computes(
    backend: str, channels: int
) -> None:
    found = transformer(backend)
    x = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    heat = rollout(found, x)
    assert heat.shape == (2, 4, 4)
    assert bool((heat > 0).all())
    # The class token keeps at least a quarter of itself: half in each of two layers.
    assert bool((heat.flatten(1).sum(1) < 0.75).all())
    assert chosen(Network(found), ["attention-rollout"], x) == ("attention-rollout",)
    assert heat_of(Network(found), "attention-rollout", x, about(0, 0)).shape == (2, 32, 32)


def test_rollout_by_hand_where_every_token_attends_to_one_patch() -> None:
    found = transformer("timm")
    blocks = found.model.blocks
    for block in blocks:  # all queries equal, and only the key of token 6 agrees with them
        with torch.no_grad():
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    x = torch.rand(1, 1, 32, 32)
    even = rollout(found, x)[0]
    # Even attention over 17 tokens, twice: 1/2 (1/17) + 1/2 (1/17) of what is left, for each patch.
    share = 1 / 17
    once = 0.5 * share
    assert torch.allclose(even, torch.full((4, 4), once + 0.5 * once), atol=1e-6)


def test_networks_without_attention_refuse_rollout() -> None:
    with pytest.raises(ModelError, match="attends to patches"):
        chosen(small(), ["attention-rollout"], BLANK)


def built(name: str) -> Scored:
    """Tiny networks of the kinds that have tokens, and one convolutional one."""
    import timm

    tiny: dict[str, dict[str, object]] = {
        "vit_tiny_patch16_224": {
            "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "qk_norm": True,
        },
        "beit_base_patch16_224": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "mixer_s16_224": {},
        "swin_tiny_patch4_window7_224": {
            "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4,
        },
    }  # fmt: skip
    if name == "torchvision swin":
        from torchvision.models import SwinTransformer

        module: nn.Module = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)
    elif name == "convnext":
        from timm.models.convnext import ConvNeXt

        module = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=3)
    else:
        module = timm.create_model(name, img_size=32, num_classes=3, **tiny[name])
    return ClassScore(module.eval(), Classification())


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("vit_tiny_patch16_224", ["attention-rollout"]),
        ("beit_base_patch16_224", []),
        ("mixer_s16_224", []),
        ("swin_tiny_patch4_window7_224", []),
    ],
)
def test_networks_of_tokens_have_no_grad_cam_and_all_else_that_is_true_of_them(
    name: str, also: list[str]
) -> None:
    network, x = Network(built(name)), torch.rand(1, 3, 32, 32)
    assert [*chosen(network, None, x)] == ["integrated-gradients", "occlusion", *also]
    with pytest.raises(ModelError, match="tokens") as raised:
        chosen(network, ["grad-cam"], x)
    assert raised.value.cure.endswith("proj")
    assert all(layer.endswith("proj") for layer in map_layers(network.scored, x))


@pytest.mark.parametrize(
    ("name", "layer"), [("torchvision swin", "permute"), ("convnext", "norm_pre")]
)
def test_networks_that_end_in_maps_have_grad_cam_whatever_is_inside(name: str, layer: str) -> None:
    found, x = built(name), torch.rand(1, 3, 64, 96)
    assert chosen_layer(found, x, None, ()) == layer
    assert "grad-cam" in chosen(Network(found), None, x)
    maps = map_layers(found, x)
    assert not [one for one in maps if "attn" in one or "mlp" in one]


@pytest.mark.parametrize(
    ("layer", "names", "said"),
    [(None, [], "no method"), ("conv0", ["occlusion"], "Grad-CAM alone")],
)
def test_what_would_be_ignored_is_refused(layer: str | None, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        chosen(replace(small(), layer=layer), names, BLANK)
