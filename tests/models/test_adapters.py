"""Adapters: the network begins as it was, and only what is theirs learns."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.layout import Kind, Layout
from fedsight.models.adapters.base import adapters
from fedsight.models.base import Network, models
from fedsight.models.low_rank import merge, sides
from fedsight.models.norms import FrozenNorm, freeze_norms, frozen_names, thawed_state

NETWORKS = [
    ("small_cnn", None, 28),
    ("timm", "test_efficientnet", 64),
    ("timm", "tf_efficientnet_lite0", 64),
    ("timm", "test_vit", 160),
    ("torchvision", "resnet18", 64),
    ("transformer", None, 32),
]
EVERY = ["lora", "ffa-lora", "bias"]


def transformer() -> Network:
    """A vision transformer of PyTorch's own attention, which reads the weight of a layer itself."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    module = VisionTransformer(**sizes, hidden_dim=24, mlp_dim=48, num_classes=4).eval()
    nn.init.normal_(module.heads.head.weight)  # it begins at zero
    return Network(module, frozenset({"heads.head.weight", "heads.head.bias"}), frozenset(), ())


def network(source: str = "small_cnn", architecture: str | None = None, side: int = 28) -> Network:
    if source == "transformer":
        return transformer()
    given = {} if architecture is None else {"architecture": architecture}
    made = models.get(source)(**given).build(3, side, side, 4, 0)
    made.module.eval()
    return made


def frozen_network() -> Network:
    """One with frozen norms, as pretrained weights give it."""
    made = models.get("timm")(architecture="test_efficientnet", norm="batch").build(3, 64, 64, 4, 0)
    module = freeze_norms(made.module).eval()
    return Network(module, made.head, made.norms, (), (), frozen_names(module))


def adapted(name: str, to: Network, seed: int = 0, **settings: Any) -> Network:
    return adapters.get(name)(**settings).adapt(to, seed)


def layout_of(one: Network) -> Layout:
    layout = Layout.of(one.module)
    return layout.rekind(lambda name, kind: Kind.FROZEN if name in one.frozen else kind)


def learning(one: Network) -> dict[str, tuple[int, ...]]:
    return {e.name: e.shape for e in layout_of(one).entries if e.kind != Kind.FROZEN}


def refused(name: str, to: Network, **settings: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        adapted(name, to, **settings)
    return caught.value.problems


@pytest.mark.parametrize("adapter", EVERY)
@pytest.mark.parametrize(("source", "architecture", "side"), NETWORKS)
def test_an_adapted_network_begins_with_the_bits_of_its_answers(
    adapter: str, source: str, architecture: str | None, side: int
) -> None:
    one, x = network(source, architecture, side), torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = one.module(x)
        assert torch.equal(adapted(adapter, one).module(x), before)


@pytest.mark.parametrize("adapter", ["lora", "ffa-lora"])
@pytest.mark.parametrize(("source", "architecture", "side"), NETWORKS)
def test_merged_it_has_the_plain_names_and_the_bits_of_its_answers(
    adapter: str, source: str, architecture: str | None, side: int
) -> None:
    plain = network(source, architecture, side)
    one = adapted(adapter, copy.deepcopy(plain))
    draws = torch.Generator().manual_seed(3)
    for name, value in one.module.named_parameters():
        if name not in one.frozen:
            value.data.normal_(0, 0.1, generator=draws)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = one.module(x)
        assert not torch.allclose(before, plain.module(x))
        torch.testing.assert_close(merge(one.module)(x), before, atol=1e-6, rtol=1e-6)
    plain.module.load_state_dict(one.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain.module(x), before, atol=1e-6, rtol=1e-6)


def test_only_the_factors_and_the_head_learn() -> None:
    one = adapted("lora", network(), rank=3)
    assert set(learning(one)) == {
        "conv0.parametrizations.weight.0.A",
        "conv0.parametrizations.weight.0.B",
        "conv1.parametrizations.weight.0.A",
        "conv1.parametrizations.weight.0.B",
        "head.weight",
        "head.bias",
    }
    assert set(learning(adapted("ffa-lora", network(), rank=3, head=False))) == {
        "conv0.parametrizations.weight.0.B",
        "conv1.parametrizations.weight.0.B",
    }


@pytest.mark.parametrize(("source", "architecture", "side"), NETWORKS)
def test_what_travels_is_counted_by_hand(source: str, architecture: str | None, side: int) -> None:
    plain = network(source, architecture, side)
    head = sum(v.numel() for n, v in plain.module.named_parameters() if n in plain.head)
    both = ups = head
    for name, part in plain.module.named_modules():
        if not isinstance(part, nn.Linear | nn.Conv2d) or f"{name}.weight" in plain.head:
            continue
        outputs, inputs = part.weight.shape[0], part.weight[0].numel()
        if getattr(part, "groups", 1) == 1 and 4 * (outputs + inputs) < outputs * inputs:
            both, ups = both + 4 * (outputs + inputs), ups + 4 * outputs
    assert layout_of(adapted("lora", copy.deepcopy(plain))).travelling.stop == both
    assert layout_of(adapted("ffa-lora", plain)).travelling.stop == ups


def test_layers_are_chosen_by_name_by_module_by_wildcard_and_by_block() -> None:
    def chosen(*layers: str) -> set[str]:
        one = adapted("lora", network("timm", "tf_efficientnet_lite0", 64), layers=layers)
        return {name.partition(".param")[0] for name in learning(one) if "param" in name}

    assert chosen("conv_head") == {"conv_head"}
    assert chosen("blocks.0.0.conv_dw", "conv_stem") == {"blocks.0.0.conv_dw", "conv_stem"}
    assert chosen("blocks.6") == {f"blocks.6.0.conv_{end}" for end in ("pw", "dw", "pwl")}
    assert len(chosen("*.conv_dw")) == 16
    assert chosen("last:1") == chosen("blocks.6") | {"conv_head"}
    assert not any("conv_dw" in name for name in chosen())


def test_the_scale_is_alpha_over_rank() -> None:
    one = adapted("lora", network(), rank=4, alpha=6)
    assert float(one.module.conv0.parametrizations.weight[0].scale) == 1.5


def test_the_start_follows_from_the_seed_and_from_the_layers_name_alone() -> None:
    def start(seed: int, **settings: Any) -> torch.Tensor:
        one = adapted("ffa-lora", network(), seed, **settings)
        return one.module.conv1.parametrizations.weight[0].A.detach()

    assert torch.equal(start(1), start(1))
    assert torch.equal(start(1), start(1, layers=["conv1"]))
    assert not torch.equal(start(1), start(2))
    inputs = sides(network().module.conv1.weight.shape)[1]
    assert float(start(1).abs().max()) <= 1 / math.sqrt(inputs)
    assert float(start(1).std()) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.1)


