"""A smaller network's values lie in the leading blocks of a larger one's tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedsight.core.layout import Kind, Layout
from fedsight.core.selection import Selection


def net(channels: int, hidden: int, norm: bool = False) -> nn.Module:
    body = nn.Sequential()
    body.add_module("conv", nn.Conv2d(2, channels, 3))
    if norm:
        body.add_module("norm", nn.BatchNorm2d(channels))
    body.add_module("flat", nn.Flatten())
    body.add_module("lin", nn.Linear(channels * 4, hidden))
    return body


def block(large: Tensor, small: Tensor) -> Tensor:
    return large[tuple(slice(0, side) for side in small.shape)]


@pytest.mark.parametrize("norm", [False, True])
def test_it_takes_and_places_the_leading_block_of_each_tensor(norm: bool) -> None:
    whole, part = Layout.of(net(6, 5, norm)), Layout.of(net(4, 3, norm))
    selection = Selection.of(whole, part)
    vector = torch.randn(whole.size, generator=torch.manual_seed(0))
    taken = selection.taken(vector)
    large, small = whole.state_dict(vector), part.state_dict(taken)
    assert small.keys() == large.keys()
    assert all(torch.equal(small[name], block(large[name], small[name])) for name in small)
    placed = selection.placed(taken)
    assert torch.equal(selection.taken(placed), taken)
    assert int((placed != 0).sum()) == part.size
    assert torch.equal(placed[placed != 0], vector[placed != 0])
    assert not selection.everything


def test_the_same_network_is_everything() -> None:
    layout = Layout.of(net(4, 3, norm=True))
    selection = Selection.of(layout, layout)
    vector = torch.arange(float(layout.size))
    assert selection.everything
    assert torch.equal(selection.taken(vector), vector)


def test_what_stays_at_the_site_is_not_selected_and_may_be_of_any_size() -> None:
    def kept(name: str, kind: Kind) -> Kind:
        return Kind.PERSONAL if name.startswith("lin") else kind

    whole, part = (Layout.of(net(4, hidden)).rekind(kept) for hidden in (3, 7))
    assert Selection.of(whole, part).everything


@pytest.mark.parametrize(
    ("whole", "part", "tensor"),
    [
        (net(4, 3), net(6, 3), "conv.weight"),
        (net(4, 3), net(4, 5), "lin.weight"),
        (net(4, 3), net(4, 3, norm=True), "norm.weight"),
    ],
)
def test_what_is_not_in_the_whole_is_named(whole: nn.Module, part: nn.Module, tensor: str) -> None:
    with pytest.raises(ValueError, match=tensor):
        Selection.of(Layout.of(whole), Layout.of(part))
