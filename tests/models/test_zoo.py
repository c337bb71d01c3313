"""The networks by name: sizes of the papers, adaptation, seeds, and what does not fit."""

import pytest
import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.layout import Layout
from fedsight.models.base import Model, Network, models


def build(
    name: str, image: tuple[int, int, int] = (1, 28, 28), seed: int = 0, **settings
) -> Network:
    return models.get(name)(**settings).build(*image, 10, seed)


def parameters(network: Network) -> int:
    return sum(value.numel() for value in network.module.parameters())


def test_the_paper_s_networks_have_the_paper_s_sizes() -> None:
    assert parameters(build("fedavg_cnn")) == 1_663_370
    assert parameters(build("mlp")) == 199_210


@pytest.mark.parametrize("name", ["small_cnn", "fedavg_cnn", "mlp"])
@pytest.mark.parametrize("side", [8, 28, 33])
def test_own_networks_take_any_size(name: str, side: int) -> None:
    network = build(name, (3, side, side))
    assert network.module(torch.rand(2, 3, side, side)).shape == (2, 10)
    assert network.head == {"head.weight", "head.bias"}
    assert network.statistics == ()


def test_the_small_network_keeps_positions_up_to_32_pixels_and_averages_beyond() -> None:
    assert build("small_cnn", (1, 32, 32)).module.head.in_features == 32 * 8 * 8
    assert build("small_cnn", (1, 33, 33)).module.head.in_features == 32
    large = build("small_cnn", (3, 224, 224))
    assert large.module(torch.rand(1, 3, 224, 224)).shape == (1, 10)


def test_the_small_network_follows_its_settings() -> None:
    network = build("small_cnn", width=8, blocks=3, dropout=0.5)
    kinds = [type(part) for part in network.module]
    assert [part.out_channels for part in network.module if isinstance(part, nn.Conv2d)] == [
        8,
        16,
        32,
    ]
    assert nn.Dropout in kinds
    assert network.norms == {f"norm{i}.{n}" for i in range(3) for n in ("weight", "bias")}
    batch = build("small_cnn", norm="batch")
    assert batch.statistics == tuple(
        (f"norm{i}.running_mean", f"norm{i}.running_var") for i in (0, 1)
    )
    assert {"norm0.weight", "norm0.running_var"} <= batch.norms
    assert "norm0.num_batches_tracked" not in batch.norms


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("small_cnn", {"dropout": 0.5}),
        ("torchvision", {"architecture": "squeezenet1_1"}),
        ("timm", {"architecture": "test_resnet"}),
    ],
)
def test_the_seed_alone_decides_the_weights_and_nobody_else_s_numbers_change(
    name, settings
) -> None:
    def weights(seed: int) -> Tensor:
        module = build(name, (1, 64, 64), seed, **settings).module
        return Layout.of(module).read(module)

    torch.manual_seed(1)
    first = weights(5)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, weights(5))
    assert not torch.equal(first, weights(6))


