"""A model is a layout and a vector: nothing is lost, nothing travels by accident."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.layout import Kind, Layout


class Odd(nn.Module):
    """A 4-D weight, BatchNorm with an integer counter, a tied weight, a scalar, a bare buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5))
        self.norm = nn.BatchNorm2d(8)
        self.embed = nn.Linear(6, 4, bias=False)
        self.decode = nn.Linear(6, 4, bias=False)
        self.decode.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("grid", torch.arange(3.0), persistent=False)


@pytest.fixture
def odd() -> Odd:
    torch.manual_seed(0)
    return Odd()


def counting(layout: Layout) -> Tensor:
    return torch.arange(layout.size, dtype=torch.float32)


def test_layout_covers_every_parameter_and_statistic_once_without_gaps(odd: Odd) -> None:
    layout = Layout.of(odd)
    assert [(e.start, e.stop) for e in layout.entries] == [
        (start, start + e.size)
        for e, start in zip(
            layout.entries, [0, *(e.stop for e in layout.entries[:-1])], strict=True
        )
    ]
    assert {e.name: e.kind for e in layout.entries} == {
        "conv.weight": Kind.SHARED,
        "conv.bias": Kind.SHARED,
        "norm.weight": Kind.SHARED,
        "norm.bias": Kind.SHARED,
        "embed.weight": Kind.SHARED,  # tied: once
        "scale": Kind.SHARED,
        "norm.running_mean": Kind.BUFFER,
        "norm.running_var": Kind.BUFFER,
    }
    assert layout.size == 8 * 3 * 15 + 8 + 16 + 24 + 1 + 16
    assert layout.length(Kind.SHARED) == layout.shared.stop == layout.buffer.start
    assert layout.travelling.stop == layout.buffer.stop == layout.personal.start == layout.size


def test_bound_model_and_vector_are_one_memory(odd: Odd) -> None:
    layout = Layout.of(odd)
    vector = layout.read(odd)
    layout.bind(odd, vector)
    assert torch.equal(layout.read(odd), vector)
    vector.copy_(counting(layout))
    assert torch.equal(layout.read(odd), counting(layout))
    with torch.no_grad():
        odd.scale.fill_(-7)
    entry = next(e for e in layout.entries if e.name == "scale")
    assert vector[entry.start] == -7


def test_convolutions_lie_channels_last_and_are_views(odd: Odd) -> None:
    layout = Layout.of(odd)
    vector = counting(layout)
    layout.bind(odd, vector)
    weight = odd.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    entry = next(e for e in layout.entries if e.name == "conv.weight")
    flat = vector[entry.start : entry.stop].view(8, 3, 5, 3)  # O, H, W, I
    assert weight[1, 2, 0, 4] == flat[1, 0, 4, 2]


def test_binding_keeps_tied_weights_tied(odd: Odd) -> None:
    layout = Layout.of(odd)
    layout.bind(odd, counting(layout))
    assert odd.decode.weight is odd.embed.weight
    assert odd.decode.weight.data_ptr() == odd.embed.weight.data_ptr()


def test_integer_and_unsaved_buffers_stay_where_they_are(odd: Odd) -> None:
    counter, grid = odd.norm.num_batches_tracked, odd.grid
    layout = Layout.of(odd)
    layout.bind(odd, counting(layout))
    assert odd.norm.num_batches_tracked is counter
    assert odd.grid is grid
    assert not {"norm.num_batches_tracked", "grid"} & {e.name for e in layout.entries}


def test_state_dict_and_vector_are_inverse(odd: Odd) -> None:
    layout = Layout.of(odd)
    vector = counting(layout)
    state = layout.state_dict(vector)
    assert all(value.is_contiguous() for value in state.values())
    assert torch.equal(layout.vector(state), vector)
    state["scale"].fill_(9)
    assert vector[-17] != 9  # copies, not views
    fresh = Odd()
    fresh.load_state_dict(layout.state_dict(vector), strict=False)
    assert torch.equal(layout.read(fresh), vector)


def test_vector_of_a_real_state_dict_equals_what_is_read_from_the_model(odd: Odd) -> None:
    layout = Layout.of(odd)
    assert torch.equal(layout.vector(odd.state_dict()), layout.read(odd))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("norm.running_var"), "'norm.running_var' is missing"),
        (
            lambda s: s.update({"conv.bias": torch.zeros(9)}),
            r"'conv.bias' has shape \(9,\); the model needs \(8,\)",
        ),
    ],
)
def test_state_that_does_not_fit_names_the_tensor(odd: Odd, spoil, message: str) -> None:
    layout = Layout.of(odd)
    state = dict(odd.state_dict())
    spoil(state)
    with pytest.raises(ModelError, match=message):
        layout.vector(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_refused_by_name(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(dtype))
    with pytest.raises(ModelError, match=r"'1\.weight' is torch\.\w+, not float32"):
        Layout.of(model)


NAMES = [e.name for e in Layout.of(Odd()).entries]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(list(Kind))))
def test_with_any_kinds_what_travels_is_a_prefix_and_no_value_is_lost(
    kinds: dict[str, Kind],
) -> None:
    model = Odd()
    before = Layout.of(model)
    layout = before.rekind(lambda name, kind: kinds.get(name, kind))
    order = [e.kind for e in layout.entries]
    assert order == sorted(order, key=list(Kind).index)
    assert all(
        (e.stop <= layout.travelling.stop) == (e.kind in (Kind.SHARED, Kind.BUFFER, Kind.MOVED))
        for e in layout.entries
    )
    assert all(
        (e.stop <= layout.sent.stop) == (e.kind in (Kind.SHARED, Kind.BUFFER))
        for e in layout.entries
    )
    assert layout.moved == slice(layout.sent.stop, layout.travelling.stop)
    assert layout.size == before.size
    assert layout.shared.stop == layout.length(Kind.SHARED)
    assert layout.personal.stop - layout.personal.start == layout.length(Kind.PERSONAL)
    assert layout.frozen == slice(layout.size - layout.length(Kind.FROZEN), layout.size)
    assert layout.kept == slice(layout.personal.start, layout.frozen.stop)
    vector = counting(before)
    moved = layout.vector(before.state_dict(vector))
    assert all(
        torch.equal(a.view(vector), b.view(moved))
        for a in before.entries
        for b in layout.entries
        if a.name == b.name
    )


def test_kind_of_sees_the_kind_so_far(odd: Odd) -> None:
    seen: dict[str, Kind] = {}

    def note(name: str, kind: Kind) -> Kind:
        seen[name] = kind
        return kind

    layout = Layout.of(odd)
    assert layout.rekind(note) == layout
    assert seen == {e.name: e.kind for e in layout.entries}


def test_digest_tells_names_shapes_and_kinds_apart(odd: Odd) -> None:
    layout = Layout.of(odd)
    assert layout.digest() == Layout.of(Odd()).digest()
    others = [
        layout.rekind(lambda n, k: Kind.PERSONAL if n == "scale" else k),
        Layout.of(nn.Linear(2, 3)),
        Layout.of(nn.Linear(3, 2)),
        Layout.of(nn.Sequential(nn.Linear(2, 3))),
    ]
    assert len({layout.digest(), *(other.digest() for other in others)}) == 5


def test_model_without_parameters_has_an_empty_layout() -> None:
    layout = Layout.of(nn.ReLU())
    assert layout.size == 0
    assert layout.read(nn.ReLU()).shape == (0,)
