"""The last n blocks of a network, whoever wrote it."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn

from fedsight.models.base import Network, models
from fedsight.models.patterns import blocks, instead_of, matches

# The number of blocks, and what the last and the first of them hold.
KNOWN = {
    ("timm", "tf_efficientnet_lite0"): (8, {"blocks.6.", "conv_head", "bn2"}, {"conv_stem", "bn1"}),
    ("timm", "resnet10t"): (5, {"layer4."}, {"conv1", "bn1"}),
    ("timm", "vit_tiny_patch16_224"): (14, {"blocks.11.", "norm."}, {"cls_token", "pos_embed"}),
    ("timm", "convnext_atto"): (5, {"stages.3.", "head.norm."}, {"stem."}),
    ("torchvision", "resnet18"): (5, {"layer4."}, {"conv1", "bn1"}),
    ("torchvision", "mobilenet_v2"): (19, {"features.18."}, {"features.0."}),
    ("torchvision", "vgg11"): (2, {"classifier."}, {"features."}),
    ("small_cnn", None): (2, {"conv1", "norm1"}, {"conv0", "norm0"}),
}


def network(source: str, architecture: str | None) -> Network:
    given = {} if architecture is None else {"architecture": architecture}
    side = 224 if architecture == "vit_tiny_patch16_224" else 64
    return models.get(source)(**given).build(3, side, side, 4, 0)


@pytest.mark.parametrize("named", KNOWN, ids=lambda one: one[1] or one[0])
def test_blocks_are_the_parts_that_the_network_is_built_of(named: tuple[str, str | None]) -> None:
    count, last, first = KNOWN[named]
    found = network(*named)
    assert len(found.blocks) == count
    for block, starts in ((found.blocks[-1], last), (found.blocks[0], first)):
        assert all(name.startswith(tuple(starts)) or name in starts for name in block)
        assert all(
            any(name.startswith(start) for name in block) for start in starts - {"cls_token"}
        )


@pytest.mark.parametrize("named", KNOWN, ids=lambda one: one[1] or one[0])
def test_every_tensor_is_in_one_block_or_in_the_head(named: tuple[str, str | None]) -> None:
    found = network(*named)
    held = [name for block in found.blocks for name in block]
    tensors = {*dict(found.module.named_parameters()), *dict(found.module.named_buffers())}
    assert len(held) == len(set(held))
    assert set(held) | found.head == tensors
    assert not set(held) & found.head


def test_the_last_blocks_are_those_with_the_head() -> None:
    found = network("small_cnn", None)
    named = {n for n, _ in found.module.named_parameters() if matches(n, "last:1", found)}
    assert named == set(found.blocks[-1]) | found.head
    every = {n for n, _ in found.module.named_parameters() if matches(n, "last:2", found)}
    assert every == set(dict(found.module.named_parameters()))


@pytest.mark.parametrize("pattern", ["last:0", "last:3", "last:", "last:-1", "last"])
def test_a_number_of_blocks_that_there_is_not_matches_nothing(pattern: str) -> None:
    found = network("small_cnn", None)
    names = list(dict(found.module.named_parameters()))
    assert not any(matches(name, pattern, found) for name in names)
    if ":" in pattern:
        cure = "the network has 2 blocks: write last:1 to last:2"
        assert instead_of(pattern, found, names) == cure


def test_a_wrapper_is_opened_and_a_plain_sequence_is_one_of_layers() -> None:
    plain = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), act=nn.ReLU(), b=nn.Linear(2, 2)))
    net = nn.Sequential(OrderedDict(body=nn.Sequential(plain), head=nn.Linear(2, 2)))
    head = frozenset({"head.weight", "head.bias"})
    found = blocks(net, head)
    assert found == (
        frozenset({"body.0.a.weight", "body.0.a.bias"}),
        frozenset({"body.0.b.weight", "body.0.b.bias"}),
    )


def test_a_network_that_is_only_a_head_has_no_blocks() -> None:
    net = nn.Sequential(OrderedDict(head=nn.Linear(2, 2)))
    assert blocks(net, frozenset({"head.weight", "head.bias"})) == ()
