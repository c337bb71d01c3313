"""Changes of low rank: they begin at nothing, merge to the bits that learnt, and their means."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsight.core.layout import Layout
from fedsight.models.low_rank import LowRank, changed, merge, merged, sides

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 7)),
    "of texts": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "of volumes": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
}


def adapted(layer: nn.Module, rank: int = 2, scale: float = 0.5) -> nn.Module:
    made = nn.Sequential(copy.deepcopy(layer))
    draws = torch.Generator().manual_seed(1)
    change = LowRank(layer.weight.shape, rank, scale, draws)
    parametrize.register_parametrization(made[0], "weight", change)
    return made


def trained(module: nn.Module) -> nn.Module:
    """With a change that is not nothing."""
    draws = torch.Generator().manual_seed(2)
    module[0].parametrizations.weight[0].B.data.normal_(generator=draws)
    return module


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_begins_with_its_own_bits(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(adapted(layer)(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_it_answers_as_the_weight_plus_the_product(name: str) -> None:
    layer, shape = LAYERS[name]
    module = trained(adapted(layer))
    change = module[0].parametrizations.weight[0]
    x = torch.randn(shape)
    with torch.no_grad():
        base, product = layer.weight, 0.5 * change.B @ change.A
        if base.dim() == 4:  # columns are in the order of a channels-last weight
            out, channels, height, width = base.shape
            product = product.reshape(out, height, width, channels).movedim(3, 1)
        by_hand = copy.deepcopy(layer)
        by_hand.weight.copy_(base + product.reshape(base.shape))
        assert not torch.allclose(module(x), layer(x))
        torch.testing.assert_close(module(x), by_hand(x))


@pytest.mark.parametrize("name", LAYERS)
def test_merging_keeps_every_bit_of_the_answers_and_the_plain_names(name: str) -> None:
    layer, shape = LAYERS[name]
    module, x = trained(adapted(layer)), torch.randn(shape)
    with torch.no_grad():
        before = module(x)
        plain = merge(module)
        assert torch.equal(plain(x), before)
    assert type(plain[0]) is type(layer)
    assert set(plain.state_dict()) == {f"0.{key}" for key in layer.state_dict()}


def test_merging_works_on_tensors_that_are_views_of_a_vector() -> None:
    layer, shape = LAYERS["convolution"]
    module, x = trained(adapted(layer)), torch.randn(shape)
    layout = Layout.of(module)
    vector = layout.read(module)
    layout.bind(module, vector)
    with torch.no_grad():
        before, kept = module(x), vector.clone()
        assert torch.equal(merge(module)(x), before)
    assert torch.equal(vector, kept), "the vector that it was bound to must not change"


def test_a_file_of_an_adapted_layer_merges_to_the_same_bits() -> None:
    layer, _ = LAYERS["convolution"]
    module = trained(adapted(layer))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found = merged(state)
    plain = merge(module).state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_other_names_stay_as_they_are() -> None:
    state = {"a.weight": torch.ones(2), "b.parametrizations.weight.original": torch.ones(2)}
    assert merged(state) == state


def test_both_factors_learn_and_the_weight_does_not_need_to() -> None:
    module = trained(adapted(LAYERS["linear"][0]))
    change = module[0].parametrizations.weight[0]
    module[0].parametrizations.weight.original.requires_grad_(False)
    module(torch.randn(3, 6)).square().sum().backward()
    assert float(change.A.grad.abs().sum()) > 0
    assert float(change.B.grad.abs().sum()) > 0
    assert module[0].parametrizations.weight.original.grad is None


small = st.integers(-8, 8)


def whole(rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    """Matrices of small whole numbers, whose sums and products float32 computes exactly."""
    row = st.lists(small, min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows).map(lambda m: torch.tensor(m).float())


@st.composite
def updates(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[Tensor]]:
    """W [o, i], A [r, i], and B [o, r] of two, four or eight sites."""
    outputs, inputs, rank = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
    )
    sites = draw(st.sampled_from([2, 4, 8]))
    ups = [draw(whole(outputs, rank)) for _ in range(sites)]
    return draw(whole(outputs, inputs)), draw(whole(rank, inputs)), ups


@given(updates())
def test_with_a_common_a_the_mean_of_the_merged_weights_is_the_merged_mean(
    given: tuple[Tensor, Tensor, list[Tensor]],
) -> None:
    weight, down, ups = given
    scale = torch.tensor(2.0)
    each = torch.stack([changed(weight, down, up, scale) for up in ups])
    assert torch.equal(each.mean(0), changed(weight, down, torch.stack(ups).mean(0), scale))


def test_with_an_a_of_each_site_it_is_not() -> None:
    weight, scale = torch.zeros(1, 1), torch.tensor(1.0)
    down, up = torch.tensor([[[1.0]], [[-1.0]]]), torch.tensor([[[1.0]], [[-1.0]]])
    each = torch.stack([changed(weight, a, b, scale) for a, b in zip(down, up, strict=True)])
    assert float(each.mean(0)) == 1.0
    assert float(changed(weight, down.mean(0), up.mean(0), scale)) == 0.0


def test_a_weight_as_a_matrix() -> None:
    assert sides(torch.Size([6, 4, 3, 3])) == (6, 36)
    assert sides(torch.Size([5, 7])) == (5, 7)
