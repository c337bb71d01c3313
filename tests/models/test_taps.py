"""Heads on inner layers: what they see, what is left out, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fedsight as fs
from fedsight.core.errors import ModelError
from fedsight.inference.export import export
from fedsight.models.base import Network, models
from fedsight.models.prefix import find_prefix, laid_out

LAYERS = ("layer1", "layer2.0")


def built(*taps: str, norm: str = "group", seed: int = 0) -> Network:
    model = models.get("torchvision").model_validate(
        {"architecture": "resnet18", "taps": list(taps), "norm": norm}
    )
    return model.build(3, 32, 32, 4, seed)


def test_the_head_sees_mean_and_maximum_of_each_layer() -> None:
    whole, network = built(), built(*LAYERS)
    seen: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        whole.module.get_submodule(name).register_forward_hook(
            lambda _, __, found, name=name: seen.update({name: found})
        )
    x = torch.rand(3, 3, 32, 32)
    whole.module.eval()(x)
    expected = torch.cat(
        [part for name in LAYERS for part in (seen[name].mean((2, 3)), seen[name].amax((2, 3)))], 1
    )
    network.module.eval()
    assert torch.equal(network.module.get_submodule("features")(x), expected)
    assert network.head == {"head.weight", "head.bias"}
    assert network.module.get_submodule("head").in_features == expected.shape[1]


def test_layers_after_the_last_tap_are_left_out() -> None:
    names = set(built(*LAYERS).module.state_dict())
    assert any(name.startswith("features.body.layer2.0.") for name in names)
    for gone in ("layer2.1", "layer3", "layer4", "fc"):
        assert not any(f".{gone}." in name for name in names), gone


def test_the_kept_layers_have_the_weights_that_they_would_have() -> None:
    whole, state = built().module.state_dict(), built(*LAYERS).module.state_dict()
    kept = [name for name in state if name.startswith("features.body.")]
    assert kept
    assert all(
        torch.equal(state[name], whole[name.removeprefix("features.body.")]) for name in kept
    )


def test_norms_are_known_as_such() -> None:
    network = built("layer1", norm="batch")
    assert len(network.statistics) == 5
    assert all(name.startswith("features.body.") for name in network.norms)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_features_grow_with_the_layers(count: int) -> None:
    channels = {"layer1": 64, "layer2": 128, "layer3.1": 256}
    for layers in itertools.combinations(channels, count):
        head = built(*layers).module.get_submodule("head")
        assert head.in_features == 2 * sum(channels[name] for name in layers)


@pytest.mark.parametrize(
    ("tap", "words"),
    [("layer9", "no layer 'layer9'"), ("fc", "not a map"), ("avgpool.x", "no layer")],
)
def test_what_cannot_be_tapped_is_refused(tap: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        built(tap)


def test_a_network_is_resumed_at_a_tap_and_the_head_sees_what_was_kept() -> None:
    model = models.get("torchvision").model_validate(
        {"architecture": "mobilenet_v2", "taps": ["features.2", "features.4"], "norm": "frozen"}
    )
    module = model.build(3, 32, 32, 4, 0).module
    late = ("features.body.features.3.", "features.body.features.4.", "head.")
    tensors = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    learns = frozenset(name for name in tensors if name.startswith(late))
    prefix = find_prefix(module, (3, 32, 32), learns, lambda network, x: [network(x)])
    assert prefix is not None
    assert (prefix.at, prefix.shape) == ("features.body.tap0", (24, 8, 8))

    x = torch.rand(5, 3, 32, 32)
    kept = prefix.activations(module, x)
    with torch.no_grad(), prefix.resumed(module):
        resumed = module(laid_out(kept.flatten(1), prefix.shape))
    with torch.no_grad():
        assert torch.allclose(resumed, module(x), atol=1e-6)
        assert not torch.allclose(resumed, module(x.flip(0)), atol=1e-6)


def test_weights_of_a_tapped_run_are_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = built(*LAYERS, seed=5).module.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model = models.get("torchvision").model_validate(
        {"architecture": "resnet18", "taps": LAYERS, "weights": str(path), "sha256": sha256}
    )
    loaded = model.build(3, 32, 32, 4, 0).module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_run_with_taps_predicts_and_exports(tmp_path: Path) -> None:
    run = fs.run(
        data={"name": "fashion-mnist-12k"},
        split={"name": "iid", "sites": 2},
        model={"name": "small_cnn", "taps": ["relu0", "relu1"]},
        algorithm={"name": "ridge", "high": 20.0, "low": -20.0},
        rounds=1,
        out=tmp_path / "run",
        workers=1,
    )
    assert run.summary["score"] > 0.7
    assert export(run._saved, "onnx", tmp_path / "model.onnx").is_file()  # compares the answers