def test_it_says_how_many_layers_it_changes() -> None:
    one = adapted("lora", network("timm", "tf_efficientnet_lite0", 64))
    assert one.notes[-1] == "LoRA of rank 4 changes 33 of 49 linear and convolutional layers"


def test_biases_of_layers_and_norms_learn_and_frozen_norms_shift() -> None:
    one = adapted("bias", frozen_network())
    norms = [part for part in one.module.modules() if isinstance(part, FrozenNorm)]
    named = [name.rpartition(".")[2] for name in set(learning(one)) - one.head]
    assert all(isinstance(part.shift, nn.Parameter) for part in norms)
    assert named.count("shift") == len(norms)
    assert set(named) == {"shift", "bias"}, "squeeze-and-excitation has biases of its own"
    plain = adapted("bias", transformer())
    assert all(name.endswith("bias") for name in set(learning(plain)) - plain.head)


def test_a_shift_that_learnt_is_the_bias_of_the_plain_network() -> None:
    one, x = adapted("bias", frozen_network()), torch.randn(2, 3, 64, 64)
    for name in set(learning(one)) - one.head:
        one.module.get_parameter(name).data.add_(0.3)
    plain = timm.create_model("test_efficientnet", num_classes=4).eval()
    plain.load_state_dict(thawed_state(one.module))
    with torch.no_grad():
        torch.testing.assert_close(plain(x), one.module(x), atol=1e-4, rtol=1e-4)


def test_a_parameter_that_the_user_froze_stays_frozen() -> None:
    one = transformer()
    frozen = next(n for n, _ in one.module.named_parameters() if n.endswith("ln_1.bias"))
    held = Network(one.module, one.head, one.norms, (), (), frozenset({frozen}) | one.head)
    assert set(learning(adapted("bias", held))).isdisjoint({frozen} | one.head)


@pytest.mark.parametrize(
    ("layers", "cause", "cure"),
    [
        ("cnov1", "no layer of the network is called 'cnov1'", "did you mean 'conv1'?"),
        ("last:5", "no layer of the network is called 'last:5'", "write last:1 to last:2"),
        (
            "norm0",
            "'norm0' names no layer that can have this adapter, but: GroupNorm",
            "conv0, conv1",
        ),
        ("head", "'head' names the head, which learns as a whole", "leave it out"),
    ],
)
def test_a_pattern_without_a_layer_is_refused(layers: str, cause: str, cure: str) -> None:
    [problem] = refused("lora", network(), layers=[layers])
    assert problem.where == "adapter.layers"
    assert cause in problem.cause
    assert cure in problem.cure


def test_a_rank_larger_than_a_named_layers_is_refused() -> None:
    [problem] = refused("lora", network(), rank=28, layers=["conv0", "conv1"])
    assert problem.where == "adapter.rank"
    assert problem.cause == "the rank 28 is larger than that of the weight of: conv0 (16)"
    assert problem.cure == "lower it to 16 or less, or leave these layers out"


def test_a_rank_at_which_no_adapter_is_smaller_is_refused() -> None:
    [problem] = refused("lora", network(), rank=64)
    assert problem.where == "adapter.rank"
    assert "with rank 64 no layer's adapter would be smaller than its weight" in problem.cause


def test_a_network_without_a_suited_layer_is_refused() -> None:
    words = models.get("text_bag")().build(1, 1, 20, 3, 0)
    only_head = Network(
        words.module, frozenset(dict(words.module.named_parameters())), frozenset(), ()
    )
    [problem] = refused("lora", only_head)
    assert problem == Problem(
        "adapter.name",
        "no layer of the network can have the adapter 'lora'",
        "leave it out, or choose another network",
    )


def test_without_an_adapter_nothing_changes() -> None:
    one = network()
    assert adapted("none", one) is one