@pytest.mark.parametrize(
    ("name", "architecture", "channels", "head"),
    [
        ("torchvision", "resnet18", 1, {"fc.weight", "fc.bias"}),
        ("torchvision", "mobilenet_v2", 3, {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision", "squeezenet1_1", 5, {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision", "vit_b_32", 1, {"heads.head.weight", "heads.head.bias"}),
        ("timm", "mobilenetv3_small_050", 1, {"classifier.weight", "classifier.bias"}),
        ("timm", "test_vit", 3, {"head.weight", "head.bias"}),
        ("timm", "convnext_atto", 2, {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_foreign_networks_are_adapted(name, architecture, channels, head) -> None:
    network = build(name, (channels, 64, 64), architecture=architecture)
    assert network.module(torch.rand(2, channels, 64, 64)).shape == (2, 10)
    assert network.head == head
    assert network.statistics == ()
    assert network.head <= set(dict(network.module.named_parameters()))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.module.modules())


def test_a_distilled_transformer_has_two_head_layers() -> None:
    network = build("timm", (3, 32, 32), architecture="deit_tiny_distilled_patch16_224")
    layers = {name.rpartition(".")[0] for name in network.head}
    assert layers == {"head", "head_dist"}


def test_side_heads_of_inception_are_left_out() -> None:
    module = build("torchvision", (3, 32, 32), architecture="googlenet").module
    assert module.aux1 is None
    assert module.train()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_batch_norm_stays_when_asked_for_and_building_does_not_move_it() -> None:
    network = build("torchvision", (3, 32, 32), architecture="resnet18", norm="batch")
    assert len(network.statistics) == 20
    state = network.module.state_dict()
    assert all(
        state[mean].eq(0).all() and state[var].eq(1).all() for mean, var in network.statistics
    )
    assert state["bn1.num_batches_tracked"] == 0
    assert network.module.training
    small = build("small_cnn", norm="batch").module.state_dict()
    assert small["norm0.running_mean"].eq(0).all()
    assert small["norm0.num_batches_tracked"] == 0


def test_a_new_first_layer_keeps_the_variance_of_its_output() -> None:
    colour = build("torchvision", (3, 32, 32), architecture="resnet18").module.conv1.weight
    grey = build("torchvision", (1, 32, 32), architecture="resnet18").module.conv1.weight
    assert grey.shape == (64, 1, 7, 7)
    assert (grey.std() / colour.std()).item() == pytest.approx(3**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "architecture", "cure"),
    [
        ("torchvision", "resnet81", "did you mean 'resnet18'?"),
        ("torchvision", "zzz", "known: alexnet"),
        ("timm", "mobilnetv3_small_050", "did you mean 'mobilenetv3_small_050'?"),
        ("timm", "hf-hub:someone/something", "timm.list_models('*resnet*') lists names"),
    ],
)
def test_an_unknown_architecture_names_the_nearest(name, architecture, cure) -> None:
    model = models.get(name)(architecture=architecture)
    with pytest.raises(ModelError, match="has no classifier") as caught:
        model.build(3, 32, 32, 10, 0)
    assert caught.value.cure.startswith(cure)
    [problem] = model.check()
    assert (problem.where, problem.cure) == ("model.architecture", caught.value.cure)
    assert models.get(name)(architecture="resnet18").check() == []


@pytest.mark.parametrize(
    ("name", "settings", "image", "cure"),
    [
        ("small_cnn", {"blocks": 5}, (1, 28, 28), "data.size = 32 or more, or model.blocks = 4"),
        ("small_cnn", {}, (1, 28, 1), "data.size = 4 or more"),
        ("fedavg_cnn", {}, (1, 3, 3), "data.size = 4"),
        ("torchvision", {"architecture": "alexnet"}, (3, 32, 32), "data.size = 64"),
        ("torchvision", {"architecture": "vit_b_32"}, (3, 28, 28), "224"),
        ("torchvision", {"architecture": "vit_b_32"}, (3, 64, 32), "data.size = 64"),
        ("torchvision", {"architecture": "maxvit_t"}, (3, 30, 30), "224"),
        ("timm", {"architecture": "swin_tiny_patch4_window7_224"}, (3, 3, 3), ""),
        ("timm", {"architecture": "inception_v3"}, (3, 28, 28), "data.size = 96"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_a_cure(name, settings, image, cure) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, image, **settings)
    assert cure in caught.value.cure
    assert str(image[1]) in caught.value.cause


def test_a_stem_that_is_grouped_cannot_take_other_channels() -> None:
    from fedsight.models.zoo.from_torchvision import _replace_stem

    with pytest.raises(ModelError, match="2 channels"):
        _replace_stem(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), 2, "grouped")


def test_every_registered_model_has_a_description() -> None:
    assert models.names() == [
        *("embedding", "face_net", "fedavg_cnn", "mlp", "mobilenet_detector", "small_cnn"),
        *("small_detector", "text_bag", "timm", "timm_detector", "torchvision"),
        *("torchvision_detector", "unet"),
    ]
    assert all(models.facts(name)["about"] for name in models.names())


def test_what_is_wrong_with_weights_shows_without_building(tmp_path) -> None:
    small = models.get("small_cnn")
    assert small().check() == []
    assert [p.where for p in small(weights=str(tmp_path / "no.pth")).check()] == [
        "model.weights",
        "model.sha256",
    ]
    file = tmp_path / "w.pth"
    file.write_bytes(b"")
    assert small(weights=str(file), sha256="0123abcd").check() == []
    assert "not a SHA-256" in small(weights=str(file), sha256="xyz").check()[0].cause
    assert "no weights file" in small(sha256="0123abcd").check()[0].cause


def test_a_transformer_that_timm_cannot_make_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be built for images of 3 x 8 x 8"):
        build("timm", (3, 8, 8), architecture="twins_svt_small")


class Pair(Model):
    def make(self, channels: int, height: int, width: int, classes: int):
        return nn.Sequential(nn.Flatten(), nn.Linear(height * width, classes + 1)), ["1"]


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"its answer has shape \(2, 11\), not \(2, 10\)"):
        Pair().build(1, 8, 8, 10, 0)


@pytest.mark.parametrize(
    "numbers",
    [
        {"width": 10**12},
        {"bottleneck": 10**14},
        {"bottleneck": 2**63 - 1},
        {"lift": 2**62},
        {"width": 2**70},
        {"bottleneck": 2**63},
        {"lift": 2**63},
    ],
)
def test_a_network_that_no_memory_holds_is_refused_in_words(numbers: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="more weights than there is memory for"):
        models.get("small_cnn")(**numbers).build(1, 8, 8, 2, seed=0)


def test_images_that_no_memory_holds_are_not_taken_for_weights() -> None:
    with pytest.raises(ModelError, match="two images of 1000000 x 1000000") as caught:
        models.get("small_cnn")(width=4).build(1, 10**6, 10**6, 2, seed=0)
    assert "data.size" in caught.value.cure
