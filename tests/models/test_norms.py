"""GroupNorm for BatchNorm, and statistics that pool exactly."""

import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from fedsight.core.layout import Layout
from fedsight.models.norms import (
    from_moments,
    groups_for,
    guard_group_norms,
    is_batch_norm,
    norm_names,
    statistic_names,
    to_group_norm,
    to_moments,
)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 1), (4, 1), (7, 1), (16, 4), (24, 6), (40, 10), (64, 16), (88, 22), (128, 32)],
)
def test_groups_divide_the_channels_and_hold_at_least_four(channels: int, groups: int) -> None:
    assert groups_for(channels) == groups


@pytest.mark.parametrize(
    "old",
    [
        nn.BatchNorm2d(8, eps=0.01),
        nn.BatchNorm1d(8, eps=0.01),
        nn.SyncBatchNorm(8, eps=0.01),
        nn.BatchNorm2d(8, eps=0.01, track_running_stats=False),
        BatchNormAct2d(8, eps=0.01),
        FrozenBatchNorm2d(8, eps=0.01),
        FrozenBatchNormAct2d(8, eps=0.01),
    ],
    ids=lambda old: type(old).__name__,
)
def test_every_batch_norm_becomes_a_group_norm_with_its_scale_and_shift(old: nn.Module) -> None:
    scale, shift = torch.arange(8.0) + 1, torch.arange(8.0) - 4
    with torch.no_grad():
        old.weight.copy_(scale)
        old.bias.copy_(shift)
    old.eval()
    assert is_batch_norm(old)
    new = to_group_norm(nn.Sequential(old).eval())[0]
    x = torch.randn(2, 8, 5, 5)
    expected = nn.functional.group_norm(x, 2, scale, shift, eps=0.01)
    if "Act" in type(old).__name__:
        expected = expected.relu()  # the activation that timm fuses into the layer stays
    assert torch.allclose(new(x), expected)
    assert not new.training
    assert all(p.requires_grad for p in new.parameters())
    assert statistic_names(new) == ()


def test_a_batch_norm_without_scale_gets_one() -> None:
    new = to_group_norm(nn.BatchNorm2d(8, affine=False))
    assert isinstance(new, nn.GroupNorm)
    assert new.weight.eq(1).all()


def test_names_of_norms_and_statistics() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(1, 4), nn.Flatten(), nn.LayerNorm(4)
    )
    assert norm_names(module) == {
        *(f"{i}.{n}" for i in (1, 2, 4) for n in ("weight", "bias")),
        "1.running_mean",
        "1.running_var",
    }
    assert statistic_names(module) == (("1.running_mean", "1.running_var"),)
    assert statistic_names(module[1]) == (("running_mean", "running_var"),)


def test_averaged_moments_are_the_statistics_of_all_data_together() -> None:
    """The law of total variance: sites of different sizes and means pool exactly."""
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    layout, statistics = Layout.of(module), statistic_names(module)
    generator = torch.Generator().manual_seed(0)
    sites = [
        torch.randn(count, 4, generator=generator) * scale + shift
        for count, scale, shift in ((30, 1.0, 0.0), (50, 3.0, 5.0), (7, 0.1, -20.0))
    ]
    vectors = []
    for data in sites:
        module[1].running_mean.copy_(data.mean(0))
        module[1].running_var.copy_(data.var(0, correction=0))
        vectors.append(to_moments(layout.read(module), layout, statistics))
    pooled_data = torch.cat(sites).double()
    mean = sum(v.double() * len(d) for v, d in zip(vectors, sites, strict=True)) / len(pooled_data)
    state = layout.state_dict(from_moments(mean.float(), layout, statistics))
    assert torch.allclose(state["1.running_mean"].double(), pooled_data.mean(0), rtol=1e-5)
    assert torch.allclose(
        state["1.running_var"].double(), pooled_data.var(0, correction=0), rtol=1e-5
    )


def test_moments_and_back_change_nothing_else() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    module[1].running_mean.fill_(2)
    layout, statistics = Layout.of(module), statistic_names(module)
    vector = layout.read(module)
    before = vector.clone()
    moments = to_moments(vector, layout, statistics)
    assert torch.equal(vector, before)
    assert torch.equal(moments[layout.shared], before[layout.shared])
    assert layout.state_dict(moments)["1.running_var"].eq(5).all()
    assert torch.equal(from_moments(moments, layout, statistics), before)
    assert torch.equal(to_moments(vector, layout, ()), before)


def test_a_variance_made_negative_by_rounding_is_zero() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1))
    layout, statistics = Layout.of(module), statistic_names(module)
    module[0].running_mean.fill_(3)
    module[0].running_var.fill_(8.9999)
    state = layout.state_dict(from_moments(layout.read(module), layout, statistics))
    assert state["0.running_var"].item() == 0


def test_personal_statistics_are_left_out() -> None:
    from fedsight.core.layout import Kind

    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    layout = Layout.of(module).rekind(lambda name, kind: Kind.PERSONAL if "1." in name else kind)
    travelling = layout.read(module)[layout.travelling]
    assert torch.equal(to_moments(travelling, layout, statistic_names(module)), travelling)


def test_a_group_norm_learns_where_nothing_before_it_does() -> None:
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(2, 8), torch.randn(4, 8, 6, 6)
    expected = torch.autograd.grad(norm(x).pow(3).sum(), list(norm.parameters()))
    for _ in range(2):
        guard_group_norms(norm)
    assert len(norm._forward_pre_hooks) == 1
    channels_last = x.contiguous(memory_format=torch.channels_last)
    # in PyTorch 2.11 an unguarded norm ends the process here
    found = torch.autograd.grad(norm(channels_last).pow(3).sum(), list(norm.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other)
    with torch.no_grad():
        assert norm(channels_last).is_contiguous(memory_format=torch.channels_last)
